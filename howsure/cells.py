"""One cell of the grid: a method, tuned and fitted on what its protocol lets it see, scoring the rest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .bench import Bench, Selection
from .contained import contained
from .errors import UserError
from .extract import seeded, union
from .method import Method
from .metrics import Interval, auroc, detection
from .network import Network
from .protocol import FIT, TEST, VAL, Shift, gather, held_back, pseudo_unknowns, seen_outliers, spread
from .representation import Reps
from .representations import Labels
from .suite import Protocol

Drawn = list[tuple[str, Tensor]]
"""Names of splits, each with the indices of the images drawn from it."""
MADE_OF_TRAINING = ("pseudo-unknown", "synthetic")
_MOST_TO_FIT_ON = 8000


class CellError(Exception):
    """A cell failed; the message says why in one line."""


def candidates(method: Method) -> list[Method]:
    """The method with every combination of the values in its grid; if it has no grid, the method alone."""
    names = list(method.grid)
    return [replace(method, **dict(zip(names, values, strict=True))) for values in product(*method.grid.values())]  # type: ignore[type-var]


def certain(method: Method) -> list[Any]:
    """The representations from the shared pass that the method needs whatever its grid's values."""
    options = candidates(method)
    return [rep for rep in method.needs if rep.cost != "passes" and all(rep in option.needs for option in options)]


