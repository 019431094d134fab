"""scripts/fid.py: what each command measures and writes, and what it refuses in one line."""

import csv
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vaegan.config import Config, ConfigError, DataConfig, TrainConfig
from vaegan.evaluation import distances, evaluate, statistics_file
from vaegan.evaluation.sources import open_source
from vaegan.model import VAEGAN

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "fid.py"
TINY = ("--extractor", "tiny_extractor:build", "--device", "cpu")
LABEL = "FD[tiny_extractor:build]"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Two folders of images, a run and an exported model."""
    import yaml

    folder = tmp_path_factory.mktemp("fid")
    random = np.random.default_rng(0)
    for name, mean in (("a", 90), ("b", 140)):
        (folder / name).mkdir()
        for i in range(40):
            pixels = random.normal(mean, 30 + i, (16, 16, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i:02d}.png")
    for seed, name in enumerate(("run", "other")):
        torch.manual_seed(seed)
        model = VAEGAN(image_size=16, channels=3, latent_dim=4, width=4)
        with torch.no_grad():
            for parameter in model.decoder.parameters():  # an untrained decoder's images are all alike
                parameter.add_(0.1 * torch.randn(parameter.shape))
        model.save_pretrained(folder / name)
        config = Config(
            data=DataConfig(source=str(folder / "a"), image_size=16, channels=3, val_fraction=0.5),
            train=TrainConfig(steps=1),
        )
        (folder / name / "config.yaml").write_text(yaml.safe_dump(config.as_dict()))
    model.save_pretrained(folder / "exported")
    VAEGAN(image_size=16, channels=3, latent_dim=4, width=4, variational=False).save_pretrained(folder / "autoencoder")
    VAEGAN(image_size=16, channels=3, latent_dim=4, width=4, encoder=False).save_pretrained(folder / "gan")
    return folder


@pytest.fixture
def fid(tmp_path, monkeypatch, capsys):
    """The script called with arguments in an empty working directory: its exit status and what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    spec = importlib.util.spec_from_file_location("fid_script", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    threads = torch.get_num_threads()

    def call(*arguments, extractor=TINY) -> tuple[int, str]:
        cache = () if "--cache" in arguments else ("--cache", str(tmp_path / "cache"))
        monkeypatch.setattr(sys, "argv", ["fid.py", *map(str, arguments), *extractor, *cache])
        capsys.readouterr()
        status = script.main()
        return status, capsys.readouterr().out

    yield call
    torch.set_num_threads(threads)


def report(folder="evaluation") -> dict[str, dict]:
    """{model: its figures} of the report in a folder."""
    return {
        Path(result["name"]).name: result["figures"]
        for result in json.loads((Path(folder) / "report.json").read_text())
    }


def distance(real: Path, fake: Path) -> float:
    from vaegan.evaluation.features import load_extractor

    extractor = load_extractor("tiny_extractor:build")
    a, b = (evaluate.extract(open_source(str(path)), extractor) for path in (real, fake))
    return distances.frechet_distance(a, b)


def test_calc_of_sources_and_statistics_files(fid, data, tmp_path):
    wanted = distance(data / "a", data / "b")
    shutil.make_archive(str(tmp_path / "a"), "zip", data / "a")
    for suffix in ("safetensors", "npz"):
        assert fid("ref", data / "a", "-o", f"a.{suffix}")[0] == 0
    for real in (data / "a", "a.zip", "a.safetensors", "a.npz"):
        status, printed = fid("calc", real, data / "b", "--out", "out")
        assert status == 0 and LABEL in printed and "FID" not in printed.replace(LABEL, "")
        assert report("out")["b"][LABEL] == pytest.approx(wanted, rel=1e-6), real
    assert fid("calc", data / "a", data / "a", "--out", "self")[0] == 0
    assert 0 <= report("self")["a"][LABEL] < 1e-6


def test_one_pass_feeds_all_metrics(fid, data, monkeypatch):
    passes = []
    extract = evaluate.extract
    monkeypatch.setattr(evaluate, "extract", lambda *a, **k: passes.append(a[0].name) or extract(*a, **k))
    fid("calc", data / "a", data / "b", "--out", "out", "--infinity", "--bootstrap", "10")
    figures = report("out")["b"]
    assert len(passes) == 2 and figures["kid_std"] > 0
    assert {
        "precision",
        "recall",
        "f1",
        "density",
        "coverage",
        f"{LABEL}∞",
        f"{LABEL} 2.5 %",
        f"{LABEL} 97.5 %",
    } <= figures.keys()
    fid("calc", data / "a", data / "b", "--out", "again", "--no-cache", "--infinity", "--bootstrap", "10")
    assert report("again") == report("out") and len(passes) == 4


def test_tolerance(fid, data, capsys):
    assert fid("calc", data / "a", data / "b", "--tolerance", "1e6")[0] == 0
    assert fid("calc", data / "a", data / "b", "--tolerance", "1e-6")[0] == 1


def test_statistics_are_read_by_pytorch_fid_and_theirs_by_us(fid, data, tmp_path):
    fid_score = pytest.importorskip("pytorch_fid.fid_score", reason="pytorch-fid is not installed")
    for name in ("a", "b"):
        fid("ref", data / name, "-o", f"{name}.npz")
    with np.load("a.npz") as a, np.load("b.npz") as b:
        product = np.linalg.eigvals(a["sigma"] @ b["sigma"])
        theirs = (
            ((a["mu"] - b["mu"]) ** 2).sum()
            + np.trace(a["sigma"] + b["sigma"])
            - 2 * np.sqrt(product.astype(complex)).real.sum()
        )
        np.savez("bare.npz", mu=a["mu"], sigma=a["sigma"])
    mu, _ = fid_score.compute_statistics_of_path("a.npz", None, 1, 12, "cpu")
    assert mu.shape == (12,)
    # Two files need no extractor.
    status, printed = fid("calc", "bare.npz", "b.npz", "--out", "out", extractor=("--extractor", "missing.pt"))
    assert status == 0 and "bare.npz: unverified" in printed and "b.npz: unverified" not in printed
    assert report("out")["b.npz"][LABEL] == pytest.approx(theirs, rel=1e-6)


def test_unlike_protocols_are_refused(fid, data):
    fid("ref", data / "a", "-o", "clean.safetensors")
    fid("ref", data / "a", "-o", "tf1.safetensors", "--resizer", "tf1")
    with pytest.raises(ConfigError, match="resizer is clean in clean.safetensors and tf1 in tf1.safetensors"):
        fid("calc", "clean.safetensors", "tf1.safetensors")
    with pytest.raises(ConfigError, match="resizer is clean in clean.safetensors and torchmetrics in "):
        fid("calc", "clean.safetensors", data / "a", "--resizer", "torchmetrics")
    np.savez("narrow.npz", mu=np.zeros(3), sigma=np.eye(3))
    with pytest.raises(ConfigError, match="3 and 12 dimensions"):
        fid("calc", "narrow.npz", data / "a")
    Path("cut.safetensors").write_bytes(Path("tf1.safetensors").read_bytes()[:100])
    with pytest.raises(ConfigError, match="cut.safetensors does not hold statistics"):
        fid("calc", "cut.safetensors", data / "a")
    with pytest.raises(ConfigError, match="missing.npz"):
        fid("calc", "missing.npz", data / "a")


def test_gen_of_several_models(fid, data):
    status, printed = fid("gen", data / "run", data / "other", "--num-samples", "30", "--batch-size", "8")
    figures = report()
    assert status == 0 and list(figures) == ["run", "other"] and printed.count("\n| ") >= 3
    for values in figures.values():
        assert {LABEL, "kid", "precision", "recall", "f1", "density", "coverage", "floor"} <= values.keys()
    assert sorted(path.name for path in Path("evaluation").iterdir()) == [
        "plot.png", "report.csv", "report.json", "report.md", "samples.png",
    ]  # fmt: skip
    assert Path("evaluation/report.md").read_text().startswith(printed.split("\nevaluation")[0].strip())
    rows = list(csv.DictReader(Path("evaluation/report.csv").open()))
    assert float(rows[0][LABEL]) == figures["run"][LABEL] and len(rows) == 2
    protocol = json.loads(Path("evaluation/report.json").read_text())[0]["protocol"]
    assert protocol["seed"] == "0" and protocol["n"] == "30" and protocol["reference n"] == "20"
    assert protocol["reference form"] == "16x16x3 crop" and len(protocol["weights"]) == 64


def test_samples_depend_on_seed_and_place_alone(fid, data):
    figures = []
    for arguments in (("--batch-size", "64"), ("--batch-size", "7"), ("--seed", "1")):
        fid("gen", data / "run", "--num-samples", "30", "--no-floor", *arguments)
        figures.append(report()["run"][LABEL])
    assert figures[0] == pytest.approx(figures[1], rel=1e-4) and abs(figures[0] - figures[2]) > 1e-2 * figures[0]


def test_gen_agrees_with_calc_of_the_same_images(fid, data):
    fid("gen", data / "exported", "--reference", data / "b", "--num-samples", "30")
    fid("calc", data / "b", data / "exported", "--num-samples", "30", "--out", "out", "--no-cache")
    limited = report("out")["exported"][LABEL]  # of 30 images of the folder
    fid("ref", data / "b", "-o", "b.safetensors", "--features", "--image-size", "16")
    fid("calc", "b.safetensors", data / "exported", "--num-samples", "30", "--out", "out")
    assert (
        report("out")["exported"] == pytest.approx(report()["exported"], rel=1e-6)
        and limited != report()["exported"][LABEL]
    )
    with pytest.raises(ConfigError, match="exported model: give them with --reference"):
        fid("gen", data / "exported")


def test_recon(fid, data):
    from vaegan.data import to_float

    status, printed = fid("recon", data / "run", data / "other")
    figures = report()["run"]
    assert status == 0 and f"reconstruction {LABEL}" in printed
    assert {f"reconstruction {LABEL}", "psnr", "ssim", "elbo", "bits_per_dim", "kl", "active_units"} <= figures.keys()
    model, images = VAEGAN.from_pretrained(data / "run"), open_source(str(data / "a"))
    fid("recon", data / "exported", "--reference", data / "a", "--batch-size", "9")
    model = VAEGAN.from_pretrained(data / "exported")
    x = to_float(torch.stack(images.batch(0, 40)))
    with torch.no_grad():
        mse = (model.reconstruct(x) - x).square().flatten(1).mean(1)
    assert report()["exported"]["psnr"] == pytest.approx((10 * torch.log10(4 / mse)).mean().item(), rel=1e-5)


def test_models_that_cannot_do_it(fid, data):
    with pytest.raises(ConfigError, match="deterministic autoencoder"):
        fid("gen", data / "autoencoder", "--reference", data / "a")
    with pytest.raises(ConfigError, match="no encoder"):
        fid("recon", data / "gan", "--reference", data / "a")
    assert fid("gen", data / "gan", "--reference", data / "a", "--num-samples", "20")[0] == 0
    assert fid("recon", data / "autoencoder", "--reference", data / "a")[0] == 0
    assert "elbo" not in report()["autoencoder"] and report()["autoencoder"]["psnr"] > 0


def test_odd_images(fid, tmp_path, data):
    odd = tmp_path / "odd"
    odd.mkdir()
    for i, (mode, size) in enumerate(
        [("L", (9, 20)), ("RGBA", (31, 8)), ("P", (16, 16)), ("RGB", (5, 5)), ("1", (64, 40))] * 2
    ):
        Image.effect_noise(size, 60 + i).convert(mode).save(odd / f"{i}.png")
    assert fid("calc", data / "a", odd)[0] == 0
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="empty holds no images"):
        fid("calc", data / "a", tmp_path / "empty")
    (tmp_path / "one").mkdir()
    shutil.copy(data / "a" / "00.png", tmp_path / "one")
    with pytest.raises(ConfigError, match="needs at least 2 images, got 1"):
        fid("calc", data / "a", tmp_path / "one")


