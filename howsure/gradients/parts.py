"""A call of each sample's part of its inputs alone, by a guess how they lie there, and whether the guess holds."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from .layout import Layout

_GOLDEN = 0.6180339887498949
"""Of multiples of it the fractions are all far from each other."""


@dataclass(frozen=True)
class Call:
    """A call, with what its backward pass needs.

    Parameters
    ----------
    outputs
        Those that have a gradient, of its tensors by key.
    given
        These tensors.
    weights
        The keys of those whose gradients are wanted.
    grads, layouts
        The gradients of the outputs, and how the samples lie there.
    n
        How many samples.
    """

    outputs: Callable[[dict[int, Tensor]], list[Tensor]]
    given: dict[int, Tensor]
    weights: set[int]
    grads: list[Tensor]
    layouts: list[Layout]
    n: int

    def pulled(self, outputs: Callable, given: dict[int, Tensor], grads: list[Tensor]) -> dict[int, Tensor]:
        """The gradients of the weights from those of ``outputs`` of ``given``."""
        weights = {k: given[k].detach().requires_grad_() for k in self.weights}
        with torch.enable_grad():
            outs = outputs({**given, **weights})
        pairs = [(o, g) for o, g in zip(outs, grads, strict=True) if o.requires_grad]
        if not pairs:
            return {k: torch.zeros_like(w) for k, w in weights.items()}
        ends, seeds = map(list, zip(*pairs, strict=True))
        found = torch.autograd.grad(ends, list(weights.values()), seeds, allow_unused=True)
        return {k: torch.zeros_like(w) if g is None else g for (k, w), g in zip(weights.items(), found, strict=True)}

    def guesses(self) -> list[dict[int, Layout]]:
        """Which tensors may hold samples, and how: as the output, as far as they can, and some of the others along
        the first dimension that has room for them. The rest are the same for all samples."""
        alike = {i: self.layouts[0] for i, t in self.given.items() if self.layouts[0].fits(t.shape, self.n)}
        data = {i: where for i, where in alike.items() if i not in self.weights}
        other = {
            i: next(Layout(dim, size // self.n) for dim, size in enumerate(t.shape) if size and size % self.n == 0)
            for i, t in self.given.items()
            if i not in alike and i not in self.weights and any(size and size % self.n == 0 for size in t.shape)
        }
        found = ({**data, **other}, data, {**alike, **other}, alike)
        return [cut for k, cut in enumerate(found) if cut and cut not in found[:k]]

    def in_parts(self, cut: dict[int, Layout]) -> dict[int, Tensor] | None:
        """Per-sample gradients if the guess ``cut`` is right; None where the call cannot be made of such parts."""
        parts = {i: where.split(self.given[i], self.n) for i, where in cut.items()}
        parts |= {k: self.given[k].expand(self.n, *self.given[k].shape) for k in self.weights - cut.keys()}
        seeds = [where.split(g, self.n) for g, where in zip(self.grads, self.layouts, strict=True)]
        outputs = lambda part: self.outputs({**self.given, **part})  # noqa: E731
        try:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # calls that torch itself makes one after the other
                    found = self.pulled(torch.vmap(outputs), parts, seeds)
            except (RuntimeError, NotImplementedError):
                alone = [({k: t[i] for k, t in parts.items()}, [s[i] for s in seeds]) for i in range(self.n)]
                each = [self.pulled(outputs, *of_one) for of_one in alone]
                found = {k: torch.stack([grads[k] for grads in each]) for k in self.weights}
        except torch.OutOfMemoryError:
            raise
        except Exception:
            return None
        return {k: spread(g, self.given[k].shape, cut[k]) if k in cut else g for k, g in found.items()}

    def adds_up(self, found: dict[int, Tensor]) -> Tensor:
        """Whether per-sample gradients, each times a number of its own, add up to the gradient of the whole call for
        output gradients times these numbers. They are such that every sample counts."""
        n = self.n
        entries = [where.split(g, n) for g, where in zip(self.grads, self.layouts, strict=True)]
        size = _largest(found.values())
        size = torch.where(size > 0, size, _largest(entries))
        own = (torch.arange(1, n + 1, dtype=size.dtype, device=size.device) * _GOLDEN).frac() + 0.5
        factors = torch.where(size > 0, own / size, 0)
        seeds = []
        for g, where in zip(self.grads, self.layouts, strict=True):
            seeds.append(g.clone(memory_format=torch.contiguous_format))
            rows = where.apart(seeds[-1], n)
            rows.mul_(factors.view(n, *[1] * (rows.dim() - 1)))
        whole = self.pulled(self.outputs, self.given, seeds)
        want = {k: torch.tensordot(factors.to(g.dtype), g, 1) for k, g in found.items()}
        off, of = _norm([whole[k] - want[k] for k in want]), _norm(want.values())
        return off <= (1e-8 if off.dtype == seeds[0].abs().dtype else 1e-2) * of


def spread(parts: Tensor, shape: torch.Size, layout: Layout) -> Tensor:
    """``[n, *shape]``, zero in row i but for part i of ``parts [n, …]``, which are as ``layout.split`` makes them."""
    n = len(parts)
    rows = parts.new_zeros(n, *shape)
    apart = Layout(layout.dim + 1, layout.after, layout.before).apart(rows, n)
    at = torch.arange(n, device=parts.device)
    apart[at, at] = parts.unflatten(layout.dim + 1, (layout.before, layout.after))
    return rows


def _largest(parts: Iterable[Tensor]) -> Tensor:
    """``[n]``: the largest absolute value of each sample in tensors ``[n, …]``."""
    return torch.stack([t.detach().abs().reshape(len(t), -1).amax(1).double() for t in parts if t.numel()]).amax(0)


def _norm(ts: Iterable[Tensor]) -> Tensor:
    return torch.stack([torch.linalg.vector_norm(t).double() for t in ts]).norm()
