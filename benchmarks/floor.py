"""The floor of a training step: its convolutions and products, each alone, at its fastest layout and precision."""

import statistics
import time
from collections import Counter
from collections.abc import Callable

import torch
from torch.utils._python_dispatch import TorchDispatchMode

OPERATORS = ("aten::convolution", "aten::convolution_backward", "aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm")
LAYOUTS = (torch.contiguous_format, torch.channels_last)
PRECISIONS = (torch.float32, torch.bfloat16)


class _Recorder(TorchDispatchMode):
    """Counts the calls of OPERATORS by operator and arguments, tensors being told by their shapes."""

    def __init__(self):
        super().__init__()
        self.calls: Counter = Counter()

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        if function.name() in OPERATORS:
            self.calls[function, tuple(map(_described, arguments))] += 1
        return function(*arguments, **(keywords or {}))


def recorded(steps: Callable[[], None], count: int) -> dict:
    """How often a step calls each operator, by operator and arguments. `steps` takes `count` steps."""
    steps()  # the first one may differ: balances that are not known yet
    with _Recorder() as recorder:
        steps()
    return {call: calls / count for call, calls in recorder.calls.items()}


def seconds(calls: dict, repeats: int) -> float:
    """The operators of one step, each at its fastest, added up."""
    return sum(count * _best(call, repeats) for call, count in calls.items())


def _described(argument):
    if isinstance(argument, torch.Tensor):
        return torch.Size(argument.shape)
    return tuple(argument) if isinstance(argument, list) else argument


def _best(call, repeats: int) -> float:
    times = []
    for layout in LAYOUTS:
        for precision in PRECISIONS:
            try:
                times.append(_median(call, layout, precision, repeats))
            except RuntimeError:  # the operator has no kernel for that precision
                continue
    return min(times)


@torch.no_grad()
def _median(call, layout: torch.memory_format, precision: torch.dtype, repeats: int) -> float:
    function, described = call
    device = "cuda" if torch.cuda.is_available() else "cpu"

    def argument(value):
        if not isinstance(value, torch.Size):
            return list(value) if isinstance(value, tuple) else value
        tensor = torch.randn(value, dtype=precision, device=device)
        return tensor.contiguous(memory_format=layout) if tensor.ndim == 4 else tensor

    arguments = [argument(value) for value in described]
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        function(*arguments)
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])
