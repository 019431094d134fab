"""Samplers of a model: the latents that they are fitted to, their files, and both scripts' --sampler."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from vaegan import samplers, sampling, second_stage
from vaegan.config import Config, ConfigError, DataConfig, TrainConfig
from vaegan.evaluation.sources import run_source
from vaegan.mixture import fit_mixture
from vaegan.model import VAEGAN
from vaegan.samplers import fit_sampler, open_sampler, posterior_latents, sampler_of, save_sampler

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
TINY = ("--extractor", "tiny_extractor:build", "--device", "cpu")


def write_run(folder: Path, source: Path, seed: int = 0, **settings) -> Path:
    torch.manual_seed(seed)
    model = VAEGAN(**{"image_size": 8, "channels": 1, "latent_dim": 3, "width": 4} | settings)
    with torch.no_grad():
        for parameter in model.parameters():  # an untrained network's latents and images are all alike
            parameter.add_(0.2 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    config = Config(
        data=DataConfig(source=str(source), image_size=8, channels=1, val_fraction=0.5),
        train=TrainConfig(steps=1),
    )
    (folder / "config.yaml").write_text(yaml.safe_dump(config.as_dict()))
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory, image_folder) -> Path:
    """A folder of runs: a VAE, a deterministic autoencoder and a GAN."""
    folder = tmp_path_factory.mktemp("runs")
    write_run(folder / "vae", image_folder)
    write_run(folder / "autoencoder", image_folder, variational=False)
    write_run(folder / "gan", image_folder, encoder=False)
    return folder


@pytest.fixture
def runs(trained, tmp_path, monkeypatch) -> Path:
    """A copy of them in the working directory. Second stages are fitted in few steps."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(samplers, "fit_second_stage", lambda z, seed: second_stage.fit_second_stage(z, seed, steps=30))
    return Path(shutil.copytree(trained, tmp_path / "runs"))


