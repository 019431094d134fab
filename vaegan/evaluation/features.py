"""Feature extractors: from uint8 images of any size to the vectors that distances between sets are made of."""

import contextlib
import difflib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from vaegan.config import ConfigError
from vaegan.evaluation.own_code import SCRIPT_SUFFIXES, called, script
from vaegan.evaluation.pretrained import PRETRAINED
from vaegan.evaluation.resize import RESIZERS, resize

EXTRACTORS = tuple(PRETRAINED)
_AT_ONCE = 16  # images that a CPU computes together: 64 took no less time each, and gigabytes of activations


class Extractor:
    """A frozen network with its preprocessing. No nn.Module, so that its weights never enter a state dict.

    name: as given to `load_extractor`, of a file its stem.  weights: SHA-256 of the weights, in hex.
    resizer, input_size: how images are brought to the network's size; "none" and None take them as they are.
    label: what the distance is called, "FID" for the published Inception only.
    classifier: (classes, d), features @ classifier.T are the logits of the Inception Score, or None.
    """

    def __init__(
        self,
        name: str,
        network: Callable[[Tensor], Tensor],
        *,
        weights: str,
        label: str,
        resizer: str,
        input_size: int | None,
        device: torch.device,
        classifier: Tensor | None = None,
    ):
        """`network` takes float32 (B, 3, H, W) in 0 … 255 on `device` and returns (B, d)."""
        self.name, self.weights, self.label = name, weights, label
        self.resizer, self.input_size, self.device = resizer, input_size, device
        self.classifier = classifier
        self._network = network

    @property
    def protocol(self) -> dict[str, str]:
        """Everything that two sets of features must share for their distance to mean anything."""
        return {
            "extractor": self.name,
            "weights": self.weights,
            "resizer": self.resizer,
            "input_size": "native" if self.input_size is None else str(self.input_size),
            "quantisation": "uint8",
            "dtype": "float32",
        }

    def __call__(self, images: Tensor | Sequence[Tensor]) -> Tensor:
        """uint8 (B, 1 or 3, H, W), or uint8 (1 or 3, H, W) of any sizes -> float32 (B, d) on `device`. No gradient.

        Raises ConfigError for other images and where the network returns anything but (B, d).
        """
        with torch.no_grad(), _full_precision(self.device):
            x = self._resized(images) if isinstance(images, Tensor) else self._resized_each(images)
            features = self._network(x)
        if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != len(x):
            got = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise ConfigError(f"extractor: {self.name} must return features ({len(x)}, d), got {got}")
        if not features.is_floating_point():
            raise ConfigError(f"extractor: {self.name} must return floating-point features, got {features.dtype}")
        return features.to(self.device, torch.float32)

    def _resized(self, images: Tensor) -> Tensor:
        """uint8 (B, 1 or 3, H, W) -> float32 (B, 3, size, size)."""
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
            got = f"{str(images.dtype).removeprefix('torch.')} {tuple(images.shape)}"
            raise ConfigError(f"images must be uint8 (B, 1 or 3, H, W), got {got}; round and clamp to 0 … 255")
        images = images.to(self.device)
        x = images.float() if self.input_size is None else resize(images, self.input_size, self.resizer)
        return x.expand(-1, 3, -1, -1).contiguous()

    def _resized_each(self, images: Sequence[Tensor]) -> Tensor:
        """uint8 (1 or 3, H, W) of any sizes -> float32 (B, 3, size, size), equal shapes together."""
        rows: dict[torch.Size, list[int]] = {}
        for row, image in enumerate(images):
            rows.setdefault(image.shape, []).append(row)
        sizes = sorted({tuple(shape[-2:]) for shape in rows})
        if self.input_size is None and len(sizes) > 1:
            (h, w), (height, width) = sizes[0], sizes[-1]
            raise ConfigError(
                f"extractor: {self.name} takes images at their own size, so all must have one, got {h} x {w} and "
                f"{height} x {width}; give an input_size"
            )
        parts = [self._resized(torch.stack([images[row] for row in of_shape])) for of_shape in rows.values()]
        order = torch.tensor([row for of_shape in rows.values() for row in of_shape]).argsort()
        return torch.cat(parts)[order.to(self.device)]