def test_one_damaged_file_among_many(fid, data, tmp_path, caplog):
    shutil.copytree(data / "b", tmp_path / "b")
    wanted = distance(data / "a", tmp_path / "b")
    (tmp_path / "b" / "17b.png").write_bytes((data / "b" / "17.png").read_bytes()[:200])
    with pytest.raises(ConfigError, match="17b.png"):
        fid("calc", data / "a", tmp_path / "b")
    for _ in range(2):  # what is skipped is not cached, and told each time
        caplog.clear()
        with caplog.at_level("WARNING"):
            assert fid("calc", data / "a", tmp_path / "b", "--on-bad-image", "skip", "--out", "out")[0] == 0
        assert "1 of 41 images are damaged and were skipped" in caplog.text and "17b.png" in caplog.text
        assert report("out")["b"][LABEL] == pytest.approx(wanted, rel=1e-9)
    protocol = json.loads(Path("out/report.json").read_text())[0]["protocol"]
    assert protocol["n"] == "40"
    for file in (tmp_path / "b").iterdir():
        file.write_bytes(b"")
    with pytest.raises(ConfigError, match="needs at least 2 images, got 0"):
        fid("calc", data / "a", tmp_path / "b", "--on-bad-image", "skip")


def test_changed_images_are_not_taken_from_the_cache(fid, tmp_path, data):
    shutil.copytree(data / "a", tmp_path / "x")
    for name in os.listdir(tmp_path / "x"):  # bitmaps of one size stay of one size, whatever is on them
        Image.open(tmp_path / "x" / name).save(tmp_path / "x" / name.replace("png", "bmp"))
        (tmp_path / "x" / name).unlink()
    fid("calc", data / "b", tmp_path / "x", "--out", "before")
    for file in (tmp_path / "x").iterdir():
        Image.open(data / "b" / f"{file.stem}.png").save(file)
    fid("calc", data / "b", tmp_path / "x", "--out", "after")
    assert report("before")["x"][LABEL] > 0.1 and report("after")["x"][LABEL] < 1e-6


