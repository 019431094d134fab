"""The encoder: image to the mean and log-variance of q(z|x)."""

from torch import Tensor, nn

from vaegan.networks.layers import Norm, downward_blocks, initialise


class Encoder(nn.Module):
    """q(z|x) = N(mu, diag(exp(logvar))), mean and log-variance by one linear layer each (Kingma & Welling 2014).

    (B, channels, image_size, image_size) in [-1, 1] to mu and logvar, each (B, latent_dim) float32; with
    `variational=False` logvar is None. `image_size` must be 4 * 2^k for `light` and `conv` (ValueError otherwise).
    """

    def __init__(
        self,
        image_size: int,
        channels: int,
        latent_dim: int,
        network: str = "light",
        width: int = 32,
        max_width: int = 512,
        depth: int = 1,
        hidden: tuple[int, ...] = (512, 256),
        norm: Norm = "group",
        variational: bool = True,
    ):
        super().__init__()
        self.blocks, features = downward_blocks(network, image_size, channels, width, max_width, depth, hidden, norm)
        initialise(self.blocks)
        self.mu = nn.Linear(features, latent_dim)
        nn.init.xavier_normal_(self.mu.weight)
        nn.init.zeros_(self.mu.bias)
        # Its own layer, never shared with the mean's. It starts at unit variance whatever the image.
        self.logvar = nn.Linear(features, latent_dim) if variational else None
        if variational:
            nn.init.zeros_(self.logvar.weight)
            nn.init.zeros_(self.logvar.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        for block in self.blocks:
            x = block(x)
        x = x.flatten(1)  # (B, features)
        # Under autocast the likelihoods still need their distribution in full precision.
        return self.mu(x).float(), None if self.logvar is None else self.logvar(x).float()
