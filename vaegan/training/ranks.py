"""The processes of a run among themselves: agreeing on a signal, staying equal, losing one of them."""

from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vaegan import stop

if TYPE_CHECKING:
    from vaegan.training.trainer import Trainer

_SHOWN = 3  # names in a message


class Signal:
    """What all processes know of a signal to end, which may have reached any of them.

    They tell each other after each step and hear of it after the next, so that nobody waits.
    """

    def __init__(self, accelerator):
        """All processes call this together."""
        self._alone = accelerator.num_processes == 1
        self._sent: tuple[Tensor, dist.Work] | None = None
        # A GPU's own messages queue up behind its work, and reading them would wait for it.
        self._group = None if self._alone or accelerator.device.type == "cpu" else dist.new_group(backend="gloo")

    def agreed(self) -> int:
        """Number of the signal that all processes act on now, or 0. All of them call this after each step."""
        if self._alone:
            return stop.requested()
        before, flag = self._sent, torch.tensor([stop.requested()])
        self._sent = flag, dist.all_reduce(flag, dist.ReduceOp.MAX, group=self._group, async_op=True)
        if before is None:
            return 0
        flag, work = before
        work.wait()
        return int(flag)


class RanksDiverged(stop.Stopped):
    """Weights differ between the processes, which train one model."""

    def __init__(self, message: str):
        super().__init__(message, 1)


def require_equal_weights(trainer: "Trainer") -> None:
    """RanksDiverged, naming the weights, unless they have the same bits on all processes, which call this together.

    Buffers are left out: batch statistics are of each process's share until the next forward takes the first one's.
    """
    if trainer.accelerator.num_processes == 1:
        return
    modules = {"model": trainer.plain_model, "discriminator": trainer.plain_discriminator}
    if trainer.ema:
        modules["ema"] = trainer.ema.module
    sums = {f"{m}.{name}": _bits(p) for m, module in modules.items() if module for name, p in module.named_parameters()}
    whole = trainer.accelerator.gather(torch.stack(list(sums.values()))[None])  # (processes, tensors)
    differ = (whole != whole[0]).any(0).tolist()
    names = [name for name, differs in zip(sums, differ) if differs]
    if names:
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        raise RanksDiverged(
            f"{', '.join(names[:_SHOWN])}{more} differ between the processes at step {trainer.step}; the last checkpoint "
            "is kept: go on with --resume auto"
        )


def lost(error: RuntimeError, trainer: "Trainer") -> stop.Stopped | None:
    """What to raise instead of an error that is another process's end; None where it is not."""
    told = isinstance(error, dist.DistError) or "gloo" in str(error).lower() or "nccl" in str(error).lower()
    if trainer.accelerator.num_processes == 1 or not told:
        return None
    reason = " ".join(str(error).split())[-120:]
    return stop.Stopped(
        f"another process of this run has ended, or cannot be reached, at step {trainer.step} ({reason}); go on from the "
        "last checkpoint with --resume auto, or let torchrun do so with --max_restarts",
        1,
    )


def _bits(parameter: nn.Parameter) -> Tensor:
    """Sum of a float32 parameter's bits as whole numbers, which no single change leaves as it is; int64, on its device."""
    return parameter.detach().reshape(-1).view(torch.int32).sum(dtype=torch.int64)
