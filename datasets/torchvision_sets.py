"""Colour data sets that torchvision downloads and reads, in its own folders in the data root."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torchvision

from howsure import ArrayImages, Dataset, FolderImages, Images, MissingData
from howsure.data import data_root, download
from howsure.image_files import FileImages


class _Torchvision(Dataset):
    """A data set that is read into memory by `open`; it is there if all `files` in the data root are."""

    source = "torchvision"
    splits: ClassVar[tuple[str, ...]] = ("train", "test")
    files: ClassVar[tuple[str, ...]]

    def open(self, split: str, download: bool = False) -> Any:
        """torchvision's data set of a split, its pixels in `data`."""
        raise NotImplementedError

    def split(self, name: str) -> Images:
        self.require(name)
        try:
            return self.images(name)
        except RuntimeError as error:
            reason = str(error).partition(".")[0]
            raise MissingData(f"{self.name}: {reason}; run `howsure data fetch {self.name}`") from error

    def images(self, split: str) -> Images:
        opened = self.open(split)
        labels = opened.targets if hasattr(opened, "targets") else opened.labels
        x = np.asarray(opened.data)
        channels_first = x.ndim == 4 and x.shape[1] == 3 and x.shape[3] != 3
        x = x.transpose(0, 2, 3, 1) if channels_first else x
        return ArrayImages(x, np.asarray(labels, dtype=np.int64), where=self.name)

    def missing(self) -> str | None:
        missing = [data_root() / file for file in self.files if not (data_root() / file).exists()]
        return f"{self.name}: no {missing[0]}; run `howsure data fetch {self.name}`" if missing else None

    def fetch(self) -> None:
        download(self.name, lambda: [self.open(name, download=True) for name in self.splits])


class CIFAR10(_Torchvision):
    """32×32 photographs of 10 classes. Krizhevsky, 2009."""

    name = "cifar10"
    files = ("cifar-10-batches-py",)
    classes = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

    def open(self, split: str, download: bool = False) -> Any:
        return torchvision.datasets.CIFAR10(data_root(), train=split == "train", download=download)


class CIFAR100(_Torchvision):
    """32×32 photographs of 100 classes. Krizhevsky, 2009."""

    name = "cifar100"
    files = ("cifar-100-python",)

    @property
    def classes(self) -> Sequence[str]:  # type: ignore[override]
        return () if self.missing() else tuple(self.open("test").classes)

    def open(self, split: str, download: bool = False) -> Any:
        return torchvision.datasets.CIFAR100(data_root(), train=split == "train", download=download)


class SVHN(_Torchvision):
    """32×32 photographs of house numbers. Netzer et al., 2011."""

    name = "svhn"
    files = ("svhn/train_32x32.mat", "svhn/test_32x32.mat")
    classes = tuple("0123456789")

    def open(self, split: str, download: bool = False) -> Any:
        return torchvision.datasets.SVHN(str(data_root() / "svhn"), split=split, download=download)


class STL10(_Torchvision):
    """96×96 photographs of 10 classes. Coates et al., 2011."""

    name = "stl10"
    files = ("stl10_binary",)
    classes = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")

    def open(self, split: str, download: bool = False) -> Any:
        return torchvision.datasets.STL10(str(data_root()), split=split, download=download)


class DTD(_Torchvision):
    """Textures: the 1,880 test images of the first partition. Cimpoi et al., 2014, arXiv:1311.3618."""

    name = "dtd"
    splits = ("train", "val", "test")
    files = ("dtd/dtd/images", "dtd/dtd/labels/test1.txt")

    def open(self, split: str, download: bool = False) -> Any:
        return torchvision.datasets.DTD(str(data_root()), split=split, download=download)

    def images(self, split: str) -> Images:
        folder = data_root() / "dtd" / "dtd"
        names = (folder / "labels" / f"{split}1.txt").read_text().split()
        labels = np.unique([name.partition("/")[0] for name in names], return_inverse=True)[1]
        return FileImages([folder / "images" / name for name in names], labels, folder)


class Places365(_Torchvision):
    """Scenes: the 36,500 validation images, shorter side 256, without labels. Zhou et al., 2018."""

    name = "places365"
    splits = ("test",)
    files = ("places365/val_256",)

    def open(self, split: str, download: bool = False) -> Any:
        folder = data_root() / "places365"
        folder.mkdir(parents=True, exist_ok=True)
        return torchvision.datasets.Places365(folder, split="val", small=True, download=download)

    def images(self, split: str) -> Images:
        return FolderImages(data_root() / "places365" / "val_256")


