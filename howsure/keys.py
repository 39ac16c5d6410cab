"""Keys of what is stored: hashes of what made it, the code included."""

from __future__ import annotations

import hashlib
import inspect
from functools import cache
from pathlib import Path

from torch import nn

PASS = ("extract", "rows", "network", "layers", "losses", "gaussian", "corruptions", "synthetic", "representations")
CELL = ("cells", "detector", "metrics", "protocol")


def make_key(*parts: object) -> str:
    """A short hash of the parts' representations."""
    return hashlib.sha256("\x1f".join(map(str, parts)).encode()).hexdigest()[:32]


@cache
def source_of(cls: type) -> str:
    """A hash of the file that defines a class and of the shared files beside it (`_*.py`): editing one makes what was
    stored under it miss."""
    file = _file_of(cls)
    if file is None:
        return cls.__qualname__
    return make_key(*map(hash_file, [file, *sorted(map(str, Path(file).parent.glob("_*.py")))]))


@cache
def code_of(*names: str) -> str:
    """A hash of engine-room files by stem, and of the gradient engine."""
    room = Path(__file__).parent
    files = [room / f"{name}.py" for name in names] + sorted((room / "gradients").glob("*.py"))
    return make_key(*map(hash_file, files))


def layers_of(model: nn.Module) -> str:
    """A hash of a network's layers as they print, and of the files that define them, torch's own left out."""
    classes = {type(layer) for layer in model.modules() if not type(layer).__module__.startswith("torch.")}
    files = {_file_of(cls) for cls in classes}
    return make_key(model, *(hash_file(file) for file in sorted(file for file in files if file)))


def hash_file(file: str | Path) -> str:
    """A hash of a file's bytes."""
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


def _file_of(cls: type) -> str | None:
    try:
        return inspect.getsourcefile(cls)
    except (TypeError, OSError):
        return None
