"""Pictures of the quality benchmark: a chart of the figures, and the stored grids side by side."""

import io
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from vaegan.evaluation.pictures import plot
from vaegan.evaluation.report import Result

ACROSS, CAPTION, GAP = 4, 24, 10  # panels in a row; pixels of a caption and between panels
INK = "#333333"


def chart(results: list[Result]) -> bytes:
    """A panel for each figure: the median as a dot, the range of the seeds as a bar. PNG."""
    return plot(results)


def side_by_side(panels: dict[str, Path]) -> bytes:
    """Pictures under their captions, four in a row, as WebP; nothing if there are none."""
    if not panels:
        return b""
    pictures = {title: Image.open(file).convert("RGB") for title, file in panels.items()}
    width = max(picture.width for picture in pictures.values())
    height = max(picture.height for picture in pictures.values()) + CAPTION
    across = min(ACROSS, len(pictures))
    down = -(-len(pictures) // across)
    canvas = Image.new("RGB", (across * (width + GAP) - GAP, down * (height + GAP) - GAP), "white")
    draw = ImageDraw.Draw(canvas)
    for i, (title, picture) in enumerate(pictures.items()):
        left, top = i % across * (width + GAP), i // across * (height + GAP)
        draw.text((left, top + 4), title, fill=INK, font=_font(draw, title, width))
        canvas.paste(picture, (left, top + CAPTION))
    buffer = io.BytesIO()
    canvas.save(buffer, "webp", quality=80, method=6)
    return buffer.getvalue()


def _font(draw: ImageDraw.ImageDraw, text: str, width: int):
    """The largest font in which a caption is no wider than its picture."""
    sizes = range(15, 7, -1)
    return next((font for size in sizes if draw.textlength(text, font=(font := ImageFont.load_default(size))) <= width),
                ImageFont.load_default(sizes[-1]))  # fmt: skip
