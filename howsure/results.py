"""A run's folder: a file of scores and a record for each cell, and the tidy tables assembled from them."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError

from .errors import UserError, why
from .store import read_arrays, whole, write_arrays

RESULT_COLUMNS = [
    "suite", "backbone", "seed", "id", "task", "shift", "group", "severity", "method", "supervision", "protocol",
    "metric", "value", "ci_low", "ci_high", "n_id", "n_shift",
]  # fmt: skip
TIMING_COLUMNS = [
    "backbone", "device", "method", "fit_s", "ms_per_image", "ratio_to_forward", "peak_mb", "n_images", "batch_size",
]  # fmt: skip
TIMES = ["fit_s", "ms_per_image", "ratio_to_forward"]
TEXTS = {
    "suite", "backbone", "id", "task", "shift", "group", "method", "supervision", "protocol", "metric", "device",
}  # fmt: skip

State = Literal["done", "failed", "skipped"]


@dataclass(frozen=True)
class CellName:
    """A cell of the grid: a method on a backbone, with a seed, under a protocol."""

    backbone: str
    seed: int
    protocol: str
    method: str

    @property
    def path(self) -> Path:
        return Path(self.backbone) / f"seed{self.seed}" / self.protocol / self.method


@dataclass
class Cell:
    """The record of a cell.

    Attributes:
        key, setting: see `CellKeys`.
        why: the reason, unless it is done.
        parameters: the method with its hyper-parameters.
        chosen: values chosen by tuning, by shift.
        rows: its rows of `results.csv`.
    """

    name: CellName
    state: State
    key: str
    setting: str = ""
    why: str = ""
    seconds: float = 0.0
    parameters: str = ""
    chosen: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)


class RunFolder:
    """The folder of one run. Files are written as soon as their content is known, whole or not at all.

    Raises:
        UserError: the folder cannot be created or written to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with writing(folder, "name another folder with --out"):
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=folder):
                pass

    def write_cell(self, cell: Cell, scores: dict[str, np.ndarray] | None = None) -> None:
        """Write a cell's scores (`id` or `id/<shift>`, and `<shift>`), then its record.

        An old record with another key is removed first, so that a record is never next to scores of another.
        """
        record, file, before = self._record(cell.name), self._scores(cell.name), self.read_cell(cell.name)
        with writing(record):
            if before and before.key != cell.key:
                record.unlink(missing_ok=True)
            if not scores:
                file.unlink(missing_ok=True)
        if scores:
            _write_arrays(file, {k: torch.tensor(v) for k, v in scores.items()})
        _write_json(record, asdict(cell))

    def read_cell(self, name: CellName) -> Cell | None:
        """The record of a cell, or None if it has none."""
        return self._read(self._record(name))

    def cells(self) -> Iterator[Cell]:
        """All records, sorted by backbone, seed, protocol and method; other files are ignored."""
        for file in sorted((self.folder / "cells").rglob("*.json")):
            cell = self._read(file)
            if cell:
                yield cell

    def _read(self, file: Path) -> Cell | None:
        """The record in a file, or None if it cannot be read or belongs elsewhere."""
        try:
            values = json.loads(file.read_text())
            cell = Cell(**{**values, "name": CellName(**values["name"])})
            return cell if self._record(cell.name) == file else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def has_scores(self, name: CellName) -> bool:
        """Whether the file of a cell's scores exists and is undamaged."""
        return read_arrays(self._scores(name)) is not None

    def suite(self) -> tuple[str, list[str] | None] | None:
        """The suite that the results are of, and its `suite_from` if known; None if there are no results."""
        try:
            record = json.loads((self.folder / "run.json").read_text())
            return str(record["suite"]), record.get("suite_from")
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def begin(self, run: dict[str, Any]) -> None:
        """Record which suite the results are of, unless it is recorded already: a run may be killed at any time."""
        if self.suite() != (run["suite"], run["suite_from"]):
            _write_json(self.folder / "run.json", run)

    def shifts(self) -> set[str]:
        """Names of the shifted sets that finished cells have results on."""
        return {row["shift"] for cell in self.cells() for row in cell.rows if row["shift"]}

    def write_errors(self, backbone: str, seed: int, errors: np.ndarray) -> None:
        """Store which in-distribution test images the network gets wrong, as uint8 `[n_id]`."""
        path = self.folder / "scores" / backbone / f"seed{seed}" / "errors.safetensors"
        _write_arrays(path, {"errors": torch.from_numpy(errors.astype(np.uint8))})

    def write_timing(self, backbone: str, method: str, row: dict[str, Any]) -> None:
        _write_json(self.folder / "timing" / backbone / f"{method}.json", row)

    def read_timing(self, backbone: str, method: str) -> dict[str, Any] | None:
        """A row of `timing.csv`, with the key of the cell that it belongs to, or None."""
        try:
            return dict(json.loads((self.folder / "timing" / backbone / f"{method}.json").read_text()))
        except (OSError, ValueError):
            return None

    def assemble(self, run: dict[str, Any]) -> pd.DataFrame:
        """Assemble `results.csv`, `results.parquet`, `timing.csv` and `run.json` from what is finished.

        Only cells that `run["cells"]` lists as done count, and only timings of methods as in these cells. What an
        earlier run with other methods or hyper-parameters left behind stays out.
        """
        done = [c for c in run["cells"] if c["state"] == "done"]
        wanted = {(c["backbone"], c["seed"], c["protocol"], c["method"]) for c in done}
        cells = [c for c in self.cells() if astuple(c.name) in wanted]
        rows, keys = [r for c in cells for r in c.rows], {c.key for c in cells}
        results = pd.DataFrame(rows, columns=RESULT_COLUMNS).astype({"severity": "Int64"})
        _write_whole(self.folder / "results.csv", lambda p: results.to_csv(p, index=False))
        _write_whole(self.folder / "results.parquet", lambda p: results.to_parquet(p, index=False))
        pairs = dict.fromkeys((c["backbone"], c["method"]) for c in run["cells"])
        timing = [t for pair in pairs if (t := self.read_timing(*pair)) and t.get("key") in keys]
        table = pd.DataFrame(timing, columns=TIMING_COLUMNS)
        _write_whole(self.folder / "timing.csv", lambda p: table.to_csv(p, index=False))
        _write_json(self.folder / "run.json", run)
        return results

    def _record(self, name: CellName) -> Path:
        return self.folder / "cells" / f"{name.path}.json"

    def _scores(self, name: CellName) -> Path:
        return self.folder / "scores" / f"{name.path}.safetensors"


