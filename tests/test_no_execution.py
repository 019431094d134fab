"""Nothing in the code unpickles, evaluates text or starts a shell: each file's syntax tree is read for every such form.

What names code on purpose is listed with its one place in ONLY_IN.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("vaegan", "scripts", "benchmarks")
FILES = sorted(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py"))

MODULES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "marshal", "shelve", "joblib", "jsonpickle", "pty"}
BUILTINS = {"eval", "exec", "compile", "__import__"}
NAMES = {
    "os.system", "os.popen", "os.execv", "os.execve", "os.execvp", "os.execl", "os.execlp", "os.spawnv", "os.spawnl",
    "os.posix_spawn", "subprocess.getoutput", "subprocess.getstatusoutput", "runpy.run_path", "runpy.run_module",
    "yaml.load", "yaml.load_all", "yaml.full_load", "yaml.full_load_all", "yaml.unsafe_load", "yaml.unsafe_load_all",
    "yaml.Loader", "yaml.UnsafeLoader", "yaml.FullLoader", "yaml.CLoader", "yaml.CUnsafeLoader", "yaml.CFullLoader",
    "torch.hub.load", "torch.package.PackageImporter", "numpy.lib.format.read_array", "builtins.eval",
    "builtins.exec", "builtins.compile", "importlib.util.spec_from_file_location",
}  # fmt: skip
ONLY_IN = {
    "importlib.import_module": ("vaegan/__init__.py", "vaegan/evaluation/own_code.py"),  # own names; module:function
    "torch.jit.load": ("vaegan/evaluation/own_code.py",),  # a TorchScript file that the command line names
    "subprocess": tuple(str(f.relative_to(ROOT)) for f in FILES if f.relative_to(ROOT).parts[0] == "benchmarks"),
}


def forbidden(source: str, place: str = "vaegan/x.py") -> list[str]:
    """Each forbidden form of a source, as `line: form`."""
    tree = ast.parse(source)
    aliases = dict(_aliases(tree))
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    found = []
    for node in ast.walk(tree):
        found += [f"{node.lineno}: {form}" for form in _forms(node, aliases, called, place)]
    return found


def _aliases(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """(name in the file, dotted name of what it is) of all that is imported, wherever."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield (name.asname or name.name.split(".")[0], name.name if name.asname else name.name.split(".")[0])
        elif isinstance(node, ast.ImportFrom):
            for name in node.names:
                yield name.asname or name.name, f"{node.module}.{name.name}"


def _dotted(node: ast.AST, aliases: dict[str, str]) -> str:
    """The full name of an expression, as in torch.load; empty for what has none."""
    if isinstance(node, ast.Name):
        return aliases.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        base = _dotted(node.value, aliases)
        return f"{base}.{node.attr}" if base else ""
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "getattr"
        and len(node.args) > 1
    ):
        name = node.args[1]
        return f"{_dotted(node.args[0], aliases)}.{name.value}" if isinstance(name, ast.Constant) else ""
    return ""


def _forms(node: ast.AST, aliases: dict[str, str], called: set[int], place: str) -> Iterator[str]:
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        yield from _imports(node, place)
    if isinstance(node, ast.keyword):
        yield from _keywords(node)
    if isinstance(node, ast.Call):
        yield from _calls(node, aliases)
    name = _dotted(node, aliases)
    if isinstance(getattr(node, "ctx", None), ast.Store):
        return  # a field of that name
    if name in NAMES or name in BUILTINS or (isinstance(node, ast.Attribute) and MODULES & set(name.split("."))):
        yield name
    if name == "torch.load" and id(node) not in called:
        yield "torch.load, passed on"
    yield from (name for only, places in ONLY_IN.items() if name == only and place not in places)


def _imports(node: ast.Import | ast.ImportFrom, place: str) -> Iterator[str]:
    names = [name.name for name in node.names] if isinstance(node, ast.Import) else [node.module or ""]
    for name in names:
        top = name.split(".")[0]
        if top in MODULES or (top == "subprocess" and place not in ONLY_IN["subprocess"]):
            yield f"import {name}"
    if isinstance(node, ast.ImportFrom):
        whole = [f"{node.module}.{name.name}" for name in node.names]
        yield from (name for name in whole if name in NAMES)
        yield from (name for name in whole if name in ONLY_IN and place not in ONLY_IN[name])
        if any(name.name == "*" for name in node.names):
            yield f"from {node.module} import *"


def _keywords(node: ast.keyword) -> Iterator[str]:
    value = node.value.value if isinstance(node.value, ast.Constant) else None
    wanted = {
        "weights_only": True,
        "allow_pickle": False,
        "shell": False,
        "trust_repo": False,
        "trust_remote_code": False,
    }
    if node.arg in wanted and value is not wanted[node.arg]:
        yield f"{node.arg}={ast.unparse(node.value)}"