def load_extractor(
    name: str,
    *,
    weights: str | None = None,
    resizer: str | None = None,
    input_size: int | None = None,
    device: torch.device | str = "cpu",
) -> Extractor:
    """An extractor by name, or one's own.

    name: one of EXTRACTORS, a TorchScript file, or "module:function", where function() returns a callable. Both of
    the latter map float32 (B, 3, H, W) in 0 … 255 to (B, d), and must not draw random numbers.
    weights: a file for one of EXTRACTORS instead of the published weights; another hash shows in the label.
    resizer: one of RESIZERS; by default "tf1" for inception, else "clean".
    input_size: pixels a side, of one's own extractor only; None takes images as they are, or the callable's own
    attribute `input_size`.
    Raises ConfigError, one line that says what to do.
    """
    device = torch.device(device)
    if resizer is not None and resizer not in (*RESIZERS, "none"):
        raise ConfigError(_unknown("resizer", resizer, RESIZERS, f"one of {', '.join(RESIZERS)}"))
    # Networks draw their initial weights, which are then replaced, from the global generator.
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        if name in PRETRAINED:
            return _pretrained(name, weights, resizer, input_size, device)
        if weights is not None:
            raise ConfigError(f"weights: {weights} is for {', '.join(EXTRACTORS)}; leave it out with extractor {name}")
        return _own(name, resizer, input_size, device)


def _pretrained(
    name: str, weights: str | None, resizer: str | None, input_size: int | None, device: torch.device
) -> Extractor:
    own_size, default_resizer, load = PRETRAINED[name]
    if input_size not in (None, own_size):
        raise ConfigError(f"input_size of {name} is {own_size}, got {input_size}; leave it out")
    if resizer == "none":
        raise ConfigError(f"resizer of {name} must be one of {', '.join(RESIZERS)}, got none")
    resizer = resizer or default_resizer
    loaded = load(None if weights is None else Path(weights).expanduser(), resizer)
    network = loaded.network.to(device, torch.float32, memory_format=torch.channels_last)
    mean, std = (
        torch.tensor(values, dtype=torch.float32, device=device).view(-1, 1, 1) for values in (loaded.mean, loaded.std)
    )
    at_once = _AT_ONCE if device.type == "cpu" else sys.maxsize

    def normalised(x: Tensor) -> Tensor:
        parts = ((part - mean).div_(std).contiguous(memory_format=torch.channels_last) for part in x.split(at_once))
        return torch.cat([network(part) for part in parts])

    return Extractor(
        name,
        normalised,
        weights=loaded.weights,
        label=loaded.label,
        resizer=resizer,
        input_size=own_size,
        device=device,
        classifier=None if loaded.classifier is None else loaded.classifier.to(device, torch.float32),
    )


def _own(name: str, resizer: str | None, input_size: int | None, device: torch.device) -> Extractor:
    if name.endswith(SCRIPT_SUFFIXES):
        label, network, sha = script(Path(name).expanduser(), device)
    elif ":" in name:
        label, (network, sha) = name, called(name, device)
        input_size = getattr(network, "input_size", None) if input_size is None else input_size
    else:
        options = f"{', '.join(EXTRACTORS)}, a TorchScript file or module:function"
        raise ConfigError(_unknown("extractor", name, EXTRACTORS, options))
    if input_size is not None and (not isinstance(input_size, int) or input_size < 1):
        raise ConfigError(f"input_size of {name} must be a whole number of pixels a side, got {input_size!r}")
    if input_size is None and resizer not in (None, "none"):
        raise ConfigError(f"resizer: {resizer} needs an input_size for {name}; give one, or leave the resizer out")
    if input_size is not None and resizer == "none":
        raise ConfigError(f"resizer: none contradicts the input_size {input_size} of {name}; leave one of them out")
    resizer = "none" if input_size is None else resizer or "clean"
    return Extractor(
        label, network, weights=sha, label=f"FD[{label}]", resizer=resizer, input_size=input_size, device=device
    )


def _unknown(field: str, value: str, options: Sequence[str], wanted: str) -> str:
    near = difflib.get_close_matches(value.lower(), options, 1)
    return f"{field} must be {wanted}, got {value}" + (f" (did you mean {near[0]}?)" if near else "")


@contextlib.contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """No autocast, TF32 or bfloat16 products, whatever the caller has set, and the caller's settings afterwards."""
    backends = torch.backends
    operations = {
        "cuda": (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn),
        "cpu": (backends.mkldnn.matmul, backends.mkldnn.conv),
    }.get(device.type, ())
    before = [operation.fp32_precision for operation in operations]
    try:
        for operation in operations:
            operation.fp32_precision = "ieee"
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for operation, precision in zip(operations, before):
            operation.fp32_precision = precision
