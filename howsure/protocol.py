"""Who may learn from which images. A hash of each image assigns it to one part, so that no image is in two.

| protocol | a detector with supervision `outliers` is fitted on |
|---|---|
| `same-shift` | the fit part of the in-distribution test images against the fit part of the shift it is tested on |
| `leave-one-out` | the same images against the fit parts of all other shifts; of a corruption, no severity is seen |
| `pseudo-unknown` | training images of some classes held back as unknowns against those of the other classes |
| `synthetic` | training images against other training images altered beyond recognition |

Under `none` every test image is scored, and such detectors do not run. Under the others all methods are scored on the
test parts of the in-distribution test images and of each shift.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .representation import Reps
from .representations import ImageIds
from .suite import Protocol

FIT, VAL, TEST = 0, 1, 2
SHARES = (0.4, 0.2, 0.4)
HELD_BACK = 0.3


@dataclass(frozen=True)
class Shift:
    """A shifted set. `kind` is its name or, for a corruption, its type; protocols treat all sets of one kind alike."""

    name: str
    kind: str
    group: str
    task: str
    severity: int | None = None


def without_severity(shift: str) -> str:
    """A shift's name in results, which have a separate column for the severity of corruptions such as `fog@3`."""
    return shift.partition("@")[0]


def parts(ids: Tensor, seed: int) -> Tensor:
    """The part of each image, `[N]`: FIT (40 %), VAL (20 %) or TEST (40 %), from a hash of its id and the seed.

    The same image is in the same part wherever it occurs; a corrupted image has the id of the clean one.
    """
    x = ids.numpy().astype(np.uint64) + np.uint64((seed + 1) * 0x9E3779B97F4A7C15 % 2**64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # splitmix64's finaliser
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    uniform = (x ^ (x >> np.uint64(31))).astype(np.float64) / 2.0**64
    return torch.from_numpy(np.digitize(uniform, np.cumsum(SHARES)[:2]))


def members(reps: Reps, part: int, seed: int) -> Tensor:
    """Indices of the images of one part."""
    return (parts(reps[ImageIds()], seed) == part).nonzero().squeeze(1)


def unmet_need(protocol: Protocol, shifts: Sequence[Shift], classes: int) -> str | None:
    """What a protocol needs that is not there, or None if it can run.

    Args:
        shifts: those that are large enough to be divided into three parts or, if there is none, all.
        classes: the number of classes among the training images.
    """
    kinds = len({shift.kind for shift in shifts})
    if protocol != "none" and not kinds:
        return "a shift that is large enough"
    if protocol == "leave-one-out" and kinds < 2:
        return "two kinds of shift that are large enough"
    return "two classes" if protocol == "pseudo-unknown" and classes < 2 else None


def seen_outliers(protocol: Protocol, target: Shift, shifts: Sequence[Shift]) -> list[str]:
    """Names of the shifts whose fit parts a detector may see if it is tested on `target`."""
    if protocol == "same-shift":
        return [target.name]
    return [s.name for s in shifts if s.kind != target.kind]


def gather(indices: Mapping[str, Tensor], seed: int, at_most: int) -> list[tuple[str, Tensor]]:
    """Random images of several sets, at most `at_most` in all: the same number from each set, but at least one.

    Each set is drawn from independently, so that corrupted versions of the same images show different ones.
    """
    share, random = max(1, at_most // len(indices)), torch.Generator().manual_seed(seed)
    return [(name, _drawn(index, share, random)) for name, index in indices.items()]


def held_back(labels: Tensor, seed: int) -> Tensor:
    """The classes that stand for unknown ones: 30 % of those in `labels [N]`, but at least one."""
    classes = labels.unique()
    order = classes[torch.randperm(len(classes), generator=torch.Generator().manual_seed(seed))]
    return order[: max(1, round(HELD_BACK * len(classes)))]


def pseudo_unknowns(labels: Tensor, index: Tensor, seed: int, at_most: int) -> tuple[Tensor, Tensor]:
    """Indices of known and of unknown images among those at `index`: as many of each, at most `at_most`.

    Unknown are those of classes held back. `labels` are the class indices `[N]` of the whole split, so that the seed
    alone decides which classes are held back, whatever images are asked for.
    """
    held = torch.isin(labels[index], held_back(labels, seed))
    known, unknown = index[~held], index[held]
    n = min(at_most, len(known), len(unknown))
    return spread(known, n, seed), spread(unknown, n, seed)


def spread(index: Tensor, n: int, seed: int) -> Tensor:
    """`n` random indices, in their original order; all if there are fewer."""
    return _drawn(index, n, torch.Generator().manual_seed(seed))


def _drawn(index: Tensor, n: int, random: torch.Generator) -> Tensor:
    return index[torch.randperm(len(index), generator=random)[:n].sort().values]
