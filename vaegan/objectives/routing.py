"""How gradients leave the decoder's output: which term, weighed how, on to the decoder and on to the encoder.

The decoder is passed backwards once, from its output, where the reconstruction's gradient and the adversary's are
weighed against each other (Larsen et al. 2016, algorithm 1; Esser et al. 2021, equation 7).
"""

import torch
from torch import Tensor


def gradients_at_output(
    reconstruction: Tensor | None, adversarial: Tensor | None, raw: Tensor, others: list[Tensor], disjoint: int | None
) -> tuple[Tensor | None, Tensor | None, list[Tensor]]:
    """Gradients of the two terms, each shaped like `raw` (B, C, H, W), and the reconstruction's at `others`.

    `disjoint=n` says that the reconstruction depends on the first n images alone and the adversary on the rest.
    """
    if reconstruction is None:
        return None, None if adversarial is None else torch.autograd.grad(adversarial, raw)[0], []
    if adversarial is None:
        g_rec, *g_others = torch.autograd.grad(reconstruction, [raw, *others])
        return g_rec, None, g_others
    if disjoint is not None:
        # The terms see different images, so that one pass gives both gradients, one above the other.
        g, *g_others = torch.autograd.grad(reconstruction + adversarial, [raw, *others])
        g_rec, g_adv = torch.zeros_like(g), g.clone()
        g_rec[:disjoint], g_adv[:disjoint] = g[:disjoint], 0
        return g_rec, g_adv, g_others
    # Both go through one forward of the discriminator on the same images: the second pass needs its graph again.
    g_rec, *g_others = torch.autograd.grad(reconstruction, [raw, *others], retain_graph=True)
    return g_rec, torch.autograd.grad(adversarial, raw)[0], g_others


def surrogate_loss(
    raw: Tensor,
    z: Tensor | None,
    z_decoded: Tensor | None,
    g_rec: Tensor | None,
    g_adv: Tensor | None,
    gamma: float,
    adversary_touches_x: bool,
    adversary_to_encoder: bool,
) -> Tensor:
    """A scalar that gives the decoder gamma * g_rec + g_adv at its output `raw`, and the encoder, at `z`, what comes
    of g_rec alone, or of g_rec + g_adv with `adversary_to_encoder`. `z_decoded` is the alias of z that was decoded."""
    for_decoder = [g for g in (None if g_rec is None else gamma * g_rec, g_adv) if g is not None]
    if not for_decoder:  # a head start without any other term: nothing to learn yet
        return (raw * 0).sum()
    loss = (raw * sum(for_decoder)).sum()
    if z is None or not z.requires_grad:
        return loss
    mixed = adversary_touches_x and g_adv is not None
    if mixed and (gamma != 1 or not adversary_to_encoder):
        # The decoder's weights and z want different gradients of the same images, so the way to z is gone once more
        # by itself, and the graph is kept for the weights.
        for_encoder = [g for g in (g_rec, g_adv if adversary_to_encoder else None) if g is not None]
        if for_encoder:
            (g_z,) = torch.autograd.grad(raw, z_decoded, sum(for_encoder), retain_graph=True)
            loss = loss + (z * g_z).sum()
        z_decoded.register_hook(torch.zeros_like)  # only now, lest it hide g_z as well
    elif gamma != 1:
        z_decoded.register_hook(lambda g: g / gamma)
    return loss
