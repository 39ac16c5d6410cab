"""One cell of the grid: a method, tuned and fitted on what its protocol shows it, scoring what is left."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .bench import Bench, Some
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

_MOST_TO_FIT_ON = 8000
_MADE_OF_TRAINING = ("pseudo-unknown", "synthetic")


class CellError(Exception):
    """Why a cell failed, in one line."""


def candidates(method: Method) -> list[Method]:
    """The method with every combination of its grid's values; itself alone where it has no grid."""
    names = list(method.grid)
    return [replace(method, **dict(zip(names, values, strict=True))) for values in product(*method.grid.values())]  # type: ignore[type-var]


def certain(method: Method) -> list[Any]:
    """What the shared pass gives that every value of the grid needs."""
    options = candidates(method)
    return [rep for rep in method.needs if rep.cost != "passes" and all(rep in option.needs for option in options)]


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
        shifts = self._shifts(protocol)
        choices = [self._choose(protocol, shift) for shift in shifts]
        needs = _needs([chosen for chosen, _ in choices])
        apart = protocol != "none" and _makes_passes(needs)
        part = self.bench.part("test", TEST) if apart else None
        if choices:
            self.bench.look([("test", part)], needs, self.name, self._fit_on(choices[0][1]))
        score = self._score if protocol == "none" else self._score_part
        for shift, (chosen, known) in zip(shifts, choices, strict=True):
            id_scores, shift_scores = (score(chosen, split, known) for split in ("test", shift.name))
            yield shift, id_scores, shift_scores, {k: getattr(chosen, k) for k in self._grid(protocol)}

    def score_test(self) -> np.ndarray:
        """Scores of all in-distribution test images, `[n]`, by a method that saw no outlier."""
        return self._score(self.method, "test", None)

    def fit_once(self) -> dict[str, Tensor]:
        """A state to time the method with; on the first shift for a method that learns from outliers."""
        outliers = self.method.supervision == "outliers"
        known = ((self.bench.divisible or self.bench.shifts)[0].name,) if outliers else None
        return self._fit(self.method, known, tuning=bool(self.method.grid))

    def _shifts(self, protocol: Protocol) -> Sequence[Shift]:
        """Those that the protocol can be run on."""
        if protocol == "none":
            return self.bench.shifts
        for name in ("test", *(() if self.bench.divisible else (s.name for s in self.bench.shifts))):
            if not all(len(self.bench.part(name, part)) for part in (FIT, VAL, TEST)):
                raise CellError(f"'{name}' is too small for protocol {protocol}: no image in one of its three parts")
        return self.bench.divisible

    def _grid(self, protocol: Protocol) -> Mapping[str, Any]:
        return {} if protocol == "none" else self.method.grid

    def _choose(self, protocol: Protocol, shift: Shift) -> tuple[Method, Any]:
        """The method to use for a shift, and what it is fitted on."""
        known = self._seen(protocol, shift) if self.method.supervision == "outliers" else None
        if not self._grid(protocol):
            return self.method, known
        pool = self._pool(protocol, shift)
        if pool not in self._best:
            options = candidates(self.method)
            self._look(options, pool)
            self._best[pool] = max(options, key=lambda option: self._validate(option, pool))
        return self._best[pool], known

    def _seen(self, protocol: Protocol, shift: Shift) -> tuple[str, ...]:
        """The sets of outliers that a method may be fitted on, or the protocol that makes them."""
        if protocol in _MADE_OF_TRAINING:
            return (protocol,)
        return tuple(seen_outliers(protocol, shift, self.bench.divisible))

    def _pool(self, protocol: Protocol, shift: Shift) -> tuple[str, ...]:
        """The sets that hyper-parameters are chosen on: what is seen, with all severities of a corruption together."""
        if protocol == "same-shift":
            return tuple(s.name for s in self.bench.divisible if s.kind == shift.kind)
        return self._seen(protocol, shift)

    def _look(self, options: list[Method], pool: tuple[str, ...]) -> None:
        """One pass over all images to tune on, for all options at once."""
        some = self._to_validate(pool)
        if self.method.supervision == "outliers":
            some = [*some, *chain(*self._to_learn(pool, FIT, tuning=True))]
        self.bench.look(some, _needs(options), self.name, self._fit_on(pool))

    def _to_validate(self, pool: tuple[str, ...]) -> Some:
        if pool[0] in _MADE_OF_TRAINING:
            return [*chain(*self._to_learn(pool, VAL, tuning=True))]
        return [(split, self.bench.indices(split, VAL, tuning=True)) for split in ("test", *pool)]

    def _validate(self, option: Method, pool: tuple[str, ...]) -> float:
        """AUROC of an option on validation images alone."""
        if pool[0] in _MADE_OF_TRAINING:
            state = self._state(option, pool, tuning=True)
            pair = self._pair(option, pool, VAL, tuning=True)
            return auroc(*(scored(option, reps, state, pool[0]) for reps in pair))
        known = pool if self.method.supervision == "outliers" else None
        inside, *outside = (self._score(option, split, known, VAL, tuning=True) for split in ("test", *pool))
        return auroc(inside, np.concatenate(outside))

    def _score_part(self, method: Method, split: str, known: Any) -> np.ndarray:
        """Scores of the test part of a split; where passes are made for them, no other image is looked at."""
        if _makes_passes(method.needs):
            return self._score(method, split, known, TEST)
        return self._score(method, split, known)[self.bench.part(split, TEST).numpy()]

    def _score(
        self, method: Method, split: str, known: Any, part: int | None = None, tuning: bool = False
    ) -> np.ndarray:
        """Scores of a split, or of one part of it, or of the images of that part to tune on."""
        key = (method, split, known, part, tuning)
        if key not in self._scores:
            index = None if part is None else self.bench.indices(split, part, tuning)
            reps = self.bench.reps(split, method.needs, self.name, index, self._fit_on(known))
            where = f"validation images of '{split}'" if tuning else f"'{split}'"
            self._scores[key] = scored(method, reps, self._state(method, known, tuning), where)
        return self._scores[key]

    def _state(self, method: Method, known: Any, tuning: bool = False) -> dict[str, Tensor]:
        key = (method, known, tuning and known is not None)
        if key not in self._states:
            self._states[key] = seeded(self.bench.seed, lambda: self._fit(method, known, tuning))
        return self._states[key]

    def _fit(self, method: Method, known: Any, tuning: bool = False) -> dict[str, Tensor]:
        if method.supervision == "none":
            return {}
        if method.supervision == "id-train":
            split = method.fit_split if method.fit_split in self.bench.splits else "train"
            index = self._shown(known, split) if known else None
            return method.fit(self.bench.reps(split, method.needs, self.name, index, self._fit_on(known)))
        return method.fit(*self._pair(method, known, FIT, tuning))

    def _fit_on(self, known: tuple[str, ...] | None) -> Tensor | None:
        """Training images that representations may be fitted on, where that are not all."""
        by_parts = ("pseudo-unknown",) if self.method.supervision == "outliers" else _MADE_OF_TRAINING
        return self._shown(known, "train") if known and known[0] in by_parts else None

    def _shown(self, pool: tuple[str, ...], split: str) -> Tensor:
        """In-distribution images to fit on where unknowns are made of training images: none to tune on, and none of the
        classes held back."""
        bench, labels = self.bench, self.bench.ids[split][Labels()]
        tuned_on = bench.part("train", VAL) if split == "train" else labels[:0]
        apart = torch.isin(torch.arange(len(labels)), tuned_on)
        if pool[0] == "pseudo-unknown":
            apart |= torch.isin(labels, held_back(bench.ids["train"][Labels()], bench.seed))
        return (~apart).nonzero().squeeze(1)

    def _pair(self, method: Method, known: tuple[str, ...], part: int, tuning: bool) -> tuple[Reps, Reps]:
        """What a method needs of the in-distribution images and of the outliers of one part."""
        inside, outside = self._to_learn(known, part, tuning)
        found = self.bench.look([*inside, *outside], method.needs, self.name, self._fit_on(known))
        return Reps.concat(found[: len(inside)]), Reps.concat(found[len(inside) :])

    def _to_learn(self, known: tuple[str, ...], part: int, tuning: bool) -> tuple[Some, Some]:
        """In-distribution images and outliers of one part: of shifts, or made of training images."""
        bench = self.bench
        if known[0] in _MADE_OF_TRAINING:
            index = bench.indices("train", part, tuning)
            if known[0] == "synthetic":
                one, other = (spread(index[index % 2 == half], _MOST_TO_FIT_ON, bench.seed) for half in (0, 1))
            else:
                one, other = pseudo_unknowns(bench.ids["train"][Labels()], index, bench.seed, _MOST_TO_FIT_ON)
            if not (len(one) and len(other)):
                raise CellError(f"'train' is too small for protocol {known[0]}: no known or no unknown image in a part")
            return [("train", one)], [("synthetic" if known[0] == "synthetic" else "train", other)]
        indices = {split: bench.indices(split, part, tuning) for split in ("test", *known)}
        inside = gather({"test": indices.pop("test")}, bench.seed, _MOST_TO_FIT_ON)
        return inside, gather(indices, bench.seed, len(inside[0][1]))


