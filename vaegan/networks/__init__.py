"""Networks: constructors of plain values, usable alone; they know nothing of losses, configs or Accelerate."""

from vaegan.networks.decoder import Decoder
from vaegan.networks.discriminator import Discriminator
from vaegan.networks.encoder import Encoder

__all__ = ["Decoder", "Discriminator", "Encoder"]
