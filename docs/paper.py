"""Put the tables and plots of docs/paper.md in place, from the runs in results/reference/: `python docs/paper.py`.

What stands between `<!-- NAME -->` and `<!-- end -->` is replaced; the prose around it is written by hand.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from howsure.plots.cost import cost
from howsure.plots.style import MARKERS, OKABE_ITO, style
from howsure.plugins import METHODS
from howsure.results import read_costs, read_results
from howsure.tables import leaderboard, tidy

DOCS = Path(__file__).parent
REFERENCE = DOCS.parent / "results" / "reference"
PROBES = REFERENCE / "paper-probes-jpeg"
RUNS = ("paper-ood-jpeg", "paper-corruption-jpeg", "paper-questions-jpeg")
NETWORKS = "paper-digits"
DENSENET = "paper-densenet-jpeg"
DETECTOR = "confound_detector"
CONTROLS = ("logit_detector", "feature_detector", "activation_detector", "activation_norm_detector")
OWN = ("layerprint", "actprint", "gradprint", "confound")
PROTOCOLS = ("same-shift", "leave-one-out", "pseudo-unknown", "synthetic")
CELL = ["protocol", "shift", "severity"]


def aurocs(run: str) -> pd.DataFrame:
    """AUROC of every cell of a kept run: `method`, `protocol`, `shift`, `severity`, `seed`, `value`, the interval."""
    results = tidy(read_results(REFERENCE / run))
    rows = results[(results["metric"] == "auroc") & (results["task"] != "misclassification")]
    return rows.assign(severity=rows["severity"].fillna(0).astype(int))


def published(rows: pd.DataFrame) -> list[str]:
    """Published methods that saw no outlier, and Mahalanobis over layers, shown what the detector is shown."""
    return [m for m in rows["method"].unique() if m not in (DETECTOR, *CONTROLS, *OWN)]


def leads(rows: pd.DataFrame, against: Sequence[str], run: str) -> pd.DataFrame:
    """Of each protocol, shift and severity: the detector's AUROC and its lead over the best of some others.

    The best is the one with the highest mean over the splits, picked in hindsight, which favours the others. `sd` is
    the standard deviation of the lead over the splits; each split compares both on the same images. `half` is half the
    width of the 95 % interval in a split (root mean square over the splits, which share images).
    """
    kept = pd.read_parquet(REFERENCE / run / "leads.parquet")
    widths = ((kept["high"] - kept["low"]) / 2).groupby([*(kept[c] for c in CELL), kept["method"]])
    halves = widths.agg(lambda half: half.pow(2).mean() ** 0.5)
    found = []
    for cell, group in rows.groupby(CELL, sort=False):
        values = group.pivot_table(index="seed", columns="method", values="value")
        others = [m for m in against if m in values]
        if DETECTOR in values and others:
            best = values[others].mean().idxmax()
            lead = values[DETECTOR] - values[best]
            its, theirs = values[DETECTOR].mean(), values[best].mean()
            found.append((*cell, its, best, theirs, lead.mean(), lead.std(), halves[(*cell, best)]))
    table = pd.DataFrame(found, columns=[*CELL, "detector", "best", "its", "lead", "sd", "half"])
    return table.sort_values("protocol", key=lambda names: names.map(PROTOCOLS.index), kind="stable", ignore_index=True)


def signed(mean: float, sd: float, half: float) -> str:
    return f"{100 * mean:+.1f} ± {100 * sd:.1f} [{100 * (mean - half):.1f}, {100 * (mean + half):.1f}]"


def lead_table(rows: pd.DataFrame, controls: Sequence[str], run: str) -> str:
    """A row a protocol and shift: the detector, the best baseline, the best control, and the leads, in points."""
    base, control = leads(rows, published(rows), run), leads(rows, controls, run)
    table = base.merge(control[[*CELL, "best", "its", "lead", "sd", "half"]], on=CELL, suffixes=("", "_control"))
    lines = [
        {
            "protocol": line.protocol,
            "shift": line.shift,
            "gradient detector": f"{line.detector:.3f}",
            "best baseline": f"{line.best} {line.its:.3f}",
            "lead": signed(line.lead, line.sd, line.half),
            "best control": f"{line.best_control} {line.its_control:.3f}",
            "lead over it": signed(line.lead_control, line.sd_control, line.half_control),
        }
        for line in table.itertuples()
    ]
    return pd.DataFrame(lines).to_markdown(index=False, disable_numparse=True)


def corruption_table(rows: pd.DataFrame, protocol: str, controls: Sequence[str], run: str) -> str:
    """A row a corruption type: leads over the best baseline at severities 1, 3 and 5, and over the best control."""
    rows = rows[rows["protocol"] == protocol]
    base, control = leads(rows, published(rows), run), leads(rows, controls, run)
    lines = []
    for shift, group in base.groupby("shift", sort=False):
        at = group.set_index("severity")
        over = control[control["shift"] == shift]
        lines.append({
            "corruption": shift,
            "gradient detector": f"{group['detector'].mean():.3f}",
            **{
                f"lead at {s}": f"{signed(at.lead[s], at.sd[s], at.half[s])} {at.best[s]}"
                for s in (1, 3, 5)
                if s in at.index
            },
            "mean lead": f"{100 * group['lead'].mean():+.1f}",
            "mean lead over the best control": f"{100 * over['lead'].mean():+.1f}",
        })  # fmt: skip
    return pd.DataFrame(lines).to_markdown(index=False, disable_numparse=True)


def rival_table(rows: pd.DataFrame, controls: Sequence[str], run: str) -> str:
    """A row a rival: the mean lead over it and the cells ahead and behind, by intervals, a column a protocol."""
    lines = []
    for rival, against in {"best baseline": published(rows), **{name: [name] for name in controls}}.items():
        line = {"over": rival}
        for protocol, cells in leads(rows, against, run).groupby("protocol", sort=False):
            ahead, behind = (cells["lead"] > cells["half"]).sum(), (cells["lead"] < -cells["half"]).sum()
            line[str(protocol)] = f"{100 * cells['lead'].mean():+.1f} ({ahead}, {behind})"
        lines.append(line)
    return pd.DataFrame(lines).to_markdown(index=False, disable_numparse=True)


def mean_table(rows: pd.DataFrame) -> str:
    """Mean AUROC over shifts of every method, a column a protocol, with the deviation over splits."""
    by_seed = rows.groupby(["method", "protocol", "seed"], sort=False)["value"].mean()
    stats = by_seed.groupby(["method", "protocol"]).agg(["mean", "std"])
    text = stats.apply(lambda s: f"{s['mean']:.3f} ± {s['std']:.3f}", axis=1).unstack().reindex(columns=_present(rows))
    order = stats["mean"].unstack().mean(axis=1).sort_values(ascending=False).index
    text.insert(0, "may see", rows.groupby("method")["supervision"].agg(_seen))
    return text.loc[order].fillna("").reset_index().to_markdown(index=False, disable_numparse=True)


def network_table(rows: pd.DataFrame, controls: Sequence[str]) -> str:
    """A row a network and protocol: means of near, far and corruptions, ± over networks from other seeds."""
    rows = rows.assign(group=rows["group"].where(rows["task"] == "ood", "corruption"))
    by_group = rows.groupby(["backbone", "protocol", "seed", "method", "group"], sort=False)["value"].mean()
    means = by_group.groupby(["backbone", "protocol", "seed", "method"], sort=False).mean().unstack("method")
    lines = []
    for (backbone, protocol), values in means.groupby(["backbone", "protocol"], sort=False):
        line = {"network": backbone, "protocol": protocol, "gradient detector": f"{values[DETECTOR].mean():.3f}"}
        for name, against in (("best baseline", published(rows)), ("best control", controls)):
            best = values[list(against)].mean().idxmax()
            lead = 100 * (values[DETECTOR] - values[best])
            line[name] = f"{best} {values[best].mean():.3f}"
            spread = f" ± {lead.std():.1f}" if len(lead) > 1 else ""
            line[f"lead over the {name}"] = f"{lead.mean():+.1f}{spread}"
        lines.append({**line, "layerprint": f"{values['layerprint'].mean():.3f}"})
    return pd.DataFrame(lines).to_markdown(index=False, disable_numparse=True)


def _seen(supervision: pd.Series) -> str:
    """What a method saw, with the tuning that only some protocols allow in brackets."""
    kinds = set(supervision)
    return next(iter(kinds)) if len(kinds) == 1 else f"{min(kinds, key=len)} (+tuned)"


def _supervision(method: str) -> str:
    name = method if method in METHODS else method.partition("-")[0]
    return METHODS[name].supervision


def _present(rows: pd.DataFrame) -> list[str]:
    return [p for p in ("none", *PROTOCOLS) if (rows["protocol"] == p).any()]


def learning(file: Path) -> pd.DataFrame:
    """AUROC by method, number of outliers (0 stands for the whole fit part) and split, mean over shifts."""
    table = pd.read_csv(file).fillna({"severity": 0})
    most = table.groupby(["method", "seed", "shift", "severity"])["outliers"].transform("max")
    table["outliers"] = table["outliers"].where(table["outliers"] < most, 0)
    counts = table.groupby("outliers")["shift"].count()
    shared = counts.index[counts == counts[0]]
    return table[table["outliers"].isin(shared)].groupby(["method", "outliers", "seed"])["auroc"].mean().reset_index()


def learning_table(file: Path) -> str:
    means = learning(file).groupby(["method", "outliers"])["auroc"].agg(["mean", "std"])
    text = means.apply(lambda s: f"{s['mean']:.3f} ± {s['std']:.3f}", axis=1).unstack()
    text = text[[*[n for n in text if n], 0]].rename(columns={0: "all (400 to 1,600)"})
    return text.reset_index().to_markdown(index=False, disable_numparse=True)


def importance_table(file: Path) -> str:
    table = pd.read_csv(file)
    table = table[table["group"] != "set"]
    shown = table.assign(shift=_with_severity(table)).pivot_table(
        index=["group", "name", "sets"], columns="shift", values="fall", sort=False
    )
    shown.insert(0, "mean", shown.mean(axis=1))
    return (100 * shown).round(1).reset_index().to_markdown(index=False)


def _with_severity(table: pd.DataFrame) -> pd.Series:
    severity = table["severity"].fillna(0).astype(int)
    return table["shift"] + severity.map(lambda s: f" {s}" if s else "")


def cost_table(run: str) -> str:
    costs = pd.read_csv(REFERENCE / run / "timing.csv")
    shown = costs[["method", "ratio_to_forward"]].sort_values("ratio_to_forward").round(2)
    return shown.rename(columns={"ratio_to_forward": "time beside a forward pass"}).to_markdown(index=False)


def plot_cost(rows: pd.DataFrame, run: str, path: Path) -> None:
    """Mean AUROC against the time beside a forward pass, where detectors saw the shift."""
    told = rows[rows["protocol"] == "same-shift"]
    figure = cost(told, read_costs(REFERENCE / run), leaderboard(told, "same-shift"), "same-shift")
    assert figure is not None
    figure.savefig(path, dpi=100)


def plot_severity(rows: pd.DataFrame, path: Path) -> None:
    """Mean AUROC over corruption types by severity, a panel a protocol."""
    protocols = _present(rows)
    figure = Figure(figsize=(4 * len(protocols), 3.6), layout="constrained")
    axes = figure.subplots(1, len(protocols), sharey=True, squeeze=False)[0]
    means = rows.groupby(["protocol", "method", "severity"])["value"].mean()
    outside = [m for m in published(rows) if _supervision(m) != "outliers"]
    best = means.loc[protocols[0]].groupby("method").mean()[outside].nlargest(3).index
    shown = list(dict.fromkeys([DETECTOR, *[c for c in CONTROLS if c in set(rows["method"])], "mahalanobis_layers",
                                *best, "msp", "layerprint"]))  # fmt: skip
    shown = [m for m in shown if m in means[protocols[0]]]
    for axis, protocol in zip(axes, protocols, strict=True):
        for method in shown:
            if method in means[protocol]:
                axis.plot(means[protocol][method], label=method, markersize=4, **style(method, shown))
        axis.set(title=protocol, xlabel="severity", xticks=range(1, 6))
        axis.axhline(0.5, color="0.8", zorder=0)
    axes[0].set_ylabel("AUROC, mean over types")
    drawn = axes[0].get_legend_handles_labels()
    axes[-1].legend(*drawn, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    figure.savefig(path, dpi=130)


def plot_leads(rows: pd.DataFrame, controls: Sequence[str], run: str, path: Path) -> None:
    """The detector's lead over the best baseline and over the best control, by shift and protocol."""
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axis = figure.subplots()
    labels: list[str] = []
    for i, (name, against) in enumerate((("best baseline", published(rows)), ("best control", controls))):
        table = leads(rows, against, run)
        labels = [f"{p}: {s}" for p, s in zip(table["protocol"], table["shift"], strict=True)]
        where = [k + 0.15 * (2 * i - 1) for k in range(len(table))]
        axis.errorbar(100 * table["lead"], where, xerr=100 * table["sd"], fmt=MARKERS[i], color=OKABE_ITO[i],
                      label=f"over the {name}", capsize=2, markersize=5)  # fmt: skip
    axis.axvline(0, color="0.6", zorder=0)
    axis.set_yticks(range(len(labels)), labels, fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel("lead of the gradient detector, points of AUROC (± deviation over 5 splits)")
    axis.legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=130)