def newest(tables: Sequence[pd.DataFrame], key: list[str]) -> pd.DataFrame:
    """The tables as one, without the rows of an earlier one whose key a later one has."""
    table = pd.concat([t.assign(run=i) for i, t in enumerate(tables)], ignore_index=True)
    return table[table["run"] == table.groupby(key, dropna=False)["run"].transform("max")].drop(columns="run")


def read_results(folder: Path) -> pd.DataFrame:
    """The results in a run's folder, from `results.csv` or, if that is missing, `results.parquet`.

    Raises:
        UserError: there is neither, the file cannot be read, or it lacks columns.
    """
    path = folder / "results.csv"
    if not path.is_file() and (folder / "results.parquet").is_file():
        path = folder / "results.parquet"
    if not path.is_file():
        raise UserError(f"{folder}: contains no results.csv; create one with `howsure run SUITE --out {folder}`")
    return _read_table(path, RESULT_COLUMNS, ["value"])


def read_costs(folder: Path) -> pd.DataFrame:
    """The rows of `timing.csv`; none if there is no such file. Raises UserError if it is not a table of timings."""
    path = folder / "timing.csv"
    return _read_table(path, TIMING_COLUMNS, TIMES) if path.is_file() else pd.DataFrame(columns=TIMING_COLUMNS)


def _read_table(path: Path, columns: Sequence[str], numbers: Sequence[str]) -> pd.DataFrame:
    try:
        table = pd.read_parquet(path) if path.suffix == ".parquet" else _read_csv(path)
        missing = [c for c in columns if c not in table]
        if missing:
            raise UserError(f"{path}: column '{missing[0]}' is missing; run the suite again")
        return table.assign(**{name: pd.to_numeric(table[name]) for name in numbers})
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable table ({why(error)}); run the suite again") from error


def _read_csv(path: Path) -> pd.DataFrame:
    """A table in which names stay texts, even `18` or `null`, and empty numbers are missing values."""
    missing = {name: ["", "NA", "NaN", "nan"] for name in {*RESULT_COLUMNS, *TIMING_COLUMNS} - TEXTS}
    types: dict[str, Any] = {**dict.fromkeys(TEXTS, str), "severity": "Int64"}
    return pd.read_csv(path, dtype=types, na_values=missing, keep_default_na=False)


def read_scores(folder: Path, name: CellName) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Scores of a cell by shift, `(in-distribution [n], shifted [m])`; empty if there are none."""
    arrays = read_arrays(folder / "scores" / f"{name.path}.safetensors") or {}
    found = {k: v.numpy() for k, v in arrays.items()}
    shifts = [k for k in found if k.partition("/")[0] != "id"]
    return {k: (found[own] if (own := f"id/{k}") in found else found["id"], found[k]) for k in shifts}


def _write_json(path: Path, values: Any) -> None:
    _write_whole(path, lambda p: p.write_text(json.dumps(values, indent=1, default=str) + "\n"))


def _write_arrays(path: Path, arrays: dict[str, torch.Tensor]) -> None:
    with writing(path):
        write_arrays(path, arrays)


def _write_whole(path: Path, write: Any) -> None:
    with writing(path), whole(path) as temporary:
        write(temporary)


@contextmanager
def writing(place: Path, do: str = "check its permissions and the free space") -> Iterator[None]:
    """Turn errors from writing inside into a UserError about `place` that says what to `do`."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise UserError(f"{place}: cannot write there ({why(error)}); {do}") from error


def cleared(folder: Path, prefixes: tuple[str, ...], suffixes: tuple[str, ...]) -> Path:
    """Create `folder` if need be, and remove the files that an earlier call wrote, by prefix and suffix."""
    with writing(folder):
        folder.mkdir(exist_ok=True)
        for old in folder.iterdir():
            if old.suffix in suffixes and old.stem.startswith(prefixes):
                old.unlink(missing_ok=True)
    return folder
