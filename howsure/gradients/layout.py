"""Which entries of a tensor belong to which sample of the batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

ROUNDING = 1e-6
"""How far two backward passes may differ where sums are made in a fixed order, relative to the largest entry."""
_MANY, _DRAWN = 4, 4096


@dataclass(frozen=True)
class Layout:
    """The batch lies along ``dim``, of size ``before * n * after``, with index = (b * n + sample) * after + a.

    ``after`` alone: windows cut out of each image; ``before`` alone: positions first; both: attention within windows,
    which goes over the positions first, then over the images and their windows.
    """

    dim: int = 0
    after: int = 1
    before: int = 1

    def fits(self, shape: torch.Size, n: int) -> bool:
        return self.dim < len(shape) and shape[self.dim] == self.before * n * self.after

    def apart(self, t: Tensor, n: int) -> Tensor:
        """A view of ``t`` as ``[n, …]``, in which dimension ``dim + 1`` is ``before`` and ``dim + 2`` is ``after``."""
        sizes = (*t.shape[: self.dim], self.before, n, self.after, *t.shape[self.dim + 1 :])
        return t.view(sizes).movedim(self.dim + 1, 0)

    def split(self, t: Tensor, n: int) -> Tensor:
        """``[n, …]`` in which dimension ``dim + 1`` has the size ``before * after``; a view where one of them is 1."""
        return self.apart(t, n).flatten(self.dim + 1, self.dim + 2)

    def spread(self, parts: Tensor, shape: torch.Size) -> Tensor:
        """``[n, *shape]``, zero in row i except for part i of ``parts [n, …]``, as ``split`` makes them."""
        n = len(parts)
        rows = parts.new_zeros(n, *shape)
        apart = Layout(self.dim + 1, self.after, self.before).apart(rows, n)
        at = torch.arange(n, device=parts.device)
        apart[at, at] = parts.unflatten(self.dim + 1, (self.before, self.after))
        return rows

    def one_each(self, t: Tensor, n: int) -> Tensor:
        """``[n, *t.shape]``, where row i keeps only the entries of sample i."""
        return self.spread(self.split(t, n), t.shape)

    def merged(self, t: Tensor, n: int) -> Tensor:
        """``[n * inner, …]`` along the first dimension, with each sample's rows together."""
        return t if self.rows else self.split(t, n).flatten(0, 1)

    @property
    def rows(self) -> bool:
        """Whether each sample owns a run of whole rows."""
        return self.dim == 0 and self.before == 1


def candidates(shape: torch.Size, n: int) -> list[Layout]:
    """Every layout that a tensor of this shape could have, the commonest first."""
    found = []
    for dim, size in enumerate(shape):
        if size and size % n == 0:
            inner = size // n
            found.append(Layout(dim, inner))
            if n > 1:
                found += [Layout(dim, after, inner // after) for after in range(1, inner) if inner % after == 0]
    return found


def codes(n: int, like: Tensor, digit: int = 0) -> Tensor:
    """A power of two for each sample, neighbours different: scaling by them is exact in floating point.

    There are eight. The two ``digit``s together tell 64 samples apart.
    """
    i = torch.arange(n, device=like.device)
    exponents = (5 * i + 3 * (i // 8) + 2) % 8 if digit == 0 else (5 * (i // 8) + 2) % 8
    return (torch.ones_like(i) << exponents).to(like.dtype)


def plausible(
    layouts: list[Layout], plain: Tensor, coded: Tensor, factors: Tensor, noise: float = ROUNDING, least: float = 0.0
) -> list[Layout]:
    """Those that a few entries, drawn at random, do not contradict: a fast look before ``explains``, looser than it."""
    if len(layouts) < _MANY or not plain.numel():
        return layouts
    n, generator = len(factors), torch.Generator().manual_seed(0)
    drawn = torch.randint(plain.numel(), (_DRAWN,), generator=generator, device="cpu").to(plain.device)
    place = torch.unravel_index(drawn, plain.shape)
    before, after = (t[place].float() if t.dtype == torch.float16 else t[place] for t in (plain, coded))
    size = noise * plain.abs().nan_to_num(0, 0, 0).amax()
    size = size + max(least, _least(size))
    finite, off = before.isfinite() & after.isfinite(), []
    for layout in layouts:
        want = before * factors[place[layout.dim] // layout.after % n].to(before.dtype)
        wrong = (after - want).abs() > 1e-2 * want.abs() + size * factors.amax()
        off.append((wrong & finite).any())
    return [layout for layout, wrong in zip(layouts, torch.stack(off).tolist(), strict=True) if not wrong]


def explains(
    layout: Layout, plain: Tensor, coded: Tensor, factors: Tensor, noise: float = ROUNDING, least: float = 0.0
) -> Tensor:
    """Whether ``coded`` is ``plain`` with the entries of each sample, as ``layout`` has them, times its factor.

    ``plain`` and ``coded`` are the gradients at one place from two backward passes, the second with each sample's seed
    times its factor. An entry that depends on another sample, or on two, is scaled differently. A sample whose values
    overflow says nothing, but not all may. ``noise`` is how far two passes may differ, relative to the largest entry;
    ``least``, before the factors, how far in any case: at least what a sum of subnormal numbers may come to.
    """
    n = len(factors)
    before, after = (layout.split(t, n).reshape(n, -1) for t in (plain, coded))
    if before.dtype == torch.float16:
        before, after = before.float(), after.float()
    finite = (before.isfinite() & after.isfinite()).all(dim=1)
    want = before * factors[:, None].to(before.dtype)
    slack = 1e-2 * want.abs() + noise * want.abs().amax(dim=1, keepdim=True)
    slack = slack + max(least, _least(slack)) * factors[:, None].to(slack.dtype)
    return (((after - want).abs() <= slack) | ~finite[:, None]).all() & finite.any()


def _least(t: Tensor) -> float:
    """What a sum of subnormal numbers may come to."""
    numbers = torch.finfo(t.dtype)
    return numbers.tiny / numbers.eps
