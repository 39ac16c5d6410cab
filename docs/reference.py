"""Keep a finished run in small form under results/reference/: `python docs/reference.py results/digits`.

AUROC and FPR@95TPR of every cell, to four digits, in the schema of a run's folder, so that `howsure table` and `howsure
plot` read it; the timing; the run's record without its list of cells but what tuning chose and what failed.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from howsure.results import read_results

REFERENCE = Path(__file__).parent.parent / "results" / "reference"
METRICS = ("auroc", "fpr95")


def keep(run: Path, target: Path) -> None:
    """Write the small form of the run in `run` to `target`."""
    target.mkdir(parents=True, exist_ok=True)
    results = read_results(run)
    small = results[results["metric"].isin(METRICS)]
    small.round({"value": 4, "ci_low": 4, "ci_high": 4}).to_csv(target / "results.csv", index=False)
    shutil.copy(run / "timing.csv", target / "timing.csv")
    record = json.loads((run / "run.json").read_text())
    record["cells"] = [cell for cell in record["cells"] if cell["chosen"] or cell["state"] != "done"]
    (target / "run.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        folder = Path(argument)
        keep(folder, REFERENCE / folder.resolve().name)
        print(REFERENCE / folder.resolve().name)
