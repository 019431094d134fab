"""Damaged checkpoints are found before anything of them is used, named, and passed over for the one before."""

import hashlib
import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from resume_worker import advance, bits, differences, restored
from safetensors.torch import load, save

from vaegan.config import ConfigError
from vaegan.training import checkpoint, run_state

Files = dict[str, bytes]  # of a checkpoint, by name
GROUPS = ("model", "discriminator", "ema", "model_optimizer", "discriminator_optimizer", "statistics")
FIELDS = ("step", "look_due", "skipped", "monitor", "statistics_counts", "ema_updates", "data", "validation", "config")


class Damaged:
    """A run with two checkpoints, of which the newer one can be given other files; and a trainer to resume it."""

    def __init__(self, config, make_trainer, run_dir: Path):
        make_trainer(config).fit(run_dir)
        self.folder, self.trainer = run_dir / "checkpoints", make_trainer(config)
        self.old, self.new = (checkpoint.checkpoint_path(self.folder, step) for step in (6, 12))
        self.older, self.newer = ({f.name: f.read_bytes() for f in path.iterdir()} for path in (self.old, self.new))
        run_state.restore(self.trainer, run_dir)
        self.newest_bits = bits(self.trainer)
        shutil.rmtree(self.new)
        run_state.restore(self.trainer, run_dir)
        self.older_bits = bits(self.trainer)

    def write(self, files: Files, name: str = "") -> Path:
        """Put these in the place of the newer checkpoint, or in a folder of that name."""
        target = self.folder / name if name else self.new
        for path in self.folder.iterdir():
            if path != self.old:
                shutil.rmtree(path)
        target.mkdir()
        for file, data in files.items():
            (target / file).write_bytes(data)
        return target

    def problem(self, caplog, target: Path) -> str:
        """Why what lies in `target` is not found and passed over for the older checkpoint, with both named; or ""."""
        caplog.clear()
        try:
            resumed = run_state.restore(self.trainer, self.folder.parent)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        if not resumed or differences(bits(self.trainer), self.older_bits):
            return "the trainer is not that of the older checkpoint"
        found, instead = (record.getMessage() for record in caplog.records)
        named = found.startswith(f"damaged checkpoint passed over: {target}") and str(self.old) in instead
        return "" if named else f"the log says {caplog.text}"


@pytest.fixture
def damaged(tiny_config, make_trainer, tmp_path):
    return Damaged(tiny_config(train={"val_every": 6, "patience": 9}), make_trainer, tmp_path / "run")


# ---------------------------------------------------------------------- damaged files