def plot_variants(rows: pd.DataFrame, path: Path) -> None:
    """Mean AUROC of each variant, with the deviation over splits."""
    by_seed = rows.groupby(["protocol", "method", "seed"])["value"].mean()
    stats = by_seed.groupby(["protocol", "method"]).agg(["mean", "std"])
    protocols = _present(rows)
    figure = Figure(figsize=(4 * len(protocols), 3.4), layout="constrained")
    for i, (axis, protocol) in enumerate(
        zip(figure.subplots(1, len(protocols), squeeze=False)[0], protocols, strict=True)
    ):
        part = stats.loc[protocol].sort_values("mean")
        axis.errorbar(part["mean"], range(len(part)), xerr=part["std"], fmt="o", color=OKABE_ITO[i], capsize=2)
        axis.set_yticks(range(len(part)), list(part.index), fontsize=8)
        axis.set(title=protocol, xlabel="mean AUROC (± over 5 splits)")
    figure.savefig(path, dpi=130)


def plot_learning(file: Path, path: Path) -> None:
    """AUROC by the number of outliers seen."""
    table = learning(file)
    table = table[table["outliers"] > 0]
    figure = Figure(figsize=(5.5, 3.6), layout="constrained")
    axis = figure.subplots()
    methods = sorted(table["method"].unique())
    for method in methods:
        line = table[table["method"] == method].groupby("outliers")["auroc"].mean()
        axis.plot(line, label=method, markersize=4, **style(method, methods))
    axis.set(xscale="log", xlabel="outliers seen", ylabel="AUROC, mean over shifts")
    counts = sorted(table["outliers"].unique())
    axis.set_xticks(counts, [str(n) for n in counts])
    axis.minorticks_off()
    axis.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)