@dataclass
class Scorer:
    """Scores with one method on one bench under each protocol; what protocols share is computed once.

    In its methods, `seen` is what the method has been fitted on: the names of the sets of outliers, or of the protocol
    that makes outliers from training images; None if it sees no outliers.
    """

    bench: Bench
    name: str
    method: Method
    _best: dict[Any, Method] = field(default_factory=dict)
    _states: dict[Any, dict[str, Tensor]] = field(default_factory=dict)
    _scores: dict[Any, np.ndarray] = field(default_factory=dict)
    _measured: dict[tuple[bytes, bytes], dict[str, Interval]] = field(default_factory=dict)

    def measure(self, id_scores: np.ndarray, shift_scores: np.ndarray) -> dict[str, Interval]:
        """The detection metrics, computed once for scores that several protocols share."""
        key = (id_scores.tobytes(), shift_scores.tobytes())
        if key not in self._measured:
            self._measured[key] = detection(id_scores, shift_scores, seed=self.bench.seed)
        return self._measured[key]

    def run(self, protocol: Protocol) -> Iterator[tuple[Shift, np.ndarray, np.ndarray, dict[str, Any]]]:
        """For each shift, the in-distribution scores `[n]`, the shifted scores `[m]`, and the values chosen."""
        shifts = self._shifts(protocol)
        choices = [self._choose(protocol, shift) for shift in shifts]
        needs = _needs([chosen for chosen, _ in choices])
        apart = protocol != "none" and _makes_passes(needs)
        part = self.bench.part("test", TEST) if apart else None
        if choices:
            self.bench.read([("test", part)], needs, self.name, self._fit_index(choices[0][1]))
        score = self._score if protocol == "none" else self._score_part
        for shift, (chosen, seen) in zip(shifts, choices, strict=True):
            id_scores, shift_scores = (score(chosen, split, seen) for split in ("test", shift.name))
            yield shift, id_scores, shift_scores, {k: getattr(chosen, k) for k in self._grid(protocol)}

    def score_test(self) -> np.ndarray:
        """Scores `[n]` of all in-distribution test images, by a method that sees no outliers."""
        return self._score(self.method, "test", None)

    def fit_once(self) -> dict[str, Tensor]:
        """A state to time the method with; a method that learns from outliers is fitted on the first shift."""
        outliers = self.method.supervision == "outliers"
        seen = ((self.bench.divisible or self.bench.shifts)[0].name,) if outliers else None
        return self._fit(self.method, seen, tuning=bool(self.method.grid))

    def _shifts(self, protocol: Protocol) -> Sequence[Shift]:
        """The shifts that the protocol can be run on."""
        if protocol == "none":
            return self.bench.shifts
        for name in ("test", *(() if self.bench.divisible else (s.name for s in self.bench.shifts))):
            if not self.bench.has_parts(name):
                raise CellError(f"'{name}' is too small for protocol {protocol}: one of its three parts has no image")
        return self.bench.divisible

    def _grid(self, protocol: Protocol) -> Mapping[str, Any]:
        return {} if protocol == "none" else self.method.grid

    def _choose(self, protocol: Protocol, shift: Shift) -> tuple[Method, Any]:
        """The tuned method to use for a shift, and what it is fitted on."""
        seen = self._seen(protocol, shift) if self.method.supervision == "outliers" else None
        if not self._grid(protocol):
            return self.method, seen
        sets = self._tuning_sets(protocol, shift)
        if sets not in self._best:
            options = candidates(self.method)
            self._read_to_tune_on(options, sets)
            self._best[sets] = max(options, key=lambda option: self._validate(option, sets))
        return self._best[sets], seen

    def _seen(self, protocol: Protocol, shift: Shift) -> tuple[str, ...]:
        """The sets of outliers that a method may be fitted on, or the protocol that makes them from training images."""
        if protocol in MADE_OF_TRAINING:
            return (protocol,)
        return tuple(seen_outliers(protocol, shift, self.bench.divisible))

    def _tuning_sets(self, protocol: Protocol, shift: Shift) -> tuple[str, ...]:
        """The sets that hyper-parameters are chosen on: those seen, with all severities of a corruption together."""
        if protocol == "same-shift":
            return tuple(s.name for s in self.bench.divisible if s.kind == shift.kind)
        return self._seen(protocol, shift)

    def _read_to_tune_on(self, options: list[Method], sets: tuple[str, ...]) -> None:
        """Read all images to tune on in one pass, for all options at once."""
        some = self._to_validate_on(sets)
        if self.method.supervision == "outliers":
            some = [*some, *chain(*to_fit_on(self.bench, sets, FIT, tuning=True))]
        self.bench.read(some, _needs(options), self.name, self._fit_index(sets))

    def _to_validate_on(self, sets: tuple[str, ...]) -> Selection:
        if sets[0] in MADE_OF_TRAINING:
            return [*chain(*to_fit_on(self.bench, sets, VAL, tuning=True))]
        return [(split, self.bench.indices(split, VAL, tuning=True)) for split in ("test", *sets)]

    def _validate(self, option: Method, sets: tuple[str, ...]) -> float:
        """AUROC of an option on the validation images."""
        if sets[0] in MADE_OF_TRAINING:
            state = self._state(option, sets, tuning=True)
            pair = self._pair(option, sets, VAL, tuning=True)
            return auroc(*(scored(option, reps, state, sets[0]) for reps in pair))
        seen = sets if self.method.supervision == "outliers" else None
        inside, *outside = (self._score(option, split, seen, VAL, tuning=True) for split in ("test", *sets))
        return auroc(inside, np.concatenate(outside))

    def _score_part(self, method: Method, split: str, seen: Any) -> np.ndarray:
        """Scores of a split's test part; if they take passes of their own, no other image is processed."""
        if _makes_passes(method.needs):
            return self._score(method, split, seen, TEST)
        return self._score(method, split, seen)[self.bench.part(split, TEST).numpy()]

    def _score(
        self, method: Method, split: str, seen: Any, part: int | None = None, tuning: bool = False
    ) -> np.ndarray:
        """Scores of a split or of one of its parts; while tuning, of the images of that part that are used for it."""
        key = (method, split, seen, part, tuning)
        if key not in self._scores:
            index = None if part is None else self.bench.indices(split, part, tuning)
            reps = self.bench.reps(split, method.needs, self.name, index, self._fit_index(seen))
            where = f"validation images of '{split}'" if tuning else f"'{split}'"
            self._scores[key] = scored(method, reps, self._state(method, seen, tuning), where)
        return self._scores[key]

    def _state(self, method: Method, seen: Any, tuning: bool = False) -> dict[str, Tensor]:
        key = (method, seen, tuning and seen is not None)
        if key not in self._states:
            self._states[key] = seeded(self.bench.seed, lambda: self._fit(method, seen, tuning))
        return self._states[key]

    def _fit(self, method: Method, seen: Any, tuning: bool = False) -> dict[str, Tensor]:
        if method.supervision == "none":
            return {}
        if method.supervision == "id-train":
            split = method.fit_split if method.fit_split in self.bench.splits else "train"
            index = self._not_held_out(seen, split) if seen else None
            return method.fit(self.bench.reps(split, method.needs, self.name, index, self._fit_index(seen)))
        return method.fit(*self._pair(method, seen, FIT, tuning))

    def _fit_index(self, seen: tuple[str, ...] | None) -> Tensor | None:
        """Indices of the training images that representations may be fitted on; None for all."""
        by_parts = ("pseudo-unknown",) if self.method.supervision == "outliers" else MADE_OF_TRAINING
        return self._not_held_out(seen, "train") if seen and seen[0] in by_parts else None

    def _not_held_out(self, sets: tuple[str, ...], split: str) -> Tensor:
        """Indices of in-distribution images to fit on if outliers are made from training images.

        Left out are the images to tune on and those of classes held back as unknowns.
        """
        bench, labels = self.bench, self.bench.ids[split][Labels()]
        tuned_on = bench.part("train", VAL) if split == "train" else labels[:0]
        apart = torch.isin(torch.arange(len(labels)), tuned_on)
        if sets[0] == "pseudo-unknown":
            apart |= torch.isin(labels, held_back(bench.ids["train"][Labels()], bench.seed))
        return (~apart).nonzero().squeeze(1)

    def _pair(self, method: Method, seen: tuple[str, ...], part: int, tuning: bool) -> tuple[Reps, Reps]:
        """The representations that a method needs of the in-distribution images and of the outliers of one part."""
        inside, outside = to_fit_on(self.bench, seen, part, tuning)
        found = self.bench.read([*inside, *outside], method.needs, self.name, self._fit_index(seen))
        return Reps.concat(found[: len(inside)]), Reps.concat(found[len(inside) :])


