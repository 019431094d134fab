"""A process of growth.py: gets ready, and then measures once for each line that it reads."""

import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from memory import peak

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
Measure = Callable[[], dict[str, float]]


def training(recipe: str, flags: Sequence[str], steps: int, processes: int, messages: bool):
    """Images a second of so many training steps with their data; and the Accelerator, which several processes share.
    Without `messages` each process trains for itself."""
    from vaegan.data import load_data
    from vaegan.training import Trainer, process

    config = _config(recipe, flags)
    accelerator = process.start(config)
    assert accelerator.num_processes == processes, f"{accelerator.num_processes} processes, wanted {processes}"
    images, _ = load_data(config.data)
    trainer = Trainer(config, accelerator, images, None)
    if not messages:
        trainer.model, trainer.discriminator = trainer.plain_model, trainer.plain_discriminator
        accelerator.reduce = lambda tensor, *_: tensor
    batches = trainer.batches()

    def measure() -> dict[str, float]:
        accelerator.wait_for_everyone()
        start = time.perf_counter()
        for _ in range(steps):
            terms = trainer.train_step(next(batches))
        assert all(value.isfinite().all() for value in terms.values())  # also waits for a GPU
        accelerator.wait_for_everyone()
        return {"images/s": steps * config.train.batch_size / (time.perf_counter() - start)}

    return measure, accelerator


def data(recipe: str, flags: Sequence[str], images: int):
    """Images a second of the data path alone, over at least one epoch and at least `images`; and of opening the set."""
    from vaegan.data import load_data, training_batches
    from vaegan.training import process

    config = _config(recipe, flags)
    process.use_cpu(0)
    start = time.perf_counter()
    found, _ = load_data(config.data)
    opened = len(found) / (time.perf_counter() - start)
    batch_size = config.train.batch_size
    steps = math.ceil(max(images, len(found)) / batch_size)

    def measure() -> dict[str, float]:
        start = time.perf_counter()
        batches = training_batches(
            found, config.data, start_step=0, stop_step=steps, batch_size=batch_size, accumulate=1, rank=0,
            world_size=1, seed=config.seed, device=torch.device("cpu"),
        )  # fmt: skip
        count = sum(len(batch) for (batch,) in batches)
        return {"images/s": count / (time.perf_counter() - start), "opened/s": opened}

    return measure, None


def evaluation(source: str, images: int):
    """Images a second from files to the Fréchet distance between two halves of a set."""
    from vaegan.evaluation import evaluate
    from vaegan.evaluation.distances import frechet_distance
    from vaegan.evaluation.features import load_extractor
    from vaegan.evaluation.sources import open_source
    from vaegan.training import process

    process.use_cpu(0)
    extractor = load_extractor("growth_worker:cheap_features")

    def measure() -> dict[str, float]:
        start = time.perf_counter()
        real, fake = (evaluate.extract(open_source(source, limit=n), extractor) for n in (images, images // 2))
        assert math.isfinite(frechet_distance(real, fake))
        return {"images/s": (images + images // 2) / (time.perf_counter() - start)}

    return measure, None


def cheap_features() -> torch.nn.Module:
    """A network of one convolution, for `module:function`."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 64, 7, 4), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    )
    network.input_size = 32
    return network


def _config(recipe: str, flags: Sequence[str]):
    from vaegan.cli import parse_config

    # Longer than any benchmark: the steps of a run are drawn as they are asked for.
    return parse_config([*flags, "--train.steps=1000000"], CONFIGS / f"{recipe}.yaml")


def _asked(accelerator) -> bool:
    """Whether another measurement is wanted. The first process reads, and the others hear of it."""
    if accelerator is None or accelerator.num_processes == 1:
        return bool(sys.stdin.readline())
    from accelerate.utils import broadcast_object_list

    line = [sys.stdin.readline() if accelerator.is_main_process else ""]
    return bool(broadcast_object_list(line)[0])


def main() -> None:
    kind, options = sys.argv[1], json.loads(sys.argv[2])
    measure, accelerator = {"training": training, "data": data, "evaluation": evaluation}[kind](**options)
    while _asked(accelerator):
        found = measure()
        found["MiB"] = peak()
        if accelerator is None or accelerator.is_main_process:
            print("measured", json.dumps(found), flush=True)
    if accelerator is not None:
        from vaegan.training import process

        process.leave(accelerator)


if __name__ == "__main__":
    main()
