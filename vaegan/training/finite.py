"""A run that has become NaN or infinite stops, or goes back, and keeps what was sound."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vaegan.evaluation.reconstruction import evaluating

if TYPE_CHECKING:
    from vaegan.training.trainer import Trainer

_REMEDY = (
    "the last checkpoint is kept. Lower optimizer.lr and optimizer.discriminator_lr, or set optimizer.grad_clip, or "
    "train.on_non_finite rollback to leave such batches out, and go on with --resume auto"
)
_SHOWN = 8  # images that a message names


class NonFiniteLoss(FloatingPointError):
    """A loss, a gradient or a weight became NaN or infinite in the step from `step` to the next; the message names it."""

    def __init__(self, what: str, step: int):
        super().__init__(f"{what} not finite at step {step + 1}")
        self.step = step

    def __str__(self) -> str:
        return f"{self.args[0]}; {_REMEDY}"


def non_finite(trainer: "Trainer", terms: list[dict[str, Tensor]], micro_batches: list[Tensor]) -> NonFiniteLoss:
    """What to raise when a player's gradient is not finite, before its weights take it in: terms of this process,
    networks, and images by their place in the data set."""
    bad_terms = sorted({name for part in terms for name, value in part.items() if not value.isfinite().all()})
    weights = _networks(trainer, lambda p: p)
    gradients = _networks(trainer, lambda p: p.grad)
    named = [
        *bad_terms,
        *(f"weights of the {name}" for name in weights),
        *(f"gradient of the {name}" for name in gradients),
    ]
    return NonFiniteLoss(", ".join(named) + _images(trainer, micro_batches), trainer.step)


def _networks(trainer: "Trainer", tensor_of: Callable[[nn.Parameter], Tensor | None]) -> list[str]:
    """Networks in which the tensors of some parameters are not finite."""
    modules = {**dict(trainer.plain_model.named_children()), "discriminator": trainer.plain_discriminator}
    return [
        name
        for name, module in modules.items()
        if module is not None
        and not all(t.isfinite().all() for p in module.parameters() if (t := tensor_of(p)) is not None)
    ]


def require_finite_losses(bad: list[str], step: int) -> None:
    """NonFiniteLoss if there are `bad` terms after the step that led to `step`."""
    if bad:
        raise NonFiniteLoss(", ".join(bad), step - 1)


def require_finite_weights(modules: dict[str, nn.Module | None], step: int) -> None:
    """NonFiniteLoss if a weight is not finite. A gradient may overflow where no loss did; what is saved must be sound."""
    for name, module in modules.items():
        if module is not None and not all(torch.stack([p.isfinite().all() for p in module.parameters()]).tolist()):
            raise NonFiniteLoss(f"weights of the {name}", step - 1)


def _images(trainer: "Trainer", micro_batches: list[Tensor]) -> str:
    """Which images of this process's share of the batch are not finite, in themselves or in what a network makes of
    them. None where one network fails for all, which is no fault of an image."""
    labels = trainer.labels_of(micro_batches)
    bad = torch.cat([_bad_images(trainer, x, y) for x, y in zip(micro_batches, labels)])
    if not bad.any() or bad.all():
        return ""
    places = trainer.places_of_batch()[bad.cpu()].tolist()
    more = f" and {len(places) - _SHOWN} more" if len(places) > _SHOWN else ""
    return f" (images {', '.join(map(str, places[:_SHOWN]))}{more} of the training set)"


def _bad_images(trainer: "Trainer", x: Tensor, y: Tensor | None) -> Tensor:
    """(B,) bool of images (B, C, H, W) and, in a conditional run, their labels."""
    bad = _bad_rows(x)
    if bad.any():  # through batch statistics one of them would spoil what the networks make of all
        return bad
    seen, labels = [], () if y is None else (y,)
    with evaluating(trainer.plain_model):
        if trainer.plain_model.encoder is not None:
            mu, logvar = trainer.plain_model.encoder(x)
            seen += [mu, trainer.plain_model.decoder(mu, *labels)] + ([] if logvar is None else [logvar])
        if trainer.plain_discriminator is not None:
            seen += list(trainer.plain_discriminator(x, *labels))
    return torch.stack([_bad_rows(values) for values in seen]).any(0)


def _bad_rows(values: Tensor) -> Tensor:
    """(B,) bool: which rows of (B, …) are not finite."""
    return ~values.isfinite().reshape(len(values), -1).all(1)
