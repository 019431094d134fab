"""The pictures of an evaluation: its main figures in dots, and samples of each model side by side."""

import io
import math
import re

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from vaegan import sampling
from vaegan.data.decode import to_channels
from vaegan.evaluation.report import Result, columns, heading, is_distance, shown

COLUMNS = 8  # images in a row of a grid
GROUPS = (("kid",), ("precision", "recall", "f1"), ("density", "coverage"), ("psnr",), ("ssim",), ("lpips",))
_COLOURS = ("#2f5d8a", "#7fa8d1", "#c9a227")
_INK, _FAINT = "#333333", "#dddddd"
_PANELS = 4  # in a row


def plot(results: list[Result]) -> bytes:
    """A dot chart of the main figures as a PNG file: a panel for each distance, KID, precision and recall, …

    Drawn without pyplot, so that no global state of matplotlib changes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    groups = _groups(results)
    across = min(_PANELS, max(1, len(groups)))
    down = max(1, -(-len(groups) // across))
    longest = max((len(group) for group in groups), default=1)
    height = 0.5 + len(results) * (0.2 + 0.16 * longest)
    figure = Figure((1.4 + 2.3 * across, height * down), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(down, across, squeeze=False).flatten()
    for i, panel in enumerate(panels):
        if i < len(groups):
            _draw(panel, results, groups[i], names=i % across == 0)
        else:
            panel.set_axis_off()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def _groups(results: list[Result]) -> list[tuple[str, ...]]:
    """The figures of each panel: those that some result has."""
    names = [n for n in columns(results) if any(math.isfinite(r.figures.get(n, math.nan)) for r in results)]
    distances = [(name,) for name in names if is_distance(name) and name != "floor" and not name.endswith("∞")]
    groups = (tuple(name for name in group if name in names) for group in GROUPS)
    return [*distances, *(group for group in groups if group)]


def _draw(panel, results: list[Result], group: tuple[str, ...], *, names: bool) -> None:
    """A dot on a line from zero for each figure of a group and each result, from top to bottom, with its value."""
    reach = [0.0]
    for j, figure in enumerate(group):
        spreads = zip(*_spreads(results, figure))
        for i, (result, (below, above)) in enumerate(zip(results, spreads)):
            value, y = result.figures.get(figure, math.nan), i + 0.27 * (j - (len(group) - 1) / 2)
            end = value if math.isfinite(value) else 0.0
            panel.hlines(y, 0, end, color=_COLOURS[j], alpha=0.35, linewidth=2)
            panel.hlines(y, end - below, end + above, color=_COLOURS[j], linewidth=2)
            panel.plot([value], [y], "o", color=_COLOURS[j], markersize=6, label=figure if i == 0 else None)
            panel.annotate(shown(figure, value), (end + above, y), (7, 0), textcoords="offset points", va="center",
                           fontsize=8, color=_INK)  # fmt: skip
            reach += [end - below, end + above]
    lowest, span = min(reach), max(reach) - min(reach) or 1.0
    panel.set_xlim(lowest - 0.03 * span, lowest + 1.35 * span)  # room for the last value
    panel.set_ylim(len(results) - 0.5, -0.5)
    panel.axvline(0, color=_FAINT, linewidth=1, zorder=0)
    panel.set_frame_on(False)
    panel.tick_params(length=0)
    panel.set_xticks([])
    labels = [_wrapped(result.name, 24) for result in results] if names else [""] * len(results)
    panel.set_yticks(range(len(results)), labels, fontsize=8, color=_INK)
    if len(group) == 1:
        panel.set_title(_wrapped(heading(group[0]), 24), loc="left", fontsize=9, color=_INK)
        return
    handles, titles = panel.get_legend_handles_labels()
    panel.legend(
        handles, [*titles[:-1], heading(group[-1])], loc="lower left", bbox_to_anchor=(0, 1), ncols=len(group),
        frameon=False, fontsize=9, labelcolor=_INK, handlelength=0.6, handletextpad=0.3, columnspacing=0.7,
        borderpad=0, borderaxespad=0.4,
    )  # fmt: skip


def _wrapped(name: str, width: int) -> str:
    """A long name in up to three lines, broken where a path or its words break."""
    words = re.split(r"(?<=[/_\s-])", name)
    lines = [""]
    for part in (word[i : i + width] for word in words for i in range(0, len(word), width)):
        if lines[-1] and len(lines[-1] + part.rstrip()) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(line.strip() for line in lines[:3]) + ("…" if len(lines) > 3 else "")


def _spreads(results: list[Result], figure: str) -> tuple[list[float], list[float]]:
    """How far a spread reaches below and above: a standard deviation, or the ends of an interval."""
    below, above = [], []
    for figures in (result.figures for result in results):
        value, std = figures.get(figure, math.nan), figures.get(f"{figure}_std", math.nan)
        low, high = figures.get(f"{figure} 2.5 %", value - std), figures.get(f"{figure} 97.5 %", value + std)
        below.append(max(0.0, value - low) if math.isfinite(value - low) else 0.0)
        above.append(max(0.0, high - value) if math.isfinite(high - value) else 0.0)
    return below, above


def grids(images: dict[str, Tensor]) -> Tensor:
    """One picture uint8 (3, H, W) of the images of each model, uint8 (B, 1 or 3, H, W), under its name."""
    blocks = []
    for name, batch in images.items():
        block = to_channels(sampling.grid(batch, min(COLUMNS, len(batch))), 3)
        blocks += [_label(name, block.shape[-1]), block]
    width = max(block.shape[-1] for block in blocks)
    return torch.cat([torch.nn.functional.pad(b, (0, width - b.shape[-1]), value=255) for b in blocks], 1)


def _label(text: str, width: int) -> Tensor:
    """Dark on white, uint8 (3, H, width or more): a name that is longer than its images widens the picture."""
    font = ImageFont.load_default(18)
    left, _, right, _ = font.getbbox(text)
    canvas = Image.new("RGB", (max(width, int(right - left) + 8), 30), "white")
    ImageDraw.Draw(canvas).text((4 - left, 4), text, fill=_INK, font=font)
    return torch.from_numpy(np.array(canvas)).permute(2, 0, 1)