@pytest.fixture
def script(monkeypatch, capsys):
    """A script called with arguments: what it printed."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    threads = torch.get_num_threads()

    def call(name: str, *arguments) -> str:
        spec = importlib.util.spec_from_file_location(f"{name}_script", SCRIPTS / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        capsys.readouterr()
        module.main()
        return capsys.readouterr().out

    yield call
    torch.set_num_threads(threads)


def test_posterior_latents_are_draws_of_the_posterior(runs):
    model, source = VAEGAN.from_pretrained(runs / "vae"), run_source(runs / "vae", "train")
    z, again, other = (posterior_latents(model, source, seed) for seed in (0, 0, 1))
    images = torch.stack([source.batch(i, i + 1)[0] for i in range(len(source))])
    mu, logvar = model.encode(images / 127.5 - 1)
    eps = (z - mu) / (0.5 * logvar).exp()
    assert z.shape == (48, 3) and torch.equal(z, again) and not torch.equal(z, other)
    assert eps.mean().abs() < 0.3 and abs(eps.std() - 1) < 0.25 and not z.requires_grad
    model, source = VAEGAN.from_pretrained(runs / "autoencoder"), run_source(runs / "autoencoder", "train")
    assert torch.allclose(posterior_latents(model, source), model.encode(images / 127.5 - 1)[0], atol=1e-5)


def test_of_a_conditional_model_the_prior_means_are_taken_off(tmp_path, image_folder):
    for i, file in enumerate(sorted(image_folder.iterdir())):
        (tmp_path / "images" / str(i % 2)).mkdir(parents=True, exist_ok=True)
        shutil.copy(file, tmp_path / "images" / str(i % 2))
    run = write_run(tmp_path / "run", tmp_path / "images", classes=2, class_names=["0", "1"])
    model, source = VAEGAN.from_pretrained(run), run_source(run, "train")
    before = posterior_latents(model, source)
    shift = torch.tensor([[1.0, 2, 3], [-4, 5, 6]])
    model.prior_means.weight.data += shift
    assert torch.allclose(before - posterior_latents(model, source), shift[source.labels], atol=1e-5)
    sampler, _ = fit_sampler("mixture", before)
    y = torch.tensor([0, 1, 1])
    expected = model.decode(sampler(3, 7) + model.prior_means(y), y)
    assert torch.allclose(model.sample(3, seed=7, sampler=sampler, labels=y), expected, atol=1e-6)


@pytest.mark.parametrize("name", samplers.KINDS)
def test_files_give_back_every_bit(runs, name):
    sampler, about = fit_sampler(name, torch.randn(60, 3) * 5)
    file = save_sampler(runs / "vae", sampler, about)
    again = open_sampler(runs / "vae", name)
    assert file == runs / "vae" / "samplers" / f"{name}.safetensors" and os.listdir(file.parent) == [file.name]
    assert again.manifest == sampler.manifest and again.name == name
    assert torch.equal(again(20, 3, 5), sampler(20, 3, 5))
    model = VAEGAN.from_pretrained(runs / "vae")
    assert torch.allclose(model.sample(4, seed=1, sampler=again), model.decode(sampler(4, 1)))
    described = samplers._metadata(file, file.read_bytes())
    assert {"model", "latents", "held_out", "seed", "nats", "nats_prior", "torch"} <= described.keys()
    assert described["latents"] == "54" and float(described["nats"]) > float(described["nats_prior"])


def damage(file: Path, how: str) -> None:
    data, tensors = file.read_bytes(), load_file(file)
    metadata = {"fitted": json.dumps(samplers._metadata(file, data))}
    if how in ("truncated", "no header", "foreign"):
        file.write_bytes({"truncated": data[:-20], "no header": data[:40], "foreign": b"GIF89a" * 50}[how])
    elif how == "bare":
        save_file(tensors, file)
    elif how == "a missing tensor":
        save_file(dict(list(tensors.items())[1:]), file, metadata)
    elif how == "fewer latents":
        save_file({k: (v[..., :2] if v.ndim else v).contiguous() for k, v in tensors.items()}, file, metadata)
    else:
        bad = {"not finite": lambda v: v * torch.nan, "another type": lambda v: v.half()}[how]
        save_file({k: bad(v) for k, v in tensors.items()}, file, metadata)


HOW = ("truncated", "no header", "foreign", "bare", "a missing tensor", "fewer latents", "not finite", "another type")


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", samplers.KINDS)
def test_damaged_and_foreign_files_are_one_line(runs, script, name, how):
    z = torch.randn(60, 3)
    sampler = fit_mixture(z, 2) if name == "mixture" else second_stage.fit_second_stage(z, steps=2, width=5)
    file = save_sampler(runs / "vae", sampler)
    damage(file, how)
    for call in (lambda: open_sampler(runs / "vae", name), lambda: script("sample", "runs/vae", "--sampler", name)):
        with pytest.raises(ConfigError, match="does not hold the sampler of its name") as caught:
            call()
        assert "\n" not in str(caught.value) and f"{name}.safetensors" in str(caught.value)
    assert not Path("samples.png").exists()


def test_one_kind_is_not_taken_for_the_other(runs):
    file = save_sampler(runs / "vae", fit_mixture(torch.randn(60, 3), 2))
    file.rename(file.with_name("second_stage.safetensors"))
    with pytest.raises(ConfigError, match="it is a mixture"):
        open_sampler(runs / "vae", "second_stage")
    with pytest.raises(ConfigError, match="holds no samplers/mixture.safetensors: fit it with sample.py"):
        open_sampler(runs / "vae", "mixture")
    with pytest.raises(ConfigError, match="only mixture and second_stage are files, got 'prior'"):
        open_sampler(runs / "vae", "prior")


def test_a_sampler_of_other_weights_is_fitted_anew(runs, script, caplog, image_folder):
    caplog.set_level("INFO", "vaegan")
    script("sample", "runs/vae", "--sampler", "mixture", "--out", "a.png")
    file = Path("runs/vae/samplers/mixture.safetensors")
    first = file.read_bytes()
    assert "mixture fitted to 44 latents of runs/vae train" in caplog.text
    caplog.clear()
    script("sample", "runs/vae", "--sampler", "mixture", "--out", "b.png")
    assert not caplog.records and file.read_bytes() == first
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()
    write_run(runs / "vae", image_folder, seed=1)  # trained on
    with pytest.raises(ConfigError, match="was fitted to other weights"):
        open_sampler("runs/vae", "mixture")
    script("sample", "runs/vae", "--sampler", "mixture", "--out", "b.png")
    assert "was fitted to other weights than the model's: it is fitted anew" in caplog.text
    assert file.read_bytes() != first and open_sampler("runs/vae", "mixture")


@pytest.mark.parametrize("name", samplers.KINDS)
def test_every_kind_of_sample_is_drawn_from_it(runs, script, name):
    script("sample", "runs/vae", "--sampler", name, "--images", 5, "--out", "five", "--batch-size", 2)
    script("sample", "runs/vae", "--sampler", name, "--rows", 1, "--columns", 5)
    script("sample", "runs/vae", "--sampler", name, "--interpolate", "--steps", 2)
    script("sample", "runs/vae", "--sampler", name, "--interpolate", 3, 4, "--steps", 2, "--out", "numbers.png")
    model, sampler = VAEGAN.from_pretrained("runs/vae"), open_sampler("runs/vae", name)
    expected = sampling.to_uint8(model.sample(5, sampler=sampler))
    files = [torch.from_numpy(np.array(Image.open(f"five/{i:08d}.png"))) for i in range(5)]
    assert (torch.stack(files)[:, None].int() - expected.int()).abs().max() <= 1
    assert (expected.int() - sampling.to_uint8(model.sample(5)).int()).abs().max() > 1
    for file, which in (("samples", range(5)), ("interpolation", (0, 1)), ("numbers", (3, 4))):
        shown = torch.from_numpy(np.array(Image.open(f"{file}.png"))).int()
        wanted = sampling.grid(expected[list(which)], len(which))[0].int()
        assert (shown - wanted).abs().max() <= 1, file


def test_a_deterministic_autoencoder_is_sampled(runs, script):
    for name in samplers.KINDS:
        script("sample", "runs/autoencoder", "--sampler", name, "--out", f"{name}.png")
        assert Path(f"{name}.png").exists()
    for flags in ([], ["--sampler", "prior"]):
        with pytest.raises(ConfigError, match="without a prior to sample from: use --sampler mixture or second_stage"):
            script("sample", "runs/autoencoder", *flags)
    script("fid", "gen", "runs/autoencoder", "--sampler", "all", "--num-samples", 20, "--no-floor", "--no-cache", *TINY)
    assert names() == ["runs/autoencoder (mixture)", "runs/autoencoder (second_stage)"]
    with pytest.raises(ConfigError, match="without a prior"):
        script("fid", "gen", "runs/autoencoder", "--sampler", "prior", "mixture", "--no-cache", *TINY)


def names() -> list[str]:
    return [result["name"] for result in json.loads(Path("evaluation/report.json").read_text())]


def test_a_table_of_distances_by_sampler(runs, script, monkeypatch):
    from vaegan.evaluation import evaluate

    passes, extract = [], evaluate.extract
    monkeypatch.setattr(evaluate, "extract", lambda *a, **k: passes.append(a[0].name) or extract(*a, **k))
    flags = ("--num-samples", 30, "--batch-size", 8, "--no-cache", *TINY)
    printed = script("fid", "gen", "runs/vae", "runs/gan", "--sampler", "all", *flags)
    wanted = [*(f"runs/vae ({name})" for name in samplers.NAMES), "runs/gan (prior)"]
    assert names() == wanted and all(f"| {name} " in printed for name in wanted)
    assert passes.count("runs/vae val") == 1 and passes.count("samples") == 4  # the reference is measured once
    results = {result["name"]: result for result in json.loads(Path("evaluation/report.json").read_text())}
    assert [of["protocol"]["sampler"] for of in results.values()] == [*samplers.NAMES, "prior"]
    mixture = results["runs/vae (mixture)"]
    assert mixture["protocol"]["sampler weights"] == open_sampler("runs/vae", "mixture").manifest
    assert len({of["protocol"]["images"] for of in results.values()}) == 4
    assert len({json.dumps(of["figures"]) for of in results.values()}) == 4
    script("fid", "gen", "runs/vae", "--sampler", "mixture", *flags)
    assert json.loads(Path("evaluation/report.json").read_text())[0]["figures"] == mixture["figures"]
    script("fid", "gen", "runs/vae", *flags)
    assert names() == ["runs/vae"]
    assert (
        json.loads(Path("evaluation/report.json").read_text())[0]["figures"] == results["runs/vae (prior)"]["figures"]
    )


def test_exported_folders_use_what_was_fitted_and_fit_nothing(runs, script):
    script("sample", "runs/vae", "--sampler", "mixture")
    shutil.copytree("runs/vae", "exported")
    Path("exported/config.yaml").unlink()
    script("sample", "exported", "--sampler", "mixture", "--out", "exported.png")
    assert Path("exported.png").read_bytes() == Path("samples.png").read_bytes()
    with pytest.raises(ConfigError, match="no config.yaml, .*: give the run folder, or copy samplers/ from there"):
        script("sample", "exported", "--sampler", "second_stage")
    with pytest.raises(ConfigError, match="was trained as a GAN, without encoder"):
        script("sample", "runs/gan", "--sampler", "mixture")
    for flags in (["--reconstruct", "a.png"], ["--interpolate", "a.png", "b.png"]):
        with pytest.raises(ConfigError, match="--sampler mixture is for samples, and none are drawn"):
            script("sample", "runs/vae", "--sampler", "mixture", *flags)


def test_what_cannot_be_saved_is_used(runs, script, caplog):
    (runs / "vae" / "samplers").write_text("no folder")
    script("sample", "runs/vae", "--sampler", "mixture")
    assert "it is not kept for the next time" in caplog.text and Path("samples.png").exists()


def test_the_choices_of_both_scripts_are_the_samplers(script, capsys):
    assert set(samplers.NAMES) == {"prior", "mixture", "second_stage"}
    for name, choices in (("sample", samplers.NAMES), ("fid", (*samplers.NAMES, "all"))):
        with pytest.raises(ConfigError) as caught:
            script(name, *(["gen"] if name == "fid" else []), "runs/vae", "--sampler", "gaussian")
        assert all(choice in str(caught.value) for choice in choices)


def test_two_processes_draw_what_one_does(runs, script):
    """The first one fits; the folder cannot be written, so that the other has it from the first."""
    (runs / "vae" / "samplers").write_text("no folder")
    script("sample", "runs/vae", "--sampler", "mixture", "--images", 20, "--batch-size", 4, "--out", "one.zip")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [SCRIPTS / "sample.py", "runs/vae", "--sampler", "mixture", "--images", "20", "--batch-size", "4"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launcher, *command, "--out", "two.zip"], capture_output=True, text=True, env=environment, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert Path("two.zip").read_bytes() == Path("one.zip").read_bytes()


def test_without_a_fit_nothing_is_loaded(runs):
    assert sampler_of("nowhere", "prior", VAEGAN.from_pretrained("runs/vae")) is None
    with pytest.raises(ConfigError, match="only mixture and second_stage are fitted, got 'normal'"):
        fit_sampler("normal", torch.randn(30, 2))
