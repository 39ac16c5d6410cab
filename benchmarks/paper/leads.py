"""The paper's detector against every other method on the same images.

`python benchmarks/paper/leads.py NAME RUN_FOLDER...` writes `results/reference/NAME/leads.parquet`: for each network,
protocol, shift, severity and seed, the detector's lead in AUROC over each other method, with its 95 % interval
(`howsure.lead.auroc_lead`). Several runs of one suite with different methods are merged. What the file held of other
methods and protocols stays.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from howsure.lead import auroc_lead
from howsure.results import Cell, RunFolder, newest, read_scores

REFERENCE = Path(__file__).parents[2] / "results" / "reference"
DETECTOR = "confound_detector"
CELL = ["backbone", "protocol", "seed", "method"]


def leads(folders: Sequence[Path]) -> Iterator[dict[str, object]]:
    """One row per cell of the detector, shift and other method."""
    found: dict[tuple[str, int, str], list[tuple[Path, Cell]]] = {}
    for folder in folders:
        for cell in RunFolder(folder).cells():
            if cell.state == "done" and cell.name.protocol != "none":
                key = cell.name.backbone, cell.name.seed, cell.name.protocol
                found.setdefault(key, []).append((folder, cell))
    for (backbone, seed, protocol), cells in found.items():
        scores = {cell.name.method: read_scores(folder, cell.name) for folder, cell in cells}
        if DETECTOR not in scores:
            raise SystemExit(
                f"no finished cell of {DETECTOR} on {backbone} with seed {seed} under {protocol}; "
                "run it, or also give the folder of its run"
            )
        detector = scores.pop(DETECTOR)
        for method, its in scores.items():
            for name, pair in its.items():
                shift, _, severity = name.partition("@")
                lead = auroc_lead(detector[name], pair)
                yield {
                    "backbone": backbone, "protocol": protocol, "shift": shift, "severity": int(severity or 0),
                    "seed": seed, "method": method, "lead": lead.value, "low": lead.low, "high": lead.high,
                }  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", help="a folder in results/reference/")
    parser.add_argument("run", nargs="+", type=Path, help="folders of runs of one suite")
    chosen = parser.parse_args()
    file = REFERENCE / chosen.name / "leads.parquet"
    table = pd.DataFrame(leads(chosen.run)).round({"lead": 4, "low": 4, "high": 4})
    if file.exists():
        table = newest([pd.read_parquet(file), table], CELL)
    table.to_parquet(file, index=False)
    print(f"{len(table)} leads")
