"""The discriminator: image to a logit, and to the features that measure learned similarity."""

from typing import Literal

from torch import Tensor, nn

from vaegan.networks.layers import constrain_spectral_norm, downward_blocks, he_init, initialise, require_known


class Discriminator(nn.Module):
    """(B, channels, image_size, image_size) in [-1, 1] to logits (B,) and features (B, ...) of block `feature_layer`,
    which under autocast are of its type.

    Blocks count from 0; -1 is the last before the logit, so that no index reaches the logit itself. An image's
    outputs depend on that image alone (no batch statistics), whatever else shares its batch.
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
        if spectral_norm:
            self.apply(he_init)  # a block that starts at zero has no direction to normalise
            constrain_spectral_norm(self)
        else:
            initialise(self.blocks)
            nn.init.xavier_normal_(self.logit.weight)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = x
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i == self.feature_layer:
                features = x
        return self.logit(x.flatten(1)).squeeze(1).float(), features
