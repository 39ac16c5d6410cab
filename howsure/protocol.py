"""Who may learn from which images. Every image has one part, by its own hash, so that no image is in two.

| protocol | a detector with supervision `outliers` is fitted on |
|---|---|
| `same-shift` | fit part of the in-distribution test images against the fit part of the shift it is tested on |
| `leave-one-out` | the same images against the fit parts of all other shifts; of a corruption, no severity |
| `pseudo-unknown` | training images of some classes held back as unknowns against those of the others |
| `synthetic` | training images against others of them altered beyond recognition |

Under `none` every test image is scored, and such detectors do not run. Under the others all methods are scored on the
test part of the in-distribution test images and of each shift.
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
    """A shifted set: `kind` is its name, or its corruption type; protocols never tell sets of one kind apart."""

    name: str
    kind: str
    group: str
    task: str
    severity: int | None = None


def without_severity(shift: str) -> str:
    """A shift's name in results, where the severity of a corruption made on the fly (`fog@3`) stands beside it."""
    return shift.partition("@")[0]


def parts(ids: Tensor, seed: int) -> Tensor:
    """The part of each image, `[N]`: FIT (40 %), VAL (20 %) or TEST (40 %), drawn from a hash of its id and the seed.

    The same image has the same part wherever it comes up; a corrupted image has the id of the clean one.
    """
    x = ids.numpy().astype(np.uint64) + np.uint64((seed + 1) * 0x9E3779B97F4A7C15 % 2**64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # splitmix64's finaliser
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    uniform = (x ^ (x >> np.uint64(31))).astype(np.float64) / 2.0**64
    return torch.from_numpy(np.digitize(uniform, np.cumsum(SHARES)[:2]))


def members(reps: Reps, part: int, seed: int) -> Tensor:
    """Indices of the images of one part."""
    return (parts(reps[ImageIds()], seed) == part).nonzero().squeeze(1)


def lacking(protocol: Protocol, shifts: Sequence[Shift], classes: int) -> str | None:
    """What a protocol needs and does not have; None where nothing is lacking.

    Args:
        shifts: those large enough to be split in three, if any is.
        classes: how many the training images are of.
    """
    kinds = len({shift.kind for shift in shifts})
    if protocol != "none" and not kinds:
        return "a shift large enough"
    if protocol == "leave-one-out" and kinds < 2:
        return "two kinds of shift large enough"
    return "two classes" if protocol == "pseudo-unknown" and classes < 2 else None


def seen_outliers(protocol: Protocol, target: Shift, shifts: Sequence[Shift]) -> list[str]:
    """Names of the shifts whose fit parts a detector may see when it is tested on `target`."""
    if protocol == "same-shift":
        return [target.name]
    return [s.name for s in shifts if s.kind != target.kind]


def gather(indices: Mapping[str, Tensor], seed: int, at_most: int) -> list[tuple[str, Tensor]]:
    """Images of several sets, as many of each as of the others and `at_most` in all (at least one a set).

    Each set is drawn from anew: corrupted versions of the same images are not all of the same few.
    """
    share, random = max(1, at_most // len(indices)), torch.Generator().manual_seed(seed)
    return [(name, _drawn(index, share, random)) for name, index in indices.items()]


def held_back(labels: Tensor, seed: int) -> Tensor:
    """The classes, 30 % of those that `labels [N]` hold, that stand for unknown ones."""
    classes = labels.unique()
    order = classes[torch.randperm(len(classes), generator=torch.Generator().manual_seed(seed))]
    return order[: max(1, round(HELD_BACK * len(classes)))]


def pseudo_unknowns(labels: Tensor, index: Tensor, seed: int, at_most: int) -> tuple[Tensor, Tensor]:
    """Of the images at `index` those of the classes kept, and those of the classes held back as unknowns.

    `labels` are class indices `[N]` of the whole split: the same classes are held back, by the seed, whichever images
    are asked for. At most as many images are taken of one kind as there are of the other.
    """
    held = torch.isin(labels[index], held_back(labels, seed))
    known, unknown = index[~held], index[held]
    n = min(at_most, len(known), len(unknown))
    return spread(known, n, seed), spread(unknown, n, seed)


def spread(index: Tensor, n: int, seed: int) -> Tensor:
    """`n` of the indices at random, in order; all where there are fewer."""
    return _drawn(index, n, torch.Generator().manual_seed(seed))


def _drawn(index: Tensor, n: int, random: torch.Generator) -> Tensor:
    return index[torch.randperm(len(index), generator=random)[:n].sort().values]
