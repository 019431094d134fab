#!/usr/bin/env python3
"""VAE-GANs and their peers on the same data, with the same training time, measured by the same evaluation.

Each contestant and seed is a process of its own, seed after seed, and leaves a record; what has one is not trained
again, so that the whole can be made over several sittings. Only training counts towards the budget: reading the data
before it and measuring after it do not. Let nothing else run meanwhile.

Writes records, tables (Markdown and JSON), a chart and the contestants' samples side by side into --results.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import contestants
import quality_environment
import quality_records as records
import rivals
from quality_records import MINUTES, Job

from vaegan import cli
from vaegan.config import ConfigError, DataConfig
from vaegan.flags import Parser, count

HERE = Path(__file__).resolve().parent
EXAMPLES = """examples:
  quality.py                                          MNIST, 5 minutes each on the CPU, all contestants and seeds
  quality.py --contestants vaegan gan --seeds 0       some of it
  quality.py --data cifar10 --root ~/data             CIFAR-10, 20 minutes each on the CPU
  quality.py --data cifar10 --budget gpu              CIFAR-10, 9 minutes each on a GPU
  quality.py --ablation                               one choice of the recipe turned off at a time
  quality.py --samplers                               distances by what latents are drawn from
  quality.py --table-only                             tables and pictures of the records that are there"""


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(prog="quality.py", description=__doc__, epilog=EXAMPLES,
                    formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    add = parser.add_argument
    add("--data", choices=("mnist", "cifar10"), default="mnist")
    add("--budget", choices=("cpu", "gpu"), default="cpu", help="default cpu")
    add("--minutes", type=_minutes, metavar="M", help="of training, in the place of the budget's: for trials")
    add("--contestants", nargs="+", metavar="NAME", help="default: all that have seeds for the data")
    add("--seeds", nargs="+", type=_seed, metavar="N", help="default: 0 1 2 or 0, by contestant and data")
    add("--ablation", action="store_true",
        help="the recipe with learned similarity, and one choice of it turned off at a time, by seeds 0 and 1")  # fmt: skip
    add("--samples", type=count, default=Job.samples, metavar="N", help=f"that are measured (default {Job.samples})")
    add("--extractor", default=Job.extractor, metavar="NAME", help="of scripts/fid.py (default efficientnet-lite0)")
    add("--root", default=DataConfig.root, metavar="DIR", help=f"of CIFAR-10 (default {DataConfig.root})")
    add("--images", nargs=2, default=(), metavar=("TRAIN", "VAL"),
        help="folders or archives of images in the place of the named set's")  # fmt: skip
    add("--threads", type=count, default=0, metavar="N", help="CPU threads (default: all cores)")
    add("--results", default=str(HERE / "results" / "quality"), metavar="DIR")
    add("--work", default=str(Path(tempfile.gettempdir()) / "vaegan-quality"), metavar="DIR",
        help="for weights, which are kept for measuring again")  # fmt: skip
    add("--environment", type=Path, default=quality_environment.DEFAULT, metavar="DIR",
        help=f"environment with pythae, made if there is none (default {quality_environment.DEFAULT})")  # fmt: skip
    add(
        "--again",
        action="store_true",
        help="train or measure anew what was made by another recipe, or measured otherwise",
    )
    add("--samplers", action="store_true",
        help="train nothing: measure the prior against samplers that are fitted to the latents, by default of vaegan and "
        "vae, seed 0, whose weights must still be in --work")  # fmt: skip
    add("--table-only", action="store_true", help="train nothing")
    return parser.parse_args(arguments)


def main() -> int:
    options = parse(sys.argv[1:])
    minutes = MINUTES.get((options.data, options.budget))
    if minutes is None:
        raise ConfigError(
            f"--budget {options.budget} is of {' and '.join(d for d, b in MINUTES if b == options.budget)}"
        )
    job = Job(
        "", 0, options.data, options.minutes or minutes, options.results, options.work, options.budget,
        options.samples, options.extractor, options.threads, options.root, tuple(options.images),
    )  # fmt: skip
    if options.samplers:
        _measure_samplers(job, options)
    failed = [] if options.table_only or options.samplers else _perform(job, options)
    import quality_table

    rows = contestants.ABLATION if options.ablation else contestants.CONTESTANTS
    print(quality_table.write(job, rows, options.ablation))
    return 1 if failed else 0


def _perform(job: Job, options: argparse.Namespace) -> list[Job]:
    """Train and measure what has no record yet; what failed."""
    jobs = [job.of_seed(c.name, seed) for c in chosen(job, options) for seed in seeds(c, job, options)]
    jobs.sort(key=lambda one: one.seed)  # all contestants in turns: a machine is not as fast in every hour
    recipes = {name: contestants.recipe_of(contestants.named(name), job) for name in {j.contestant for j in jobs}}
    states = {one: records.state_of(one, recipes[one.contestant]) for one in jobs}
    other = [line for line in states.values() if line not in ("missing", "finished")]
    if other and not options.again:
        raise ConfigError("\n".join(f"{line}: give --again to make it anew, or other --results" for line in other))
    todo = [one for one, state in states.items() if state != "finished"]
    print(f"{len(jobs) - len(todo)} of {len(jobs)} are finished; to do: {len(todo)} times {job.minutes:g} minutes of "
          "training, and measuring", file=sys.stderr)  # fmt: skip
    if todo and job.budget == "gpu":
        _require_gpu()
    rival = any(contestants.named(one.contestant).rival for one in todo)  # found missing now rather than after hours
    python = quality_environment.python_with(rivals.VERSION, options.environment) if rival else None
    return [one for one in todo if not _run(one, python)]


def _measure_samplers(job: Job, options: argparse.Namespace) -> None:
    import quality_samplers

    from vaegan.training import process

    process.use_cpu(job.threads)
    for contestant in options.contestants or ("vaegan", "vae"):
        for seed in options.seeds or (0,):
            quality_samplers.perform(job.of_seed(contestant, seed))


def chosen(job: Job, options: argparse.Namespace) -> list[contestants.Contestant]:
    """The contestants of the command line, by default those that have seeds for the data."""
    if options.contestants:
        return [contestants.named(name) for name in options.contestants]
    if options.ablation:
        return list(contestants.ABLATION)
    return [c for c in contestants.CONTESTANTS if c.seeds[job.data == "cifar10"]]


def seeds(contestant: contestants.Contestant, job: Job, options: argparse.Namespace) -> tuple[int, ...]:
    if options.seeds:
        return tuple(dict.fromkeys(options.seeds))
    if options.ablation:
        return contestants.ABLATION_SEEDS
    return tuple(range(contestant.seeds[job.data == "cifar10"] or 1))


def _run(job: Job, with_pythae: Path | None) -> bool:
    """Whether the process of a job has left its record. Its errors go to stderr as they come."""
    python = with_pythae if contestants.named(job.contestant).rival else sys.executable
    print(f"\n{job.contestant}, seed {job.seed}, {job.minutes:g} minutes", file=sys.stderr, flush=True)
    # This checkout, whatever the environment has been installed from.
    paths = [str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run([str(python), str(HERE / "quality_worker.py"), job.dumps()],
                          env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)})  # fmt: skip
    if done.returncode:
        print(f"{job.contestant}, seed {job.seed}: failed with exit status {done.returncode}", file=sys.stderr)
    return done.returncode == 0


def _require_gpu() -> None:
    import torch

    if not torch.cuda.is_available():
        raise ConfigError("--budget gpu: there is no GPU here that torch can use (choose cpu)")


def _minutes(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e4:
        raise argparse.ArgumentTypeError(f"must be a number of minutes above 0, got {text[:80]}")
    return value


def _seed(text: str) -> int:
    if not (text.isdecimal() and len(text) < 9):
        raise argparse.ArgumentTypeError(f"must be a whole number from 0, got {text[:80]}")
    return int(text)


if __name__ == "__main__":
    cli.run(main)
