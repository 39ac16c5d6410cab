"""The per-sample gradients of one call: from each sample's part of its inputs, by a guess how they lie there and a
check of that guess, or from the whole call, one sample after the other."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from .graph import pull_back
from .layout import Layout

_GOLDEN = 0.6180339887498949
"""The fractions of its multiples are all far from each other."""


@dataclass(frozen=True)
class Call:
    """A call, with what its backward pass needs.

    Parameters
    ----------
    outputs
        Gives the outputs that have a gradient, from the call's tensors by key.
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

    def one_after_the_other(self) -> dict[int, Tensor]:
        """Per-sample gradients, each from the whole call."""
        weights = {k: self.given[k].requires_grad_() for k in sorted(self.weights)}
        with torch.enable_grad():
            outs = self.outputs(self.given)
        rows = [where.one_each(g, self.n) for g, where in zip(self.grads, self.layouts, strict=True)]
        pairs = [(o, r) for o, r in zip(outs, rows, strict=True) if o.requires_grad]
        grads = pull_back([o for o, _ in pairs], list(weights.values()), [r for _, r in pairs]) if pairs else []
        found = dict(zip(weights, grads, strict=False))
        return {k: w.new_zeros(self.n, *w.shape) if (g := found.get(k)) is None else g for k, w in weights.items()}

    def guesses(self) -> list[dict[int, Layout]]:
        """Which tensors may hold samples, and how: laid out as the output is, wherever that fits, with or without the
        others along the first dimension that has room for them. All the rest are the same for every sample."""
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
        """Per-sample gradients if the guess ``cut`` is right; None where the call cannot be made on such parts."""
        try:
            found = self._of_parts(cut)
        except torch.OutOfMemoryError:
            raise
        except Exception:
            return None
        return {k: cut[k].spread(g, self.given[k].shape) if k in cut else g for k, g in found.items()}

    def adds_up(self, found: dict[int, Tensor]) -> Tensor:
        """Whether per-sample gradients, each times a number of its own, add up to the gradient of the whole call for
        output gradients times these numbers, which are such that every sample counts."""
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
        whole = self._pulled(self.outputs, self.given, seeds)
        want = {k: torch.tensordot(factors.to(g.dtype), g, 1) for k, g in found.items()}
        off, of = _norm([whole[k] - want[k] for k in want]), _norm(want.values())
        return off <= (1e-8 if off.dtype == seeds[0].abs().dtype else 1e-2) * of

    def _of_parts(self, cut: dict[int, Layout]) -> dict[int, Tensor]:
        """The gradients of the weights for each sample's part, all at once if the call can be vectorised."""
        parts = {i: where.split(self.given[i], self.n) for i, where in cut.items()}
        parts |= {k: self.given[k].expand(self.n, *self.given[k].shape) for k in self.weights - cut.keys()}
        seeds = [where.split(g, self.n) for g, where in zip(self.grads, self.layouts, strict=True)]
        outputs = lambda part: self.outputs({**self.given, **part})  # noqa: E731
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of calls that vmap itself makes one after the other
                return self._pulled(torch.vmap(outputs), parts, seeds)
        except (RuntimeError, NotImplementedError):
            alone = [({k: t[i] for k, t in parts.items()}, [s[i] for s in seeds]) for i in range(self.n)]
            each = [self._pulled(outputs, *of_one) for of_one in alone]
            return {k: torch.stack([grads[k] for grads in each]) for k in self.weights}

    def _pulled(self, outputs: Callable, given: dict[int, Tensor], grads: list[Tensor]) -> dict[int, Tensor]:
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


def _largest(parts: Iterable[Tensor]) -> Tensor:
    """``[n]``: the largest absolute value of each sample in tensors ``[n, …]``."""
    return torch.stack([t.detach().abs().reshape(len(t), -1).amax(1).double() for t in parts if t.numel()]).amax(0)


def _norm(ts: Iterable[Tensor]) -> Tensor:
    return torch.stack([torch.linalg.vector_norm(t).double() for t in ts]).norm()