def _calls(node: ast.Call, aliases: dict[str, str]) -> Iterator[str]:
    name = _dotted(node.func, aliases)
    if name in ("torch.load", "torch.serialization.load") and not any(k.arg == "weights_only" for k in node.keywords):
        yield f"{name} without weights_only"
    if name == "numpy.load" and not any(k.arg == "allow_pickle" for k in node.keywords):
        yield "numpy.load without allow_pickle=False"
    if name == "importlib.import_module" and isinstance(node.args[0], ast.Constant):
        if str(node.args[0].value).split(".")[0] in MODULES:
            yield f"import {node.args[0].value}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_file_can_execute_what_it_reads(file):
    assert forbidden(file.read_text(encoding="utf-8"), file.relative_to(ROOT).as_posix()) == []


def test_all_files_are_looked_at():
    names = {file.relative_to(ROOT).as_posix() for file in FILES}
    assert {"vaegan/training/checkpoint.py", "vaegan/evaluation/weights.py", "scripts/train.py"} <= names
    for places in list(ONLY_IN.values())[:2]:
        assert set(places) <= names


FORBIDDEN = [
    "import pickle", "import pickle as p", "from pickle import loads", "import cPickle", "import dill", "import marshal",
    "import shelve", "import _pickle", "import joblib", "def f():\n    import pickle", "from pickle import UnpicklingError",
    "import importlib\nimportlib.import_module('pickle')", "import torch\ntorch.serialization.pickle.loads(x)",
    "import torch\ntorch.load(f)", "import torch\ntorch.load(f, weights_only=False)", "import torch as t\nt.load(f)",
    "import torch\ntorch.load(f, weights_only=flag)", "import torch\ntorch.load(f, **{'weights_only': False})",
    "from torch import load\nload(f)", "from torch import load as l\nl(f)", "import torch\nread = torch.load\nread(f)",
    "import torch\nmap(torch.load, files)", "from torch.serialization import load\nload(f)",
    "import torch\ngetattr(torch, 'load')(f)", "import torch\ntorch.hub.load('a/b', 'c')", "load(f, trust_repo=True)",
    "from torch import hub\nhub.load('a/b', 'c')", "import torch\ntorch.jit.load(f)", "from torch import jit\njit.load(f)",
    "import torch.jit\ntorch.jit.load(f)", "anything.read(f, weights_only=False)",
    "eval(x)", "exec(x)", "compile(x, 'f', 'exec')", "map(eval, x)", "run = exec", "import builtins\nbuiltins.eval(x)",
    "__import__('os')", "from builtins import eval as e\ne(x)",
    "import numpy as np\nnp.load(f, allow_pickle=True)", "import numpy as np\nnp.load(f)",
    "import numpy as np\nnp.load(f, allow_pickle=flag)", "from numpy import load\nload(f)",
    "import yaml\nyaml.load(f, Loader=yaml.Loader)", "import yaml\nyaml.load(f, yaml.SafeLoader)",
    "import yaml\nyaml.unsafe_load(f)", "import yaml\nyaml.full_load(f)", "from yaml import unsafe_load\nunsafe_load(f)",
    "import yaml as y\nclass L(y.UnsafeLoader): pass", "from yaml import FullLoader",
    "import subprocess", "from subprocess import run\nrun(c)", "run(c, shell=True)", "run(c, shell=flag)",
    "import os\nos.system(c)", "from os import system\nsystem(c)", "import os as o\no.popen(c)", "import os\nos.execv(a, b)",
    "import importlib\nimportlib.import_module(x)", "from importlib import import_module\nimport_module(x)",
    "from torch import *", "import runpy\nrunpy.run_path(x)",
]  # fmt: skip


@pytest.mark.parametrize("source", FORBIDDEN)
def test_the_search_finds(source):
    assert forbidden(source)


ALLOWED = [
    "model.eval()", "network = network.to(device).eval()", "module.compile(dynamic=False)", "import re\nre.compile('a')",
    "import torch\ntorch.compile(f)", "self.exec()", "import torch\ntorch.load(f, map_location='cpu', weights_only=True)",
    "import numpy as np\nnp.load(f, allow_pickle=False)", "import yaml\nclass L(yaml.SafeLoader): pass",
    "import yaml\nyaml.safe_dump(x)", "from safetensors.torch import load\nload(x)", "import json\njson.load(f)",
    "from safetensors.torch import load_file\nload_file(x)", "text = 'eval(x) import pickle'  # pickle",
    "'''torch.load without weights_only'''", "import os\nos.replace(a, b)", "def evaluate(): pass",
]  # fmt: skip


@pytest.mark.parametrize("source", ALLOWED)
def test_the_search_is_not_fooled(source):
    assert forbidden(source) == []


def test_benchmarks_may_start_processes_without_a_shell():
    assert forbidden("import subprocess\nsubprocess.run(['a'])", "benchmarks/speed.py") == []
    assert forbidden("import subprocess\nsubprocess.run('a', shell=True)", "benchmarks/speed.py")
