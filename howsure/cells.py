"""One cell of the grid: a method, tuned and fitted on what its protocol shows it, scoring what is left."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .data import Subset
from .extract import Extractor, Split, union
from .method import Method
from .metrics import Interval, auroc, detection
from .network import Network
from .protocol import FIT, TEST, VAL, Shift, gather, members, pseudo_unknowns, seen_outliers
from .representations import ImageIds, Labels, Reps
from .suite import Protocol

MOST_TO_TUNE_ON = {FIT: 1000, VAL: 500}
MOST_TO_FIT_ON = 8000


class CellError(Exception):
    """Why a cell failed, in one line."""


@dataclass
class Bench:
    """A network with all splits of a suite laid out before it.

    Attributes:
        splits: by name: `train`, `test`, perhaps `val` and `synthetic`, and one a shift.
        shifts: what is told apart from `test`.
        seed: of the protocol's parts and of whatever a method draws at random.
    """

    network: Network
    extractor: Extractor
    splits: Mapping[str, Split]
    shifts: Sequence[Shift]
    seed: int
    _tuning: dict[tuple[str, int], Split] = field(default_factory=dict)

    def reps(self, split: str, needs: Sequence[Any], method: str) -> Reps:
        """What a method needs of a split, and nothing else."""
        return self.extractor(self.splits[split], needs).only(tuple(needs), method)

    @cached_property
    def ids(self) -> dict[str, Reps]:
        return {name: self.extractor(split, (ImageIds(), Labels())) for name, split in self.splits.items()}

    def part(self, split: str, part: int) -> Tensor:
        """Indices of the images of a split that belong to a part."""
        return members(self.ids[split], part, self.seed)

    def tuning_reps(self, split: str, part: int, needs: Sequence[Any]) -> Reps:
        """What is needed of at most 1000 images of the fit part, or 500 of the validation part: a grid over costly
        representations looks at no more."""
        if (split, part) not in self._tuning:
            whole = self.splits[split]
            index = self.part(split, part)[: MOST_TO_TUNE_ON[part]].numpy()
            self._tuning[split, part] = replace(whole, name=f"{split}, part {part}", images=Subset(whole.images, index))
        return self.extractor(self._tuning[split, part], needs)


def candidates(method: Method) -> list[Method]:
    """The method with every combination of its grid's values; itself alone where it has no grid."""
    names = list(method.grid)
    return [replace(method, **dict(zip(names, values, strict=True))) for values in product(*method.grid.values())]  # type: ignore[type-var]


