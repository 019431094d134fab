"""Hostile files on every path that loads what somebody else may have written: nothing of them runs, nothing hangs, memory
stays, and the error is the one that the path promises."""

import contextlib
import functools
import hashlib
import importlib.util
import io
import json
import pickle
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import hostile_payloads
import numpy as np
import pytest
import torch
import yaml
from hostile_payloads import SCRIPT_PAYLOAD
from PIL import Image

from vaegan import cli
from vaegan.config import ConfigError
from vaegan.evaluation import evaluate, statistics_file, weights
from vaegan.evaluation.features import load_extractor
from vaegan.evaluation.similarity import similarities
from vaegan.evaluation.sources import open_source
from vaegan.model import VAEGAN
from vaegan.training import checkpoint

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
SMALL = {"image_size": 8, "channels": 1, "latent_dim": 3, "width": 4}
REFUSED = (ConfigError, checkpoint.DamagedCheckpoint)
MOST_SECONDS, MOST_BYTES = 20, 200 << 20
UNIX = pytest.mark.skipif(sys.platform == "win32", reason="signals and shells of Unix")


@pytest.fixture(scope="module")
def marker(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("marker") / "executed"


@pytest.fixture(scope="module")
def payloads(marker) -> dict[str, bytes]:
    return hostile_payloads.all_of(marker)


# --- what each path is given ---


def resealed(folder: Path, name: str, data: bytes) -> Path:
    """A checkpoint of step 1 with one file replaced, and with a manifest that vouches for it."""
    path = checkpoint.save(folder, 1, {"model": {"a": torch.zeros(2)}}, {"step": 1})
    (path / name).write_bytes(data)
    if name != checkpoint.MANIFEST:
        sums = {
            f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in path.iterdir() if f.name != checkpoint.MANIFEST
        }
        (path / checkpoint.MANIFEST).write_text(json.dumps(sums))
    return path


def checkpoint_file(name: str):
    return lambda folder, data: checkpoint.load(resealed(folder, name, data))


def newest_checkpoint(folder: Path, data: bytes):
    resealed(folder, "model.safetensors", data)
    checkpoint.load_latest(folder)


def model_file(name: str):
    def load(folder: Path, data: bytes):
        VAEGAN(**SMALL).save_pretrained(folder)
        (folder / name).write_bytes(data)
        VAEGAN.from_pretrained(folder)

    return load


def model_of_pickles(folder: Path, data: bytes):
    """As a clone of a Hub repository of the old kind."""
    VAEGAN(**SMALL).save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    for name in ("pytorch_model.bin", "model.pt", "model.safetensors.index.json", "modeling_vaegan.py", "__init__.py"):
        (folder / name).write_bytes(data)
    VAEGAN.from_pretrained(folder)


def written(name: str, load):
    """What loads one file of that name."""

    def write_and_load(folder: Path, data: bytes):
        (folder / name).write_bytes(data)
        return load(folder / name)

    return write_and_load


def cached_weights(name: str, load):
    """What loads a file from torch's cache."""

    def write_and_load(folder: Path, data: bytes):
        (folder / "checkpoints").mkdir(exist_ok=True)
        (folder / "checkpoints" / name).write_bytes(data)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.hub, "get_dir", lambda: str(folder))
            load()

    return write_and_load


def alexnet():
    found, (note,) = similarities(64, torch.device("cpu"))
    assert "lpips" not in found
    raise ConfigError(note)


def cached_statistics(file: Path):
    if evaluate._from_cache(file) is None:
        raise ConfigError("made anew")


def recipe(file: Path):
    cli.parse_config(["--config", str(file)], file)


one_parser = functools.cache(cli.config_parser)


