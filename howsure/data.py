"""What every data set gives, and where data live."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from .errors import UserError


def data_root() -> Path:
    """The folder that data sets live under: `$HOWSURE_DATA`, else `~/.cache/howsure/data`."""
    return Path(os.environ.get("HOWSURE_DATA") or cache_root() / "data").expanduser()


def cache_root() -> Path:
    """The folder for trained networks and stored representations: `$HOWSURE_CACHE`, else `~/.cache/howsure`."""
    return Path(os.environ.get("HOWSURE_CACHE") or "~/.cache/howsure").expanduser()


def located(path: str | Path, base: Path) -> Path:
    """A path that a suite names, from the suite's folder `base`; from the data root if it exists only there."""
    here, there = (folder / Path(path).expanduser() for folder in (base, data_root()))
    return there if there.exists() and not here.exists() else here


def download(name: str, fetch: Callable[[], object]) -> None:
    """Run `fetch`, which downloads the data set `name` into `data_root()`; a failure is a UserError."""
    try:
        data_root().mkdir(parents=True, exist_ok=True)
        fetch()
    except (OSError, RuntimeError, EOFError) as error:
        why = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(
            f"{name}: download failed ({why}); try again, or put the files where `howsure data status {name}` says"
        ) from error


class Dataset:
    """A source of images. Subclasses give `split`; those that live on disk also `status` and `fetch`.

    Attributes:
        name: how suites name it.
        source: `"embedded"`, `"torchvision"`, `"folder"` or `"npz"`.
        splits: those of `train`, `val`, `test` that it has. A shift is always read from `test`.
        classes: names of the classes in label order; empty where only the images matter.
    """

    name: ClassVar[str]
    source: ClassVar[str] = "embedded"
    splits: ClassVar[tuple[str, ...]] = ("test",)
    classes: Sequence[str] = ()

    def split(self, name: str) -> Any:
        """A split as a torch data set of (PIL image, class index), best an `Images`.

        Raises:
            MissingData: it is not on this machine; the message says how to get it.
        """
        raise UserError(f"data set '{self.name}': its class {type(self).__name__} has no `split`; write one")

    def missing(self) -> str | None:
        """None when every split can be read; else one line saying what is missing and how to get it."""
        return None

    def fetch(self) -> None:
        """Download into `data_root()` what is missing. Raises UserError where that cannot be done by a program."""
        reason = self.missing()
        if reason:
            raise UserError(reason)
