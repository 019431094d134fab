"""A profile of some training steps: a Chrome trace, and a table of the operators that take most of the time."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from torch.autograd.profiler_util import EventList
from torch.profiler import profile, record_function, schedule

from vaegan.sampling import write_whole

WARM_UP = 10  # steps before, in which compilers, allocators and the profiler itself settle
ROWS = 40
Batch = TypeVar("Batch")


def profiled(
    batches: Iterator[Batch], steps: int, to_come: int, run_dir: Path, tell: Callable[[str], None]
) -> Iterator[Batch]:
    """Yield `batches`, of which there are `to_come`, and profile what is done with `steps` of them after a warm-up.

    A short run has a shorter warm-up. When the steps are over, or the iterator is closed, the folder `profile` in
    `run_dir` gets trace.json and operators.txt, and `tell` a line that says so.
    """
    warm_up = min(WARM_UP, max(0, to_come - steps))
    with profile(
        schedule=schedule(wait=max(0, warm_up - 1), warmup=min(1, warm_up), active=steps, repeat=1),
        on_trace_ready=lambda profiler: _write(profiler, run_dir / "profile", tell),
        record_shapes=True,
    ) as profiler:
        for _ in range(min(warm_up + steps, to_come)):
            with record_function("data"):
                batch = next(batches)
            yield batch
            profiler.step()
    yield from batches


def _write(profiler: profile, folder: Path, tell: Callable[[str], None]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / ".trace.json.partial"
    try:
        profiler.export_chrome_trace(str(partial))
        os.replace(partial, folder / "trace.json")
    finally:
        partial.unlink(missing_ok=True)
    write_whole(folder / "operators.txt", _report(profiler.key_averages()).encode())
    tell(f"profile: {folder / 'operators.txt'}, and trace.json beside it for chrome://tracing or ui.perfetto.dev")


def _report(averages: EventList) -> str:
    """The parts of a step with their milliseconds, and the operators by the time they themselves take."""
    parts = sorted((e for e in averages if e.is_user_annotation), key=lambda e: -e.cpu_time_total)
    steps = max((e.count for e in parts if e.key == "data"), default=1)
    lines = [f"{e.key:50} {e.cpu_time_total / steps / 1000:10.3f} ms a step" for e in parts]
    on_device = any(e.self_device_time_total > 0 for e in averages)
    by = "self_device_time_total" if on_device else "self_cpu_time_total"
    return "\n".join([*lines, "", averages.table(sort_by=by, row_limit=ROWS, max_name_column_width=60), ""])
