"""DINOv2 ViT-L/14, the extractor that Stein et al. 2023 (arXiv 2306.04675) found closest to human judgement."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from vaegan.config import ConfigError
from vaegan.evaluation.weights import OFFLINE, hash_of_file, hash_of_state, load_state, read_state

_TIMM_NAME = "vit_large_patch14_dinov2.lvd142m"


def load_dinov2(weights: Path | None) -> tuple[nn.Module, str]:
    """Network for ImageNet-normalised (B, 3, 224, 224) -> class token (B, 1024), and the SHA-256 of its weights.

    Through timm: torch.hub would fetch a program from the net and run it. Raises ConfigError where it cannot be had.
    """
    state = None if weights is None else read_state(weights)
    try:
        network = _network(pretrained=state is None)
    except Exception as error:  # whatever the network libraries beneath timm raise
        raise ConfigError(
            f"extractor: dinov2 cannot be loaded ({type(error).__name__}); pip install timm, and allow downloads or pass "
            f"`--weights PATH`, or {OFFLINE}"
        ) from error
    network.mask_token = None  # only training needs it, and timm leaves it out
    if state is None:
        sha = hash_of_state(network.state_dict())
    else:
        sha = hash_of_file(weights)
        state.pop("mask_token", None)
        load_state(network, state, "dinov2", weights)
    positions = network.pos_embed.detach()
    network.set_input_size(img_size=224)
    network.pos_embed = nn.Parameter(interpolate_positions(positions, 224 // 14))
    return network, sha


def interpolate_positions(positions: Tensor, side: int) -> Tensor:
    """Embeddings (1, 1 + N², d) of a class token and N x N patches, for side x side patches: (1, 1 + side², d).

    As DINOv2's own code does at every forward pass, with its 0.1 and without antialias; timm's way differs slightly.
    """
    token, patches = positions[:, :1], positions[:, 1:]
    n = round(patches.shape[1] ** 0.5)
    grid = patches.unflatten(1, (n, n)).permute(0, 3, 1, 2)  # (1, d, N, N)
    grid = interpolate(grid, scale_factor=(side + 0.1) / n, mode="bicubic")
    return torch.cat([token, grid.flatten(2).mT], 1)


def _network(pretrained: bool) -> nn.Module:
    """The network for 518 x 518 pixels, as it was trained."""
    import timm

    return timm.create_model(_TIMM_NAME, pretrained=pretrained, num_classes=0, img_size=518)
