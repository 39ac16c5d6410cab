"""A run's folder: one file of scores and one record a cell, and the tidy tables that are put together from them."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch

from .errors import UserError
from .store import read_arrays, write_arrays

RESULT_COLUMNS = [
    "suite", "backbone", "seed", "id", "task", "shift", "group", "severity", "method", "supervision", "protocol",
    "metric", "value", "ci_low", "ci_high", "n_id", "n_shift",
]  # fmt: skip
TIMING_COLUMNS = [
    "backbone", "device", "method", "fit_s", "ms_per_image", "ratio_to_forward", "peak_mb", "n_images", "batch_size",
]  # fmt: skip


State = Literal["done", "failed", "skipped"]


@dataclass(frozen=True)
class CellName:
    """Which cell of the grid: a method on a backbone (of a seed) under a protocol."""

    backbone: str
    seed: int
    protocol: str
    method: str

    @property
    def path(self) -> Path:
        return Path(self.backbone) / f"seed{self.seed}" / self.protocol / self.method


@dataclass
class Cell:
    """What became of a cell: its state and why, the key it was computed under, its rows, the values chosen for it."""

    name: CellName
    state: State
    key: str
    why: str = ""
    seconds: float = 0.0
    parameters: str = ""
    chosen: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)


class RunFolder:
    """The folder of one run. Everything is written whole or not at all, as soon as it is known."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise UserError(
                f"{folder}: cannot write there ({error.strerror}); name another folder with --out"
            ) from error

    def write_cell(self, cell: Cell, scores: dict[str, np.ndarray] | None = None) -> None:
        """Keep a cell: its scores (`id` or `id/<shift>`, and `<shift>`), then its record."""
        if scores:
            arrays = {k: torch.tensor(v) for k, v in scores.items()}
            write_arrays(self.folder / "scores" / f"{cell.name.path}.safetensors", arrays)
        _write_json(self._record(cell.name), asdict(cell))

    def read_cell(self, name: CellName) -> Cell | None:
        """The record of a cell, None where it has none."""
        try:
            values = json.loads(self._record(name).read_text())
            cell = Cell(**{**values, "name": CellName(**values["name"])})
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return cell if cell.name == name else None

    def cells(self) -> Iterator[Cell]:
        """All records, in order of backbone, seed, protocol, method."""
        for file in sorted((self.folder / "cells").rglob("*.json")):
            backbone, seed, protocol = file.relative_to(self.folder / "cells").parts[:3]
            cell = self.read_cell(CellName(backbone, int(seed.removeprefix("seed")), protocol, file.stem))
            if cell:
                yield cell

    def write_errors(self, backbone: str, seed: int, errors: np.ndarray) -> None:
        """Which in-distribution test images the network gets wrong, uint8 `[n_id]`."""
        path = self.folder / "scores" / backbone / f"seed{seed}" / "errors.safetensors"
        write_arrays(path, {"errors": torch.from_numpy(errors.astype(np.uint8))})

    def write_timing(self, backbone: str, method: str, row: dict[str, Any]) -> None:
        _write_json(self.folder / "timing" / backbone / f"{method}.json", row)

    def read_timing(self, backbone: str, method: str) -> dict[str, Any] | None:
        try:
            return dict(json.loads((self.folder / "timing" / backbone / f"{method}.json").read_text()))
        except (OSError, ValueError):
            return None

    def assemble(self, run: dict[str, Any]) -> pd.DataFrame:
        """Put `results.csv`, `results.parquet`, `timing.csv` and `run.json` together from what is finished.

        Only cells named in `run["cells"]` count: what an earlier run with other methods left behind stays out.
        """
        wanted = {(c["backbone"], c["seed"], c["protocol"], c["method"]) for c in run["cells"]}
        rows = [r for c in self.cells() if tuple(asdict(c.name).values()) in wanted for r in c.rows]
        results = pd.DataFrame(rows, columns=RESULT_COLUMNS).astype({"severity": "Int64"})
        _write_whole(self.folder / "results.csv", lambda p: results.to_csv(p, index=False))
        _write_whole(self.folder / "results.parquet", lambda p: results.to_parquet(p, index=False))
        pairs = dict.fromkeys((c["backbone"], c["method"]) for c in run["cells"])
        timing = [t for pair in pairs if (t := self.read_timing(*pair))]
        table = pd.DataFrame(timing, columns=TIMING_COLUMNS)
        _write_whole(self.folder / "timing.csv", lambda p: table.to_csv(p, index=False))
        _write_json(self.folder / "run.json", run)
        return results

    def _record(self, name: CellName) -> Path:
        return self.folder / "cells" / f"{name.path}.json"


def read_results(folder: Path) -> pd.DataFrame:
    """The results of a run's folder, from `results.parquet` where a run was kept without its `results.csv`.

    UserError where there is neither, or columns are lacking.
    """
    path = folder / "results.csv"
    if not path.is_file() and (folder / "results.parquet").is_file():
        path = folder / "results.parquet"
    if not path.is_file():
        raise UserError(f"{folder}: no results.csv in it; make one with `howsure run SUITE --out {folder}`")
    try:
        if path.suffix == ".parquet":
            results = pd.read_parquet(path)
        else:
            results = pd.read_csv(path, dtype={"severity": "Int64"}, keep_default_na=True)
    except (ValueError, pd.errors.ParserError) as error:
        raise UserError(f"{path}: not a table of results ({error})") from error
    lacking = [c for c in RESULT_COLUMNS if c not in results]
    if lacking:
        raise UserError(f"{path}: column '{lacking[0]}' is missing; run the suite again")
    return results


def read_scores(folder: Path, name: CellName) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Scores of a cell by shift: `(in-distribution [n], shifted [m])`; empty where there are none."""
    arrays = read_arrays(folder / "scores" / f"{name.path}.safetensors") or {}
    found = {k: v.numpy() for k, v in arrays.items()}
    shifts = [k for k in found if k.partition("/")[0] != "id"]
    return {k: (found[own] if (own := f"id/{k}") in found else found["id"], found[k]) for k in shifts}


def _write_json(path: Path, values: Any) -> None:
    _write_whole(path, lambda p: p.write_text(json.dumps(values, indent=1, default=str) + "\n"))


def _write_whole(path: Path, write: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=path.suffix)
    os.close(handle)
    try:
        write(Path(temporary))
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