def to_fit_on(bench: Bench, seen: tuple[str, ...], part: int, tuning: bool = False) -> tuple[Drawn, Drawn]:
    """In-distribution images and outliers of one part: from the shifts `seen`, or made from training images.

    Raises:
        CellError: a protocol is to make outliers from training images, and there are too few.
    """
    if seen[0] not in MADE_OF_TRAINING:
        indices = {split: bench.indices(split, part, tuning) for split in ("test", *seen)}
        inside = gather({"test": indices.pop("test")}, bench.seed, _MOST_TO_FIT_ON)
        return inside, gather(indices, bench.seed, len(inside[0][1]))
    index = bench.indices("train", part, tuning)
    if seen[0] == "synthetic":
        one, other = (spread(index[index % 2 == half], _MOST_TO_FIT_ON, bench.seed) for half in (0, 1))
    else:
        one, other = pseudo_unknowns(bench.ids["train"][Labels()], index, bench.seed, _MOST_TO_FIT_ON)
    if not (len(one) and len(other)):
        raise CellError(f"'train' is too small for protocol {seen[0]}: no known or no unknown image in a part")
    return [("train", one)], [("synthetic" if seen[0] == "synthetic" else "train", other)]


def _needs(methods: Sequence[Method]) -> list[Any]:
    """All representations that several methods need, each once."""
    return list(dict.fromkeys(rep for method in methods for rep in method.needs))


def _makes_passes(needs: Sequence[Any]) -> bool:
    """Whether a representation takes passes of its own, so that it should be computed only for images that need it."""
    return any(rep.cost == "passes" for rep in needs)


def runs_under(method: Method, protocol: Protocol) -> bool:
    """Whether a protocol supplies what a method is fitted on: `none` supplies no outliers."""
    return protocol != "none" or method.supervision != "outliers"


def refusal(method: Method, network: Network) -> str | None:
    """Why a method cannot score a network, or None: its own reason, or that of a representation it depends on."""
    reasons = [method.skip(network), *(rep.skip(network) for rep in union([method.needs]))]
    return next((reason for reason in reasons if reason), None)


class _Scorable(Reps):
    """What `score` may read: everything but what is for `fit` alone, such as the labels of the images it scores."""

    def __getitem__(self, rep: Any) -> Any:
        if rep.fit_only:
            raise UserError(f"score reads {rep!r}, which is for `fit` alone: a score must not depend on it")
        return super().__getitem__(rep)


def scored(method: Method, reps: Reps, state: Mapping[str, Tensor], where: str) -> np.ndarray:
    """Scores of the images in `reps`, float64 `[n]`.

    Raises:
        CellError: a representation or a score is not finite, or there is not one score per image.
    """
    problem = reps.not_finite()
    if problem:
        raise CellError(f"{where}: {problem}; does the network overflow there?")
    with contained():
        scores: object = method.score(_Scorable(reps, reps.owner), **state)
    if not isinstance(scores, Tensor):
        got = type(scores).__name__
        raise CellError(f"score returned a {got} for {where}; it must return a tensor with one number per image")
    if not scores.is_floating_point():
        raise CellError(f"scores of {where} are {scores.dtype}; they must be floating-point numbers")
    values = scores.detach().cpu().double().numpy()
    if values.shape != (reps.images,):
        raise CellError(f"scores of {where} have shape {list(values.shape)}; they must have shape [{reps.images}]")
    bad = int((~np.isfinite(values)).sum())
    if bad:
        raise CellError(f"{bad} of {len(values)} scores of {where} are NaN or infinite")
    return values
