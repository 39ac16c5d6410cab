"""Suites for choosing a method without seeing any reported shift: `python benchmarks/validation/make.py FOLDER`.

They are made from training splits alone. Some classes are held back from networks and serve as the near shift. The
images of the others are divided into those to train on and those to alter; no alteration is one of the reported
corruptions, though some are related. Writes suite files and their images; run each with
`howsure run FOLDER/NAME.toml --plugin benchmarks/validation/networks.py`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter
from torchvision.transforms import functional as F

from howsure.errors import UserError
from howsure.images import Images
from howsure.sources import resolve
from howsure.synthetic import alter

HELD_OUT, MOST = 0.2, 1000
METHODS = """
msp maxlogit energy entropy gen fdbd knn vim pnml mahalanobis rmd ssd react dice scale nnguide she relation nci residual
gram gmm combood layerprint actprint
""".split()

Rng = np.random.Generator
Change = Callable[[Image.Image, Rng], Image.Image]


@dataclass(frozen=True)
class Study:
    """A data set, the classes held back, and the networks, which are trained on the spot or exist already.

    `more` are further lines for each backbone in the suite's file.
    """

    data: str
    held_back: tuple[int, ...]
    networks: tuple[str, ...]
    more: str = ""


RESNET20 = 'checkpoint = "resnet20-cifar10-jpeg.pt"\nmean = [0.485, 0.456, 0.406]\nstd = [0.229, 0.224, 0.225]\n'
SMALL, FASHION = (tuple(f"{size}-{kind}" for kind in ("cnn", "resnet", "vit")) for size in ("small", "fashion"))
STUDIES = {
    "digits-a": Study("digits", (1, 6), SMALL),
    "digits-b": Study("digits", (3, 4), SMALL),
    "fashion-a": Study("fashion-mnist", (4, 8), FASHION),
    "fashion-b": Study("fashion-mnist", (5, 6), FASHION),
    "cifar": Study("cifar10-jpeg", (2, 5, 9), ("colour-vgg", "colour-vit")),
    "cifar-seen": Study("cifar10-jpeg", (), ("cifar-resnet20",), RESNET20),
}
"""In `cifar-seen`, the network was trained on all images, including those to alter."""


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, study in STUDIES.items():
        try:
            sets = images_of(study, folder)
        except UserError as error:
            print(f"{name}: left out: {error}")
            continue
        (folder / name).mkdir(exist_ok=True)
        for split, (x, y) in sets.items():
            np.savez(folder / name / f"{split}.npz", x=x, y=y)
        (folder / f"{name}.toml").write_text(toml(name, study, list(sets)[2:]))
        print(folder / f"{name}.toml", {split: len(x) for split, (x, _) in sets.items()})


def images_of(study: Study, folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Images and labels of `train`, `test` and the shifts: `near` if classes are held back, and one per alteration."""
    images, rng = resolve(study.data, folder).split("train"), np.random.default_rng(0)
    shown = rng.permutation(np.flatnonzero(~np.isin(images.y, study.held_back)))
    out, train = np.split(shown, [round(HELD_OUT * len(shown))])
    test = out[:MOST]
    near = rng.permutation(np.flatnonzero(np.isin(images.y, study.held_back)))[:MOST]
    sets = {"train": pictures(images, train), "test": pictures(images, test)}
    if study.held_back:
        sets["near"] = pictures(images, near)
    for name, change in changes(sets["test"]):
        sets[name] = [change(image, np.random.default_rng((1, i))) for i, image in enumerate(sets["test"])]
    classes = np.unique(images.y[shown])
    labels = {"train": images.y[train], "test": images.y[test]}
    zeros = np.zeros(MOST, np.int64)
    return {
        split: (
            np.stack([np.asarray(picture) for picture in these]),
            np.searchsorted(classes, labels[split]) if split in labels else zeros[: len(these)],
        )
        for split, these in sets.items()
    }


def toml(name: str, study: Study, shifts: list[str]) -> str:
    lines = [
        f'id = {{ train = "npz:{name}/train.npz", test = "npz:{name}/test.npz" }}',
        f"methods = {json.dumps(METHODS)}",
        'protocols = ["none"]',
    ]
    lines += [f'\n[[backbone]]\nname = "{name}.{use}"\nuse = "{use}"\n{study.more}' for use in study.networks]
    groups = {shift: "near" if shift == "near" else "altered" for shift in shifts}
    lines += [
        f'\n[[shift]]\ndata = "npz:{name}/{shift}.npz"\nname = "{shift}"\ngroup = "{group}"'
        for shift, group in groups.items()
    ]
    return "\n".join(lines) + "\n"


def pictures(images: Images, index: np.ndarray) -> list[Image.Image]:
    return [images[int(i)][0] for i in index]