def test_damaged_cache_is_made_anew(fid, data, tmp_path, caplog):
    fid("calc", data / "a", data / "b", "--out", "first")
    for file in (tmp_path / "cache").iterdir():
        file.write_bytes(file.read_bytes()[:50])
    with caplog.at_level("WARNING"):
        fid("calc", data / "a", data / "b", "--out", "second")
    assert caplog.text.count("made anew") == 2 and report("first") == report("second")
    for file in (tmp_path / "cache").iterdir():
        statistics_file.load_statistics(file)


def test_a_cache_that_cannot_be_written_costs_nothing(fid, data, tmp_path, caplog):
    (tmp_path / "cache").write_text("no folder")
    with caplog.at_level("WARNING"):
        assert fid("calc", data / "a", data / "b")[0] == 0
    assert "not kept for the next time" in caplog.text


def test_killed_half_way(fid, data, tmp_path):
    command = [sys.executable, str(SCRIPT), "calc", str(data / "a"), str(data / "b"), *TINY[2:], "--batch-size", "4",
               "--extractor", "tiny_extractor:killed_at_the_thirteenth_batch", "--cache", str(tmp_path / "cache")]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL
    (left,) = (tmp_path / "cache").iterdir()  # the first set was done
    assert statistics_file.load_statistics(left)[0].n == 40
    assert not list(tmp_path.glob("*.json"))


