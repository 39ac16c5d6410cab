"""What the paper's detector relies on, and how many outliers it needs: `python benchmarks/paper/probes.py`.

For each shift and seed of a suite, under `same-shift`. Writes to `results/reference/paper-probes-jpeg/`:

- `importance.csv`: by how much the AUROC on the test part falls when the norms of some parameter sets are permuted
  among all test images: for each set by itself, and for all sets of a stage or of a kind together;
- `learning.csv`: AUROC on the test part of detectors fitted on different numbers of outliers from the fit part, and on
  all of its in-distribution images.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from howsure.bench import Bench
from howsure.detector import fit_detector, score_detector
from howsure.harness import Run
from howsure.metrics import auroc
from howsure.protocol import FIT, TEST
from howsure.results import RunFolder
from howsure.suite import load_suite, make_method

TARGET = Path(__file__).parents[2] / "results" / "reference" / "paper-probes-jpeg"
DETECTORS = ("confound_detector", "activation_norm_detector")
OUTLIERS = (10, 30, 100, 300, 1000, 3000)
PERMUTATIONS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--suite", default="paper-questions-jpeg")
    options = parser.parse_args()
    suite = load_suite(options.suite)
    found: dict[str, list[dict[str, object]]] = {"importance": [], "learning": []}
    with tempfile.TemporaryDirectory() as folder:
        job = Run(suite, {}, RunFolder(Path(folder)), torch.device("cpu"), quiet=True)
        for seed in suite.seeds:
            bench = job.bench(suite.backbone[0], seed)
            for shift in bench.shifts:
                about = {"seed": seed, "shift": shift.kind, "severity": shift.severity}
                found["importance"] += [{**about, **row} for row in importance(bench, shift.name)]
                found["learning"] += [{**about, **row} for row in learning(bench, shift.name)]
            print(f"seed {seed} done", flush=True)
    TARGET.mkdir(parents=True, exist_ok=True)
    for name, rows in found.items():
        pd.DataFrame(rows).round(4).to_csv(TARGET / f"{name}.csv", index=False)


def vectors(bench: Bench, detector: str, split: str) -> Tensor:
    """A detector's input vectors for all images of a split, `[N, D]`."""
    method = make_method(detector, {})
    return method.vectors(bench.reps(split, method.needs, detector))  # type: ignore[attr-defined]


def parts(bench: Bench, detector: str, shift: str) -> dict[int, tuple[Tensor, Tensor]]:
    """In-distribution and shifted vectors of the fit part and of the test part."""
    both = {split: vectors(bench, detector, split) for split in ("test", shift)}
    return {
        part: (both["test"][bench.part("test", part)], both[shift][bench.part(shift, part)]) for part in (FIT, TEST)
    }


def importance(bench: Bench, shift: str) -> Iterator[dict[str, object]]:
    """Rows of `importance.csv`."""
    data = parts(bench, "confound_detector", shift)
    state = fit_detector(*data[FIT])
    inside, outside = data[TEST]
    whole = auroc(*(score_detector(x, **state).numpy() for x in (inside, outside)))
    rows = torch.cat([inside, outside])
    rng = np.random.default_rng(bench.seed)
    for group, name, columns in groups(bench.network.model):
        falls = []
        for _ in range(PERMUTATIONS):
            mixed = rows.clone()
            mixed[:, columns] = rows[rng.permutation(len(rows))][:, columns]
            scores = score_detector(mixed, **state).numpy()
            falls.append(whole - auroc(scores[: len(inside)], scores[len(inside) :]))
        yield {"group": group, "name": name, "sets": len(columns), "auroc": whole, "fall": float(np.mean(falls))}


def groups(model: nn.Module) -> Iterator[tuple[str, str, list[int]]]:
    """Columns to permute: `(group, name, columns)`, one set at a time, then by stage, then by kind."""
    names = [name for name, _ in model.named_parameters()]
    for i, name in enumerate(names):
        yield "set", name, [i]
    stages, kinds = [stage(name) for name in names], [kind(name) for name in names]
    for group, labels in (("stage", stages), ("kind", kinds)):
        for label in dict.fromkeys(labels):
            yield group, label, [i for i, other in enumerate(labels) if other == label]


def stage(name: str) -> str:
    top = name.split(".")[0]
    return {"conv1": "stem", "bn1": "stem", "linear": "head"}.get(top, top)


def kind(name: str) -> str:
    owner, _, parameter = name.rpartition(".")
    return f"{'batch norm' if 'bn' in owner else 'linear' if 'linear' in owner else 'convolution'} {parameter}"


def learning(bench: Bench, shift: str) -> Iterator[dict[str, object]]:
    """Rows of `learning.csv`."""
    for detector in DETECTORS:
        data = parts(bench, detector, shift)
        inside, outside = data[FIT]
        order = torch.randperm(len(outside), generator=torch.Generator().manual_seed(bench.seed))
        for n in sorted({min(n, len(outside)) for n in OUTLIERS}):
            state = fit_detector(inside, outside[order[:n]])
            scores = (score_detector(x, **state).numpy() for x in data[TEST])
            yield {"method": detector, "outliers": n, "auroc": auroc(*scores)}


if __name__ == "__main__":
    main()