def plot_importance(file: Path, path: Path) -> None:
    """Fall of the AUROC, one parameter set permuted at a time, along the depth of the network."""
    table = pd.read_csv(file)
    sets = table[table["group"] == "set"]
    falls = sets.groupby("name", sort=False)["fall"].mean() * 100
    kinds = ["weight of a convolution" if "conv" in n and n.endswith("weight") else "scale or shift of a norm"
             if "bn" in n else "last layer" for n in falls.index]  # fmt: skip
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    axis = figure.subplots()
    for i, kind in enumerate(dict.fromkeys(kinds)):
        where = [k for k, other in enumerate(kinds) if other == kind]
        axis.plot(where, falls.iloc[where], MARKERS[i], color=OKABE_ITO[i], label=kind)
    axis.axhline(0, color="0.8", zorder=0)
    stages = [{"conv1": "stem", "bn1": "stem"}.get(top := n.split(".")[0], top) for n in falls.index]
    starts = [k for k, stage in enumerate(stages) if k == 0 or stage != stages[k - 1]]
    axis.set_xticks(starts, [stages[k] for k in starts], fontsize=8)
    axis.set(xlabel="parameter set, first to last layer", ylabel="fall of AUROC, points")
    axis.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)


def put(page: str, name: str, text: str) -> str:
    """The page with the text between the marks of `name`."""
    found, n = re.subn(rf"(<!-- {name} -->\n).*?(<!-- end -->)", lambda m: f"{m[1]}{text}\n{m[2]}", page, flags=re.S)
    if not n:
        raise SystemExit(f"the page has no place for '{name}'")
    return found


