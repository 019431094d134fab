"""One, two and three processes measure the same, whatever the number of images."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from test_distributed import launch

from vaegan.config import Config, DataConfig, EvaluationConfig, TrainConfig
from vaegan.model import VAEGAN


@pytest.fixture(scope="module")
def measured(tmp_path_factory, image_folder):
    """{number of processes: figures}."""
    folder = tmp_path_factory.mktemp("evaluation")
    shutil.copytree(image_folder, folder / "images")
    shutil.copytree(image_folder, folder / "damaged")
    for i in (0, 3, 50, 95):
        (folder / "damaged" / f"{i:03d}.png").write_bytes(b"no image")
    torch.manual_seed(0)
    VAEGAN(image_size=8, latent_dim=4, width=4).save_pretrained(folder / "model")
    evaluation = EvaluationConfig(
        every=1, extractor="tiny_extractor:build", num_samples=21, batch_size=4, cache=str(folder / "c")
    )
    data = DataConfig(source=str(folder / "images"), image_size=8, val_fraction=0.3)
    config = Config(data=data, train=TrainConfig(steps=1), evaluation=evaluation)
    (folder / "config.json").write_text(json.dumps(config.as_dict()))
    for processes in (1, 2, 3):
        done = launch(processes, str(Path(__file__).with_name("evaluation_worker.py")), str(folder))
        assert done.returncode == 0, done.stderr[-3000:]
    figures = {processes: json.loads((folder / f"{processes}.json").read_text()) for processes in (1, 2, 3)}
    assert [figures[processes]["processes"] for processes in (1, 2, 3)] == [1, 2, 3]
    for processes in (1, 2, 3):  # a decision to stop must be the same on all
        told = {file.read_text() for file in folder.glob(f"in_training{processes}.*")}
        assert len(told) == 1
    return figures


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("n", [2, 47, 96])
def test_statistics(measured, processes, n):
    one, many = measured[1], measured[processes]
    assert one[f"features {n}"] == many[f"features {n}"]  # to the bit, and in the same order
    assert one[f"thinned {n}"] == many[f"thinned {n}"]
    for a, b in zip(one[f"statistics {n}"], many[f"statistics {n}"], strict=True):
        torch.testing.assert_close(
            torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64), rtol=1e-12, atol=1e-15
        )


def test_features_are_of_all_images_once(measured):
    assert [measured[1][f"statistics {n}"][0] for n in (2, 47, 96)] == [2, 47, 96]
    features = torch.tensor(measured[1]["features 96"])
    assert len(features.unique(dim=0)) == 96  # the images differ: none is missing or doubled
    assert measured[1]["thinned 96"] == features[::10].tolist()
    assert measured[1]["skipped"] == [92, features[[i for i in range(96) if i not in (0, 3, 50, 95)]].tolist()]


@pytest.mark.parametrize("processes", [2, 3])
def test_figures(measured, processes):
    assert measured[processes]["skipped"] == measured[1]["skipped"]
    for one, many in zip(measured[1]["computed"], measured[processes]["computed"], strict=True):
        assert one.keys() == many.keys()
        for name, value in one.items():
            assert many[name] == pytest.approx(value, rel=1e-9), name


@pytest.mark.parametrize("processes", [2, 3])
def test_figures_in_training(measured, processes):
    assert len(measured[1]["in training"]) == 2
    assert measured[processes]["in training"] == pytest.approx(measured[1]["in training"], rel=1e-9)


def test_cached_references_change_nothing(measured):
    for processes in (1, 2, 3):
        for fresh, cached in zip(measured[processes]["computed"], measured[processes]["cached"], strict=True):
            assert fresh == cached