def _needs(methods: Sequence[Method]) -> list[Any]:
    """What several methods need of a split, each once."""
    return list(dict.fromkeys(rep for method in methods for rep in method.needs))


def _makes_passes(needs: Sequence[Any]) -> bool:
    """Whether some of what is needed takes passes of its own, so that no image is looked at in vain."""
    return any(rep.cost == "passes" for rep in needs)


def runs_under(method: Method, protocol: Protocol) -> bool:
    """Whether a protocol shows a method what it is fitted on: `none` shows no outliers."""
    return protocol != "none" or method.supervision != "outliers"


def refusal(method: Method, network: Network) -> str | None:
    """Why a method cannot score a network: its own reason, or that of a representation that it needs, or they."""
    reasons = [method.skip(network), *(rep.skip(network) for rep in union([method.needs]))]
    return next((reason for reason in reasons if reason), None)


class _Unlabelled(Reps):
    """What `score` may read: all but the labels of the images that it scores."""

    def __getitem__(self, rep: Any) -> Any:
        if rep == Labels():
            raise UserError("score reads Labels(), which a score is to tell without; read them in `fit` alone")
        return super().__getitem__(rep)


def scored(method: Method, reps: Reps, state: Mapping[str, Tensor], where: str) -> np.ndarray:
    """Scores of the images in `reps` as float64 `[n]`; CellError where they, or what they are made of, are not finite
    numbers, or not one an image.
    """
    lost = reps.lost()
    if lost:
        raise CellError(f"{where}: {lost}; does the network overflow there?")
    with contained():
        scores: object = method.score(_Unlabelled(reps, reps.owner), **state)
    if not isinstance(scores, Tensor):
        raise CellError(f"score returned a {type(scores).__name__} for {where}; expected a tensor, one number an image")
    values = scores.detach().cpu().double().numpy()
    if values.shape != (reps.images,):
        raise CellError(f"scores of {where} have shape {list(values.shape)}; expected one number each, [{reps.images}]")
    bad = int((~np.isfinite(values)).sum())
    if bad:
        raise CellError(f"{bad} of {len(values)} scores of {where} are NaN or infinite")
    return values
