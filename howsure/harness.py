"""Running a suite: for each network one pass over each split, then every cell, kept as soon as it is finished."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass, field
from functools import cached_property
from itertools import chain, product
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from .bench import Bench
from .cell_keys import CellKeys
from .cells import MADE_OF_TRAINING, CellError, Scorer, candidates, certain, refusal, runs_under, to_fit_on
from .corruptions import kinds
from .data import cache_root
from .errors import FAULTS, NoGradients, UserError, described, one_line
from .extract import Extractor, seeded, union
from .images import Subset
from .keys import room, sources_of
from .material import Material
from .method import Method
from .metrics import misclassification
from .network import Network, warn_of_low_accuracy
from .networks import load_network
from .protocol import FIT, TEST, VAL, Shift, unmet_need, without_severity
from .record import new_record, now
from .representations import ImageIds, Labels, Logits
from .results import Cell, CellName, RunFolder, State
from .split import Pixels, Split, batches
from .store import Store
from .suite import BackboneSpec, Protocol, Suite
from .timing import time_method

IMAGES_TO_TIME = 256
Refusal = tuple[State, str] | None
"""The state of the cells of a method that does not run on a network, and why."""


@dataclass
class Run:
    """A run of a suite into a folder.

    Attributes:
        methods: by name, with their hyper-parameters.
        fresh: recompute cells that the folder already holds.
        quiet: show no progress bars.
        store: where representations are kept; None stores none.
        record: what becomes `run.json`.
    """

    suite: Suite
    methods: dict[str, Method]
    folder: RunFolder
    device: torch.device
    fresh: bool = False
    quiet: bool = False
    store: Store | None = field(default_factory=lambda: Store(cache_root() / "representations"))
    record: dict[str, Any] = field(default_factory=dict)
    _pixels: Pixels = field(default_factory=Pixels)
    _said: set[str] = field(default_factory=set)

    def __call__(self) -> pd.DataFrame:
        """Run every cell; returns the rows of `results.csv`. What is finished is kept, whatever happens.

        Raises:
            UserError: there is nothing to run, results of something else would be overwritten, the data cannot be read,
                or the suite's only backbone cannot be loaded.
        """
        self.record = new_record(now(), self.suite, self.folder.folder, self.methods, self.device, self.material)
        self._hash_code()
        try:
            self._refuse_nothing_to_run()
            self._refuse_to_overwrite()
            for spec in self.suite.backbone:
                for seed in self.suite.seeds:
                    self._run_network(spec, seed, alone=len(self.suite.backbone) == 1)
        except BaseException:
            if self.record["cells"]:
                self._add_earlier_cells()
                self._assemble()
            raise
        return self._assemble()

    def _hash_code(self) -> None:
        """Hash all code now, when it has just been loaded: it may be edited while the run goes on."""
        room()
        for method in self.methods.values():
            with suppress(*FAULTS):  # its `needs` raises: its cells will fail, and no others
                list(sources_of(*candidates(method)))

    def _pairs(self) -> list[tuple[str, Protocol]]:
        """The methods with the protocols that each runs under."""
        protocols = self._protocols(self.material.shifts(self.material.splits))
        return [(name, p) for name, p in product(self.methods, protocols) if runs_under(self.methods[name], p)]

    def _protocols(self, shifts: Sequence[Shift]) -> list[Protocol]:
        """The suite's protocols that can be run with these shifts; says once of each other that it is left out."""
        classes = len(np.unique(self.material.splits["train"].images.y))
        unmet = {p: unmet_need(p, shifts, classes) for p in self.suite.chosen_protocols()}
        for protocol, need in unmet.items():
            if need:
                self._say_once(f"protocol '{protocol}' left out: it needs {need}")
        return [protocol for protocol, need in unmet.items() if not need]

    def _to_divide(self, bench: Bench) -> Sequence[Shift]:
        """The shifts that protocols are chosen by; all, where the suite asks for protocols and none can be divided, so
        that these fail with the reason."""
        return bench.divisible or (bench.shifts if self.suite.protocols else ())

    def _refuse_nothing_to_run(self) -> None:
        pairs = self._pairs()
        idle = [name for name in self.methods if name not in {method for method, _ in pairs}]
        if pairs and idle:
            print(f"howsure: left out, since no protocol here supplies outliers: {', '.join(idle)}", file=sys.stderr)
        if not pairs:
            methods, protocols = ", ".join(list(self.methods)[:5]), ", ".join(self.suite.chosen_protocols())
            raise UserError(
                f"nothing to run: with the shifts that are available none of {methods} runs under {protocols};"
                " detectors need a protocol that supplies outliers, and protocols other than `none` need a shift"
            )

    def _refuse_to_overwrite(self) -> None:
        """Refuse to replace the results of another suite, or those on a shift that is no longer available."""
        here = self.record["suite_from"]
        name, places = self.folder.suite() or (self.suite.name, here)
        apart = places not in (None, here) and set(places or ()).isdisjoint(here)
        if (name != self.suite.name or apart) and not self.fresh:
            of = f"the suite '{name}'" if name != self.suite.name else f"another file's suite '{name}'"
            raise UserError(
                f"{self.folder.folder}: has results of {of}, which those of '{self.suite.name}' would"
                " replace; name another --out, or discard them with --fresh"
            )
        gone = sorted(set(self.record["missing"]) & self.folder.shifts())
        if gone and not self.fresh:
            raise UserError(
                f"{self.folder.folder}: has results on '{gone[0]}', which is no longer available"
                f" ({self.record['missing'][gone[0]]}); restore it, name another --out, or discard them with --fresh"
            )

    def _add_earlier_cells(self) -> None:
        """Add to the record the cells that this run was kept from, but that an earlier one finished identically."""
        for cell in self._others():
            if self._would_be_the_same(cell):
                self._note(cell)

    def _others(self) -> list[Cell]:
        """The finished cells in the folder that this run has not noted."""
        noted = self._noted()
        return [cell for cell in self.folder.cells() if cell.state == "done" and astuple(cell.name) not in noted]

    def _noted(self) -> set[tuple[Any, ...]]:
        return {(c["backbone"], c["seed"], c["protocol"], c["method"]) for c in self.record["cells"]}

    def _would_be_the_same(self, cell: Cell) -> bool:
        """Whether this run would compute an identical cell; if its network is not loaded, as far as the suite says."""
        name = cell.name
        mine = name.backbone in {spec.name for spec in self.suite.backbone} and name.seed in self.suite.seeds
        if not mine or name.protocol not in self.suite.chosen_protocols() or name.method not in self.methods:
            return False
        digests = {(n["name"], n["seed"]): n["digest"] for n in self.record["networks"]}
        digest = digests.get((name.backbone, name.seed))
        return cell.key == self.keys.key(digest, name) if digest else cell.setting == self.keys.setting(name)

    def _assemble(self) -> pd.DataFrame:
        self.record["finished"] = now()
        self._say_what_stays_out()
        return self.folder.assemble(self.record)

    def _say_what_stays_out(self) -> None:
        """Name what earlier runs into this folder finished and this one did not ask for."""
        mine, others = self._noted(), [astuple(cell.name) for cell in self._others()]
        kinds = {3: "", 0: "", 1: "seed ", 2: "protocol "}  # by place in the name of a cell
        apart = [f"{kind}{v}" for k, kind in kinds.items() for v in _new(others, mine, k)]
        if apart:
            named = ", ".join(apart[:5]) + (", …" if len(apart) > 5 else "")
            self._say_once(
                f"{self.folder.folder}: results of earlier runs ({named}) stay there, but out of the tables;"
                " ask for all at once to have them together"
            )

    @cached_property
    def material(self) -> Material:
        return Material(self.suite)

    @cached_property
    def keys(self) -> CellKeys:
        return CellKeys(self.suite, self.methods, self.material)

    def bench(self, spec: BackboneSpec, seed: int) -> Bench:
        """A network, loaded or trained, with the suite's splits."""
        network, splits = self._network(spec, seed), self.material.splits
        possible = kinds(network.input.channels)
        for kind in sorted({s.corruption[0] for s in splits.values() if s.corruption} - set(possible)):
            self.material.leave_out(kind, f"it needs colour images, and {spec.name} takes grey ones")
        splits = {name: s for name, s in splits.items() if not s.corruption or s.corruption[0] in possible}
        extractor = Extractor(network, self.store, splits["train"], self._pixels)
        return Bench(network, extractor, splits, self.material.shifts(splits), seed)

    def _run_network(self, spec: BackboneSpec, seed: int, alone: bool) -> None:
        try:
            bench = self.bench(spec, seed)
        except FAULTS as error:
            if alone:
                raise
            self._fail_all_cells(spec.name, seed, _reason(error))
            return
        network = bench.network
        refusals = {name: self._refusal(method, network) for name, method in self.methods.items()}
        able = {name: method for name, method in self.methods.items() if not refusals[name]}
        started = time.perf_counter()
        self._extract_what_is_possible(bench, able)
        extracted = time.perf_counter() - started
        test = bench.extractor(bench.splits["test"], (Logits(), Labels()))
        errors = (test[Logits()].argmax(1) != test[Labels()]).numpy()
        network.accuracy = float((~errors).mean())
        warn_of_low_accuracy(network, network.accuracy)
        for split, n, other in bench.overlaps():
            self._say_once(
                f"{n} of the {len(bench.splits[split])} images of '{split}' are also among those of '{other}'"
            )
        self.record["networks"].append({
            "name": spec.name, "use": spec.use, "seed": seed, "accuracy": network.accuracy, "digest": network.digest,
            "extract_s": round(extracted, 2), "splits": {name: len(split) for name, split in bench.splits.items()},
            "parts": {name: [len(bench.part(name, part)) for part in (FIT, VAL, TEST)] for name in bench.ids},
        })  # fmt: skip
        self.folder.write_errors(spec.name, seed, errors)
        if set(self.suite.chosen_protocols()) != {"none"}:
            small = "too small for protocols that divide it into three parts; only `none` includes it"
            if not bench.has_parts("test"):
                self._say_once(f"'test' is {small}")
            for shift in bench.shifts:
                if not bench.has_parts(shift.name):
                    self.material.leave_out(shift.name, small)
        self._run_cells(bench, spec.name, refusals, errors)
        self._time(bench, able)

    def _say_once(self, what: str) -> None:
        if what not in self._said:
            self._said.add(what)
            print(f"howsure: {what}", file=sys.stderr)

    def _refusal(self, method: Method, network: Network) -> Refusal:
        """Why a method does not run on a network: "skipped" with its reason, or "failed" if asking it raised."""
        try:
            why = refusal(method, network)
        except FAULTS as error:
            return "failed", _reason(error)
        return ("skipped", why) if why else None

    def _network(self, spec: BackboneSpec, seed: int) -> Network:
        material = self.material
        train, test = (material.splits[name].images for name in ("train", "test"))
        with self._bar(0, f"{spec.name}: training", "epoch") as bar:

            def progress(epoch: int, epochs: int) -> None:
                bar.total = epochs
                bar.update(epoch - bar.n)

            return load_network(
                spec.name, spec.use, num_classes=material.classes, base=self.suite.base, mean=spec.mean, std=spec.std,
                size=spec.size, checkpoint=self.suite.checkpoint(spec), members=spec.members, device=self.device,
                train_images=train, test_images=test, seed=seed if spec.seed is None else spec.seed, progress=progress,
            )  # fmt: skip

    def _extract_what_is_possible(self, bench: Bench, methods: dict[str, Method]) -> None:
        """Run the shared passes; if they fail, only for methods without gradients.

        Each cell computes what is then missing by itself, so that only those fail that need what cannot be computed.
        """
        try:
            self._extract(bench, methods)
        except FAULTS as error:
            if isinstance(error, UserError) and not isinstance(error, NoGradients):
                raise
            plain = {name: m for name, m in methods.items() if not any(rep.losses() for rep in union([m.needs]))}
            print(
                f"howsure: {bench.network.name}: {_reason(error)}; methods that do not need it go on", file=sys.stderr
            )
            with suppress(*FAULTS):
                self._extract(bench, plain)

    def _extract(self, bench: Bench, methods: dict[str, Method]) -> None:
        """Pass over each split, training first, for the union of what all methods need.

        Of the training images and of what is made from them, detectors read those alone that they are fitted on.
        Representations that depend on values yet to be chosen from a grid are left to the cells.
        """
        untuned = "none" in self.suite.chosen_protocols()
        needs = {
            name: m.needs if not m.grid or (untuned and m.supervision != "outliers") else certain(m)
            for name, m in methods.items()
        }
        read = (ImageIds(), Labels(), Logits())
        needed = list(dict.fromkeys(rep for some in (read, *needs.values()) for rep in some))
        fitted = [rep for rep in needed if rep.needs]
        learning = [needs[n] for n, m in methods.items() if m.supervision == "id-train"]
        detecting = [needs[n] for n, m in methods.items() if m.supervision == "outliers"]
        splits = {name: split for name, split in bench.splits.items() if name != "synthetic"}
        with self._bar(sum(map(len, splits.values())), f"{bench.network.name}: passes", "image") as bar:
            bench.extractor(
                splits.pop("train"), _plain([read, *learning, *(r.needs for r in fitted)]), progress=bar.update
            )
            again = [rep for rep in fitted if any(rep in some for some in learning)]
            if again:
                bench.extractor(bench.splits["train"], again)
            for name, split in splits.items():
                try:
                    bench.extractor(split, needed, progress=bar.update)
                except UserError as error:
                    if isinstance(error, NoGradients) or name not in {shift.name for shift in bench.shifts}:
                        raise
                    self.material.break_off(name, one_line(error))
                    bench.leave_out(name)
            if detecting and (seen := self._made_of_training(bench)):
                bar.total = bar.n + sum(len(index) for _, index in seen)
                bench.extractor.together(seen, _plain(detecting), progress=bar.update)

    def _made_of_training(self, bench: Bench) -> list[tuple[Split, Tensor]]:
        """The training images, and the outliers made of such, that detectors are fitted on."""
        seen: list[tuple[str, Tensor]] = []
        for protocol in self._protocols(self._to_divide(bench)):
            if protocol in MADE_OF_TRAINING:
                with suppress(CellError):
                    seen += chain(*to_fit_on(bench, (protocol,), FIT))
        return [(bench.splits[name], index) for name, index in seen]

    def _run_cells(self, bench: Bench, backbone: str, refusals: dict[str, Refusal], errors: np.ndarray) -> None:
        self.folder.begin(self.record)
        protocols = self._protocols(self._to_divide(bench))
        with self._bar(len(self.methods) * len(protocols), f"{backbone}: cells", "cell") as bar:
            for name, method in self.methods.items():
                scorer = Scorer(bench, name, method)
                for protocol in protocols:
                    if runs_under(method, protocol):
                        cell_name = CellName(backbone, bench.seed, protocol, name)
                        self._note(self._run_cell(scorer, protocol, cell_name, refusals[name], errors))
                    bar.update(1)

    def _run_cell(
        self, scorer: Scorer, protocol: Protocol, name: CellName, refused: Refusal, errors: np.ndarray
    ) -> Cell:
        if refused:
            cell = Cell(name, refused[0], "", why=refused[1], parameters=repr(scorer.method))
            self.folder.write_cell(cell)
            return cell
        key = self.keys.key(scorer.bench.network.digest, name)
        kept = None if self.fresh else self.folder.read_cell(name)
        if kept and kept.key == key and kept.state == "done" and self.folder.has_scores(name):
            return kept
        cell = Cell(name, "done", key, self.keys.setting(name), parameters=repr(scorer.method))
        started, scores = time.perf_counter(), {}
        try:
            scores = self._score(scorer, protocol, cell, errors)
        except FAULTS as error:
            cell.state, cell.why = "failed", _reason(error)
        cell.seconds = round(time.perf_counter() - started, 3)
        if cell.state == "failed":
            cell.rows = []
        self.folder.write_cell(cell, scores)
        return cell

    def _score(self, scorer: Scorer, protocol: Protocol, cell: Cell, errors: np.ndarray) -> dict[str, np.ndarray]:
        """Score every shift: fills in the cell's rows and chosen values, and returns the scores by set."""
        scores: dict[str, np.ndarray] = {}
        learns = scorer.method.supervision == "outliers"
        tuned = bool(scorer.method.grid) and protocol != "none"
        row = {
            "suite": self.suite.name, "backbone": cell.name.backbone, "seed": cell.name.seed, "id": self.suite.id.test,
            "method": cell.name.method, "supervision": scorer.method.supervision + "+tuned" * (tuned and not learns),
            "protocol": protocol,
        }  # fmt: skip
        for shift, inside, outside, chosen in scorer.run(protocol):
            scores[f"id/{shift.name}" if learns or tuned else "id"], scores[shift.name] = inside, outside
            if chosen:
                cell.chosen[shift.name] = chosen
            found = {
                "task": shift.task,
                "shift": without_severity(shift.name),
                "group": shift.group,
                "severity": shift.severity,
            }
            sizes = {"n_id": len(inside), "n_shift": len(outside)}
            cell.rows += _rows({**row, **found, **sizes}, scorer.measure(inside, outside))
        if protocol == "none":
            inside = scorer.score_test()
            scores["id"] = inside
            found = {"task": "misclassification", "shift": "", "group": "", "severity": None}
            sizes = {"n_id": len(inside), "n_shift": int(errors.sum())}
            cell.rows += _rows({**row, **found, **sizes}, misclassification(inside, errors, seed=scorer.bench.seed))
        return scores

    def _fail_all_cells(self, backbone: str, seed: int, why: str) -> None:
        """Mark all cells of a network that cannot be loaded as failed; those finished earlier stay in the folder."""
        for name, protocol in self._pairs():
            cell = Cell(CellName(backbone, seed, protocol, name), "failed", "", why=why)
            kept = self.folder.read_cell(cell.name)
            if not kept or kept.state != "done":
                self.folder.write_cell(cell)
            self._note(cell)

    def _note(self, cell: Cell) -> None:
        """Add a cell to the record."""
        self.record["cells"].append({
            "backbone": cell.name.backbone, "seed": cell.name.seed, "protocol": cell.name.protocol,
            "method": cell.name.method, "state": cell.state, "why": cell.why, "seconds": cell.seconds,
            "chosen": cell.chosen,
        })  # fmt: skip

    def _time(self, bench: Bench, methods: dict[str, Method]) -> None:
        """Time each method once per backbone, on the network of the first seed, if none of its cells there failed."""
        if bench.seed != self.suite.seeds[0]:
            return
        backbone, device = bench.network.name, str(bench.network.device)
        cells = [c for c in self.record["cells"] if c["backbone"] == backbone]
        failed = {c["method"] for c in cells if c["state"] == "failed"}
        keys = {
            c["method"]: self.keys.key(bench.network.digest, CellName(backbone, bench.seed, c["protocol"], c["method"]))
            for c in cells
            if c["state"] == "done" and c["method"] not in failed
        }

        def timed(name: str) -> bool:
            row = self.folder.read_timing(backbone, name) or {}
            return (row.get("key"), row.get("device")) == (keys[name], device)

        todo = [name for name in keys if self.fresh or not timed(name)]
        if not todo:
            return
        images = bench.splits["test"].images
        sample = Split("timing", Subset(images, np.arange(min(IMAGES_TO_TIME, len(images)))))
        loaded = list(batches(sample, bench.network))
        with self._bar(len(todo), f"{backbone}: timing", "method") as bar:
            for name in todo:
                fit = self._fit(bench, name, methods[name])
                try:
                    row = time_method(methods[name], fit, bench.network, loaded, bench.extractor)
                    self.folder.write_timing(backbone, name, {**row, "method": name, "key": keys[name]})
                except FAULTS as error:
                    print(f"howsure: {name} on {backbone} was not timed: {_reason(error)}", file=sys.stderr)
                bar.update(1)

    def _fit(self, bench: Bench, name: str, method: Method) -> Callable[[], Any]:
        scorer = Scorer(bench, name, method)
        return lambda: seeded(bench.seed, scorer.fit_once)

    def _bar(self, total: int, what: str, unit: str) -> tqdm[Any]:
        return tqdm(
            total=total, desc=what, unit=unit, disable=True if self.quiet else None, leave=False, dynamic_ncols=True
        )


def _plain(needs: Sequence[Sequence[Any]]) -> list[Any]:
    """The representations in several lists, and those that they depend on, that are fitted on nothing."""
    return [rep for rep in union(needs) if not rep.needs]


def _reason(error: BaseException) -> str:
    """An error in one line, with its place if it was unforeseen."""
    return one_line(error) if isinstance(error, CellError | UserError) else described(error)


def _new(others: Iterable[tuple[Any, ...]], mine: Iterable[tuple[Any, ...]], k: int) -> list[Any]:
    """What stands at place k in `others` alone, in order."""
    known = {one[k] for one in mine}
    return [v for v in dict.fromkeys(other[k] for other in others) if v not in known]


def _rows(row: dict[str, Any], metrics: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {**row, "metric": name, "value": m.value, "ci_low": m.low, "ci_high": m.high} for name, m in metrics.items()
    ]