def flag(folder: Path, data: bytes):
    (folder / "recipe.yaml").write_text("train: {steps: 1}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "config_parser", one_parser)
        cli.parse_config([f"--model.hidden={data.decode('latin-1')}"], folder / "recipe.yaml")


def script(name: str):
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fit_of_a_run(folder: Path, data: bytes):
    (folder / "config.yaml").write_bytes(data)
    script("sample").trained_fit(str(folder))


def images(path: Path):
    source = open_source(str(path))
    source.batch(0, len(source))


def labels(folder: Path, data: bytes):
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / "a.png")
    (folder / "dataset.json").write_bytes(data)
    images(folder)


def named(name: str, *files: str):
    """A set of torchvision's in its place, and no network to fetch it anew."""

    def load(folder: Path, data: bytes):
        for file in files:
            (folder / file).parent.mkdir(exist_ok=True)
            (folder / file).write_bytes(data)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("urllib.request.urlopen", unreachable)
            open_source(name, root=str(folder), split="train")

    return load


def unreachable(*args, **options):
    raise OSError("no network")


CIFAR10 = [
    f"cifar-10-batches-py/{name}" for name in ("batches.meta", "test_batch", *(f"data_batch_{i}" for i in range(1, 6)))
]
PATHS = {
    "checkpoint, tensors": checkpoint_file("model.safetensors"),
    "checkpoint, state": checkpoint_file(checkpoint.STATE),
    "checkpoint, manifest": checkpoint_file(checkpoint.MANIFEST),
    "checkpoint, the newest": newest_checkpoint,
    "model, weights": model_file("model.safetensors"),
    "model, config": model_file("config.json"),
    "model, pickles": model_of_pickles,
    "weights, pth": written("w.pth", weights.read_state),
    "weights, safetensors": written("w.safetensors", weights.read_state),
    "inception": written("w.pth", lambda file: load_extractor("inception", weights=str(file))),
    "efficientnet-lite0": written("w.pt", lambda file: load_extractor("efficientnet-lite0", weights=str(file))),
    "dinov2": written("w.bin", lambda file: load_extractor("dinov2", weights=str(file))),
    "inception in the cache": cached_weights(weights.INCEPTION_FILES[0], lambda: load_extractor("inception")),
    "alexnet in the cache": cached_weights("alexnet-owt-7be5be79.pth", alexnet),
    "TorchScript": written("own.pt", lambda file: load_extractor(str(file))),
    "statistics, npz": written("s.npz", statistics_file.load_statistics),
    "statistics, safetensors": written("s.safetensors", statistics_file.load_statistics),
    "statistics in the cache": written("s.safetensors", cached_statistics),
    "recipe": written("recipe.yaml", recipe),
    "config of a run": written("config.yaml", cli.load_config),
    "fit of a run": fit_of_a_run,
    "flag": flag,
    "image": written("a.png", lambda file: images(file.parent)),
    "zip of images": written("a.zip", images),
    "tar of images": written("a.tar", images),
    "array of images": written("a.npy", images),
    "labels": labels,
    "cifar10": named("cifar10", "cifar-10-python.tar.gz", *CIFAR10),  # which torchvision unpickles, if its MD5 is right
    "svhn": named("svhn", "train_32x32.mat"),
}  # fmt: skip
# What is no error there, having nothing in it that the path asks for.
HARMLESS = {
    ("labels", "json, infinite"), ("labels", "safetensors, no table"),
    *(("fit of a run", name) for name in ("json, infinite", "yaml, evaluation")),
}  # fmt: skip
# What names a TorchScript file asks for it to be run.
LEFT_OUT = {("TorchScript", SCRIPT_PAYLOAD)}


def problem(load, folder: Path, data: bytes, marker: Path, harmless: bool) -> str:
    """What is wrong with how a path takes a payload; empty if all is well."""
    folder.mkdir()
    before = _bytes_from_now()
    try:
        with _alarm(MOST_SECONDS), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            load(folder, data)
        found = "" if harmless else "taken for good"
    except REFUSED as error:
        found = "" if str(error) and all(map(str.isprintable, str(error).splitlines())) else f"said {error}"
    except BaseException as error:
        found = f"{type(error).__name__}: {str(error)[:200]}"
    if marker.exists():
        marker.unlink()
        found += " EXECUTED"
    if before is not None and (rise := _peak_bytes() - before) > MOST_BYTES:
        found += f" took {rise >> 20} MiB"
    shutil.rmtree(folder)
    return found