def test_bench(fid, data):
    status, printed = fid("bench", data / "a")
    assert status == 0
    for stage in ("decode", "resize", "resize and extractor", "accumulate", "Fréchet distance, d = 12"):
        assert f"| {stage} | " in printed


def test_help_is_quick_and_complete():
    code = "import runpy, sys; sys.argv = ['fid.py', 'gen', '--help']\ntry: runpy.run_path(%r, run_name='__main__')\nfinally: assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code % str(SCRIPT)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for flag in (
        "--num-samples",
        "--batch-size",
        "--device",
        "--split",
        "--seed",
        "--tolerance",
        "--on-bad-image",
        "--weights",
    ):
        assert flag in done.stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["calc", "a"], "arguments are required: B"),
        (["gne", "runs/x"], "invalid choice: 'gne'"),
        (["gen", "nowhere"], "nowhere is no folder"),
        (["ref", "cifra10", "-o", "x.npz"], "did you mean cifar10"),
        (["ref", "mnist", "-o", "x.pkl", "--num-samples", "2"], "x.pkl must end in .safetensors or .npz"),
        (["calc", "a", "b", "--num-samples", "0"], "must be a whole number"),
        (["calc", "a", "b", "--fit", "pad"], "--channels and --fit need --image-size"),
        (["bench", "mnist", "--extractor", "dinov3"], "did you mean dinov2"),
    ],
)
def test_an_error_is_one_line(fid, arguments, told):
    extractor = () if "--extractor" in arguments else TINY
    with pytest.raises(ConfigError) as error:
        fid(*arguments, extractor=extractor)
    assert told in str(error.value) and "\n" not in str(error.value)


def test_exit_status(tmp_path):
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "calc", "--nonsense"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
