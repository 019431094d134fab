"""How alike two images look: SSIM, MS-SSIM and LPIPS, a value an image, as torchmetrics computes them."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from vaegan.config import ConfigError
from vaegan.evaluation.shares import ALONE, Shares
from vaegan.evaluation.weights import hash_of_file, read_state

# Smallest images, in pixels a side: SSIM reflects 5 beyond the edge; of MS-SSIM's five scales the last, a sixteenth,
# must hold the window of 11; AlexNet's second pooling needs 3 of the first one's outputs.
SSIM_SIZE, MS_SSIM_SIZE, LPIPS_SIZE = 6, 176, 31

Similarity = Callable[[Tensor, Tensor], Tensor]  # two batches (B, C, H, W) in [-1, 1] to (B,)


def similarities(
    size: int, device: torch.device, shares: Shares = ALONE, *, perceptual: bool = True
) -> tuple[dict[str, Similarity], list[str]]:
    """The similarities that square images of this size have, by name, and a line on LPIPS where it is left out.

    `ssim` and `ms_ssim` (Wang et al. 2004, 2003) have the Gaussian window of 11 pixels, sigma 1.5. LPIPS (Zhang et al.
    2018, AlexNet, version 0.1) needs the network's weights in torch's cache: nothing is downloaded. All processes
    call this together and get the same names.
    """
    found: dict[str, Similarity] = {}
    if size >= SSIM_SIZE:
        found["ssim"] = _ssim
    if size >= MS_SSIM_SIZE:
        found["ms_ssim"] = _ms_ssim
    if not perceptual:
        return found, []
    network, note = _perceptual_network(size)
    without = shares.processes - round(shares.total(torch.tensor([float(network is not None)])).item())
    if network is not None and without == 0:
        network.to(device)
        found["lpips"] = lambda a, b: network(_colour(a), _colour(b)).flatten()
    elif network is not None:
        note = f"lpips left out: {without} of {shares.processes} processes have no weights of AlexNet"
    return found, [note] if note else []


def _ssim(a: Tensor, b: Tensor) -> Tensor:
    from torchmetrics.functional.image import structural_similarity_index_measure

    return structural_similarity_index_measure(_unit(a), _unit(b), data_range=1.0, reduction="none")


def _ms_ssim(a: Tensor, b: Tensor) -> Tensor:
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

    return multiscale_structural_similarity_index_measure(_unit(a), _unit(b), data_range=1.0, reduction="none")


def _unit(images: Tensor) -> Tensor:
    """[-1, 1] to [0, 1]. In float64 on CUDA, where a convolution of float32 may keep 10 bits (TF32), too few for a
    difference of squares; on a CPU that would take 12 to 25 times longer for 1e-6 of a mean."""
    images = (images + 1) / 2
    return images.double() if images.is_cuda else images


def _colour(images: Tensor) -> Tensor:
    return images.expand(-1, 3, -1, -1)


def _perceptual_network(size: int) -> tuple[nn.Module | None, str]:
    """LPIPS of two batches in [-1, 1], or None; and what there is to say about it, or nothing."""
    from torchvision.models import AlexNet_Weights

    url = AlexNet_Weights.DEFAULT.url
    file = Path(torch.hub.get_dir(), "checkpoints", Path(url).name)
    if size < LPIPS_SIZE:
        return None, f"lpips left out: AlexNet needs images of at least {LPIPS_SIZE} pixels, got {size}"
    if not file.is_file():
        return None, f"lpips left out: it needs the weights of AlexNet; put {url} at {file}"
    try:
        network, digest = _with_weights(read_state(file)), hash_of_file(file)
    except (ConfigError, RuntimeError, LookupError):
        return None, f"lpips left out: {file} does not hold the weights of AlexNet; fetch it again from {url}"
    published = file.stem.rsplit("-", 1)[-1]
    if not digest.startswith(published):
        return network, f"lpips is not comparable: {file} is not the published AlexNet (SHA-256 {digest[:8]})"
    return network, ""


def _with_weights(state: dict[str, Tensor]) -> nn.Module:
    """torchmetrics' network with this state of torchvision's AlexNet. Its own way of loading would download and unpickle."""
    from torchmetrics.functional.image.lpips import _NoTrainLpips

    with torch.random.fork_rng(devices=[]):  # fresh layers are filled at random
        network = _NoTrainLpips(net="alex", pnet_rand=True)
    # "slice2.3.weight" is "features.3.weight" there.
    network.net.load_state_dict({name: state[f"features.{name.split('.', 1)[1]}"] for name in network.net.state_dict()})
    return network
