#!/usr/bin/env python3
"""Every speed of the project beside those of the others: training step, data path, evaluation, sampling, start-up,
growth and memory. Contestants run in turn, A B C A B C …, after a round that is not counted; figures are medians, and
ratios medians of the rounds' ratios. `pip install -e ".[benchmark]"` brings the other packages.

Writes speed.md and speed.json into the folder given by --out, after each table of the step and each other part.
"""

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path

import data_path
import evaluation
import growth
import start
import step
from timing import Table, machine, markdown, write

from vaegan.training import process

PARTS: dict[str, Callable[[int, str], Iterable[Table]]] = {
    "step": lambda repeats, root: step.tables(repeats),
    "data": data_path.tables,
    "evaluation": lambda repeats, root: evaluation.tables(repeats),
    "sampling": lambda repeats, root: start.sampling_tables(repeats, ""),
    "start": lambda repeats, root: start.start_tables(repeats, ""),
    "growth": growth.growth_tables,
    "memory": lambda repeats, root: growth.memory_tables(repeats, ""),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="which of them; default: all")
    parser.add_argument("--repeats", type=int, default=7, help="counted rounds")
    parser.add_argument("--root", default="", help="CIFAR-10 (archive, or folder of images); default: other images")
    parser.add_argument("--out", type=Path, default=Path("runs/speed"), help="folder for the tables")
    options = parser.parse_args()
    process.use_cpu(0)
    tables, about = [], machine()
    for part in options.parts:
        for table in PARTS[part](options.repeats, options.root):
            tables.append(table)
            write(options.out, tables, about)
    print(markdown(tables, about))


if __name__ == "__main__":
    main()
