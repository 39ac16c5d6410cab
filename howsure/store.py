"""Arrays on disk under a key made from everything that produced them: if any of it changes, so does the key."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from zlib import crc32

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yields a temporary file to write to, which then replaces `path`; after an error, `path` stays as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=path.suffix)
    os.close(handle)
    try:
        yield Path(temporary)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_arrays(path: Path, arrays: dict[str, Tensor]) -> None:
    """Write a safetensors file, whole or not at all, with the order of its arrays and a checksum."""
    arrays = {key: value.detach().cpu().contiguous() for key, value in arrays.items()}
    with whole(path) as temporary:
        # one text, because several entries would come in no fixed order
        save_file(arrays, temporary, {"about": json.dumps({"order": list(arrays), "sum": _sum(arrays)})})


def read_arrays(path: Path) -> dict[str, Tensor] | None:
    """Memory-mapped arrays of a safetensors file, in the order written; None if it is missing or damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("about", "{}"))
            arrays = {key: file.get_tensor(key) for key in about.get("order", file.keys())}
    except (OSError, ValueError, SafetensorError):
        return None
    return arrays if about.get("sum") in (None, _sum(arrays)) else None


def _sum(arrays: dict[str, Tensor]) -> str:
    total = 0
    for value in arrays.values():
        total = crc32(value.reshape(-1).view(torch.uint8).numpy().data, total)
    return str(total)


class Memory:
    """Arrays by key in memory, which takes the place of a store that cannot be written to."""

    def __init__(self) -> None:
        self._arrays: dict[str, dict[str, Tensor]] = {}

    def get(self, key: str) -> dict[str, Tensor] | None:
        return self._arrays.get(key)

    def put(self, key: str, arrays: dict[str, Tensor]) -> None:
        self._arrays[key] = arrays


class Store:
    """A folder of arrays by key."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, key: str) -> Path:
        return self.root / key[:2] / f"{key}.safetensors"

    def get(self, key: str) -> dict[str, Tensor] | None:
        return read_arrays(self.path(key))

    def put(self, key: str, arrays: dict[str, Tensor]) -> None:
        write_arrays(self.path(key), arrays)
