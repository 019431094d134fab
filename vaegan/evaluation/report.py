"""The results of an evaluation as files: tables for people, JSON and CSV for programs, and two pictures."""

import csv
import io
import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path

from torch import Tensor

from vaegan.config import ConfigError

HIGHER_IS_BETTER = (
    "psnr", "ssim", "ms_ssim", "precision", "recall", "f1", "density", "coverage", "inception_score", "elbo",
    "active_units",
)  # fmt: skip
NEITHER_IS_BETTER = ("kl", "floor")
# Heading, factor and decimals of a column. Distances have two decimals; others four significant digits.
_COLUMNS = {
    "kid": ("KID ×10³", 1e3, 2),
    "inception_score": ("Inception Score", 1, 2),
    "mse": ("MSE", 1, 5),
    "psnr": ("PSNR (dB)", 1, 2),
    "ssim": ("SSIM", 1, 4),
    "ms_ssim": ("MS-SSIM", 1, 4),
    "lpips": ("LPIPS", 1, 4),
    "kl": ("KL (nats)", 1, 2),
    "elbo": ("ELBO (nats)", 1, 1),
    "bits_per_dim": ("bits/dim", 1, 3),
    "active_units": ("active units", 1, 0),
} | {name: (name, 1, 3) for name in ("precision", "recall", "f1", "density", "coverage")}
_SPREAD, _LOW, _HIGH = "_std", " 2.5 %", " 97.5 %"
_MISSING = "–"


@dataclass(frozen=True)
class Result:
    """What was measured of one model or set: figures by name, how they were made, and what to know about them.

    `x_std` is shown beside `x`, and so are `x 2.5 %` and `x 97.5 %`, the ends of an interval.
    """

    name: str
    figures: dict[str, float]
    protocol: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    per_class: dict[str, dict[str, float]] = field(default_factory=dict)
    """By class name: a distance, and of how many `reference images` and `samples` it is."""


def is_distance(figure: str) -> bool:
    """Whether it is a Fréchet distance, as `Extractor.label` names them."""
    return "FID" in figure or "FD[" in figure or figure == "floor"


def heading(figure: str) -> str:
    """The title of a figure's column, its unit, and an arrow to where it is better."""
    title = _COLUMNS.get(figure, (figure,))[0]
    if figure in NEITHER_IS_BETTER:
        return title
    return f"{title} {'↑' if figure in HIGHER_IS_BETTER else '↓'}"


def shown(figure: str, value: float) -> str:
    """A figure in the unit and with the digits of its column."""
    if not math.isfinite(value):
        return _MISSING
    if figure in _COLUMNS:
        _, factor, decimals = _COLUMNS[figure]
        return f"{factor * value:.{decimals}f}"
    return f"{value:.2f}" if is_distance(figure) else f"{value:.4g}"


def columns(results: list[Result]) -> list[str]:
    """Figures that have a column of their own, in the order of their first appearance."""
    names = list(dict.fromkeys(name for result in results for name in result.figures))
    companions = {name + suffix for name in names for suffix in (_SPREAD, _LOW, _HIGH)}
    return [name for name in names if name not in companions]


def markdown(results: list[Result]) -> str:
    """A table with a row a result and a column a figure, the best of several in bold; then protocol and notes.

    KID is in thousandths. What is missing or not finite is a dash.
    """
    names = columns(results)
    best = {name: _best(results, name) for name in names} if len(results) > 1 else {}
    rows = [["model", *map(heading, names)]]
    for result in results:
        rows.append([_plain(result.name), *(_cell(result, name, best.get(name)) for name in names)])
    widths = [max(map(len, column)) for column in zip(*rows)]
    rows.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    lines = [
        "| " + " | ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:]))]) + " |"
        for row in rows
    ]
    return "\n".join([*lines, *_remarks(results), *_classes(results)]) + "\n"


def _classes(results: list[Result]) -> list[str]:
    """A table with a row a class of each result that has figures of them."""
    lines = []
    for result in results:
        for number, (name, figures) in enumerate(result.per_class.items()):
            if number == 0:
                titles = [heading(f) if is_distance(f) else f for f in figures]
                lines += [
                    "",
                    f"| class of {_plain(result.name)} | {' | '.join(titles)} |",
                    "| --- |" + " ---: |" * len(titles),
                ]
            lines.append(f"| {_plain(name)} | {' | '.join(shown(f, value) for f, value in figures.items())} |")
    return lines


