"""Keep a finished run in small form under results/reference/: `python docs/reference.py digits results/digits`.

Several runs on the same splits, each with some of the methods or seeds, are put together as one.

AUROC and FPR@95TPR of every cell, to four digits, in the schema of a run's folder, so that `howsure table` and `howsure
plot` read it; the timing; the run's record without its list of cells but what tuning chose and what failed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from howsure.data import data_root
from howsure.results import read_results

REFERENCE = Path(__file__).parent.parent / "results" / "reference"
METRICS = ("auroc", "fpr95")


def keep(runs: Sequence[Path], target: Path) -> None:
    """Write the small form of runs on the same splits to `target`."""
    target.mkdir(parents=True, exist_ok=True)
    results = pd.concat([read_results(run) for run in runs])
    small = results[results["metric"].isin(METRICS)]
    small.round({"value": 4, "ci_low": 4, "ci_high": 4}).to_parquet(target / "results.parquet", index=False)
    timing = pd.concat([pd.read_csv(run / "timing.csv") for run in runs])
    timing.drop_duplicates(["backbone", "device", "method"]).to_csv(target / "timing.csv", index=False)
    records = [json.loads((run / "run.json").read_text()) for run in runs]
    for record in records:
        record["cells"] = [cell for cell in record["cells"] if cell["chosen"] or cell["state"] != "done"]
    text = json.dumps(records, indent=1).replace(str(data_root()), "$HOWSURE_DATA")
    (target / "run.json").write_text(text + "\n")


if __name__ == "__main__":
    name, *folders = sys.argv[1:]
    keep([Path(folder) for folder in folders], REFERENCE / name)
    print(REFERENCE / name)