def _truncated(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def _flipped(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]


def _overwritten(data: bytes, rng: random.Random) -> bytes:
    at, length = rng.randrange(len(data)), rng.randrange(1, 65)
    return data[:at] + rng.choice([rng.randbytes(length), bytes(length)])[: len(data) - at] + data[at + length :]


def _inserted(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.randbytes(rng.randrange(1, 65)) + data[at:]


BYTES = {"truncated": _truncated, "flipped": _flipped, "overwritten": _overwritten, "inserted": _inserted}


def byte_mutants(files: Files, each: int, rng: random.Random):
    """Yield what was done and the files, `each` times for each file and way."""
    for name, data in files.items():
        for kind, mutate in BYTES.items():
            for i in range(each):
                mutant = data
                while mutant == data or (name == checkpoint.MANIFEST and _same_json(mutant, data)):
                    mutant = mutate(data, rng)
                yield f"{name} {kind} {i}", files | {name: mutant}


def _same_json(one: bytes, two: bytes) -> bool:
    """Whether a manifest says the same, as with a space more."""
    try:
        return json.loads(one) == json.loads(two)
    except ValueError:
        return False


def file_mutants(new: Files, old: Files):
    """Yield what was done and the files: whole files emptied, lost, exchanged or added."""
    for name, data in new.items():
        yield f"{name} emptied", new | {name: b""}
        yield f"{name} removed", {other: d for other, d in new.items() if other != name}
        yield f"{name} of the older", new | {name: old[name]}
        yield f"{name} twice", new | {f"copy of {name}": data}
        for other in new:
            if other != name:
                yield f"{name} is {other}", new | {name: new[other]}
    for name in ("notes.txt", ".hidden", "more.safetensors", "state.json.partial"):
        yield f"{name} added", new | {name: b"{}"}
    yield "all removed", {}
    yield "all but the manifest of the older", old | {checkpoint.MANIFEST: new[checkpoint.MANIFEST]}
    yield "all of the older", old


def test_every_damage_is_found_and_the_checkpoint_before_is_taken(damaged, caplog):
    """Before anything of it is used. At least 500 ways, over all files of a run's newest checkpoint."""
    assert damaged.new.name not in (path.name for path in damaged.folder.iterdir())
    assert set(damaged.newer) == {f"{group}.safetensors" for group in GROUPS} | {"state.json", "manifest.json"}
    mutants = [*byte_mutants(damaged.newer, 13, random.Random(0)), *file_mutants(damaged.newer, damaged.older)]
    problems = {what: problem for what, files in mutants if (problem := damaged.problem(caplog, damaged.write(files)))}
    for name in ("step_00000013", "step_00000007", "step_99999999", "step_00000120"):
        if problem := damaged.problem(caplog, damaged.write(damaged.newer, name)):
            problems[name] = problem
    print(f"{len(mutants) + 4} mutants, {len(problems)} not found")
    assert not problems and len(mutants) >= 500
    damaged.write(damaged.newer)
    assert run_state.restore(damaged.trainer, damaged.folder.parent)  # and the sound one is taken
    assert differences(bits(damaged.trainer), damaged.newest_bits) == []


def test_where_no_checkpoint_is_sound_nothing_is_touched(damaged):
    shutil.rmtree(damaged.old)
    for what, files in byte_mutants(damaged.newer, 1, random.Random(1)):
        damaged.write(files)
        with pytest.raises(ConfigError, match="all 1 checkpoints in .* are damaged: start a new run"):
            run_state.restore(damaged.trainer, damaged.folder.parent)
        assert differences(bits(damaged.trainer), damaged.older_bits) == [], what


# ---------------------------------------------------------------------- sound files that do not fit


def sealed(files: Files) -> Files:
    """With a manifest that agrees."""
    rest = {name: data for name, data in files.items() if name != checkpoint.MANIFEST}
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in rest.items()}
    return rest | {checkpoint.MANIFEST: json.dumps(sums).encode()}


def tensor_mutants(new: Files, other: Files):
    """Yield what was done and the files: groups lost, of other networks, and lacking or changing a tensor."""
    for group in GROUPS:
        file = f"{group}.safetensors"
        tensors = load(new[file])
        name = max(tensors, key=lambda name: tensors[name].numel())
        yield f"no {group}", {f: d for f, d in new.items() if f != file}
        yield f"{group} of a wider network", new | {file: other[file]}
        changed = {
            f"without {name}": {k: v for k, v in tensors.items() if k != name},
            f"with a longer {name}": tensors | {name: tensors[name].repeat(*[2] * tensors[name].ndim)},
            f"with {name} of whole numbers": tensors | {name: tensors[name].long()},
            "with one more": tensors | {"more": torch.zeros(1)},
        }
        yield from ((f"{group} {what}", new | {file: save(values)}) for what, values in changed.items())


def state_mutants(new: Files):
    """Yield what was done and the files: each field lost, and of another kind."""
    state = json.loads(new[checkpoint.STATE])
    for field in FIELDS:
        lost = {k: v for k, v in state.items() if k != field}
        yield f"no {field}", new | {checkpoint.STATE: json.dumps(lost).encode()}
        for value in (None, "12", {}, [], [1, "a"], {"a": None}, 0.5, float("nan"), state["monitor"] | {"best": []}):
            of_the_kind = field in ("data", "validation") and isinstance(value, str | None)  # of other images
            if value != state[field] and not of_the_kind:
                changed = json.dumps(state | {field: value}).encode()
                yield f"{field} is {value!r}", new | {checkpoint.STATE: changed}
    for section in ("model", "data", "objective", "train"):
        config = {k: v for k, v in state["config"].items() if k != section}
        yield f"config without {section}", new | {checkpoint.STATE: json.dumps(state | {"config": config}).encode()}
    for data in (b"null", b"[]", b"12", b"{}", b"[" * 100000):
        yield f"state.json is {data[:9]!r}", new | {checkpoint.STATE: data}


def test_a_sealed_checkpoint_that_does_not_fit_the_run_is_passed_over(
    damaged, tiny_config, make_trainer, tmp_path, caplog
):
    """Its sums are right, but its tensors or its state are not those of this run."""
    wider = {"width": 8, "discriminator_width": 8, "latent_dim": 8}
    wide = make_trainer(tiny_config(model=wider, train={"steps": 2}))
    wide.fit(tmp_path / "wide")
    other = {f.name: f.read_bytes() for f in (tmp_path / "wide" / "checkpoints" / "step_00000002").iterdir()}
    problems = {}
    for what, files in [*tensor_mutants(damaged.newer, other), *state_mutants(damaged.newer)]:
        if sealed(files) != sealed(damaged.newer) and (
            problem := damaged.problem(caplog, damaged.write(sealed(files)))
        ):
            problems[what] = problem
    assert not problems, "\n".join(f"{what}: {problem}" for what, problem in problems.items())


def test_a_checkpoint_that_was_passed_over_does_not_push_out_the_one_that_is_written(
    tiny_config, make_trainer, tmp_path
):
    """With one checkpoint to keep, it is the run's own, and never a damaged one of a later step."""
    config = tiny_config(data={"val_fraction": 0.0}, train={"keep_last": 1, "save_every": 4})
    t = make_trainer(config)
    run_state.save(advance(t, 4), tmp_path)
    late = checkpoint.checkpoint_path(tmp_path / "checkpoints", 99)
    late.mkdir()
    (late / "state.json").write_text("{}")
    restored(make_trainer, config, tmp_path).fit(tmp_path)
    kept = checkpoint.load_latest(tmp_path / "checkpoints")
    assert kept is not None and kept[1]["step"] == 12


def test_a_run_whose_best_checkpoint_is_damaged_ends_all_the_same(tiny_config, make_trainer, tmp_path, caplog):
    t = make_trainer(tiny_config(train={"val_every": 4, "patience": 9}))
    t.monitor.best = {"step": 3, "value": -1.0}  # of which no checkpoint is there
    t.fit(tmp_path)
    assert "step_00000003" in caplog.text and (tmp_path / "model.safetensors").is_file()


@pytest.mark.parametrize(
    "rubbish", [b'{"step": 4, "kl', b"12\n[]\n{}\n", b"\xff\xfe\n", bytes(99), b"[" * 100000], ids=len
)
def test_damaged_curves_hold_up_no_run(tiny_config, make_trainer, tmp_path, rubbish):
    config = tiny_config(train={"log_every": 2, "val_every": 100})
    t = make_trainer(config)
    t.fit(tmp_path)
    whole = (tmp_path / "metrics.jsonl").read_text().splitlines()
    (tmp_path / "metrics.jsonl").write_bytes("\n".join([*whole[:2], ""]).encode() + rubbish)
    shutil.rmtree(checkpoint.checkpoint_path(tmp_path / "checkpoints", 12))
    restored(make_trainer, config, tmp_path).fit(tmp_path)
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == [2, 4, 8, 10, 12, 12]
