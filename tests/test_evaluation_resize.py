"""Each resizer against the tool whose name it bears: enlarging, shrinking, non-square, same size and single pixels."""

from types import SimpleNamespace

import pytest
import torch

from vaegan.evaluation import resize as resize_module
from vaegan.evaluation.resize import RESIZERS, resize

SHAPES = [(32, 32), (20, 57), (128, 129), (299, 299), (300, 298), (400, 350), (1, 1), (1, 9), (700, 3)]


def images(height: int, width: int, channels: int = 3) -> torch.Tensor:
    """Noise of the full range, which overshoots most, beside a checkerboard."""
    generator = torch.Generator().manual_seed(height * 1000 + width)
    noise = torch.randint(0, 256, (2, channels, height, width), generator=generator, dtype=torch.uint8)
    noise[1] = (torch.arange(height)[:, None] + torch.arange(width)) % 2 * 255
    return noise


def network_input(forward, x, **attributes) -> torch.Tensor:
    """What a tool's forward pass hands to its first layer."""

    class Reached(Exception):
        pass

    def stop(x):
        raise Reached(x)

    stub = SimpleNamespace(features_list=["64"], INPUT_IMAGE_SIZE=299, Conv2d_1a_3x3=stop, **attributes)
    with pytest.raises(Reached) as reached:
        forward(stub, x)
    return reached.value.args[0]


def torch_fidelity(x):
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    stub = {"feature_extractor_internal_dtype": torch.float32}
    return network_input(module.FeatureExtractorInceptionV3.forward, x, **stub) * 128 + 128


def pytorch_fid(x):
    network = pytest.importorskip("pytorch_fid.inception").InceptionV3
    stub = SimpleNamespace(resize_input=True, normalize_input=True, output_blocks=[0], last_needed_block=0)
    stub.blocks = [lambda x: x]  # the first block, whose output is returned
    return (network.forward(stub, x / 255)[0] + 1) * 127.5


def torchmetrics(x):
    pytest.importorskip("torch_fidelity")
    from torchmetrics.image.fid import NoTrainInceptionV3

    return network_input(NoTrainInceptionV3._torch_fidelity_forward, x, use_antialias=True) * 128 + 128


def clean_fid(x):
    resizer = pytest.importorskip("cleanfid.resize").build_resizer("clean")
    return torch.stack([torch.from_numpy(resizer(image.permute(1, 2, 0).numpy())) for image in x]).permute(0, 3, 1, 2)


TOOLS = {
    "tf1": (torch_fidelity, 5e-5),
    "pytorch-fid": (pytorch_fid, 1e-4),  # it resizes values in 0 … 1
    "torchmetrics": (torchmetrics, 5e-5),
    "clean": (clean_fid, 5e-5),
}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("resizer", RESIZERS)
def test_a_resizer_equals_its_tool(resizer, shape):
    tool, tolerance = TOOLS[resizer]
    x = images(*shape)
    ours = resize(x, 299, resizer)
    assert ours.shape == (2, 3, 299, 299) and ours.dtype == torch.float32
    assert ours.min() >= 0 and ours.max() <= 255 + 5e-5
    assert (ours - tool(x)).abs().max() <= tolerance


def test_the_resizers_differ():
    x = images(64, 64)
    resized = [resize(x, 48, resizer) for resizer in RESIZERS]
    for i, a in enumerate(resized):
        assert all((a - b).abs().mean() > 1 for b in resized[:i])


def test_tf1_aligns_corners_and_repeats_the_edge():
    x = torch.tensor([[0, 100], [200, 255]], dtype=torch.uint8)[None, None]
    expected = torch.tensor(
        [[0, 50, 100, 100], [100, 138.75, 177.5, 177.5], [200, 227.5, 255, 255], [200, 227.5, 255, 255]]
    )
    assert torch.equal(resize(x, 4, "tf1")[0, 0], expected)


@pytest.mark.parametrize("shape", [(32, 32), (57, 20), (200, 90), (1, 1)])
def test_both_routes_of_tf1_agree(shape, monkeypatch):
    x = images(*shape)
    results = []
    for largest in (0, 10_000):
        monkeypatch.setattr(resize_module, "_LARGEST_PRODUCT", largest)
        results.append(resize(x, 61, "tf1"))
    assert (results[0] - results[1]).abs().max() <= 5e-5


@pytest.mark.parametrize("resizer", RESIZERS)
def test_channels_and_images_are_independent(resizer):
    x = images(17, 40)
    whole = resize(x, 24, resizer)
    for i in range(2):
        for channel in range(3):
            part = resize(x[i : i + 1, channel : channel + 1], 24, resizer)
            torch.testing.assert_close(part[0, 0], whole[i, channel], rtol=0, atol=5e-5)


@pytest.mark.parametrize("resizer", RESIZERS)
def test_the_same_size_and_constant_images_are_unchanged(resizer):
    x = images(24, 24)
    assert torch.equal(resize(x, 24, resizer), x.float())
    constant = torch.full((1, 1, 33, 7), 255, dtype=torch.uint8)
    torch.testing.assert_close(resize(constant, 24, resizer), torch.full((1, 1, 24, 24), 255.0), rtol=0, atol=1e-4)
