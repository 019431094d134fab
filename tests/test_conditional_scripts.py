"""Conditional models in scripts/sample.py and scripts/fid.py: grids by class, single classes, and the metric of each."""

import csv
import importlib.util
import json
import sys

import numpy as np
import pytest
import torch
import yaml
from conftest import REPOSITORY
from PIL import Image

from vaegan import latents, sampling
from vaegan.config import Config, ConfigError, DataConfig, ModelConfig, TrainConfig
from vaegan.data.decode import decode_file
from vaegan.evaluation import distances, evaluate, features
from vaegan.evaluation.sources import ModelSource, open_source
from vaegan.model import VAEGAN

NAMES, LABEL = ["a", "b", "c"], "FD[tiny_extractor:build]"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A conditional run, its labelled images, the same without labels, and an unconditional model."""
    root, random = tmp_path_factory.mktemp("conditional"), np.random.default_rng(0)
    for i in range(90):
        label = int(random.choice(3, p=(0.5, 0.3, 0.2)))
        pixels = random.normal(60 + 60 * label, 20, (16, 16, 3)).clip(0, 255).astype(np.uint8)
        for file in (root / "images" / NAMES[label] / f"{i:02d}.png", root / "plain" / f"{i:02d}.png"):
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(file)
    for name, classes in (("run", 3), ("unconditional", 0)):
        torch.manual_seed(0)
        shape = {"image_size": 16, "channels": 3, "latent_dim": 4, "width": 4}
        model = VAEGAN(**shape, classes=classes, class_names=NAMES[:classes])
        with torch.no_grad():
            for parameter in [*model.decoder.parameters(), *([model.prior_means.weight] if classes else [])]:
                parameter.add_(0.3 * torch.randn(parameter.shape))
        model.save_pretrained(root / name)
        config = Config(
            data=DataConfig(source=str(root / "images"), image_size=16, channels=3, val_fraction=0.5),
            model=ModelConfig(conditional=bool(classes)), train=TrainConfig(steps=1),
        )  # fmt: skip
        (root / name / "config.yaml").write_text(yaml.safe_dump(config.as_dict()))
    return root


@pytest.fixture
def call(folder, tmp_path, monkeypatch):
    """A script's main function called with arguments in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    threads = torch.get_num_threads()

    def run(script, *arguments):
        spec = importlib.util.spec_from_file_location(f"{script}_script", REPOSITORY / "scripts" / f"{script}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        monkeypatch.setattr(sys, "argv", [f"{script}.py", *map(str, arguments)])
        return module.main()

    yield run
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model(folder):
    return VAEGAN.from_pretrained(folder / "run")


def same(file, expected: torch.Tensor, columns: int) -> None:
    """Up to the rounding of float32, which may depend on the batch's size."""
    written = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)
    assert (written.int() - sampling.grid(expected, columns).int()).abs().max() <= 1


def test_the_grid_has_a_row_a_class(call, folder, model, tmp_path):
    call("sample", folder / "run", "--columns", 4, "--seed", 3, "--batch-size", 5)
    labels = torch.tensor([0] * 4 + [1] * 4 + [2] * 4)
    same(tmp_path / "samples.png", sampling.to_uint8(model.sample(12, 3, labels=labels)), 4)
    call("sample", folder / "run", "--columns", 2, "--rows", 5)
    labels = torch.tensor([0, 0, 1, 1, 2, 2, 0, 0, 1, 1])
    same(tmp_path / "samples.png", sampling.to_uint8(model.sample(10, labels=labels)), 2)


@pytest.mark.parametrize("asked, number", [("b", 1), ("1", 1), ("0", 0)])
def test_a_class_by_number_or_name(call, folder, model, tmp_path, asked, number):
    call("sample", folder / "run", "--class", asked, "--rows", 2, "--columns", 3)
    same(tmp_path / "samples.png", sampling.to_uint8(model.sample(6, labels=number)), 3)


