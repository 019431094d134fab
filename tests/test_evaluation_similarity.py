"""Similarities of images: which images have them, and LPIPS with and without the weights of its network."""

from types import SimpleNamespace

import pytest
import torch
from torchmetrics.functional.image import lpips as torchmetrics_lpips

from vaegan.data import to_float
from vaegan.evaluation.reconstruction import reconstruction_figures
from vaegan.evaluation.shares import Shares
from vaegan.evaluation.similarity import similarities
from vaegan.model import VAEGAN

CPU = torch.device("cpu")


@pytest.mark.parametrize("size", [5, 6, 175, 176])
def test_only_images_that_hold_the_windows_are_compared(size):
    x = torch.rand(2, 1, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found, notes = similarities(size, CPU, perceptual=False)
    assert sorted(found) == ["ms_ssim"] * (size >= 176) + ["ssim"] * (size >= 6) and not notes
    for measure in found.values():
        torch.testing.assert_close(measure(x, x), torch.ones(2))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty cache of torch's, and no way to fill it."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *a, **k: pytest.fail("nothing may be downloaded"))
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints" / "alexnet-owt-7be5be79.pth"


@pytest.fixture
def alexnet(hub):
    """Random weights of AlexNet's convolutions, in the cache."""
    from torchvision.models import alexnet

    with torch.random.fork_rng():
        torch.manual_seed(0)
        features = alexnet().features
    torch.save({f"features.{name}": value for name, value in features.state_dict().items()}, hub)
    return features


@pytest.mark.parametrize("channels", [1, 3])
def test_lpips_is_torchmetrics(alexnet, monkeypatch, channels):
    torch.manual_seed(2)
    model = VAEGAN(image_size=32, channels=channels, latent_dim=4, width=4).eval()
    images = torch.randint(256, (3, channels, 32, 32)).to(torch.uint8)
    state = torch.get_rng_state()
    figures, notes = reconstruction_figures(model, [(0, images[:2]), (2, images[2:])])
    assert torch.equal(torch.get_rng_state(), state)
    assert len(notes) == 1 and "not the published AlexNet" in notes[0]  # whose hash the file's name holds
    monkeypatch.setattr(torchmetrics_lpips, "_get_tv_model_features", lambda *a, **k: alexnet)
    x = to_float(images)
    with torch.no_grad():
        pair = (image.expand(-1, 3, -1, -1) for image in (model.reconstruct(x), x))
    wanted = torchmetrics_lpips.learned_perceptual_image_patch_similarity(*pair, net_type="alex")
    assert figures["lpips"] == pytest.approx(wanted.item(), rel=1e-4) and figures["lpips"] > 0


def test_lpips_is_left_out_with_the_reason(hub):
    model = VAEGAN(image_size=32, latent_dim=4, width=4)
    figures, notes = reconstruction_figures(model, [(0, torch.zeros(2, 1, 32, 32, dtype=torch.uint8))])
    assert "lpips" not in figures and len(notes) == 1
    assert "lpips left out" in notes[0] and str(hub) in notes[0] and "https://" in notes[0]
    for damaged in (b"", b"not weights"):
        hub.write_bytes(damaged)
        assert "does not hold the weights" in similarities(32, CPU)[1][0]
    torch.save({"features.0.weight": torch.zeros(2)}, hub)
    assert "does not hold the weights" in similarities(32, CPU)[1][0]
    torch.save(SimpleNamespace(), hub)  # a pickle that asks for code to be run
    assert "does not hold the weights" in similarities(32, CPU)[1][0]
    assert "at least 31 pixels, got 28" in similarities(28, CPU)[1][0]
    assert similarities(28, CPU, perceptual=False)[1] == []


def test_smallest_image_of_lpips(alexnet):
    images = torch.zeros(2, 1, 31, 31)
    assert similarities(31, CPU)[0]["lpips"](images, images).tolist() == [0, 0]


def test_processes_agree_on_lpips(alexnet):
    found, notes = similarities(32, CPU, Shares(0, 2, lambda value: value))  # the other has nothing to add
    assert "lpips" not in found and notes == ["lpips left out: 1 of 2 processes have no weights of AlexNet"]
    assert "lpips" in similarities(32, CPU, Shares(0, 2, lambda value: 2 * value))[0]