class _Archive(_Torchvision):
    """A folder of images, downloaded as an archive."""

    splits: ClassVar[tuple[str, ...]] = ("test",)
    url: ClassVar[str]
    md5: ClassVar[str]

    def images(self, split: str) -> Images:
        return FolderImages(data_root() / self.files[0])

    def fetch(self) -> None:
        download(self.name, self._unpack)

    def _unpack(self) -> None:
        """Unpacked beside, then moved into place: half of it, after an interruption, would pass for the whole."""
        utils, file, folder = torchvision.datasets.utils, Path(self.url).name, Path(self.files[0]).parts[0]
        utils.download_url(self.url, str(data_root()), file, self.md5)
        with tempfile.TemporaryDirectory(prefix=".", dir=data_root()) as beside:
            utils.extract_archive(str(data_root() / file), beside)
            if (data_root() / folder).exists():
                shutil.copytree(Path(beside) / folder, data_root() / folder, dirs_exist_ok=True)
            else:
                (Path(beside) / folder).rename(data_root() / folder)


class LSUNResize(_Archive):
    """10,000 LSUN scenes shrunk to 32×32. Liang et al., 2018, arXiv:1706.02690 (ODIN)."""

    name = "lsun"
    files = ("LSUN_resize",)
    url = "https://www.dropbox.com/s/raw/moqh2wh8696c3yl/LSUN_resize.tar.gz"
    md5 = "278b7b31c8cb7e804a1465a8ce03a2dc"


class LSUNCrop(_Archive):
    """10,000 crops of 32×32 out of LSUN scenes. Liang et al., 2018, arXiv:1706.02690 (ODIN)."""

    name = "lsun-crop"
    files = ("LSUN",)
    url = "https://www.dropbox.com/s/raw/fhtsw1m3qxlwj6h/LSUN.tar.gz"
    md5 = "458a0a0ab8e5f1cb4516d7400568e460"


class ISUN(_Archive):
    """8,925 iSUN scenes shrunk to 32×32. Liang et al., 2018, arXiv:1706.02690 (ODIN)."""

    name = "isun"
    files = ("iSUN",)
    url = "https://www.dropbox.com/s/raw/ssz7qxfqae0cca5/iSUN.tar.gz"
    md5 = "be77b0f2c26fda898afac5f99645ee70"


class TinyImageNet(_Archive):
    """64×64 photographs of 200 classes. Le & Yang, 2015. `test` is the official validation set, 10,000 images.

    Read from the official `tiny-imagenet-200` or, for `test` alone, from `tiny-imagenet-val` with one folder per class.
    """

    name = "tiny-imagenet"
    splits = ("train", "test")
    files = ("tiny-imagenet-200/train", "tiny-imagenet-200/val/val_annotations.txt")
    url = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
    md5 = "90528d7ca1a48142e341f4ef8d21d0de"

    @property
    def classes(self) -> Sequence[str]:  # type: ignore[override]
        place = next((p for p in (self._official / "train", self._validation) if p.is_dir()), None)
        return sorted(p.name for p in place.iterdir() if p.is_dir() and not p.name.startswith(".")) if place else ()

    def missing(self) -> str | None:
        return None if self._validation.is_dir() else super().missing()

    def images(self, split: str) -> Images:
        if split == "train":
            return FolderImages(self._official / "train", self.classes)
        if self._validation.is_dir():
            return FolderImages(self._validation, self.classes)
        lines = (self._official / "val" / "val_annotations.txt").read_text().splitlines()
        pairs = [line.split("\t")[:2] for line in lines]
        files = [self._official / "val" / "images" / name for name, _ in pairs]
        order = {wnid: label for label, wnid in enumerate(self.classes)}
        try:
            return FileImages(files, [order[wnid] for _, wnid in pairs], self._official)
        except KeyError as error:
            place = self._official / "train"
            raise MissingData(
                f"{self.name}: no class {error} in {place}; run `howsure data fetch {self.name}`"
            ) from error

    @property
    def _official(self) -> Path:
        return data_root() / "tiny-imagenet-200"

    @property
    def _validation(self) -> Path:
        return data_root() / "tiny-imagenet-val"


class CIFAR10Jpeg(Dataset):
    """CIFAR-10 as a folder of JPEG files: `cifar10-jpeg/{train,test}/<class>/` in the data root."""

    name = "cifar10-jpeg"
    source = "folder"
    splits = ("train", "test")
    classes = CIFAR10.classes

    def split(self, name: str) -> Images:
        self.require(name)
        return FolderImages(data_root() / "cifar10-jpeg" / name, self.classes)

    def missing(self) -> str | None:
        folders = [data_root() / "cifar10-jpeg" / name for name in self.splits]
        missing = [folder for folder in folders if not folder.is_dir()]
        return f"{self.name}: no folder {missing[0]}; put one folder of images per class there" if missing else None
