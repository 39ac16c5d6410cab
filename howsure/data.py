"""The contract of a data set, and the folders that data are kept in."""

from __future__ import annotations

import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from .errors import MissingData, UserError


def data_root() -> Path:
    """The folder that holds the data sets: `$HOWSURE_DATA`, else `data` in `cache_root()`."""
    return Path(os.environ.get("HOWSURE_DATA") or cache_root() / "data").expanduser()


def cache_root() -> Path:
    """The folder for trained networks and stored representations: `$HOWSURE_CACHE`, else `~/.cache/howsure`."""
    return Path(os.environ.get("HOWSURE_CACHE") or "~/.cache/howsure").expanduser()


def located(path: str | Path, base: Path) -> Path:
    """A path that a suite names, from the suite's folder `base`; from the data root if it exists only there."""
    here, there = (folder / Path(path).expanduser() for folder in (base, data_root()))
    return there if there.exists() and not here.exists() else here


def download(name: str, fetch: Callable[[], object]) -> None:
    """Run `fetch`, which downloads the data set `name` into `data_root()`. Raises UserError if it fails."""
    try:
        data_root().mkdir(parents=True, exist_ok=True)
        fetch()
    except (OSError, RuntimeError, EOFError, tarfile.TarError, zipfile.BadZipFile, zlib.error) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(
            f"{name}: download failed ({reason}); remove what is left of it in {data_root()} and try again, or put the"
            f" files where `howsure data status {name}` says"
        ) from error


class Dataset:
    """A source of images. Subclasses define `split`; those that read files also `missing` and, if possible, `fetch`.

    Attributes:
        name: its name in suites and on the command line.
        source: `"embedded"`, `"torchvision"`, `"folder"` or `"npz"`.
        splits: which of `train`, `val` and `test` it has. A shift is always read from `test`.
        classes: names of the classes in label order; empty if only the images matter.
    """

    name: ClassVar[str]
    source: ClassVar[str] = "embedded"
    splits: ClassVar[tuple[str, ...]] = ("test",)
    classes: Sequence[str] = ()

    def split(self, name: str) -> Any:
        """A split as a torch data set of (PIL image, class index) pairs, preferably an `Images`.

        Raises:
            MissingData: it is not on this machine; the message says how to get it.
        """
        raise UserError(f"data set '{self.name}': its class {type(self).__name__} has no `split`; write one")

    def require(self, split: str) -> None:
        """Raise UserError if there is no such split, or MissingData if the data set is not on this machine."""
        if split not in self.splits:
            raise UserError(f"{self.name}: no split '{split}'; it has {', '.join(self.splits)}")
        reason = self.missing()
        if reason:
            raise MissingData(reason)

    def missing(self) -> str | None:
        """One line saying what is missing and how to get it, or None if every split can be read."""
        return None

    def fetch(self) -> None:
        """Download what is missing into `data_root()`. Raises UserError if it can only be obtained by hand."""
        reason = self.missing()
        if reason:
            raise UserError(reason)
