"""Put the table of README.md in place from the kept runs: `python docs/overview.py`."""

from __future__ import annotations

import argparse

import pandas as pd
from paper import CONTROLS, DETECTOR, DOCS, aurocs, put

RUNS = {
    "digits": "digits",
    "Fashion-MNIST": "fashion-mnist",
    "CIFAR-10": "paper-ood-jpeg",
    "CIFAR-10, corrupted": "paper-corruption-jpeg",
}
BASELINES = ("msp", "energy", "odin", "mahalanobis", "knn", "vim", "gradnorm", "pnml", "mahalanobis_layers")
SHOWN = ("layerprint", *BASELINES, DETECTOR, *CONTROLS[-2:])


def means(protocol: str) -> pd.DataFrame:
    """Mean AUROC of each method, a column a run: every group of shifts weighs the same, corruptions are one."""
    runs = pd.concat([aurocs(run).assign(run=column) for column, run in RUNS.items()])
    rows = runs[(runs["protocol"] == protocol) & runs["method"].isin(SHOWN)]
    rows = rows.assign(group=rows["group"].where(rows["task"] == "ood", "corruption"))
    groups = rows.groupby(["run", "method", "group"])["value"].mean()
    table = groups.groupby(["run", "method"]).mean().unstack("run")[list(RUNS)]
    table.insert(0, "may see", rows.groupby("method")["supervision"].first())
    table.insert(1, "protocol", protocol)
    return table.loc[table[list(RUNS)].rank().mean(axis=1).sort_values(ascending=False).index]


def tables() -> dict[str, str]:
    """All methods where none saw the shift of the test, then the trained ones where they did."""
    told = means("same-shift")
    table = pd.concat([means("leave-one-out"), told[told["may see"] == "outliers"]])
    text = table.map(lambda v: v if isinstance(v, str) else "" if pd.isna(v) else f"{v:.3f}")
    return {"overview": text.rename_axis("method").reset_index().to_markdown(index=False, disable_numparse=True)}


def main() -> None:
    page = (DOCS.parent / "README.md").read_text()
    for name, text in tables().items():
        page = put(page, name, text)
    (DOCS.parent / "README.md").write_text(page)


if __name__ == "__main__":
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    main()
