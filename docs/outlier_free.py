"""Put the tables of docs/outlier-free.md in place from the kept runs: `python docs/outlier_free.py`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import pandas as pd
from paper import DOCS, OWN, aurocs, put

from howsure.plugins import METHODS

METHOD = "layerprint"
SEEN_NONE = [name for name in METHODS if METHODS[name].supervision != "outliers" and name not in OWN]


def alone(run: str, protocol: str = "none") -> pd.DataFrame:
    """AUROC of the methods that see no outlier, one row a cell, with the shift's group."""
    rows = aurocs(run)
    rows = rows[(rows["protocol"] == protocol) & rows["method"].isin([*SEEN_NONE, *OWN])]
    return rows.assign(group=rows["group"].where(rows["task"] == "ood", "corruption"))


def by_group(rows: pd.DataFrame, index: Sequence[str]) -> pd.DataFrame:
    """Means of each group of shifts, of the groups (`groups`), and of all cells (`cells`)."""
    table = rows.pivot_table(index=[*index, "method"], columns="group", values="value", sort=False)
    table["groups"] = table.mean(axis=1)
    table["cells"] = rows.groupby([*index, "method"])["value"].mean()
    return table


def against_best(rows: pd.DataFrame) -> str:
    """A row a network: the method, the best published one in hindsight, and the lead in points, by group."""
    table, lines = by_group(rows, ["backbone"]), []
    for network, part in table.groupby("backbone", sort=False):
        methods = part.droplevel("backbone")
        others = methods.loc[[m for m in SEEN_NONE if m in methods.index]]
        line = {"network": network}
        for column in [c for c in methods if methods[c].notna().any()]:
            best, its = others[column].idxmax(), methods.loc[METHOD, column]
            line[column] = f"{its:.3f} {100 * (its - others[column].max()):+.1f} ({best} {others[column].max():.3f})"
        lines.append(line)
    return pd.DataFrame(lines).fillna("").to_markdown(index=False, disable_numparse=True)


def over_networks(rows: pd.DataFrame, most: int = 8) -> str:
    """The published methods with the highest means over networks; the lead over each, ± its standard error."""
    table = by_group(rows, ["backbone"]).drop(columns="groups").unstack("method")
    means = table.mean().unstack(0)
    lines = [{"method": METHOD} | {column: f"{means.loc[METHOD, column]:.3f}" for column in means}]
    published = means.loc[[name for name in SEEN_NONE if name in means.index]].sort_values("near", ascending=False)
    for name, its in published.head(most).iterrows():
        line = {"method": str(name)}
        for column in means:
            lead = 100 * (table[column][METHOD] - table[column][name]).dropna()
            line[column] = (
                f"{its[column]:.3f} {lead.mean():+.1f} ± {lead.sem():.1f} ({int((lead > 0).sum())}/{len(lead)})"
            )
        lines.append(line)
    return pd.DataFrame(lines).to_markdown(index=False, disable_numparse=True)


def methods_table(rows: pd.DataFrame, most: int = 10) -> str:
    """The methods with the highest means of all cells, and the groups' means."""
    table = by_group(rows, []).sort_values("cells", ascending=False)
    return table.head(most).round(3).reset_index().to_markdown(index=False)


def over_seeds(rows: pd.DataFrame) -> str:
    """A row an architecture: the lead over the best published method, ± over networks trained from other seeds."""
    table, lines = by_group(rows, ["backbone", "seed"]), []
    for network, part in table.groupby("backbone", sort=False):
        methods = part.droplevel("backbone")
        line = {"network": network}
        for column in methods:
            values = methods[column].unstack("method")
            best = values[[m for m in SEEN_NONE if m in values]].mean().idxmax()
            lead = 100 * (values[METHOD] - values[best])
            line[column] = f"{lead.mean():+.1f} ± {lead.std():.1f} ({best}, {int((lead > 0).sum())}/{len(lead)})"
        lines.append(line)
    return pd.DataFrame(lines).to_markdown(index=False, disable_numparse=True)


def cifar() -> pd.DataFrame:
    """CIFAR-10's shifts and its corruptions, of the methods that both runs have."""
    ood, corruption = alone("paper-ood-jpeg"), alone("paper-corruption-jpeg", "same-shift")
    both = set(ood["method"]) & set(corruption["method"])
    rows = pd.concat([ood, corruption])
    return rows[rows["method"].isin(both)]


def tables() -> dict[str, str]:
    """The tables by name."""
    return {
        "validation": against_best(alone("validation")),
        "validation means": over_networks(alone("validation")),
        "cifar": methods_table(cifar()),
        "digits": against_best(alone("digits")),
        "fifteen": over_seeds(alone("paper-digits", "same-shift")),
        "families": against_best(alone("families")),
    }


def main() -> None:
    page = (DOCS / "outlier-free.md").read_text()
    for name, text in tables().items():
        page = put(page, name, text)
    (DOCS / "outlier-free.md").write_text(page)


if __name__ == "__main__":
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    main()
