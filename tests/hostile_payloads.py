"""Bytes that would leave a file `marker` if they were executed, or that lie about their size, for tests of what loads files."""

import gzip
import io
import json
import marshal
import pickle
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

SCRIPT_PAYLOAD = "torchscript"
_BOMB = 1 << 28  # bytes


class Call:
    """What a pickle holds of it is a call of `function` with `arguments`."""

    def __init__(self, function: Callable, *arguments):
        self._call = (function, arguments)

    def __reduce__(self):
        return self._call


def pickles(marker: Path) -> dict[str, bytes]:
    """By protocol, by function, and by the opcodes of old protocols, which no pickler of today writes."""
    import os
    import subprocess

    command, program = f"touch {marker}", f"open({str(marker)!r}, 'w').close()"
    system, quoted = Call(os.system, command), command.encode()
    found = {f"protocol {p}": pickle.dumps(system, p) for p in range(6)}
    found |= {
        "exec": pickle.dumps(Call(exec, program)),
        "eval": pickle.dumps(Call(eval, program)),
        "open": pickle.dumps(Call(open, str(marker), "w")),
        "subprocess": pickle.dumps(Call(subprocess.check_call, ["touch", str(marker)])),
        "import": pickle.dumps([Call(__import__, "os"), system]),
        "GLOBAL": b"cos\nsystem\n(S'" + quoted + b"'\ntR.",
        "INST": b"(S'" + quoted + b"'\nios\nsystem\n.",
        "OBJ": b"(cos\nsystem\nS'" + quoted + b"'\no.",
        "python 2": b"c__builtin__\neval\n(S'" + program.replace("'", '"').encode() + b"'\ntR.",
        "in a state dict": pickle.dumps({"encoder.mu.bias": system}, 2),
    }
    return found


def torch_files(marker: Path) -> dict[str, bytes]:
    """What torch.save writes of a call, in both of its formats, and archives of its kind that were tampered with."""
    import os

    call, state = Call(os.system, f"touch {marker}"), {"weight": torch.ones(2)}
    payload, good = pickle.dumps(call, 2), _saved(state)
    return {
        "torch zip": _saved(call),
        "torch legacy": _saved(call, _use_new_zipfile_serialization=False),
        "torch zip, a value": _saved(state | {"bias": call}),
        "torch legacy, a value": _saved(state | {"bias": call}, _use_new_zipfile_serialization=False),
        "torch zip, tampered": _zipped({n: payload if n.endswith(".pkl") else d for n, d in _members(good).items()}),
        "torch zip, two pickles": _zipped(_members(good) | {"archive/constants.pkl": payload, "data.pkl": payload}),
        "torch tar": _tarred({"sys_info": payload, "pickle": payload, "storages": payload, "tensors": payload}),
        "zip slip": _zipped({"archive/data.pkl": payload, f"../../..{marker}": b"", str(marker): b""}),
        "zip bomb": _zipped(_members(good) | {"archive/data/0": bytes(_BOMB)}, zipfile.ZIP_DEFLATED),
        SCRIPT_PAYLOAD: _script(marker),
    }


def arrays(marker: Path) -> dict[str, bytes]:
    """NumPy files whose objects are pickles, or whose headers lie."""
    import os

    call = Call(os.system, f"touch {marker}")
    objects = np.empty(1, dtype=object)
    objects[0] = call
    npy, npz = io.BytesIO(), io.BytesIO()
    np.save(npy, objects, allow_pickle=True)
    np.savez(npz, mu=objects, sigma=objects, protocol=objects)
    payload = pickle.dumps(call, 2)
    return {
        "npy of objects": npy.getvalue(),
        "npz of objects": npz.getvalue(),
        "npz of pickles": _zipped({name: payload for name in ("mu.npy", "sigma.npy", "protocol.npy", "mu", "sigma")}),
        "npz that lies": _zipped({name: _npy_header("(200000, 200000)") for name in ("mu.npy", "sigma.npy")}),
        "npz of negatives": _zipped({name: _npy_header("(-1,)") for name in ("mu.npy", "sigma.npy")}),
        "npz of parentheses": _zipped({name: _npy_header("(" * 5000) for name in ("mu.npy", "sigma.npy")}),
        "npz bomb": _zipped({"mu.npy": _npy_header("(5800,)") + bytes(46400), "sigma.npy": _npy_header("(5800, 5800)")
                             + bytes(8 * 5800**2)}, zipfile.ZIP_DEFLATED),
    }  # fmt: skip