@dataclass
class Scorer:
    """A method on a bench under each protocol; what protocols share is computed once."""

    bench: Bench
    name: str
    method: Method
    _best: dict[Any, Method] = field(default_factory=dict)
    _states: dict[Any, dict[str, Tensor]] = field(default_factory=dict)
    _scores: dict[Any, np.ndarray] = field(default_factory=dict)
    _measured: dict[tuple[bytes, bytes], dict[str, Interval]] = field(default_factory=dict)

    def measure(self, id_scores: np.ndarray, shift_scores: np.ndarray) -> dict[str, Interval]:
        """The detection metrics; computed once for scores that several protocols share."""
        key = (id_scores.tobytes(), shift_scores.tobytes())
        if key not in self._measured:
            self._measured[key] = detection(id_scores, shift_scores, seed=self.bench.seed)
        return self._measured[key]

    def run(self, protocol: Protocol) -> Iterator[tuple[Shift, np.ndarray, np.ndarray, dict[str, Any]]]:
        """Each shift with the in-distribution scores `[n]`, the shifted ones `[m]`, and the values chosen by tuning."""
        for shift in self.bench.shifts:
            chosen, known = self._choose(protocol, shift)
            id_scores, shift_scores = (self._score(chosen, split, known) for split in ("test", shift.name))
            if protocol != "none":
                id_scores = id_scores[self.bench.part("test", TEST)]
                shift_scores = shift_scores[self.bench.part(shift.name, TEST)]
            if not len(id_scores) or not len(shift_scores):
                raise CellError(f"no image left to score of '{shift.name}': it is too small for protocol {protocol}")
            yield shift, id_scores, shift_scores, {k: getattr(chosen, k) for k in self._grid(protocol)}

    def score_test(self) -> np.ndarray:
        """Scores of all in-distribution test images, `[n]`, by a method that saw no outlier."""
        return self._score(self.method, "test", None)

    def fit_once(self) -> dict[str, Tensor]:
        """A state to time the method with; on the first shift for a method that learns from outliers."""
        outliers = self.method.supervision == "outliers"
        return self._fit(self.method, (self.bench.shifts[0].name,) if outliers else None)

    def _grid(self, protocol: Protocol) -> Mapping[str, Any]:
        return {} if protocol == "none" else self.method.grid

    def _choose(self, protocol: Protocol, shift: Shift) -> tuple[Method, Any]:
        """The method to use for a shift, and what it is fitted on: a key of `_states`."""
        known = self._seen(protocol, shift) if self.method.supervision == "outliers" else None
        if not self._grid(protocol):
            return self.method, known
        seen = self._seen(protocol, shift)
        if seen not in self._best:
            options = candidates(self.method)
            self._look(options, seen, known)
            self._best[seen] = max(options, key=lambda option: self._validate(option, seen, known))
        return self._best[seen], known

    def _look(self, options: list[Method], seen: tuple[Any, ...], known: Any) -> None:
        """One pass over each set of validation images, and one over each set to fit on, for all options at once."""
        if seen in (("pseudo-unknown",), ("synthetic",)):
            return
        needs = union(tuple(option.needs) for option in options)
        for split in ("test", *seen):
            for part in (VAL,) if known is None else (FIT, VAL):
                self.bench.tuning_reps(split, part, needs)

    def _seen(self, protocol: Protocol, shift: Shift) -> tuple[Any, ...]:
        if protocol in ("pseudo-unknown", "synthetic"):
            return (protocol,)
        return tuple(seen_outliers(protocol, shift, self.bench.shifts))

    def _validate(self, option: Method, seen: tuple[Any, ...], known: Any) -> float:
        """AUROC of an option on validation images alone."""
        if seen in (("pseudo-unknown",), ("synthetic",)):
            state = self._state(option, known)
            pair = [_checked(option.score(r, **state), seen[0]) for r in self._from_training(option, seen[0], VAL)]
            return auroc(*pair)
        outside = np.concatenate([self._validation_scores(option, split, known) for split in seen])
        return auroc(self._validation_scores(option, "test", known), outside)

    def _validation_scores(self, option: Method, split: str, known: Any) -> np.ndarray:
        key = ("validation", option, split, known)
        if key not in self._scores:
            reps = self.bench.tuning_reps(split, VAL, option.needs).only(tuple(option.needs), self.name)
            scores = option.score(reps, **self._state(option, known))
            self._scores[key] = _checked(scores, f"validation images of '{split}'")
        return self._scores[key]

    def _score(self, method: Method, split: str, known: Any) -> np.ndarray:
        key = (method, split, known)
        if key not in self._scores:
            reps = self.bench.reps(split, method.needs, self.name)
            scores = method.score(reps, **self._state(method, known))
            self._scores[key] = _checked(scores, f"'{split}'")
        return self._scores[key]

    def _state(self, method: Method, known: Any) -> dict[str, Tensor]:
        if (method, known) not in self._states:
            self._states[method, known] = seeded(self.bench.seed, lambda: self._fit(method, known))
        return self._states[method, known]

    def _fit(self, method: Method, known: Any) -> dict[str, Tensor]:
        if method.supervision == "none":
            return {}
        if method.supervision == "id-train":
            split = method.fit_split if method.fit_split in self.bench.splits else "train"
            return method.fit(self.bench.reps(split, method.needs, self.name))
        if known in (("pseudo-unknown",), ("synthetic",)):
            return method.fit(*self._from_training(method, known[0], FIT))
        bench = self.bench
        needs = (*method.needs, ImageIds())
        if method.grid:
            reps = {split: bench.tuning_reps(split, FIT, needs) for split in ("test", *known)}
        else:
            reps = {split: bench.extractor(bench.splits[split], needs) for split in ("test", *known)}
        inside = gather(reps, ["test"], FIT, bench.seed, MOST_TO_FIT_ON)
        outside = gather(reps, known, FIT, bench.seed, len(inside[ImageIds()]))
        return method.fit(*(r.only(tuple(method.needs), self.name) for r in (inside, outside)))

    def _from_training(self, method: Method, protocol: str, part: int) -> tuple[Reps, Reps]:
        """In-distribution training images and outliers made of others of them, of one part."""
        bench, needs = self.bench, tuple(method.needs)
        reps = Reps({**bench.reps("train", needs, self.name), **bench.ids["train"]})
        if protocol == "pseudo-unknown":
            inside, outside = pseudo_unknowns(reps.take(bench.part("train", part)), bench.seed, MOST_TO_FIT_ON)
        else:
            altered = Reps({**bench.reps("synthetic", needs, self.name), **bench.ids["synthetic"]})
            half = torch.arange(len(bench.splits["train"])) % 2 == 0
            mine = torch.zeros_like(half).index_fill(0, bench.part("train", part), True)
            inside, outside = (r.take(torch.where(m & mine)[0]) for r, m in ((reps, half), (altered, ~half)))
        return inside.only(needs, self.name), outside.only(needs, self.name)


def refusal(method: Method, network: Network) -> str | None:
    """Why a method cannot score a network: its own reason, or that of a representation it needs."""
    reasons = [method.skip(network), *(rep.skip(network) for rep in method.needs)]
    return next((reason for reason in reasons if reason), None)


def seeded(seed: int, work: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The state that `work` gives when torch's random numbers start from a seed; the caller's are left as they were.

    Its tensors are contiguous, as they come back from a file: memory layout changes the last bits of a product.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return {key: v.contiguous() if isinstance(v, Tensor) else v for key, v in work().items()}


def _checked(scores: Tensor, where: str) -> np.ndarray:
    """Scores as float64 `[n]`; CellError where they are not one finite number an image."""
    values = scores.detach().cpu().double().numpy()
    if values.ndim != 1:
        raise CellError(f"scores of {where} have shape {list(values.shape)}; expected one number an image")
    bad = int((~np.isfinite(values)).sum())
    if bad:
        raise CellError(f"{bad} of {len(values)} scores of {where} are NaN or infinite")
    return values
