"""The plot and the grid of a report: what they show, and that matplotlib's global state is left alone."""

import io
import math
import subprocess
import sys

import pytest
import torch
from PIL import Image

from vaegan.evaluation.pictures import grids, plot
from vaegan.evaluation.report import Result


def coloured(data: bytes) -> float:
    """Share of pixels of a plot that are neither white nor grey."""
    pixels = torch.frombuffer(bytearray(Image.open(io.BytesIO(data)).convert("RGB").tobytes()), dtype=torch.uint8)
    r, g, b = pixels.view(-1, 3).int().unbind(1)
    return (torch.stack([r - g, g - b, b - r]).abs().max(0).values > 20).float().mean().item()


FULL = {"FID": 12.0, "FID 2.5 %": 11.0, "FID 97.5 %": 13.0, "kid": -1e-5, "kid_std": 1e-4, "precision": 0.6, "recall": 0.4,
        "f1": 0.5, "density": 1.1, "coverage": 0.7}  # fmt: skip


@pytest.mark.parametrize("n", [1, 8])
def test_a_plot_shows_each_result(n):
    results = [Result(f"runs/a_very_long_name_that_is_wrapped_{i}", FULL) for i in range(n)]
    data = plot(results)
    assert coloured(data) > 0.003 and data == plot(results)
    emptied = [Result(r.name, dict.fromkeys(FULL, math.nan)) for r in results]
    assert coloured(plot(emptied)) == 0
    assert Image.open(io.BytesIO(data)).height > (n - 1) * 40


def test_a_plot_has_a_panel_for_each_main_figure():
    def width(figures):
        return Image.open(io.BytesIO(plot([Result("a", figures)]))).width

    one = width({"FID": 1.0})
    assert width({"FID": 1.0, "kid_std": 1.0, "floor": 1.0, "mse": 1.0, "recall": math.nan}) == one
    two = width({"FID": 1.0, "FD[dinov2]": 2.0})
    assert two > one and width({"FID": 1.0, "precision": 0.5, "recall": 0.5}) == two


def test_a_plot_leaves_matplotlib_alone():
    code = (
        "import sys; from vaegan.evaluation.report import Result; from vaegan.evaluation.pictures import plot;"
        "assert 'matplotlib' not in sys.modules; plot([Result('a', {'FID': 1.0, 'precision': 0.5, 'recall': 0.4})]);"
        "assert 'matplotlib' in sys.modules and 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_grid_holds_every_image_under_its_name():
    batch = torch.arange(1, 11, dtype=torch.uint8)[:, None, None, None].expand(10, 1, 64, 64) * 20
    picture = grids({"a": batch, "b": torch.tensor([250, 3, 9]).to(torch.uint8)[:, None, None].expand(2, 3, 64, 64)})
    assert picture.dtype == torch.uint8 and picture.shape[0] == 3 and picture.shape[2] == 8 * 66 + 2
    for value in range(1, 11):
        assert (picture == value * 20).all(0).sum() >= 64 * 64
    red = (picture == torch.tensor([250, 3, 9])[:, None, None]).all(0)
    assert red.sum() == 2 * 64 * 64
    label = picture[:, :30]
    assert label.min() < 128 and (label == 255).float().mean() > 0.9


def test_a_long_name_is_not_cut():
    narrow, wide = (grids({name: torch.full((1, 1, 64, 64), 7, dtype=torch.uint8)}) for name in ("a", "a" * 60))
    assert narrow.shape[2] == 68 and wide.shape[2] > 60 * 8
    assert narrow[:, 30:].float().mean() < 40 and (wide[:, 34:, 70:] == 255).all()
