"""Tables of a run, drawn from its `results.csv` and `timing.csv`: Markdown and LaTeX to read, CSV to compute with.

No table mixes protocols or tasks. Methods are sorted by mean AUROC; next to each is its supervision, what it was fitted
on. The best value in a column is bold, and so are all that round to it. Each number is a mean over backbones (and, if
the column is a corruption type, over severities); with several seeds, it is the mean ± standard deviation of the seeds'
means. A star marks a mean over fewer cells than other methods have, because some failed or were skipped; it is never
bold. In CSV files, a last column names such columns.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from .results import cleared, read_costs, read_results, writing

LOWER_IS_BETTER = frozenset({"fpr95", "aurc", "eaurc"})
METRICS = {
    "auroc": "AUROC",
    "fpr95": "FPR@95TPR",
    "aupr_in": "AUPR-in",
    "aupr_out": "AUPR-out",
    "detection_accuracy": "detection accuracy",
    "aupr_success": "AUPR of right predictions",
    "aupr_error": "AUPR of errors",
    "aurc": "AURC",
    "eaurc": "E-AURC",
}
PREFIXES = ("leaderboard", "ood", "corruption", "misclassification", "timing")
SUFFIXES = (".md", ".tex", ".csv")
GROUPS = ("near", "far")
CELL = ("backbone", "seed", "shift", "severity")


@dataclass(frozen=True)
class Table:
    """A table with one row per method.

    Attributes:
        mean, sd: values by column; `sd` is NaN with one seed.
        partial: which means are over fewer cells than other methods have.
        about: the first columns, which describe the method.
        lower: columns in which lower values are better.
        digits: after the decimal point.
    """

    name: str
    title: str
    mean: pd.DataFrame
    sd: pd.DataFrame
    partial: pd.DataFrame
    about: pd.DataFrame
    lower: frozenset[str] = frozenset()
    digits: int = 3


def write_tables(folder: Path) -> list[Path]:
    """Write `folder/tables/*.md|.tex|.csv`, replacing those of an earlier call.

    Returns:
        The files written.

    Raises:
        UserError: the folder contains no results, they cannot be read, or the folder cannot be written to.
    """
    results = tidy(read_results(folder))
    tables = list(_tables(results, folder))
    target = cleared(folder / "tables", PREFIXES, SUFFIXES)
    with writing(target):
        return [path for table in tables for path in _write(table, target)]


def leaderboard(results: pd.DataFrame, protocol: str) -> pd.DataFrame:
    """Mean AUROC of each method under one protocol, best first.

    Args:
        results: rows of `results.csv`.
        protocol: rows of other protocols are ignored.

    Returns:
        Columns `method` and `supervision`; those of `near`, `far`, other groups, `corruption` and `misclassification`
        that the results have; and `mean`, over all of these but misclassification (over that if there is nothing else).
        Cells have equal weight within a group, then groups in the mean. If a method lacks cells that others have, a
        column `note` says so.
    """
    table = _leaderboard(tidy(results), protocol)
    board = table.about.join(table.mean)
    if table.partial["mean"].any():
        board["note"] = table.partial["mean"].map({True: "fewer cells", False: ""})
    return board.reset_index(drop=True)


def tidy(results: pd.DataFrame) -> pd.DataFrame:
    """Results with empty texts for missing ones, and with a column `column`: the shift without its severity, which the
    names of parts of published corrupted sets contain."""
    texts = {c: results[c].astype(object).where(results[c].notna(), "").astype(str) for c in ("shift", "group")}
    severities = results["severity"].astype("Int64")
    column = [s.removesuffix(f"-{severity}") for s, severity in zip(texts["shift"], severities, strict=True)]
    return results.assign(**texts, column=column, value=pd.to_numeric(results["value"]))


def headline(results: pd.DataFrame) -> pd.Series:
    """The column of the leaderboard that a row belongs to."""
    return results["group"].where(results["task"] == "ood", results["task"])


def ordered(names: Iterable[str], first: Sequence[str] = GROUPS) -> list[str]:
    """Unique names: first those in `first`, in that order, then the others as they come."""
    unique = names.unique().tolist() if isinstance(names, pd.Series) else list(dict.fromkeys(names))
    return [n for n in first if n in unique] + [n for n in unique if n not in first]


def slug(*parts: str) -> str:
    """A file name made from several parts."""
    return "_".join(re.sub(r"[^A-Za-z0-9_.+-]+", "-", part) for part in parts if part)


def _tables(results: pd.DataFrame, folder: Path) -> Iterator[Table]:
    for protocol, rows in results.groupby("protocol", sort=False):
        yield _leaderboard(results, str(protocol))
        backbones = ordered(rows["backbone"])
        for backbone in ["", *(backbones if len(backbones) > 1 else [])]:
            chosen = rows[rows["backbone"] == backbone] if backbone else rows
            for task in ("ood", "corruption"):
                of_task = chosen[chosen["task"] == task]
                for metric in ordered(of_task["metric"], tuple(METRICS))[: 2 if backbone else None]:
                    yield _by_shift(of_task, str(protocol), task, metric, backbone)
            if (chosen["task"] == "misclassification").any():
                yield _misclassification(chosen[chosen["task"] == "misclassification"], str(protocol), backbone)
    yield from _timing(read_costs(folder), results)


def _leaderboard(results: pd.DataFrame, protocol: str) -> Table:
    rows = results[(results["protocol"] == protocol) & (results["metric"] == "auroc")]
    rows = rows.assign(column=headline(rows))
    columns = ordered(rows["column"])
    last = ("corruption", "misclassification")
    columns = [c for c in columns if c not in last] + [c for c in last if c in columns]
    shifted = [c for c in columns if c != "misclassification"] or columns
    table = _table(
        rows, "column", columns, slug("leaderboard", protocol), f"Mean AUROC, protocol {protocol}{_over(rows)}"
    )
    table.mean["mean"] = table.mean[shifted].mean(axis=1, skipna=False)
    by_seed = rows.groupby(["method", "seed", "column"])["value"].mean().unstack()[shifted].mean(axis=1, skipna=False)
    table.sd["mean"] = by_seed.groupby("method").std()
    table.partial["mean"] = table.partial[shifted].any(axis=1)
    return _reorder(table, table.mean["mean"])


def _by_shift(rows: pd.DataFrame, protocol: str, task: str, metric: str, backbone: str) -> Table:
    """The overall mean, the mean of each group, then each shift (or corruption type), group by group."""
    of_metric = rows[rows["metric"] == metric]
    groups = ordered(of_metric["group"])
    pairs = of_metric[["group", "column"]].drop_duplicates()
    singles = ordered(c for g in groups for c in pairs.loc[pairs["group"] == g, "column"])
    means = [of_metric.assign(column=of_metric["group"] + " mean"), of_metric.assign(column="mean")]
    columns = ["mean", *(f"{g} mean" for g in groups), *singles]
    over = f"{_over(rows, backbone)}; means give all cells equal weight"
    title = f"{METRICS.get(metric, metric)}, {task}, protocol {protocol}{over}"
    lower = frozenset(columns if metric in LOWER_IS_BETTER else ())
    table = _table(
        pd.concat([of_metric, *means]), "column", columns, slug(task, protocol, metric, backbone), title, lower
    )
    return _reorder(table, rows[rows["metric"] == "auroc"].groupby("method")["value"].mean())


def _misclassification(rows: pd.DataFrame, protocol: str, backbone: str) -> Table:
    columns = ordered(rows["metric"], tuple(METRICS))
    title = f"Misclassification, protocol {protocol}{_over(rows, backbone)}"
    name = slug("misclassification", protocol, backbone)
    table = _table(rows, "metric", columns, name, title, LOWER_IS_BETTER & set(columns), digits=4)
    table = _reorder(table, table.mean["auroc"] if "auroc" in columns else table.mean.iloc[:, 0])
    named = {f: getattr(table, f).rename(columns=METRICS) for f in ("mean", "sd", "partial")}
    return replace(table, **named, lower=frozenset(METRICS[c] for c in table.lower))


def _timing(timing: pd.DataFrame, results: pd.DataFrame) -> Iterator[Table]:
    """For each device, a table of milliseconds per image, the ratio to a forward pass, and seconds to fit, by backbone.

    Methods are timed with the suite's hyper-parameters, without tuning.
    """
    wanted = {"ms_per_image": "ms", "ratio_to_forward": "x forward", "fit_s": "fit s"}
    supervision = results.drop_duplicates("method").set_index("method")["supervision"].str.removesuffix("+tuned")
    for device, rows in timing.groupby("device", sort=False):
        backbones = ordered(rows["backbone"])
        mean = rows.pivot_table(index="method", columns="backbone", values=list(wanted), aggfunc="mean")
        pairs = [(w, b) for b in backbones for w in wanted]
        mean = mean.reindex(columns=pairs).set_axis([f"{b}: {wanted[w]}" for w, b in pairs], axis=1)
        ratio = rows.groupby("method")["ratio_to_forward"].mean()
        mean.insert(0, "x forward", ratio)
        about = pd.DataFrame(
            {"method": mean.index, "supervision": supervision.reindex(mean.index).fillna("").to_numpy()}
        )
        about.index = mean.index
        partial = mean.isna() & False
        partial["x forward"] = rows.groupby("method")["ratio_to_forward"].count() < len(backbones)
        title = f"Cost of each method on its own, end to end, on {device}"
        name = slug("timing", str(device)) if timing["device"].nunique() > 1 else "timing"
        table = Table(name, title, mean, mean * float("nan"), partial, about, frozenset(mean.columns))
        yield _reorder(table, -ratio)


def _table(
    rows: pd.DataFrame,
    by: str,
    columns: list[str],
    name: str,
    title: str,
    lower: frozenset[str] = frozenset(),
    digits: int = 3,
) -> Table:
    """A table of means over the rows of each method, column and seed, then over seeds."""
    cells = rows.groupby(["method", by, "seed"])["value"]
    seeds = cells.mean().groupby(level=[0, 1])
    mean, sd = (x.unstack().reindex(columns=columns) for x in (seeds.mean(), seeds.std()))
    count = rows.groupby(["method", by])["value"].count().unstack().reindex(columns=columns).fillna(0)
    known = rows.dropna(subset="value").drop_duplicates([by, *CELL])
    whole = known[by].value_counts().reindex(columns).fillna(0)
    first = rows.drop_duplicates("method").set_index("method", drop=False)
    about = first[["method", "supervision"]].reindex(mean.index)
    return Table(name, title, mean, sd, count.lt(whole, axis=1).reindex(mean.index), about, lower, digits)


def _reorder(table: Table, key: pd.Series) -> Table:
    order = key.reindex(table.mean.index).sort_values(ascending=False, kind="stable", na_position="last").index
    return replace(table, **{f: getattr(table, f).loc[order] for f in ("mean", "sd", "partial", "about")})


def _over(rows: pd.DataFrame, backbone: str = "") -> str:
    backbones, seeds = ordered(rows["backbone"]), sorted(rows["seed"].unique())
    over = f", {backbone or backbones[0]}" if backbone or len(backbones) == 1 else f", mean over {', '.join(backbones)}"
    return over + (f" (mean ± sd of {len(seeds)} seeds)" if len(seeds) > 1 else "")


def _write(table: Table, target: Path) -> list[Path]:
    paths = [target / f"{table.name}{suffix}" for suffix in SUFFIXES]
    note = "\n\\* a mean over fewer cells than other methods have.\n" if table.partial.to_numpy().any() else ""
    cells = _cells(table, "**{}**", " ± ", "\\*")
    align = ["left"] * len(table.about.columns) + ["right"] * len(table.mean.columns)
    markdown = pd.DataFrame(cells, columns=_header(table)).to_markdown(
        index=False, disable_numparse=True, colalign=align
    )
    paths[0].write_text(f"# {table.title}\n\n{markdown}\n{note}", encoding="utf-8")
    paths[1].write_text(_latex(table), encoding="utf-8")
    sd = table.sd.dropna(axis=1, how="all").add_suffix(" sd")
    numbers = table.about.join(table.mean).join(sd)
    if note:
        numbers["fewer cells in"] = [", ".join(table.mean.columns[row]) for row in table.partial.to_numpy()]
    numbers.to_csv(paths[2], index=False)
    return paths


def _header(table: Table) -> list[str]:
    return [*table.about.columns, *table.mean.columns]


def _cells(table: Table, bold: str, plus_minus: str, star: str) -> list[list[str]]:
    """The texts of all cells, row by row."""
    best = _best(table)
    body = [
        [_cell(m, s, p, b, table.digits, bold, plus_minus, star) for m, s, p, b in zip(*row, strict=True)]
        for row in zip(*(f.to_numpy() for f in (table.mean, table.sd, table.partial, best)), strict=True)
    ]
    return [[*map(str, about), *row] for about, row in zip(table.about.to_numpy(), body, strict=True)]


def _cell(mean: float, sd: float, partial: bool, best: bool, digits: int, bold: str, plus_minus: str, star: str) -> str:
    if mean != mean:
        return "–"
    text = f"{mean:.{digits}f}" + (f"{plus_minus}{sd:.{digits}f}" if sd == sd else "")
    return (bold.format(text) if best else text) + (star if partial else "")


def _best(table: Table) -> pd.DataFrame:
    text = f"{{:.{table.digits}f}}".format
    shown = table.mean.mask(table.partial).apply(lambda column: column.map(text).astype(float))
    signed = shown.mul([-1 if c in table.lower else 1 for c in shown.columns], axis=1)
    return signed.eq(signed.max()) & signed.notna()


def _latex(table: Table) -> str:
    """The table in LaTeX; needs the packages `booktabs` and `graphicx`, which fits it to the line width."""
    head = " & ".join(map(_escape, _header(table)))
    cells = _cells(table, "\\textbf{{{}}}", " $\\pm$ ", "*")
    lines = [" & ".join([*map(_escape, row[:2]), *row[2:]]).replace("–", "--") + r" \\" for row in cells]
    columns = "l" * len(table.about.columns) + "r" * len(table.mean.columns)
    note = " (* a mean over fewer cells than other methods have)" if table.partial.to_numpy().any() else ""
    parts = [
        r"\begin{table}",
        rf"\caption{{{_escape(table.title + note)}}}",
        rf"\label{{tab:{table.name}}}",
        rf"\resizebox{{\linewidth}}{{!}}{{\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        head + r" \\",
        r"\midrule",
        *lines,
        r"\bottomrule",
        r"\end{tabular}}",
        r"\end{table}",
    ]
    return "\n".join(parts) + "\n"


def _escape(text: str) -> str:
    return re.sub(r"([&%$#_{}])", r"\\\1", text).replace("±", r"$\pm$")
