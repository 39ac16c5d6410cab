"""How well uncertainty scores separate what they should, with bootstrap intervals.

A higher score means more uncertain, everywhere. In-distribution (ID) images are the positive class of FPR@95TPR and
AUPR-in, shifted images that of AUROC and AUPR-out. All metrics depend on the order of the scores alone, and none on the
order in which images are listed: equal scores are never told apart.

- **AUROC**: the chance that a shifted image scores above an ID image; ties count one half.
- **FPR@95TPR**: keep the smallest set of lowest scores that holds at least 95 % of the ID images, with everything that
  ties with its highest score; the share of shifted images kept. (OpenOOD and pytorch-ood take a point of the ROC curve,
  which differs where scores tie.)
- **AUPR-out**, **AUPR-in**: average precision as scikit-learn defines it: a step function, without interpolation.
- **Detection accuracy**: the best balanced accuracy over all thresholds, "accept all" included (Lee et al., 2018,
  arXiv:1807.03888).
- **AURC**: the risk (error rate) of the k least uncertain images, averaged over k = 1 … n (Geifman & El-Yaniv, 2017,
  arXiv:1705.08500). Among equal scores the risk is its expected value over all orders of them.
- **E-AURC**: AURC less that of the best possible order, all correct images first (Geifman et al., 2019,
  arXiv:1805.08206), with the exact sum for that order rather than the paper's integral.

The bootstrap draws images with replacement and works on how often each image was drawn: `[images, resamples]` counts,
put in order of score, and their cumulative sums answer every metric of every resample at once. Equal sizes and seed
mean the same draws, so intervals of two methods on the same images are paired.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from math import isqrt, prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

DETECTION = ("auroc", "fpr95", "aupr_in", "aupr_out", "detection_accuracy")
MISCLASSIFICATION = ("auroc", "fpr95", "aupr_success", "aupr_error", "detection_accuracy", "aurc", "eaurc")

ROUNDING = 1e-5  # resamples are summed in single precision
WORKING_SET = 2**19  # numbers in a table: what stays in a processor's cache is several times faster

Floats = NDArray[Any]
Ints = NDArray[np.intp]


class Interval(NamedTuple):
    """A value and its 95 % percentile bootstrap interval; NaN where undefined."""

    value: float
    low: float
    high: float


def auroc(id_scores: Any, shift_scores: Any) -> float:
    """AUROC alone, without an interval; the same value as `detection` gives."""
    return float(_below(_scores(id_scores, "ID scores"), _scores(shift_scores, "shifted scores")).mean())


def _below(some: Floats, others: Floats) -> Floats:
    """The share of `some` below each of the `others`; ties count one half."""
    ordered = np.sort(some)
    return (ordered.searchsorted(others, "left") + ordered.searchsorted(others, "right")) / (2 * len(ordered))


def auroc_lead(first: tuple[Any, Any], second: tuple[Any, Any]) -> Interval:
    """How much higher the AUROC of one score is than that of another on the same images, in [-1, 1].

    Args:
        first: `(id_scores [n], shift_scores [m])`, higher means more uncertain.
        second: the other score of the same images in the same order.

    Returns:
        The difference with its 95 % interval after DeLong et al., 1988 (doi:10.2307/2531595): each image's share in
        either AUROC is known, and the variance of the difference of shares is that of a mean. It counts the chance of
        the test images, not that of the fit.

    Raises:
        ValueError: sizes that differ, fewer than two images of a kind, or a score that is not finite.
    """
    known, other_known = (_scores(scores[0], "ID scores") for scores in (first, second))
    shifted, other_shifted = (_scores(scores[1], "shifted scores") for scores in (first, second))
    if known.shape != other_known.shape or shifted.shape != other_shifted.shape:
        raise ValueError("both scores must be of the same images: their sizes differ")
    if min(len(known), len(shifted)) < 2:
        raise ValueError("a lead needs at least two ID images and two shifted ones")
    apart = (
        _below(other_shifted, other_known) - _below(shifted, known),
        _below(known, shifted) - _below(other_known, other_shifted),
    )
    lead = float(apart[1].mean())
    half = 1.959964 * float(np.sqrt(sum(d.var(ddof=1) / len(d) for d in apart)))
    return Interval(lead, lead - half, lead + half)


def detection(id_scores: Any, shift_scores: Any, *, resamples: int = 1000, seed: int = 0) -> dict[str, Interval]:
    """How well scores tell shifted images from ID images.

    Args:
        id_scores: `[n]`, higher means more uncertain.
        shift_scores: `[m]`.
        resamples: bootstrap resamples, ID and shifted images drawn separately; 0 leaves the intervals NaN.
        seed: of the resamples.

    Returns:
        An `Interval` for each of `DETECTION`, all in [0, 1].

    Raises:
        ValueError: a set is empty, not one-dimensional, or holds a score that is not finite.
    """
    pair = _Pair.of(_scores(id_scores, "ID scores"), _scores(shift_scores, "shifted scores"))
    n, m = len(pair.id_order), len(pair.shift_order)

    def resampled() -> Iterator[Floats]:
        width = _width(n + m)
        parts = zip(_counts(n, resamples, width, seed, 0), _counts(m, resamples, width, seed, 1), strict=True)
        return (_detection(pair, id_counts, shift_counts, np.float32) for id_counts, shift_counts in parts)

    value = _detection(pair, _once(n), _once(m), np.float64)
    return _intervals(DETECTION, value, resampled, resamples)


def misclassification(scores: Any, errors: Any, *, resamples: int = 1000, seed: int = 0) -> dict[str, Interval]:
    """How well scores tell wrong predictions from right ones.

    Args:
        scores: `[n]`, higher means more uncertain.
        errors: `[n]`, true where the prediction was wrong.
        resamples: bootstrap resamples of all images; those without an error, or with errors only, count for AURC and
            E-AURC alone. 0 leaves the intervals NaN.
        seed: of the resamples.

    Returns:
        An `Interval` for each of `MISCLASSIFICATION`: those of `DETECTION` with right predictions as ID and errors as
        shifted (`aupr_success` has right predictions as positive, `aupr_error` errors), AURC and E-AURC. All but the
        last two are NaN where `why_undefined(errors)` gives a reason.

    Raises:
        ValueError: no scores, one that is not finite, or sizes that differ.
    """
    scores = _scores(scores, "scores")
    wrong = _errors(errors, len(scores))
    right, n = ~wrong, len(scores)
    risk = _Risk.of(scores, wrong)
    pair = _Pair.of(scores[right], scores[wrong]) if why_undefined(wrong) is None else None

    def at(counts: NDArray[np.uint8], dtype: type) -> Floats:
        curve = _risk(risk, counts)
        if pair is None:
            return np.vstack([np.full((len(DETECTION), counts.shape[1]), np.nan), curve])
        return np.vstack([_detection(pair, counts[right], counts[wrong], dtype), curve])

    def resampled() -> Iterator[Floats]:
        return (at(counts, np.float32) for counts in _counts(n, resamples, _width(2 * n), seed, 2))

    return _intervals(MISCLASSIFICATION, at(_once(n), np.float64), resampled, resamples)


def why_undefined(errors: Any) -> str | None:
    """Why errors `[n]` cannot be told from right predictions, or None."""
    wrong = np.asarray(errors, dtype=bool)
    if wrong.all():
        return f"all {wrong.size} predictions are wrong: there is no right one to compare with"
    return None if wrong.any() else f"all {wrong.size} predictions are right: there is no error to find"


@dataclass(frozen=True)
class _Pair:
    """Where the sorted scores of two sets stand in their own set and in the other: numbers of scores below."""

    id_order: Ints
    shift_order: Ints
    id_up_to: Ints  # ID scores <= each ID score
    shift_up_to: Ints  # shifted scores <= each ID score
    shift_below: Ints  # shifted scores < each ID score
    id_under: Ints  # ID scores < each shifted score
    shift_under: Ints  # shifted scores < each shifted score

    @classmethod
    def of(cls, id_scores: Floats, shift_scores: Floats) -> _Pair:
        id_order, shift_order = id_scores.argsort(), shift_scores.argsort()
        low, high = id_scores[id_order], shift_scores[shift_order]
        return cls(
            id_order,
            shift_order,
            low.searchsorted(low, "right"),
            high.searchsorted(low, "right"),
            high.searchsorted(low, "left"),
            low.searchsorted(high, "left"),
            high.searchsorted(high, "left"),
        )


def _detection(pair: _Pair, id_counts: NDArray[np.uint8], shift_counts: NDArray[np.uint8], dtype: type) -> Floats:
    """`DETECTION` metrics `[5, B]` where images were drawn `[n, B]` and `[m, B]` times."""
    _memory.reset()
    w_id, w_shift = _ordered(id_counts, pair.id_order, dtype), _ordered(shift_counts, pair.shift_order, dtype)
    sum_id, sum_shift = _cumulative(w_id), _cumulative(w_shift)
    n, m = sum_id[-1], sum_shift[-1]
    kept_id, kept_shift = _rows(sum_id, pair.id_up_to), _rows(sum_shift, pair.shift_up_to)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.stack(
            [
                _auroc(pair, w_id, kept_shift, sum_shift, n, m),
                _fpr95(pair, sum_id, sum_shift),
                _precision(w_id, kept_id, _add(kept_id, kept_shift)) / n,
                _aupr_out(pair, w_shift, sum_id, sum_shift),
                _accuracy(kept_id, kept_shift, n, m),
            ]
        )


def _auroc(pair: _Pair, w_id: Floats, kept_shift: Floats, sum_shift: Floats, n: Floats, m: Floats) -> Floats:
    not_above = np.einsum("ib,ib->b", w_id, kept_shift)
    (tied,) = np.nonzero(pair.shift_up_to != pair.shift_below)
    if len(tied):
        equal = _rows(kept_shift, tied, copy=True)
        equal -= _rows(sum_shift, pair.shift_below[tied])
        not_above -= np.einsum("ib,ib->b", _rows(w_id, tied), equal) / 2
    return 1 - not_above / n / m


def _fpr95(pair: _Pair, sum_id: Floats, sum_shift: Floats) -> Floats:
    """Bisects every column of `sum_id` for the lowest score that keeps 95 % of ID."""
    n, column = sum_id[-1], np.arange(sum_id.shape[1])
    need = np.ceil(n * 19 / 20)
    low, high = np.zeros(len(column), int), np.full(len(column), len(sum_id) - 1)
    for _ in range(len(sum_id).bit_length()):
        middle = (low + high) // 2
        enough = sum_id[middle, column] >= need
        high, low = np.where(enough, middle, high), np.where(enough, low, np.minimum(middle + 1, high))
    return sum_shift[pair.shift_up_to[high - 1], column] / sum_shift[-1]


def _aupr_out(pair: _Pair, w_shift: Floats, sum_id: Floats, sum_shift: Floats) -> Floats:
    found = _rows(sum_shift, pair.shift_under, copy=True)
    np.subtract(sum_shift[-1], found, out=found)
    flagged = _add(found, sum_id[-1])
    flagged -= _rows(sum_id, pair.id_under)
    return _precision(w_shift, found, flagged) / sum_shift[-1]


def _precision(weights: Floats, found: Floats, taken: Floats) -> Floats:
    """Sum `[B]` over positives of the precision at each; overwrites `taken`."""
    np.maximum(taken, 1, out=taken)
    return np.einsum("ib,ib->b", weights, np.divide(found, taken, out=taken))


def _accuracy(kept_id: Floats, kept_shift: Floats, n: Floats, m: Floats) -> Floats:
    """Between two ID scores the share of ID kept stands still, so the best threshold is an ID score, or below all."""
    gap = _memory.table(kept_shift.shape, kept_shift.dtype)
    np.multiply(kept_shift, -n / m, out=gap)
    gap += kept_id
    return (1 + np.maximum(gap.max(axis=0), 0) / n) / 2


@dataclass(frozen=True)
class _Risk:
    """Sorted images, where groups of equal scores start and end, and which of the sorted images are right."""

    order: Ints
    bounds: Ints
    right: Ints

    @classmethod
    def of(cls, scores: Floats, wrong: NDArray[np.bool_]) -> _Risk:
        order = scores.argsort(kind="stable")
        (starts,) = np.nonzero(np.diff(scores[order], prepend=-np.inf))
        return cls(order, np.append(starts, len(scores)), np.nonzero(~wrong[order])[0])


def _risk(risk: _Risk, counts: NDArray[np.uint8]) -> Floats:
    """AURC and E-AURC `[2, B]` where images were drawn `[n, B]` times.

    With E errors among W images before a group of equal scores, and a share p of errors within it, the expected risk
    at its j-th image is (E + p j) / (W + j) = p + (E - p W) / (W + j): sums of those are harmonic numbers.
    """
    _memory.reset()
    weights = _ordered(counts, risk.order, np.float64)
    images = _rows(_cumulative(weights), risk.bounds)
    weights[risk.right] = 0
    errors = _rows(_cumulative(weights), risk.bounds)
    harmonic = _harmonic(len(risk.order))
    n, wrong = images[-1].astype(np.intp), errors[-1].astype(np.intp)
    right = n - wrong
    best = (wrong - right * (harmonic[n] - harmonic[right])) / n
    aurc = (wrong + np.einsum("ib,ib->b", _excess(images, errors), _steps(harmonic, images))) / n
    return np.stack([aurc, np.maximum(aurc - best, 0)])


def _excess(images: Floats, errors: Floats) -> Floats:
    """E - p W for each group."""
    size, share = (_memory.table((len(images) - 1, images.shape[1]), images.dtype) for _ in range(2))
    np.maximum(np.subtract(images[1:], images[:-1], out=size), 1, out=size)
    np.divide(np.subtract(errors[1:], errors[:-1], out=share), size, out=share)
    return np.subtract(errors[:-1], np.multiply(share, images[:-1], out=share), out=share)


def _steps(harmonic: Floats, images: Floats) -> Floats:
    """By how much the harmonic number grows over each group."""
    index, number = _memory.table(images.shape, np.intp), _memory.table(images.shape, harmonic.dtype)
    np.copyto(index, images, casting="unsafe")
    np.take(harmonic, index, out=number, mode="clip")
    return np.subtract(number[1:], number[:-1], out=index[1:].view(number.dtype))


@lru_cache(maxsize=8)
def _harmonic(n: int) -> Floats:
    """Harmonic numbers 0 … n."""
    return np.append(0.0, np.cumsum(1 / np.arange(1, n + 1)))


def _cumulative(rows: Floats) -> Floats:
    """Sums `[n + 1, B]` of the rows before each: within blocks, then of blocks; far fewer calls than row by row."""
    n, size = len(rows), isqrt(len(rows)) + 1
    total = _memory.table((1 + size * -(-n // size), rows.shape[1]), rows.dtype)
    total[0], total[1 : n + 1], total[n + 1 :] = 0, rows, 0
    blocks = total[1:].reshape(-1, size, rows.shape[1])
    for row in range(1, size):
        blocks[:, row] += blocks[:, row - 1]
    for before, block in pairwise(blocks):
        block += before[-1]
    return total[: n + 1]


def _rows(table: Floats, index: Ints, copy: bool = False) -> Floats:
    """`table[index]` for an ascending index, without a copy where it counts by ones."""
    if not copy and index[-1] - index[0] == len(index) - 1 and (np.diff(index) == 1).all():
        return table[index[0] : index[-1] + 1]
    return np.take(table, index, 0, _memory.table((len(index), table.shape[1]), table.dtype), "clip")


def _ordered(counts: NDArray[np.uint8], order: Ints, dtype: type) -> Floats:
    """`counts[order]` as floating-point numbers."""
    weights = _memory.table(counts.shape, dtype)
    np.copyto(weights, _rows(counts, order, copy=True))
    return weights


def _add(table: Floats, other: Floats) -> Floats:
    return np.add(table, other, out=_memory.table(table.shape, table.dtype))


class _Memory(threading.local):
    """Memory for tables, used again for every part of the resamples: fresh pages cost more than the arithmetic."""

    def __init__(self) -> None:
        self.pool, self.used = np.empty(0, np.uint8), 0

    def reset(self) -> None:
        """Gives back all tables, and grows to what was asked for since the last time."""
        if self.used > len(self.pool):
            self.pool = np.empty(self.used, np.uint8)
        self.used = 0

    def table(self, shape: tuple[int, ...], dtype: Any) -> Floats:
        """An array of any content, valid until `reset`."""
        size = prod(shape) * np.dtype(dtype).itemsize
        start, self.used = self.used, self.used + -(-size // 64) * 64
        if self.used > len(self.pool):
            return np.empty(shape, dtype)
        return self.pool[start : start + size].view(dtype).reshape(shape)


_memory = _Memory()


@lru_cache(maxsize=32)
def _counts(n: int, resamples: int, width: int, seed: int, stream: int) -> tuple[NDArray[np.uint8], ...]:
    """How often each of n images is drawn in each resample: parts `[n, width]`, the same draws for any width."""
    random = np.random.default_rng([seed, stream])
    parts = []
    for start in range(0, resamples, width):
        draws = [np.bincount(random.integers(n, size=n), minlength=n) for _ in range(min(width, resamples - start))]
        parts.append(np.stack(draws, axis=1, dtype=np.uint8, casting="unsafe"))
    return tuple(parts)


def _width(rows: int) -> int:
    """Resamples to work on at once, such that a table of so many rows stays small."""
    return max(64, WORKING_SET // rows)


def _once(n: int) -> NDArray[np.uint8]:
    return np.ones((n, 1), np.uint8)


def _intervals(
    names: tuple[str, ...], value: Floats, resampled: Callable[[], Iterator[Floats]], resamples: int
) -> dict[str, Interval]:
    low = high = np.full(len(names), np.nan)
    if resamples:
        low, high = _percentiles(np.concatenate(list(resampled()), axis=1))
    rows = zip(names, value[:, 0].tolist(), low.tolist(), high.tolist(), strict=True)
    return {name: Interval(v, *_snap(v, a, b)) if v == v else Interval(v, v, v) for name, v, a, b in rows}


def _snap(value: float, low: float, high: float) -> tuple[float, float]:
    """Ends that differ from the value by rounding alone become the value."""
    return value if abs(low - value) < ROUNDING else low, value if abs(high - value) < ROUNDING else high


def _percentiles(samples: Floats) -> Floats:
    """The 2.5th and 97.5th percentile `[2, k]` of `samples` `[k, B]`, NaN left out."""
    defined = ~np.isnan(samples[0])
    if defined.all():
        return np.quantile(samples, [0.025, 0.975], axis=1)
    limits = np.full((2, len(samples)), np.nan)
    for k, row in enumerate(samples):
        kept = row[~np.isnan(row)]
        if len(kept):
            limits[:, k] = np.quantile(kept, [0.025, 0.975])
    return limits


def _scores(scores: Any, what: str) -> Floats:
    array = np.asarray(scores, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(f"{what} must be one number an image, got shape {list(array.shape)}")
    if not array.size:
        raise ValueError(f"{what} are empty: there is nothing to compare")
    bad = int((~np.isfinite(array)).sum())
    if bad:
        first = int(np.argmin(np.isfinite(array)))
        raise ValueError(f"{bad} of {array.size} {what} are not finite (first: image {first}, {array[first]})")
    return array


def _errors(errors: Any, n: int) -> NDArray[np.bool_]:
    wrong = np.asarray(errors)
    if wrong.shape != (n,):
        raise ValueError(f"errors must have shape [{n}], one for each score, got {list(wrong.shape)}")
    return wrong.astype(bool)
