"""Finds out which entries of the gradients in a chunk belong to which sample, and refuses samples that meet."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import torch
from torch import Tensor

from .device import queued
from .layout import ROUNDING, Layout, candidates, codes, explains, plausible
from .plan import Again, Plan
from .site import Site
from .trace import Tracer

Serve = Callable[[Site, tuple], None]
Pull = Callable[[Tensor, Serve], None]
"""``pull(seed, serve)``: a backward pass from ``seed``, with ``serve`` called at each site."""

_NOISE = 1e-3
"""How far two backward passes in single precision may differ on a GPU, where sums are made in no fixed order and their
differences are rounded to ten bits before the next convolution (TF32): an estimated 1e-5 of a gradient's size a layer.
Entries below are left to ``_refuse_meeting``, which wants zeros."""

_COARSE, _STEPS = 1e-2, 8
"""The same where anything is computed in half precision, and how many of its smallest numbers besides: small gradients
are subnormal there, and keep few digits or none."""


class Unsure(Exception):
    """A gradient has come where none was seen yet: the pass starts again, with layouts found anew."""


class Meet(RuntimeError):
    """The gradients of different samples meet."""


class Unrooted(Again):
    """Calls took for data what is made of weights used unseen, and so has no samples."""

    def __init__(self, meetings: set[int]):
        super().__init__("weights that were used unseen met others")
        self.meetings = meetings

    def learn(self, plan: Plan) -> None:
        plan.unseen_meetings |= self.meetings


class Blank(Again):
    """Samples meet where tensors were taken for data that may hold nothing of them, such as masks."""

    def learn(self, plan: Plan) -> None:
        plan.blanks, plan.settled = True, False
        plan.general_meetings, plan.unseen_meetings = set(), set()


class Attribution:
    """Gives each site of a chunk of ``n`` samples the layout of its gradients: from the plan, or by probing.

    ``hidden``: whether parameters are used unseen. A ``Pull`` is not kept, since it holds the graph.
    """

    def __init__(self, tracer: Tracer, plan: Plan, n: int, hidden: bool):
        self.tracer, self.plan, self.n, self.hidden = tracer, plan, n, hidden
        self.unsure: set[int] = set()
        """Sites with gradients that were zero in every probe."""
        self.unrooted: set[int] = set()
        """Meetings whose data may be made of weights used unseen."""

    def find(self, logits: Tensor, pull: Pull, anew: bool) -> None:
        plan, n = self.plan, self.n
        if n == 1:
            for site in self.tracer.sites:
                site.layout = tuple(Layout(0, shape[0] if shape else 1) for shape in site.shapes)
            return
        if anew or self.tracer.depends or not plan.settled or not self._apply():
            self._probe(logits, pull)
        if n not in plan.apart or self.tracer.depends or self.tracer.branches:
            self._refuse_meeting(logits, pull)
            plan.apart.add(n)

    def refuse_unsure(self, site: Site, grads: tuple, doubts: list[Tensor] | None = None) -> None:
        """Raise ``Unsure`` where a gradient that was zero in every probe no longer is; ``doubts`` notes whether."""
        if site.index in self.unsure:
            options = self.plan.layouts[site.index]
            came = [g.any() for g, o in zip(grads, options, strict=True) if g is not None and len(o) != 1]
            if doubts is not None:
                doubts += came
            elif any(came):
                raise Unsure

    def _apply(self) -> bool:
        """Take the layouts that the plan knows, if they fit."""
        for site, options in zip(self.tracer.sites, self.plan.layouts, strict=True):
            if not all(o[0].fits(torch.Size(s), self.n) for o, s in zip(options, site.shapes, strict=True) if o):
                return False
            site.layout = _commonest(options)
            if any(len(o) != 1 for o in options):
                self.unsure.add(site.index)
        return True

    def _probe(self, logits: Tensor, pull: Pull) -> None:
        """Find the layouts that two backward passes allow, the second with each sample's seed scaled by its code; a
        third tells apart samples with the same code, where their order may depend on the data."""
        generator = torch.Generator().manual_seed(0)
        seed = torch.randn(logits.shape, generator=generator, device="cpu").to(logits)
        before: dict[int, tuple] = {}
        options: dict[int, tuple] = {}

        def keep(site: Site, grads: tuple) -> None:
            before[site.index] = grads

        def compare(site: Site, grads: tuple) -> None:
            plain = before.pop(site.index) if digit == digits - 1 else before[site.index]
            allowed = options.get(site.index, [candidates(g.shape, self.n) if g is not None else [] for g in grads])
            options[site.index] = tuple(
                [] if g is None else self._explained(site, b, g, layouts, factors)
                for b, g, layouts in zip(plain, grads, allowed, strict=True)
            )

        pull(seed, keep)
        digits = 2 if self.tracer.depends and self.n > 8 else 1
        for digit in range(digits):
            factors = codes(self.n, seed, digit)
            pull(seed * factors[:, None], compare)
        self._raise_unrooted()
        found = [options.get(site.index, ([],) * len(site.shapes)) for site in self.tracer.sites]
        for site, layouts in zip(self.tracer.sites, found, strict=True):
            site.layout = _commonest(layouts)
        entries = sum(prod(shape) for site in self.tracer.sites for shape in site.shapes)
        self.plan.settle(found, logits.element_size() * entries / self.n)

    def _explained(
        self, site: Site, plain: Tensor, coded: Tensor, allowed: list[Layout], factors: Tensor
    ) -> list[Layout]:
        if not plain.numel():
            return []
        noise = self._noise(plain)
        likely = plausible(allowed, plain, coded, factors, *noise)
        found = [layout for layout in likely if explains(layout, plain, coded, factors, *noise)]
        if not found and (plain.dim() or plain.any()):
            self._refuse_or_defer(site)
        return found

    def _noise(self, gradient: Tensor) -> tuple[float, float]:
        """How far two passes may differ, relative to a sample's largest entry, and in any case."""
        if any(site.half for site in self.tracer.sites):
            return _COARSE, _STEPS * 2.0**-24
        return _NOISE if queued(gradient.device) and gradient.dtype != torch.float64 else ROUNDING, 0.0

    def _refuse_meeting(self, logits: Tensor, pull: Pull) -> None:
        """A backward pass from half of the samples: nothing may arrive at the others, not the smallest number."""
        generator = torch.Generator().manual_seed(self.n)
        order = torch.randperm(self.n, generator=generator, device="cpu").to(logits.device)
        some, others = order[: self.n // 2], order[self.n // 2 :]
        seed = torch.zeros_like(logits)
        seed[some] = torch.randn(seed[some].shape, generator=generator, device="cpu").to(logits)

        def look(site: Site, grads: tuple) -> None:
            self.refuse_unsure(site, grads)
            for g, layout in zip(grads, site.layout, strict=True):
                if g is None or not g.numel() or not g.dim():
                    continue
                if layout.split(g, self.n)[others].nan_to_num(0, 0, 0).any():
                    self._refuse_or_defer(site)

        pull(seed, look)
        self._raise_unrooted()

    def _refuse_or_defer(self, site: Site) -> None:
        """Raise since samples meet at a site, or note it until the pass is through where it may have none."""
        if self.tracer.took_blanks and not self.plan.blanks:
            raise Blank
        if not self.hidden or self.tracer.reached_by_data(site):
            raise Meet(
                f"the gradients of different samples meet at {site.label}, so no sample has a gradient of its own"
                " there: the network mixes the samples of a batch, or its values overflow; if it only sorts or routes"
                " them, so that each alone has the same logits, pass max_batch=1"
            )
        self.unrooted.add(site.meeting)

    def _raise_unrooted(self) -> None:
        if self.unrooted:
            raise Unrooted(self.unrooted)


def _commonest(options: tuple[list[Layout], ...]) -> tuple[Layout, ...]:
    """For each output the commonest of the layouts possible."""
    return tuple(o[0] if o else Layout() for o in options)