def safetensors() -> dict[str, bytes]:
    """Headers that lie."""

    def tensor(shape, begin, end, dtype="F32"):
        return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}

    headers = {
        "overlapping": {"a": tensor([2], 0, 8), "b": tensor([2], 4, 12)},
        "outside": {"a": tensor([200], 0, 800)},
        "negative": {"a": tensor([2], -8, 0)},
        "backwards": {"a": tensor([2], 8, 0)},
        "gigantic": {"a": tensor([2**62, 2**62], 0, 16)},
        "larger than its bytes": {"a": tensor([10**12], 0, 16)},
        "negative shape": {"a": tensor([-4], 0, 16)},
        "unknown type": {"a": tensor([4], 0, 16, "OBJECT")},
        "no table": [1, 2],
        "words for numbers": {"a": {"dtype": "F32", "shape": ["x"], "data_offsets": ["0", "16"]}},
    }
    files = {f"safetensors, {name}": _headed(json.dumps(header).encode()) for name, header in headers.items()}
    twice = (
        b'{"a": ' + json.dumps(tensor([4], 0, 16)).encode() + b', "a": ' + json.dumps(tensor([2], 0, 8)).encode() + b"}"
    )
    return files | {
        "safetensors, twice": _headed(twice),
        "safetensors, no text": _headed(b'{"\xff\xfe": 1}'),
        "safetensors, deep": _headed(b"[" * 100_000),
        "safetensors, huge header": struct.pack("<Q", 2**63) + b"{}",
        "safetensors, header beyond the file": struct.pack("<Q", 90_000_000) + b"{}",
    }


def texts(marker: Path) -> dict[str, bytes]:
    """YAML that makes objects, JSON and YAML that grow, programs."""
    command, program = f"touch {marker}", f"open({str(marker)!r}, 'w').close()"
    levels = "\n".join(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]" for i in range(1, 30))
    yaml = {
        "apply": f"!!python/object/apply:os.system ['{command}']",
        "a value": f"name: !!python/object/apply:os.system ['{command}']",
        "new": f'name: !!python/object/new:tuple [!!python/object/new:map [!!python/name:eval , ["{program}"]]]',
        "name": "data: {source: !!python/name:os.system }",
        "module": "name: !!python/module:os",
        "evaluation": f'evaluation: {{every: 1, extractor: "os:system"}}\nname: "{command}"',
        "laughs": f"l0: &l0 [lol, lol]\n{levels}\nmodel: {{hidden: *l29}}",
        "itself": "model: &a {hidden: [*a, *a]}",
    }
    return {f"yaml, {name}": text.encode() for name, text in yaml.items()} | {
        "json, deep": b"[" * 200_000,
        "json, deep and whole": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
        "json, digits": b'{"n": ' + b"9" * 100_000 + b"}",
        "json, infinite": b'{"n": Infinity, "step": 1e999}',
        "python": f"import os\nos.system({command!r})".encode(),
        "shell": f"#!/bin/sh\n{command}\n".encode(),
        "marshal": marshal.dumps(compile(program, "x", "exec")),
        "gzip bomb": gzip.compress(bytes(_BOMB), 1),
        "endless key": pickle_of_nested_tuples(60),
        "nothing": b"",
        "noise": bytes(np.random.default_rng(0).integers(0, 256, 5000, dtype=np.uint8)),
    }


def all_of(marker: Path) -> dict[str, bytes]:
    return pickles(marker) | torch_files(marker) | arrays(marker) | safetensors() | texts(marker)


def pickle_of_nested_tuples(depth: int) -> bytes:
    """A dict whose key, a tuple of a tuple twice, and so on, takes 2^depth steps to hash."""
    pair = b"K%ch%ch%c\x86q%cs"  # at key i, remembered, a tuple of the last tuple twice
    pairs = b"".join(pair % (i, i, i, i + 1) for i in range(depth))
    return b"\x80\x02}K\xff)q\x00s" + pairs + b"h%cK\x01s." % depth


def _saved(value: object, **options) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream, **options)
    return stream.getvalue()


def _script(marker: Path) -> bytes:
    """A TorchScript file that writes a file when it is loaded."""

    class Writer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.name: str = ""

        @torch.jit.export
        def __getstate__(self):
            return (self.name, self.training)

        @torch.jit.export
        def __setstate__(self, state: tuple[str, bool]):
            self.name = state[0]
            self.training = state[1]
            torch.save(1, self.name)

        def forward(self, x: torch.Tensor):
            return x.mean((2, 3))

    module = Writer()
    module.name = str(marker)
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(module), stream)
    return stream.getvalue()


def _members(archive: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


def _zipped(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression, compresslevel=1) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return stream.getvalue()


def _tarred(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return stream.getvalue()


def _npy_header(shape: str) -> bytes:
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header


def _headed(header: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + bytes(16)