def test_images_of_a_class_and_of_all(call, folder, model, tmp_path):
    call("sample", folder / "run", "--class", "c", "--images", 7, "--batch-size", 4, "--out", "c")
    call("sample", folder / "run", "--images", 7, "--batch-size", 4, "--out", "all")
    for name, expected in (("c", model.sample(7, labels=2)), ("all", model.sample(7))):
        written = torch.stack([decode_file(file, 16, 3, "crop") for file in sorted((tmp_path / name).iterdir())])
        assert (written.int() - sampling.to_uint8(expected).int()).abs().max() <= 1


def test_reconstructions_take_the_class_of_their_folder(call, folder, model, tmp_path):
    files = [sorted((folder / "images" / name).iterdir())[0] for name in NAMES]
    images = torch.stack([decode_file(file, 16, 3, "crop") for file in files])

    def expected(labels):
        return sampling.beside(images, sampling.to_uint8(model.reconstruct(images / 127.5 - 1, labels)))

    call("sample", folder / "run", "--reconstruct", *files)
    same(tmp_path / "reconstructions.png", expected(torch.tensor([0, 1, 2])), 6)
    call("sample", folder / "run", "--reconstruct", *files, "--class", "b")
    same(tmp_path / "reconstructions.png", expected(1), 6)
    call("sample", folder / "run", "--reconstruct", folder / "images", "--rows", 1, "--columns", 2)
    same(tmp_path / "reconstructions.png", expected(0)[:2], 2)
    with pytest.raises(ConfigError, match="plain has no labels.*--class"):
        call("sample", folder / "run", "--reconstruct", folder / "plain")


def test_interpolations_stay_in_their_class(call, folder, model, tmp_path):
    call("sample", folder / "run", "--interpolate", "--rows", 3, "--columns", 4)
    ends = latents.prior(6, 4)
    z = latents.interpolate(ends[0::2], ends[1::2], 4) + model.prior_means.weight[:, None]
    labels = torch.arange(3).repeat_interleave(4)
    same(tmp_path / "interpolation.png", sampling.decode(model, z.flatten(0, 1), 12, labels), 4)
    call("sample", folder / "run", "--interpolate", 3, 5, "--columns", 4, "--class", 2)
    z = latents.interpolate(*(latents.prior(1, 4, 0, i) for i in (3, 5)), 4)[0] + model.prior_means.weight[2]
    same(tmp_path / "interpolation.png", sampling.decode(model, z, 4, 2), 4)
    file = sorted((folder / "images" / "a").iterdir())[0]
    call("sample", folder / "run", "--interpolate", file, file, "--columns", 2, "--class", "a")
    image = decode_file(file, 16, 3, "crop")[None]
    same(
        tmp_path / "interpolation.png", sampling.to_uint8(model.reconstruct(image / 127.5 - 1, 0)).repeat(2, 1, 1, 1), 2
    )


@pytest.mark.parametrize("arguments, message", [
    (("run", "--class", "3"), "--class '3' is none of .*run: give 0 … 2 or a name \\(0 a, 1 b, 2 c\\)"),
    (("run", "--class", "d"), "--class 'd' is none of .*0 a, 1 b, 2 c"),
    (("run", "--class", "-1"), "class"),
    (("run", "--interpolate", "1", "2"), "needs --class"),
    (("unconditional", "--class", "1"), "unconditional is not conditional, and knows no --class 1"),
])  # fmt: skip
def test_wrong_classes_are_refused_in_one_line(call, folder, arguments, message):
    name, *rest = arguments
    with pytest.raises(ConfigError, match=message) as error:
        call("sample", folder / name, *rest)
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------------- the metric of each class


def gen(call, *arguments):
    tiny = ("--extractor", "tiny_extractor:build", "--device", "cpu", "--no-cache", "--no-floor")
    return call("fid", "gen", *arguments, *tiny, "--num-samples", 60, "--batch-size", 16)


