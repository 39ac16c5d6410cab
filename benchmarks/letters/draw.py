"""Draws the sheet that the data set `letters` is cut from, in fonts that come with matplotlib.

    python benchmarks/letters/draw.py datasets/letters.png

There is one row per font and one column per letter. A letter is a bitmap of 32×32, white on black, scaled to its full
height; a pixel counts the white ones in a block of 4×4, as in the digits. The sheet is kept because matplotlib's fonts
(this needs 3.11) and Pillow's drawing change between versions.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib
import numpy as np
from howsure.datasets.digits import LOWER, SIDE, UPPER
from PIL import Image, ImageDraw, ImageFont

FONTS = (
    *(f"DejaVuSans{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSansMono{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-Italic", "-BoldItalic")),
    *(f"STIXGeneral{style}" for style in ("", "Bol", "Italic", "BolIta")),
    *("cmb10", "cmmi10", "cmr10", "cmss10", "cmti10", "cmtt10"),
)


def sheet() -> Image.Image:
    """The sheet in grey, with 8×8 pixels per letter."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    faces = [ImageFont.truetype(str(folder / f"{font}.ttf"), 64) for font in FONTS]
    rows = [[_counted(_bitmap(face, letter)) for letter in (*UPPER, *LOWER)] for face in faces]
    return Image.fromarray(np.block(rows))


def _bitmap(face: ImageFont.FreeTypeFont, letter: str) -> np.ndarray:
    """A letter as a 0/1 bitmap `[32, 32]`, scaled to fill the height, or the width if it is wider, and centred."""
    page = Image.new("L", (192, 192))
    ImageDraw.Draw(page).text((64, 64), letter, fill=255, font=face)
    glyph = page.crop(page.getbbox())
    scale = 4 * SIDE / max(glyph.size)
    width, height = (max(1, round(side * scale)) for side in glyph.size)
    square = Image.new("L", (4 * SIDE, 4 * SIDE))
    square.paste(glyph.resize((width, height)), ((4 * SIDE - width) // 2, (4 * SIDE - height) // 2))
    return (np.asarray(square) >= 128).astype(np.int64)


def _counted(bitmap: np.ndarray) -> np.ndarray:
    """How many pixels in each block of 4×4 are set, scaled so that 16 gives 255, uint8 `[8, 8]`."""
    counts = bitmap.reshape(SIDE, 4, SIDE, 4).sum(axis=(1, 3))
    return np.round(counts * 255 / 16).astype(np.uint8)


if __name__ == "__main__":
    sheet().save(sys.argv[1], optimize=True)
