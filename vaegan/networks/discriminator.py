"""The discriminator: image to a logit, and to the features that measure learned similarity."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from vaegan.networks.layers import (
    constrain_spectral_norm,
    downward_blocks,
    flat_as,
    he_init,
    initialise,
    require_known,
    zero_embedding,
)


class Discriminator(nn.Module):
    """(B, channels, image_size, image_size) in [-1, 1] to logits (B,) and features (B, ...) of block `feature_layer`,
    which under autocast are of its type.

    Blocks count from 0; -1 is the last before the logit, so that no index reaches the logit itself. An image's
    outputs depend on that image alone (no batch statistics), whatever else shares its batch.

    With `classes` above 0 it takes labels (B,) int64 too, and its logit is psi(phi(x)) + <v_y, phi(x)>, phi(x) being the
    flat output of the last block and v_y a learned vector a class (Miyato & Koyama 2018, section 3).
    """

    def __init__(
        self,
        image_size: int,
        channels: int,
        network: str = "light",
        width: int = 32,
        max_width: int = 512,
        depth: int = 1,
        hidden: tuple[int, ...] = (512, 256),
        norm: Literal["group", "none"] = "none",
        spectral_norm: bool = False,
        feature_layer: int = -1,
        classes: int = 0,
    ):
        super().__init__()
        require_known("norm of a discriminator", norm, ("group", "none"))
        self.blocks, features = downward_blocks(network, image_size, channels, width, max_width, depth, hidden, norm)
        if not -len(self.blocks) <= feature_layer < len(self.blocks):
            raise ValueError(
                f"feature_layer must lie in -{len(self.blocks)} … {len(self.blocks) - 1}, got {feature_layer}"
            )
        self.feature_layer = feature_layer % len(self.blocks)
        # No bias: losses of differences would give it nothing but rounding errors, which Adam would enlarge to steps.
        self.logit = nn.Linear(features, 1, bias=False)
        self.projection = zero_embedding(classes, features) if classes else None
        if spectral_norm:
            self.apply(he_init)  # a block that starts at zero has no direction to normalise
            if self.projection is not None:
                nn.init.xavier_normal_(self.projection.weight)
            constrain_spectral_norm(self)
        else:
            initialise(self.blocks)
            nn.init.xavier_normal_(self.logit.weight)

    def forward(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        features = x
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i == self.feature_layer:
                features = x
        phi = flat_as(x, x)  # (B, features)
        logit = F.linear(phi, flat_as(self.logit.weight, x)).squeeze(1).float()
        if self.projection is not None:
            logit = logit + (flat_as(self.projection(y), x) * phi).sum(1)  # float32, under autocast as well
        return logit, features