def _best(results: list[Result], figure: str) -> str | None:
    """The best value as it is shown, for what looks equal is as good; None where nothing is better than another."""
    values = [v for v in (result.figures.get(figure, math.nan) for result in results) if math.isfinite(v)]
    if figure in NEITHER_IS_BETTER or len({shown(figure, value) for value in values}) < 2:
        return None
    return shown(figure, max(values) if figure in HIGHER_IS_BETTER else min(values))


def _cell(result: Result, figure: str, best: str | None) -> str:
    text = shown(figure, result.figures.get(figure, math.nan))
    if text == _MISSING:
        return text
    spread, low, high = (result.figures.get(figure + suffix, math.nan) for suffix in (_SPREAD, _LOW, _HIGH))
    cell = f"**{text}**" if text == best else text
    if math.isfinite(spread):
        cell += f" ± {shown(figure, spread)}"
    if math.isfinite(low + high):
        cell += f" [{shown(figure, low)}, {shown(figure, high)}]"
    return cell


def _remarks(results: list[Result]) -> list[str]:
    """The protocol that all share, in one line; below it what differs, and notes."""
    named = len(results) > 1
    common = [item for item in results[0].protocol.items() if all(item in r.protocol.items() for r in results)]
    lines = ["", "Protocol: " + _listed(common) + "."] if common else []
    points = []
    for result in results:
        own = [item for item in result.protocol.items() if item not in common]
        points += [f"{_plain(result.name)}: {_listed(own)}."] if own else []
    everywhere = [note for note in results[0].notes if all(note in result.notes for result in results)]
    points += map(_plain, everywhere)
    for result in results:
        points += [
            f"{_plain(result.name)}: {_plain(note)}" if named else _plain(note)
            for note in result.notes
            if note not in everywhere
        ]
    return lines + ([""] if points else []) + [f"- {point}" for point in points]


def _listed(protocol: list[tuple[str, str]]) -> str:
    return "; ".join(f"{_plain(name)} {_plain(value[:12] if _is_hash(value) else value)}" for name, value in protocol)


def _is_hash(text: str) -> bool:
    return len(text) == 64 and all(c in "0123456789abcdef" for c in text)


def _plain(text: str) -> str:
    """One line that does not end a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def to_json(results: list[Result]) -> str:
    """All that the results hold, in full precision, keys sorted; null stands for what is not finite."""
    entries = [asdict(result) for result in results]
    for entry in entries:
        entry["figures"] = _finite(entry["figures"])
        per_class = entry.pop("per_class")
        if per_class:
            entry["per_class"] = {name: _finite(figures) for name, figures in per_class.items()}
    return json.dumps(entries, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def _finite(figures: dict[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in figures.items()}


def to_csv(results: list[Result]) -> str:
    """A row a result: name, figures in full precision, those of classes as `class.NAME.FIGURE`, protocol (`protocol.`
    before its names) and notes; empty where a figure is missing or not finite."""
    of_all = [result.figures | _by_class(result) for result in results]
    figures = dict.fromkeys(name for of in of_all for name in of)
    protocol = dict.fromkeys(name for result in results for name in result.protocol)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["name", *figures, *(f"protocol.{name}" for name in protocol), "notes"])
    for result, of in zip(results, of_all):
        values = [of.get(name, math.nan) for name in figures]
        writer.writerow(
            [
                result.name,
                *(repr(float(value)) if math.isfinite(value) else "" for value in values),
                *(result.protocol.get(name, "") for name in protocol),
                "; ".join(result.notes),
            ]
        )
    return text.getvalue()


def _by_class(result: Result) -> dict[str, float]:
    return {f"class.{name}.{figure}": v for name, of in result.per_class.items() for figure, v in of.items()}


def write_report(folder: Path, results: list[Result], images: dict[str, Tensor]) -> None:
    """report.md, report.json, report.csv, plot.png and, of `images` (uint8 (B, C, H, W) a model), samples.png.

    Each file appears whole or not at all. Raises ConfigError if the folder cannot be made or written.
    """
    from vaegan.evaluation.pictures import grids, plot
    from vaegan.sampling import png, write_whole

    pictures = {"plot.png": plot(results)} | ({"samples.png": png(grids(images))} if images else {})
    links = "".join(f"\n![{Path(name).stem}]({name})\n" for name in pictures)
    texts = {"report.md": markdown(results) + links, "report.json": to_json(results), "report.csv": to_csv(results)}
    try:
        for name, data in ({name: text.encode() for name, text in texts.items()} | pictures).items():
            write_whole(folder / name, data)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written ({error.strerror or error}); give another folder") from error