def test_the_metric_of_each_class_is_that_of_its_images_alone(call, folder, model, tmp_path, capsys):
    assert gen(call, folder / "run", "--per-class", "--reference", folder / "images") == 0
    result = json.loads((tmp_path / "evaluation" / "report.json").read_text())[0]
    extractor = features.load_extractor("tiny_extractor:build")
    labels = open_source(str(folder / "images")).labels
    drawn = latents.proportional(labels, 60)
    whole = evaluate.extract(ModelSource(model, 60, batch_size=16, labels=drawn), extractor, batch_size=16)
    by_hand = []
    for number, name in enumerate(NAMES):
        real = evaluate.extract(open_source(str(folder / "images" / name)), extractor)
        fake = distances.statistics_of(whole.features[drawn == number])
        by_hand.append(distances.frechet_distance(real, fake))
        found = result["per_class"][name]
        assert found[LABEL] == pytest.approx(by_hand[-1], rel=1e-4)
        assert (found["reference images"], found["samples"]) == (real.n, int((drawn == number).sum()))
    assert result["figures"][f"intra {LABEL}"] == pytest.approx(sum(by_hand) / 3, rel=1e-4)
    overall = distances.frechet_distance(evaluate.extract(open_source(str(folder / "images")), extractor), whole)
    assert result["figures"][LABEL] == pytest.approx(overall, rel=1e-4)
    table = (tmp_path / "evaluation" / "report.md").read_text()
    assert f"| b | {by_hand[1]:.2f} | " in table and f"| b | {by_hand[1]:.2f} | " in capsys.readouterr().out
    row = next(csv.DictReader((tmp_path / "evaluation" / "report.csv").open()))
    assert float(row[f"class.c.{LABEL}"]) == pytest.approx(by_hand[2], rel=1e-4)
    assert any("in the proportions of the reference" in note for note in result["notes"])


def test_without_per_class_the_report_is_as_it_was(call, folder, tmp_path):
    assert gen(call, folder / "unconditional") == 0
    result = json.loads((tmp_path / "evaluation" / "report.json").read_text())[0]
    assert "per_class" not in result and not any("intra" in name for name in result["figures"])
    assert not any("classes" in note for note in result["notes"])


def test_images_without_labels_are_refused_per_class_and_else_drawn_evenly(call, folder, tmp_path):
    with pytest.raises(ConfigError, match="has no labels"):
        gen(call, folder / "run", "--per-class", "--reference", folder / "plain")
    with pytest.raises(ConfigError, match="knows no classes: --per-class"):
        gen(call, folder / "unconditional", "--per-class")
    assert gen(call, folder / "run", "--reference", folder / "plain") == 0
    result = json.loads((tmp_path / "evaluation" / "report.json").read_text())[0]
    assert any("with the same chance" in note for note in result["notes"])


def test_reconstructions_are_measured_with_their_labels(call, folder, model, tmp_path):
    tiny = ("--extractor", "tiny_extractor:build", "--device", "cpu", "--no-cache")
    assert call("fid", "recon", folder / "run", "--reference", folder / "images", *tiny) == 0
    result = json.loads((tmp_path / "evaluation" / "report.json").read_text())[0]
    source = open_source(str(folder / "images"))
    x = torch.stack(source.batch(0, len(source))) / 127.5 - 1
    with torch.no_grad():
        mse = (model.reconstruct(x, source.labels) - x).square().mean()
    assert result["figures"]["mse"] == pytest.approx(mse.item(), rel=1e-4)


def test_classes_too_small_are_left_out():
    from vaegan.evaluation import per_class

    generator = torch.Generator().manual_seed(0)
    real, fake = torch.randn(10, 2, generator=generator), torch.randn(9, 2, generator=generator)
    y, z = torch.tensor([0] * 5 + [1] * 4 + [2]), torch.tensor([0] * 4 + [1] * 3 + [2] * 2)
    figures = per_class.class_distances(real, y, fake, z, NAMES, "FID")
    assert torch.isnan(torch.tensor(figures["c"]["FID"]))
    assert per_class.mean_distance(figures, "FID") == pytest.approx((figures["a"]["FID"] + figures["b"]["FID"]) / 2)
    assert "left out with fewer than 2 images a side are c" in per_class.notes(figures, 2)[0]