def changes(images: list[Image.Image]) -> Iterator[tuple[str, Change]]:
    """The alterations of these images, by name; some are only for colour images."""
    for kind in ("patch_shuffle", "pixel_shuffle", "inversion"):
        yield kind, lambda im, rng, kind=kind: as_image(alter(np.asarray(im, np.float64), kind, rng))
    yield "mixture", lambda im, rng: Image.blend(im, images[int(rng.integers(len(images)))], 0.5)
    yield "gamma", lambda im, rng: F.adjust_gamma(im, float(rng.choice([0.4, 2.5])))
    yield "posterize", lambda im, rng: F.posterize(im, int(rng.integers(1, 4)))
    yield "solarize", lambda im, rng: F.solarize(im, int(rng.integers(96, 192)))
    yield "equalize", lambda im, rng: F.equalize(im)
    yield "rotation", lambda im, rng: F.rotate(im, float(rng.uniform(30, 60)), F.InterpolationMode.BILINEAR)
    yield "upside_down", lambda im, rng: F.vflip(im)
    yield "sharpness", lambda im, rng: F.adjust_sharpness(im, float(rng.uniform(3, 6)))
    yield "median", lambda im, rng: im.filter(ImageFilter.MedianFilter(3))
    yield "smaller", lambda im, rng: affine(im, rng, scale=0.6)
    yield "shear", lambda im, rng: affine(im, rng, shear=float(rng.uniform(20, 35)))
    yield "crop", crop
    yield "cutout", cutout
    yield "grating", grating
    yield "clouds", clouds
    yield "row_jitter", row_jitter
    yield "vignette", vignette
    yield "scan_lines", scan_lines
    yield "phase", phase
    if images[0].mode == "RGB":
        yield "channels", lambda im, rng: Image.merge("RGB", [im.split()[i] for i in (1, 2, 0)])
        yield "hue", lambda im, rng: F.adjust_hue(im, float(rng.uniform(0.2, 0.5)))
        yield "grey", lambda im, rng: F.to_grayscale(im, 3)
        yield "cast", lambda im, rng: as_image(np.asarray(im, float) + rng.uniform(-40, 40, 3))


def as_image(x: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(x, 0, 255).astype(np.uint8))


def affine(im: Image.Image, rng: Rng, scale: float = 1.0, shear: float = 0.0) -> Image.Image:
    return F.affine(im, 0.0, [0, 0], scale, [shear, 0.0], F.InterpolationMode.BILINEAR)


def crop(im: Image.Image, rng: Rng) -> Image.Image:
    side = round(0.6 * im.width)
    left, top = (int(rng.integers(im.width - side + 1)) for _ in range(2))
    return im.crop((left, top, left + side, top + side)).resize(im.size, Image.Resampling.BILINEAR)


def cutout(im: Image.Image, rng: Rng) -> Image.Image:
    x, side = np.array(im), round(0.4 * im.width)
    left, top = (int(rng.integers(im.width - side + 1)) for _ in range(2))
    x[top : top + side, left : left + side] = 128
    return Image.fromarray(x)


def grating(im: Image.Image, rng: Rng) -> Image.Image:
    rows, columns = grid(im)
    angle, waves = rng.uniform(0, np.pi), rng.uniform(3, 8)
    wave = np.sin(2 * np.pi * waves * (rows * np.sin(angle) + columns * np.cos(angle)) + rng.uniform(0, 6))
    return as_image(np.asarray(im, float) + 30 * like(wave, im))


def clouds(im: Image.Image, rng: Rng) -> Image.Image:
    coarse = as_image(rng.uniform(0, 255, (4, 4))).resize(im.size, Image.Resampling.BICUBIC)
    return as_image(0.6 * np.asarray(im, float) + 0.4 * like(np.asarray(coarse, float), im))


def row_jitter(im: Image.Image, rng: Rng) -> Image.Image:
    x = np.asarray(im)
    most = max(1, im.width // 12)
    return Image.fromarray(np.stack([np.roll(row, int(rng.integers(-most, most + 1)), 0) for row in x]))


def vignette(im: Image.Image, rng: Rng) -> Image.Image:
    rows, columns = grid(im)
    fall = 1 - 1.6 * ((rows - 0.5) ** 2 + (columns - 0.5) ** 2)
    return as_image(np.asarray(im, float) * like(fall, im))


def scan_lines(im: Image.Image, rng: Rng) -> Image.Image:
    x = np.asarray(im, float).copy()
    x[int(rng.integers(2)) :: 2] *= 0.6
    return as_image(x)


def phase(im: Image.Image, rng: Rng) -> Image.Image:
    """Shifts the phases of the image's spectrum at random, by up to a fifth of a turn."""
    x = np.asarray(im, float)
    noise = np.angle(np.fft.rfft2(rng.normal(size=x.shape[:2])))
    turn = np.exp(0.4j * noise).reshape(*noise.shape, *[1] * (x.ndim - 2))
    return as_image(np.fft.irfft2(np.fft.rfft2(x, axes=(0, 1)) * turn, s=x.shape[:2], axes=(0, 1)))


def grid(im: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    return np.linspace(0, 1, im.height)[:, None], np.linspace(0, 1, im.width)[None, :]


def like(plane: np.ndarray, im: Image.Image) -> np.ndarray:
    return plane if im.mode == "L" else plane[..., None]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="where suites and images go")
    main(parser.parse_args().folder)
