"""Adds up what the rules give in one pass, by parameter: norms where a rule may give them, otherwise gradients, which
are summed first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .general import General
from .graph import leaves_of, pull_back
from .layout import Layout
from .plan import Again, Plan
from .site import Site
from .sums import sq_norm
from .trace import Tracer


class Misfit(Again):
    """The samples of a site lie so that its rule does not hold: it takes the general path."""

    def __init__(self, site: Site):
        super().__init__(f"{site.label}: no rule for samples along dimension {site.layout[0].dim}")
        self.meeting = site.meeting

    def learn(self, plan: Plan) -> None:
        plan.general_meetings.add(self.meeting)


class Ledger:
    """``norms [K, n, P]`` and, on request, the gradients of small parameters ``[K, n, Q]``.

    A weight that is a parameter itself, used at one site, is *direct*: its rule gives the norm. Gradients of every
    other weight are added up per sample, pulled back from derived weights to the parameters that they were made of,
    and only then squared.
    """

    def __init__(
        self,
        wanted: Mapping[str, Tensor],
        small: list[str],
        tracer: Tracer,
        hidden: list[Tensor],
        n: int,
        like: Tensor,
        guesses: dict[tuple[int, int], dict[int, Layout] | None],
    ):
        self.n, self.small, self.wanted, self.guesses = n, small, wanted, guesses
        self.dtype = like.dtype if like.dtype in (torch.float32, torch.float64) else torch.float32
        self.device = like.device
        self.columns = {id(p): k for k, p in enumerate(wanted.values())}
        self.alias_of = {id(alias): tracer.weights.wanted[key] for key, alias in tracer.weights.aliases.items()}
        """By leaf, the parameter that it stands for."""
        self.made_of: dict[int, list[Tensor]] = {}
        """By derived weight, the leaves that it is made of."""
        for site in tracer.sites:
            for key, w in site.weights.items():
                if id(w) not in self.columns:
                    site.check_weight(key)
                    if id(w) not in self.made_of:
                        self.made_of[id(w)] = self._made_of(w, site)
        self.direct = self._direct(tracer, hidden)
        self.kept = self._kept(tracer, hidden)
        """Bytes of a sample's gradients that are kept whole at once."""
        self.done: list[tuple[Tensor, Tensor]] = []

    def _kept(self, tracer: Tracer, hidden: list[Tensor]) -> int:
        uses = [(site, w) for site in tracer.sites for w in site.weights.values()]
        summed = {id(w): w.nbytes for _, w in uses if id(w) not in self.direct} | {id(t): t.nbytes for t in hidden}
        alone = [w.nbytes for site, w in uses if id(w) in self.direct and isinstance(site.rule, General)]
        return sum(summed.values()) + max(alone, default=0)

    def _made_of(self, weight: Tensor, site: Site) -> list[Tensor]:
        found = leaves_of(weight)
        if any(id(leaf) not in self.alias_of for leaf in found):
            raise RuntimeError(
                f"{site.label} holds data, or a parameter that was used unseen, written into it in place; make a tensor"
                " of its own for each"
            )
        return found

    def _direct(self, tracer: Tracer, hidden: list[Tensor]) -> set[int]:
        uses = Counter(id(w) for site in tracer.sites for w in site.weights.values())
        shared = {id(self.alias_of[id(leaf)]) for made_of in self.made_of.values() for leaf in made_of}
        shared |= {id(self.alias_of.get(id(t), t)) for t in hidden}
        shared |= {id(self.wanted[name]) for name in self.small}
        return {key for key, count in uses.items() if count == 1 and key in self.columns and key not in shared}

    def sources(self, weight: Tensor) -> list[Tensor]:
        """The parameters that a weight is, or is made of."""
        if id(weight) in self.columns:
            return [weight]
        return [self.alias_of[id(leaf)] for leaf in self.made_of[id(weight)]]

    def open(self) -> None:
        """Start a loss."""
        self.norms: dict[int, Tensor] = {}
        self.sums: dict[int, tuple[Tensor, Tensor]] = {}

    def serve(self, site: Site, grads: tuple) -> None:
        """Enter what the output gradients of one site give."""
        rule, layout = site.rule, site.layout[0]
        found = self._generally(site, rule, grads) if isinstance(rule, General) else {}
        if not found and not rule.fits(layout):
            raise Misfit(site)
        for key, weight in site.weights.items():
            if id(weight) not in self.direct:
                self._add(weight, found[key] if found else rule.grads(key, grads[0], layout, self.n))
            elif found:
                self.norms[self.columns[id(weight)]] = sq_norm(found[key])
            else:
                self.norms[self.columns[id(weight)]] = rule.sq_norms(key, grads[0], layout, self.n)

    def _generally(self, site: Site, rule: General, grads: tuple) -> dict[Any, Tensor]:
        place = site.meeting, self.n
        rule.guess = self.guesses.get(place)
        found = rule.all_grads(grads, site.layout, self.n)
        self.guesses[place] = rule.guess
        return found

    def _add(self, weight: Tensor, grads: Tensor) -> None:
        known = self.sums.get(id(weight))
        self.sums[id(weight)] = (weight, grads if known is None else known[1] + grads)

    def add_leaf(self, leaf: Tensor, grads: Tensor) -> None:
        self._add(self.alias_of.get(id(leaf), leaf), grads)

    def close(self) -> None:
        """End a loss: pull derived weights back to parameters, square, and lay out the columns."""
        for key, made_of in self.made_of.items():
            if key in self.sums and made_of:
                derived, grads = self.sums.pop(key)
                for leaf, pulled in zip(made_of, pull_back([derived], made_of, [grads]), strict=True):
                    if pulled is not None:
                        self.add_leaf(leaf, pulled)
        for key, (_, grads) in self.sums.items():
            if key in self.columns:
                self.norms[self.columns[key]] = sq_norm(grads)
        zero = torch.zeros(self.n, dtype=self.dtype, device=self.device)
        norms = torch.stack([self.norms.get(k, zero).to(self.dtype) for k in range(len(self.columns))], dim=1)
        parts = [
            self.sums[id(p)][1].to(self.dtype) if id(p) in self.sums else zero[:, None].expand(-1, p.numel())
            for p in (self.wanted[name] for name in self.small)
        ]
        self.done.append((norms, torch.cat(parts, dim=1) if parts else zero[:, None]))
        self.sums.clear()

    def result(self) -> tuple[Tensor, Tensor]:
        norms, small = zip(*self.done, strict=True)
        return torch.stack(norms), torch.stack(small)
