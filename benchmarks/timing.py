"""Measuring contestants in turn, and tables of what came out."""

import json
import platform
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

PACKAGES = ("torch", "torchvision", "accelerate", "pythae", "torch-fidelity", "pytorch-fid", "clean-fid", "pillow")


@dataclass(frozen=True)
class Row:
    """One contestant of a table."""

    name: str
    median: float
    low: float
    high: float
    unit: str
    ratio: float | None = None
    """Median over the rounds of this figure divided by the reference's in the same round."""
    note: str = ""


@dataclass(frozen=True)
class Table:
    """What one part of the benchmark found."""

    title: str
    rows: list[Row]
    reference: str = ""
    """The contestant whose ratio is 1."""
    text: str = ""
    """What was run, in a sentence or two."""


def in_turn(contestants: dict[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Call each in turn, A B C A B C …, `repeats` times; what each call returned, by name. A round before is not
    counted: it warms caches and compilers."""
    figures: dict[str, list[float]] = {name: [] for name in contestants}
    for round_ in range(repeats + 1):
        for name, measure in contestants.items():
            figure = measure()
            if round_:
                figures[name].append(figure)
            print(f"round {round_} of {repeats}: {name} {_number(figure)}", file=sys.stderr, flush=True)
    return figures


def rows(
    figures: dict[str, list[float]], unit: str, reference: str = "", notes: dict[str, str] | None = None
) -> list[Row]:
    """A row a contestant, with its ratio to the reference's figure round by round."""
    found = []
    for name, values in figures.items():
        ratio = statistics.median(a / b for a, b in zip(values, figures[reference])) if reference else None
        median = statistics.median(values)
        found.append(Row(name, median, min(values), max(values), unit, ratio, (notes or {}).get(name, "")))
    return found


def machine() -> dict[str, str | int]:
    """What the figures were measured on, and by which command."""
    found: dict[str, str | int] = {
        "command": " ".join(["python", *sys.argv]),
        "processor": _processor(),
        "cores": torch.get_num_threads(),
        "vector instructions": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
    }
    if torch.cuda.is_available():
        found["GPU"] = torch.cuda.get_device_name()
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def markdown(tables: list[Table], about: dict) -> str:
    """All tables as Markdown."""
    parts = ["; ".join(f"{name} {value}" for name, value in about.items() if name != "command") + "."]
    parts.append(f"`{about['command']}`")
    for table in tables:
        ratio = f"times {table.reference}" if table.reference else "ratio"
        lines = [f"### {table.title}", "", *([table.text, ""] if table.text else [])]
        lines += [f"| | median | range | unit | {ratio} | |", "|---|---:|---:|---|---:|---|"]
        lines += [
            f"| {r.name} | {_number(r.median)} | {_number(r.low)} – {_number(r.high)} | {r.unit} "
            f"| {'' if r.ratio is None else f'{r.ratio:.2f}'} | {r.note} |"
            for r in table.rows
        ]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def write(folder: Path, tables: list[Table], about: dict) -> None:
    """speed.md and speed.json in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "speed.md").write_text(markdown(tables, about))
    report = {"machine": about, "tables": [asdict(table) for table in tables]}
    (folder / "speed.json").write_text(json.dumps(report, indent=1) + "\n")


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
