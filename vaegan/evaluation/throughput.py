"""How fast each stage of an evaluation is on this machine."""

import statistics
import time
from collections.abc import Callable

import torch

from vaegan.evaluation import distances
from vaegan.evaluation.features import Extractor
from vaegan.evaluation.resize import resize
from vaegan.evaluation.sources import Source

REPEATS = 5


def throughput(source: Source, extractor: Extractor, batch_size: int) -> list[tuple[str, float, str]]:
    """Rows (stage, figure, unit): medians over five repetitions on one batch, after one that is left out."""
    n = min(batch_size, len(source))
    images = source.batch(0, n)
    features = extractor(images)
    d = features.shape[1]
    moments = distances.Moments()
    stages: dict[str, Callable[[], object]] = {"decode": lambda: source.batch(0, n)}
    if extractor.input_size and extractor.resizer != "none":
        one_by_one = [image.to(extractor.device)[None] for image in images]
        batch = torch.cat(one_by_one) if len({image.shape for image in one_by_one}) == 1 else None
        parts = one_by_one if batch is None else [batch]
        stages["resize"] = lambda: [resize(part, extractor.input_size, extractor.resizer) for part in parts]
    stages["resize and extractor"] = lambda: extractor(images)
    stages["accumulate"] = lambda: moments.update(features)
    rows = [(stage, n / _seconds(work, extractor.device), "images/s") for stage, work in stages.items()]
    normal = torch.randn(2, 2 * d, d, generator=torch.Generator().manual_seed(0))
    a, b = (distances.statistics_of(part.to(extractor.device)) for part in normal)
    rows.append(
        (f"Fréchet distance, d = {d}", _seconds(lambda: distances.frechet_distance(a, b), extractor.device), "s")
    )
    return rows


def table(rows: list[tuple[str, float, str]]) -> str:
    """Markdown."""
    lines = [f"| {stage} | {figure:.3g} {unit} |" for stage, figure, unit in rows]
    return "\n".join(["| stage | measured |", "|---|---:|", *lines])


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    times = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])
