"""Keep a finished run in small form under results/reference/: `python docs/reference.py digits results/digits`.

Several runs on the same splits, each with some of the methods or seeds, are put together as one; what a later one holds
takes the place of what an earlier one holds, which may be a kept run itself.

AUROC and FPR@95TPR of every cell, to four digits, in the schema of a run's folder, so that `howsure table` and `howsure
plot` read it; the timing; the runs' records without their lists of cells but what tuning chose and what failed, and
without those runs of which nothing is left.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from howsure.data import data_root
from howsure.results import newest, read_results

REFERENCE = Path(__file__).parent.parent / "results" / "reference"
METRICS = ("auroc", "fpr95")
CELL = ["backbone", "method", "protocol", "seed"]


def keep(runs: Sequence[Path], target: Path) -> None:
    """Write the small form of runs on the same splits to `target`."""
    target.mkdir(parents=True, exist_ok=True)
    small = newest([read_results(run) for run in runs], CELL)
    small = small[small["metric"].isin(METRICS)]
    small.round({"value": 4, "ci_low": 4, "ci_high": 4}).to_parquet(target / "results.parquet", index=False)
    timing = newest([pd.read_csv(run / "timing.csv") for run in runs], ["backbone", "device", "method"])
    timing.to_csv(target / "timing.csv", index=False)
    records = [json.loads((run / "run.json").read_text()) for run in runs]
    records = [part for record in records for part in (record if isinstance(record, list) else [record])]
    kept: list[dict[str, Any]] = []
    replaced: set[tuple[str, ...]] = set()
    for record in reversed(records):
        held = {cell_of(cell) for cell in record["cells"]}
        record["cells"] = [
            cell
            for cell in record["cells"]
            if (cell["chosen"] or cell["state"] != "done") and cell_of(cell) not in replaced
        ]
        kept += [] if held and held <= replaced else [record]
        replaced |= held
    text = json.dumps(kept[::-1], indent=1).replace(str(data_root()), "$HOWSURE_DATA")
    (target / "run.json").write_text(text + "\n")


def cell_of(cell: dict[str, str]) -> tuple[str, ...]:
    return tuple(cell[key] for key in CELL)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", help="of the folder under results/reference/")
    parser.add_argument("run", nargs="+", type=Path, help="folder of a run, the oldest first")
    chosen = parser.parse_args()
    keep(chosen.run, REFERENCE / chosen.name)
    print(REFERENCE / chosen.name)
