"""Suites for networks of other families, and for many classes: `python benchmarks/validation/families.py FOLDER`.

They test a method on networks and data that had no part in choosing it. Writes suite files and their images; run each
with `howsure run FOLDER/NAME.toml --plugin benchmarks/validation/family_networks.py`, which trains the networks. Needs
`fashion-mnist`, `cifar10-jpeg` and `tiny-imagenet`.
"""

from __future__ import annotations

import argparse
import json
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from make import METHODS, pictures
from PIL import Image, ImageDraw, ImageFont

from howsure.sources import resolve

SIDE, TEST, SHIFT = 32, 2000, 1000
HELD_BACK = (2, 7)
"""Pullovers and sneakers: classes of Fashion-MNIST that served as the near shift in no other validation suite."""
KNOWN = (
    "ABCDEFGHIJKLMNOPQRSTUVWXYZ" "abdefghmnqrt" "23456789" "&@%$?#"
    "ΓΔΘΛΞΠΣΦΨΩ" "αβγδζηθλμξπφψω" "БДЖИЙЛЦЧШЩЪЫЬЭЮЯ" "бджийлцчшщъыэюя"
)  # fmt: skip
UNKNOWN = [chr(code) for code in (*range(0x531, 0x557), *range(0x10D0, 0x10F1))]
"""Armenian capitals and Georgian letters, the near shift of the glyphs."""
FONTS = [f"DejaVu{kind}.ttf" for kind in (
    *(f"Sans{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"SansMono{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"Serif{style}" for style in ("", "-Bold", "-Italic", "-BoldItalic")),
)]  # fmt: skip
NETWORKS = {
    "fashion": ("resnet-v2-gn", "vgg-plain", "nfnet", "mobilenet-v3", "mixer", "swin", "convnext"),
    "glyphs": ("resnet-v2-gn",),
    "cifar": ("vgg-plain", "convnext"),
}
CORRUPTIONS = """
[corruptions]
types = [
    "gaussian_noise", "impulse_noise", "defocus_blur", "motion_blur",
    "fog", "contrast", "elastic_transform", "pixelate",
]
severities = [1, 3, 5]
images = 400
"""

Pool = tuple[np.ndarray, np.ndarray]


def main(folder: Path) -> None:
    worn = tuple(c for c in range(10) if c not in HELD_BACK)
    far = {"noise": data("gaussian-noise", "test", SHIFT), "articles": data("fashion-mnist", "test", SHIFT)}
    far |= {"photos": data("cifar10-jpeg", "test", SHIFT), "glyphs": glyphs(KNOWN, SHIFT, seed=3)}
    sets = {
        "fashion": {
            "train": data("fashion-mnist", "train", 8000, worn),
            "test": data("fashion-mnist", "test", TEST, worn),
            "near": data("fashion-mnist", "test", SHIFT, HELD_BACK),
        },
        "glyphs": {
            "train": glyphs(KNOWN, 24000, seed=0),
            "test": glyphs(KNOWN, TEST, seed=1),
            "near": glyphs(UNKNOWN, SHIFT, seed=2),
        },
        "cifar": {
            "train": data("cifar10-jpeg", "train", 15000),
            "test": data("cifar10-jpeg", "test", TEST),
            "near": data("tiny-imagenet", "test", SHIFT),
        },
    }
    own = {"fashion": "articles", "glyphs": "glyphs", "cifar": "photos"}
    for name, splits in sets.items():
        splits |= {key: pool for key, pool in far.items() if key != own[name]}
        (folder / name).mkdir(parents=True, exist_ok=True)
        for split, (x, y) in splits.items():
            np.savez(folder / name / f"{split}.npz", x=x, y=y)
        (folder / f"{name}.toml").write_text(toml(name, list(splits)[2:]))
        print(folder / f"{name}.toml", {split: len(x) for split, (x, _) in splits.items()})


def data(name: str, split: str, most: int, classes: tuple[int, ...] = ()) -> Pool:
    """Random images of a data set, or of some classes; those of 28×28 pixels get a black border of two."""
    images = resolve(name, Path()).split(split)
    labels = np.asarray(images.y)
    among = np.flatnonzero(np.isin(labels, classes)) if classes else np.arange(len(labels))
    index = np.random.default_rng(0).permutation(among)[:most]
    these = pictures(images, index)
    mode = "RGB" if any(picture.mode == "RGB" for picture in these) else "L"
    x = np.stack([np.asarray(picture.convert(mode)) for picture in these])
    border = max(0, (SIDE - x.shape[1]) // 2)
    x = np.pad(x, ((0, 0), (border, border), (border, border), *[(0, 0)] * (x.ndim - 3)))
    return x, np.unique(labels[index], return_inverse=True)[1]


def glyphs(characters: str | list[str], count: int, seed: int) -> Pool:
    """Characters in random fonts, sizes, angles, places and greys."""
    rng = np.random.default_rng((seed, 0))
    y = rng.integers(len(characters), size=count)
    return np.stack([glyph(characters[i], rng) for i in y]), y


def glyph(character: str, rng: np.random.Generator) -> np.ndarray:
    face = font(str(rng.choice(FONTS)), int(rng.integers(19, 28)))
    page = Image.new("L", (SIDE, SIDE))
    centre = tuple(SIDE / 2 + rng.uniform(-2.5, 2.5, 2))
    ImageDraw.Draw(page).text(centre, character, fill=255, font=face, anchor="mm")
    drawn = np.asarray(page.rotate(float(rng.uniform(-12, 12)), Image.Resampling.BICUBIC), float) / 255
    dark, light = rng.uniform(0, 60), rng.uniform(160, 255)
    return np.round(dark + (light - dark) * drawn).astype(np.uint8)


@cache
def font(name: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


def toml(name: str, shifts: list[str]) -> str:
    lines = [
        f'id = {{ train = "npz:{name}/train.npz", test = "npz:{name}/test.npz" }}',
        f"methods = {json.dumps(METHODS)}",
        'protocols = ["none"]',
        *(f'\n[[backbone]]\nname = "{name}.{use}"\nuse = "{use}"' for use in NETWORKS[name]),
    ]
    groups = {shift: "near" if shift == "near" else "far" for shift in shifts}
    lines += [f'\n[[shift]]\ndata = "npz:{name}/{s}.npz"\nname = "{s}"\ngroup = "{g}"' for s, g in groups.items()]
    return "\n".join(lines) + "\n" + CORRUPTIONS


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="where suites and images go")
    main(parser.parse_args().folder)
