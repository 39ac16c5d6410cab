"""Running a suite: networks, splits, one pass over each, then every cell, each kept as soon as it is finished."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass, field
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from .bench import Bench
from .cells import CellError, Scorer, candidates, certain, refusal, runs_under
from .corruptions import kinds
from .data import cache_root, located
from .errors import FAULTS, NoGradients, UserError, one_line, told
from .extract import Extractor, accuracy, seeded, union
from .images import Subset
from .keys import hash_file, make_key, room, sources_of, values_of
from .material import Material
from .method import Method
from .metrics import misclassification
from .network import Network
from .networks import load_network
from .protocol import Shift, lacking, without_severity
from .record import new_record, now
from .representations import ImageIds, Labels, Logits
from .results import Cell, CellName, RunFolder, State
from .split import Pixels, Split, batches
from .store import Store
from .suite import BackboneSpec, Protocol, Suite
from .timing import time_method

IMAGES_TO_TIME = 256
Refusal = tuple[State, str] | None


@dataclass
class Run:
    """A run of a suite into a folder.

    Attributes:
        fresh: compute cells anew even where the folder holds them.
        quiet: no progress bars.
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
    _told: set[str] = field(default_factory=set)

    def __call__(self) -> pd.DataFrame:
        """Run every cell; returns the results. What is finished is kept whatever happens."""
        self.record = new_record(now(), self.suite, self.folder.folder, self.methods, self.device, self.material)
        self._read_code()
        try:
            self._refuse_nothing_to_do()
            self._refuse_to_overwrite()
            for spec in self.suite.backbone:
                for seed in self.suite.seeds:
                    self._run_network(spec, seed, alone=len(self.suite.backbone) == 1)
        except BaseException:
            if self.record["cells"]:
                self._note_earlier()
                self._assemble()
            raise
        return self._assemble()

    def _read_code(self) -> None:
        """For the keys, before an edit while the run goes on: it is the code of now that runs."""
        room()
        for method in self.methods.values():
            with suppress(*FAULTS):  # what it needs cannot be told: its cells fail, alone
                list(sources_of(*candidates(method)))

    def _pairs(self) -> list[tuple[str, Protocol]]:
        """The methods with the protocols that they run under, each on every network."""
        protocols = self._protocols(self.material.shifts(self.material.splits))
        return [(name, p) for name, p in product(self.methods, protocols) if runs_under(self.methods[name], p)]

    def _protocols(self, shifts: Sequence[Shift]) -> list[Protocol]:
        """Those of the suite that these shifts allow; of the others it is said once that they are left out."""
        classes = len(np.unique(self.material.splits["train"].images.y))
        lacks = {p: lacking(p, shifts, classes) for p in self.suite.chosen_protocols()}
        for protocol, needed in lacks.items():
            if needed:
                self._tell_once(f"protocol '{protocol}' left out: it needs {needed}")
        return [protocol for protocol, needed in lacks.items() if not needed]

    def _refuse_nothing_to_do(self) -> None:
        pairs = self._pairs()
        idle = [name for name in self.methods if name not in {method for method, _ in pairs}]
        if pairs and idle:
            print(f"howsure: left out, since no protocol here shows them outliers: {', '.join(idle)}", file=sys.stderr)
        if not pairs:
            methods, protocols = ", ".join(list(self.methods)[:5]), ", ".join(self.suite.chosen_protocols())
            raise UserError(
                f"nothing to run: with the shifts that are here none of {methods} runs under {protocols};"
                " detectors need a protocol that shows them outliers, protocols but `none` a shift"
            )

    def _refuse_to_overwrite(self) -> None:
        """Another suite's results would give way to these; a shift that an earlier run in this folder had, and that is
        gone, would take its finished cells along."""
        here = self.record["suite_from"]
        name, places = self.folder.suite() or (self.suite.name, here)
        apart = places not in (None, here) and set(places or ()).isdisjoint(here)
        if (name != self.suite.name or apart) and not self.fresh:
            of = f"the suite '{name}'" if name != self.suite.name else f"another file's suite '{name}'"
            raise UserError(
                f"{self.folder.folder}: has results of {of}, which those of '{self.suite.name}' would"
                " replace; name another --out, or give them up with --fresh"
            )
        gone = sorted(set(self.record["missing"]) & self.folder.shifts())
        if gone and not self.fresh:
            raise UserError(
                f"{self.folder.folder}: has results on '{gone[0]}', which is not to be had now"
                f" ({self.record['missing'][gone[0]]}); bring it back, name another --out, or give them up with --fresh"
            )

    def _note_earlier(self) -> None:
        """Cells that an interruption kept this run from, and an earlier one has finished in the same way."""
        noted = {(c["backbone"], c["seed"], c["protocol"], c["method"]) for c in self.record["cells"]}
        for cell in self.folder.cells():
            if cell.state == "done" and astuple(cell.name) not in noted and self._would_be_the_same(cell):
                self._note(cell)

    def _would_be_the_same(self, cell: Cell) -> bool:
        """Whether this run would make a cell as it is; before its network is there, as far as the suite says."""
        name = cell.name
        mine = name.backbone in self._specs and name.seed in self.suite.seeds
        if not mine or name.protocol not in self.suite.chosen_protocols() or name.method not in self.methods:
            return False
        digests = {(n["name"], n["seed"]): n["digest"] for n in self.record["networks"]}
        digest = digests.get((name.backbone, name.seed))
        return cell.key == self._key(digest, name) if digest else cell.setting == self._setting(name)

    @property
    def _specs(self) -> dict[str, BackboneSpec]:
        return {spec.name: spec for spec in self.suite.backbone}

    def _assemble(self) -> pd.DataFrame:
        self.record["finished"] = now()
        return self.folder.assemble(self.record)

    @cached_property
    def material(self) -> Material:
        return Material(self.suite)

    def bench(self, spec: BackboneSpec, seed: int) -> Bench:
        """A network, loaded or trained, before the suite's splits."""
        network, splits = self._network(spec, seed), self.material.splits
        possible = kinds(network.input.channels)
        for kind in sorted({s.corruption[0] for s in splits.values() if s.corruption} - set(possible)):
            self.material.leave_out(kind, f"it needs colour, and {spec.name} sees grey images")
        splits = {name: s for name, s in splits.items() if not s.corruption or s.corruption[0] in possible}
        extractor = Extractor(network, self.store, splits["train"], self._pixels)
        return Bench(network, extractor, splits, self.material.shifts(splits), seed)

    def _run_network(self, spec: BackboneSpec, seed: int, alone: bool) -> None:
        try:
            bench = self.bench(spec, seed)
        except FAULTS as error:
            if alone:
                raise
            self._note_lost(spec.name, seed, _reason(error))
            return
        network = bench.network
        refusals = {name: self._refusal(method, network) for name, method in self.methods.items()}
        able = {name: method for name, method in self.methods.items() if not refusals[name]}
        started = time.perf_counter()
        self._extract_what_can_be(bench, able)
        extracted = time.perf_counter() - started
        test = bench.extractor(bench.splits["test"], (Logits(), Labels()))
        network.accuracy = accuracy(test, test[Labels()])
        chance = 1 / network.num_classes
        if network.accuracy < chance + 0.1 * (1 - chance):
            print(
                f"howsure: {spec.name}: accuracy {100 * network.accuracy:.1f} %, hardly above chance; does it have its"
                " weights (checkpoint = …), and its classes in the order of the data?",
                file=sys.stderr,
            )
        for split, n, known in bench.met_before():
            all_of_it = len(bench.splits[split])
            self._tell_once(f"{n} of the {all_of_it} images of '{split}' are among those of '{known}' too")
        self.record["networks"].append({
            "name": spec.name, "use": spec.use, "seed": seed, "accuracy": network.accuracy, "digest": network.digest,
            "extract_s": round(extracted, 2), "splits": {name: len(split) for name, split in bench.splits.items()},
        })  # fmt: skip
        errors = (test[Logits()].argmax(1) != test[Labels()]).numpy()
        self.folder.write_errors(spec.name, seed, errors)
        if set(self.suite.chosen_protocols()) != {"none"}:
            for shift in bench.shifts:
                if shift not in bench.divisible:
                    self.material.leave_out(
                        shift.name, "too small for protocols that split it in three; only `none` has it"
                    )
        self._run_cells(bench, spec.name, refusals, errors)
        self._time(bench, able)

    def _tell_once(self, what: str) -> None:
        if what not in self._told:
            self._told.add(what)
            print(f"howsure: {what}", file=sys.stderr)

    def _refusal(self, method: Method, network: Network) -> tuple[State, str] | None:
        """Why a method does not run on a network, and whether that is a failure of its own."""
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
                size=spec.size, checkpoint=self._checkpoint(spec), members=spec.members, device=self.device,
                train_images=train, test_images=test, seed=seed if spec.seed is None else spec.seed, progress=progress,
            )  # fmt: skip

    def _checkpoint(self, spec: BackboneSpec) -> str | None:
        return str(located(spec.checkpoint, self.suite.base).absolute()) if spec.checkpoint else None

    def _extract_what_can_be(self, bench: Bench, methods: dict[str, Method]) -> None:
        """The shared passes; where they fail, those that need no gradients. Cells compute for themselves what is
        missing then, so that only those fail that need what cannot be had."""
        try:
            self._extract(bench, methods)
        except FAULTS as error:
            if isinstance(error, UserError) and not isinstance(error, NoGradients):
                raise
            plain = {name: m for name, m in methods.items() if not any(rep.losses() for rep in union([m.needs]))}
            print(f"howsure: {bench.network.name}: {_reason(error)}; methods without this need go on", file=sys.stderr)
            with suppress(*FAULTS):
                self._extract(bench, plain)

    def _extract(self, bench: Bench, methods: dict[str, Method]) -> None:
        """One pass over each split for the union of what all methods need; the training split first.

        What a grid will choose is read when it has chosen.
        """
        plainly = "none" in self.suite.chosen_protocols()
        needs = {
            name: m.needs if not m.grid or (plainly and m.supervision != "outliers") else certain(m)
            for name, m in methods.items()
        }
        read = (ImageIds(), Labels(), Logits())
        needed = list(dict.fromkeys(rep for some in (read, *needs.values()) for rep in some))
        fitted = [rep for rep in needed if rep.needs]
        learning = [needs[n] for n, m in methods.items() if m.supervision == "id-train" or self._fits_on_train()]
        plain = [rep for rep in union([read, *learning, *(rep.needs for rep in fitted)]) if not rep.needs]
        total = sum(map(len, bench.splits.values()))
        with self._bar(total, f"{bench.network.name}: passes", "image") as bar:
            bench.extractor(bench.splits["train"], plain, progress=bar.update)
            again = [rep for rep in fitted if any(rep in some for some in learning)]
            if again:
                bench.extractor(bench.splits["train"], again)
            for name, split in bench.splits.items():
                if name != "train":
                    bench.extractor(split, needed, progress=bar.update)

    def _fits_on_train(self) -> bool:
        return bool({"pseudo-unknown", "synthetic"} & set(self.suite.chosen_protocols()))

    def _run_cells(self, bench: Bench, backbone: str, refusals: dict[str, Refusal], errors: np.ndarray) -> None:
        self.folder.begin(self.record)
        protocols = self._protocols(bench.divisible or bench.shifts)
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
        key = self._key(scorer.bench.network.digest, name)
        kept = None if self.fresh else self.folder.read_cell(name)
        if kept and kept.key == key and kept.state == "done" and self.folder.has_scores(name):
            return kept
        cell = Cell(name, "done", key, self._setting(name), parameters=repr(scorer.method))
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
        scores: dict[str, np.ndarray] = {}
        supervision: str = scorer.method.supervision
        if protocol != "none" and scorer.method.grid and supervision != "outliers":
            supervision += "+tuned"
        row = {
            "suite": self.suite.name, "backbone": cell.name.backbone, "seed": cell.name.seed, "id": self.suite.id.test,
            "method": cell.name.method, "supervision": supervision, "protocol": protocol,
        }  # fmt: skip
        shared = scorer.method.supervision != "outliers" and not (scorer.method.grid and protocol != "none")
        for shift, inside, outside, chosen in scorer.run(protocol):
            scores["id" if shared else f"id/{shift.name}"], scores[shift.name] = inside, outside
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

    def _key(self, digest: str, name: CellName) -> str:
        """What a cell is stored under: a hash of its network and of all else that it is made of."""
        return make_key(digest, *self._made_of(name))

    def _setting(self, name: CellName) -> str:
        """The same before the network is there, by what the suite says of it and the files that it names."""
        return make_key(self._said[name.backbone], *self._made_of(name))

    @cached_property
    def _said(self) -> dict[str, list[object]]:
        found: dict[str, list[object]] = {}
        for name, spec in self._specs.items():
            named = (spec.use.rpartition(":")[0], self._checkpoint(spec) or "")
            files = [self.suite.base / Path(one).expanduser() for one in named]
            found[name] = [spec, *(hash_file(file) for file in files if file.is_file())]
        return found

    def _made_of(self, name: CellName) -> list[object]:
        splits, method = self.material.splits, self.methods[name.method]
        images = [f"{split} {images.fingerprint}" for split, images in splits.items()]
        code = (*sources_of(method), room())
        how = [*values_of(method), *method.grid, self.suite.name, self.suite.id.test, name.protocol, name.seed]
        return [*how, *code, *self.material.shifts(splits), *images]

    def _note_lost(self, backbone: str, seed: int, why: str) -> None:
        """All cells of a network that is not to be had fail; what is finished of them waits for it."""
        for name, protocol in self._pairs():
            cell = Cell(CellName(backbone, seed, protocol, name), "failed", "", why=why)
            kept = self.folder.read_cell(cell.name)
            if not kept or kept.state != "done":
                self.folder.write_cell(cell)
            self._note(cell)

    def _note(self, cell: Cell) -> None:
        self.record["cells"].append({
            "backbone": cell.name.backbone, "seed": cell.name.seed, "protocol": cell.name.protocol,
            "method": cell.name.method, "state": cell.state, "why": cell.why, "seconds": cell.seconds,
            "chosen": cell.chosen,
        })  # fmt: skip

    def _time(self, bench: Bench, methods: dict[str, Method]) -> None:
        """Time each method once a backbone, on the network of the first seed, if none of its cells there failed."""
        if bench.seed != self.suite.seeds[0]:
            return
        backbone, device = bench.network.name, str(bench.network.device)
        cells = [c for c in self.record["cells"] if c["backbone"] == backbone]
        failed = {c["method"] for c in cells if c["state"] == "failed"}
        keys = {
            c["method"]: self._key(bench.network.digest, CellName(backbone, bench.seed, c["protocol"], c["method"]))
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


def _reason(error: BaseException) -> str:
    """In one line; with the place for an error that nobody foresaw."""
    return one_line(error) if isinstance(error, CellError | UserError) else told(error)


def _rows(row: dict[str, Any], metrics: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {**row, "metric": name, "value": m.value, "ci_low": m.low, "ci_high": m.high} for name, m in metrics.items()
    ]