def _bytes_from_now() -> int | None:
    """Memory in use, the peak being measured from now; None where the system does not tell."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _peak_bytes()
    except OSError:
        return None


def _peak_bytes() -> int:
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) << 10


@contextlib.contextmanager
def _alarm(seconds: int) -> Iterator[None]:
    def ring(*_):
        raise TimeoutError(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@UNIX
@pytest.mark.parametrize("path", PATHS)
def test_hostile_files_are_refused_and_nothing_of_them_runs(path, payloads, marker, tmp_path):
    assert len(payloads) > 60
    found = {
        name: problem(PATHS[path], tmp_path / str(i), data, marker, (path, name) in HARMLESS)
        for i, (name, data) in enumerate(payloads.items())
        if (path, name) not in LEFT_OUT
    }
    assert {name: what for name, what in found.items() if what} == {}


@UNIX
def test_the_payloads_run_where_nothing_keeps_them_from_it(payloads, marker, tmp_path):
    """Else the test above would show nothing."""

    def executed(run) -> bool:
        with contextlib.suppress(Exception), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run()
        done = marker.exists()
        marker.unlink(missing_ok=True)
        return done

    def as_torch(data):
        return lambda: torch.load(io.BytesIO(data), weights_only=False)

    live = {
        name: executed(lambda data=data: pickle.loads(data)) for name, data in hostile_payloads.pickles(marker).items()
    }
    torches = ("torch zip", "torch legacy", "torch zip, a value", "torch legacy, a value", "torch zip, tampered")
    live |= {name: executed(as_torch(payloads[name])) for name in torches}
    arrays = ("npy of objects", "npz of objects")
    live |= {n: executed(lambda n=n: dict(enumerate(_arrays(payloads[n])))) for n in arrays}
    live |= {
        n: executed(lambda n=n: yaml.unsafe_load(payloads[n])) for n in ("yaml, apply", "yaml, a value", "yaml, new")
    }
    live["python"] = executed(lambda: exec(payloads["python"]))
    (tmp_path / "own.pt").write_bytes(payloads[SCRIPT_PAYLOAD])
    live[SCRIPT_PAYLOAD] = executed(lambda: load_extractor(str(tmp_path / "own.pt")))
    assert len(live) > 25 and [name for name, ran in live.items() if not ran] == []


def _arrays(data: bytes) -> list:
    found = np.load(io.BytesIO(data), allow_pickle=True)
    return [found[name] for name in found.files] if hasattr(found, "files") else [found]


@pytest.mark.parametrize(
    "name", ["os:system", "own.pt", "evil:build", "./x.ts", "subprocess:Popen", "INCEPTION", "", 5]
)
def test_a_recipe_cannot_name_code(tmp_path, name):
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump({"train": {"steps": 1}, "evaluation": {"every": 1, "extractor": name}}))
    with pytest.raises(ConfigError) as error:
        cli.parse_config(["--config", str(file)], file)
    assert str(error.value).startswith(f"evaluation.extractor in {file} must be ") and "\n" not in str(error.value)
    assert f"got {name!r}" in str(error.value)


@pytest.mark.parametrize("depth", [9, 60])
def test_tuples_that_take_an_age_to_hash_never_come_to_be_hashed(depth, tmp_path, monkeypatch):
    """torch.load hashes them, each level taking twice as long as the one before: 60 levels would take centuries."""
    (tmp_path / "w.pt").write_bytes(hostile_payloads.pickle_of_nested_tuples(depth))
    monkeypatch.setattr(torch, "load", lambda *a, **k: pytest.fail("it came to torch.load"))
    with pytest.raises(ConfigError, match="w.pt is damaged or no file of weights .ValueError"):
        weights.read_state(tmp_path / "w.pt")


@pytest.mark.parametrize("zipped", [True, False])
def test_what_torch_save_writes_of_weights_is_read(zipped, tmp_path):
    network = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    state = network.state_dict() | {"nested view": torch.arange(12.0).view(3, 4).T[1:]}
    torch.save(state, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
    read = weights.read_state(tmp_path / "w.pt")
    assert read.keys() == state.keys() and all(torch.equal(read[name], state[name]) for name in state)


def test_the_command_line_may_name_code_whatever_the_recipe_says(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text("train: {steps: 1}\nevaluation: {extractor: 'evil:build'}\n")
    config = cli.parse_config(["--evaluation.extractor", "mine:build"], file)
    assert config.evaluation.extractor == "mine:build"
    file.write_text("train: {steps: 1}\nevaluation: {extractor: inception}\n")
    assert cli.parse_config([], file).evaluation.extractor == "inception"


def test_the_names_that_recipes_may_hold_are_those_of_the_extractors():
    from vaegan.evaluation.features import EXTRACTORS
    from vaegan.field_problems import NAMED_EXTRACTORS

    assert NAMED_EXTRACTORS == EXTRACTORS


@pytest.mark.parametrize("name", ["os:system", "os:getcwd", "time:time", "os:nothing", ".x:y", ":", "os:"])
def test_what_is_no_extractor_is_refused(name):
    with pytest.raises(ConfigError, match="extractor: "):
        load_extractor(name)


def config_of(folder: Path, **changes) -> Path:
    VAEGAN(**SMALL).save_pretrained(folder)
    values = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(values))
    return folder


@UNIX
@pytest.mark.parametrize(
    "changes",
    [{"width": 10**6}, {"width": 10**30}, {"image_size": 2**40}, {"latent_dim": 10**12}, {"depth": 10**9, "network": "conv"},
     {"network": "mlp", "hidden": [10**6] * 3}, {"network": "mlp", "hidden": [1] * 10**4}, {"image_size": float("inf")},
     {"max_width": 10**9, "width": 10**9}, {"image_size": 10**400}, {"depth": "os.system"}, {"hidden": {"a": 1}},
     {"network": ["light"]}, {"encoder": {"__class__": "os.system"}}],
)  # fmt: skip
def test_a_config_that_asks_for_a_gigantic_model_is_refused_at_once(tmp_path, changes):
    config_of(tmp_path, **changes)
    before = _bytes_from_now()
    with _alarm(MOST_SECONDS), pytest.raises(ConfigError, match="config.json"):
        VAEGAN.from_pretrained(tmp_path)
    assert before is None or _peak_bytes() - before < MOST_BYTES


@UNIX
@pytest.mark.parametrize(
    "state",
    [{"w": torch.zeros(1).expand(10**11)}, {"w": torch.zeros(1, dtype=torch.float16).expand(10**11)},
     {"w": torch.empty(10**11, device="meta")}, {"w": torch.eye(3).to_sparse()}, {3: torch.zeros(2)}, {"w": 3}],
)  # fmt: skip
def test_tensors_whose_numbers_are_not_in_the_file_are_no_weights(tmp_path, state):
    torch.save(state, tmp_path / "w.pth")
    before = _bytes_from_now()
    with _alarm(MOST_SECONDS), pytest.raises(ConfigError, match="w.pth "):
        weights.read_state(tmp_path / "w.pth")
    assert before is None or _peak_bytes() - before < MOST_BYTES


@UNIX
def test_weights_of_another_kind_do_not_fit(tmp_path):
    network = torch.nn.Linear(2, 2)
    for name, value in (("weight", torch.ones(2, 2, dtype=torch.int64)), ("weight", torch.ones(2, 2) * 1j)):
        with pytest.raises(ConfigError, match="does not fit mine .weight has type"):
            weights.load_state(network, network.state_dict() | {name: value}, "mine", tmp_path)
    with pytest.raises(ConfigError) as error:
        weights.load_state(network, network.state_dict() | {"a\nb" * 1000: torch.ones(1)}, "mine", tmp_path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


@UNIX
@pytest.mark.parametrize(
    "load",
    [weights.hash_of_file, weights.read_state, statistics_file.load_statistics,
     lambda file: load_extractor("inception", weights=str(file)), lambda file: load_extractor("dinov2", weights=str(file)),
     lambda file: cli.load_yaml(file) and 0],
)  # fmt: skip
def test_a_file_without_end_is_refused(load):
    before = _bytes_from_now()
    with _alarm(MOST_SECONDS), pytest.raises(ConfigError, match="/dev/zero"):
        load(Path("/dev/zero"))
    assert before is None or _peak_bytes() - before < MOST_BYTES


def statistics(path: Path, **changes):
    values = {"mean": torch.zeros(3), "covariance": torch.eye(3)} | {
        k: v for k, v in changes.items() if k != "protocol"
    }
    from safetensors.torch import save_file

    save_file(values, path, metadata={"protocol": changes.get("protocol", '{"n": "5"}')})
    return path


@pytest.mark.parametrize(
    "changes",
    [{"protocol": text} for text in ("[]", "5", '{"n": 5}', '{"n": "x"}', '{"n": "-1"}', '{"n": "1e9"}', '{"n": ["5"]}',
     '{"n": "5", "label": {}}', "{}", "[" * 100_000, '{"n": "' + "9" * 5000 + '"}', '{"n": "99999999999999999999"}')]
    + [{"mean": torch.zeros(3, dtype=torch.int32)}, {"covariance": torch.eye(3) * 1j}, {"mean": torch.zeros(0),
        "covariance": torch.zeros(0, 0)}, {"features": torch.full((4, 3), float("nan"))}, {"mean": torch.zeros(3, 1)},
       {"features": torch.zeros(4, 3, dtype=torch.int8)}, {"covariance": torch.eye(3) * float("inf")},
       {"features": torch.zeros(4)}],
)  # fmt: skip
def test_statistics_that_are_none_are_refused(tmp_path, changes):
    file = statistics(tmp_path / "s.safetensors")
    assert statistics_file.load_statistics(file)[0].n == 5
    with pytest.raises(ConfigError) as error:
        statistics_file.load_statistics(statistics(file, **changes))
    assert str(file) in str(error.value) and str(error.value).isprintable() and len(str(error.value)) < 500


# --- through the scripts ---


@pytest.mark.parametrize(
    ("flag", "value"),
    [("--tolerance", v) for v in ("nan", "-1", "x", "-inf", "9" * 5000 + "x")]
    + [("--num-samples", v) for v in ("0", "-1", "9" * 5000, "nan", "1e3", "²")] + [("--seed", "9" * 5000)],
)  # fmt: skip
def test_wrong_flags_of_fid_are_refused(flag, value):
    with pytest.raises(ConfigError, match=flag.strip("-")):
        script("fid").parse(["calc", "a", "b", f"{flag}={value}"])
    assert script("fid").parse(["calc", "a", "b", "--tolerance", "inf"]).tolerance == float("inf")


@pytest.mark.parametrize("data", [[1], "pad", None, {"fit": "crup"}, {"fit": ["pad"]}, {"fit": None}])
def test_how_a_run_fits_is_one_of_the_ways(data, tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"data": data}))
    if isinstance(data, dict):
        with pytest.raises(ConfigError, match="data.fit must be one of crop, pad, stretch"):
            script("sample").trained_fit(str(tmp_path))
    else:
        assert script("sample").trained_fit(str(tmp_path)) == "crop"


def run_script(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, timeout=120)


def refused_in_one_line(done: subprocess.CompletedProcess) -> str:
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and "Traceback" not in done.stderr and len(lines) == 1, done.stderr[-3000:]
    return lines[0]


BRIEF = ("protocol 2", "torch zip, tampered", "endless key")


@UNIX
@pytest.mark.parametrize("names", [BRIEF[:1], pytest.param(None, marks=pytest.mark.soak)])
def test_fid_and_sample_end_with_one_line(names, payloads, marker, tmp_path):
    for name in names or list(payloads)[::6]:  # of each kind some: a process takes seconds
        for file in ("w.pth", "s.npz", "model.safetensors"):
            (tmp_path / file).write_bytes(payloads[name])
        VAEGAN(**SMALL).save_pretrained(tmp_path / "model")
        (tmp_path / "model" / "model.safetensors").write_bytes(payloads[name])
        fid, common = SCRIPTS / "fid.py", ("--device", "cpu", "--cache", tmp_path / "cache")
        for command in (
            (fid, "calc", tmp_path / "s.npz", tmp_path / "s.npz", *common),
            (fid, "bench", "--extractor", "efficientnet-lite0", "--weights", tmp_path / "w.pth", *common),
            (SCRIPTS / "sample.py", tmp_path / "model", "--device", "cpu", "--out", tmp_path / "s.png"),
        ):
            line = refused_in_one_line(run_script(*command))
            assert str(tmp_path) in line and not marker.exists(), (name, line)


@UNIX
@pytest.mark.parametrize("names", [BRIEF, pytest.param(None, marks=pytest.mark.soak)])
def test_a_resume_from_hostile_checkpoints_ends_with_one_line(
    names, payloads, marker, tiny_config, make_trainer, tmp_path
):
    config = tiny_config(train={"steps": 1})
    run = Path(config.runs_dir) / config.name
    make_trainer(config).fit(run)
    (good,) = (run / "checkpoints").iterdir()
    aside = shutil.copytree(good, tmp_path / "good")
    # All that are named at once, as checkpoints of steps of their own; one alone is loaded by the test above.
    shutil.rmtree(good)
    for step, name in enumerate(names or payloads, 2):
        path = shutil.copytree(aside, run / "checkpoints" / f"step_{step:08d}")
        file = ("model.safetensors", checkpoint.STATE, checkpoint.MANIFEST)[step % 3]
        (path / file).write_bytes(payloads[name])
        if file != checkpoint.MANIFEST:
            sums = json.loads((path / checkpoint.MANIFEST).read_text())
            sums[file] = hashlib.sha256(payloads[name]).hexdigest()
            (path / checkpoint.MANIFEST).write_text(json.dumps(sums))
    done = run_script(SCRIPTS / "train.py", "--config", run / "config.yaml", "--resume", run, "--train.steps", "200")
    assert "checkpoints" in refused_in_one_line(done) and not marker.exists()
    assert done.stderr.count("damaged checkpoint passed over") == len(names or payloads)


def test_a_sound_checkpoint_is_found_behind_hostile_ones(payloads, marker, tmp_path, caplog):
    checkpoint.save(tmp_path, 1, {"model": {"a": torch.ones(2)}}, {"step": 1})
    for step, name in enumerate(payloads, 2):
        path = checkpoint.save(tmp_path, step, {"model": {"a": torch.zeros(2)}}, {"step": step})
        (path / "model.safetensors").write_bytes(payloads[name])
        sums = json.loads((path / checkpoint.MANIFEST).read_text())
        sums["model.safetensors"] = hashlib.sha256(payloads[name]).hexdigest()
        (path / checkpoint.MANIFEST).write_text(json.dumps(sums))
    tensors, state = checkpoint.load_latest(tmp_path)
    assert state == {"step": 1} and torch.equal(tensors["model"]["a"], torch.ones(2)) and not marker.exists()
    assert caplog.text.count("damaged checkpoint passed over") == len(payloads)