def tables() -> dict[str, str]:
    """The tables by name."""
    ood, corruption, variants = map(aurocs, RUNS)
    return {
        "means": mean_table(ood),
        "ood leads": lead_table(ood[ood["protocol"] != "none"], CONTROLS, RUNS[0]),
        "corruption means": mean_table(corruption),
        "corruption rivals": rival_table(corruption, CONTROLS, RUNS[1]),
        **{f"corruption {p}": corruption_table(corruption, p, CONTROLS, RUNS[1]) for p in _present(corruption)},
        "networks": network_table(aurocs(NETWORKS), CONTROLS),
        "densenet": network_table(aurocs(DENSENET).query("protocol != 'none'"), CONTROLS[1:]),
        "variants": mean_table(variants),
        "learning": learning_table(PROBES / "learning.csv"),
        "importance": importance_table(PROBES / "importance.csv"),
        "cost": cost_table(RUNS[0]),
    }


def plots() -> None:
    ood, corruption, variants = map(aurocs, RUNS)
    target = DOCS / "paper"
    target.mkdir(exist_ok=True)
    plot_leads(ood[ood["protocol"] != "none"], CONTROLS, RUNS[0], target / "leads.png")
    plot_severity(corruption, target / "severity.png")
    plot_cost(ood, RUNS[0], target / "cost.png")
    plot_variants(variants, target / "variants.png")
    plot_learning(PROBES / "learning.csv", target / "learning.png")
    plot_importance(PROBES / "importance.csv", target / "importance.png")


def main() -> None:
    page = (DOCS / "paper.md").read_text()
    for name, text in tables().items():
        page = put(page, name, text)
    (DOCS / "paper.md").write_text(page)
    plots()


if __name__ == "__main__":
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    main()
