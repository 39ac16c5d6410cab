"""Per-sample squared gradient norms of a whole network from one batched forward and backward pass."""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import disable_saved_tensors_hooks

from .caches import caches_aside, hooked
from .fold import Fold, find, refreshed
from .general import autocasting, pull_back
from .layout import Layout, candidates, codes, explains
from .ledger import Ledger
from .rule import Again, free_scratch, queued
from .trace import Site, Tracer, graph_of, leaves

Loss = Callable[[Tensor], Tensor]

_PROBE = 4  # samples of a first pass, which learns the layouts
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-2}  # of logits that depend on the company, beside the largest
_CACHE = 2.4e6  # bytes of activations in one layer at which larger chunks gain nothing on the CPUs measured


class GradResult(NamedTuple):
    """What ``grad_sq_norms`` returns, for K losses, N samples, P parameters and C classes."""

    norms: Tensor
    """``[K, N, P]``: squared L2 norms, in squared units of loss per unit of parameter."""
    names: tuple[str, ...]
    """The P parameter names, in the order of ``model.named_parameters()``."""
    logits: Tensor
    """``[N, C]``: the network's output."""
    small: Tensor | None
    """``[K, N, Q]``: per-sample gradients of one-dimensional parameters side by side, or None."""
    small_names: tuple[str, ...]
    """Their names, in order."""
    small_sizes: tuple[int, ...]
    """How many of the Q columns each takes."""


@dataclass
class _Plan:
    """What a first pass learned about a network: valid while the same calls are made."""

    signature: tuple = ()
    layouts: list[tuple[list[Layout], ...]] = field(default_factory=list)
    """Of each output of each site all that the gradients seen so far allow; more than one where they were zero."""
    settled: bool = False
    apart: set[int] = field(default_factory=set)
    """Batch sizes at which the gradients of different samples were seen not to meet."""
    compared: bool = False
    """Whether the logits were seen not to depend on the other samples."""
    general_meetings: set[int] = field(default_factory=set)
    """Calls in which weights meet data, by number, that take the general path: their samples lie as no rule knows."""
    unseen_meetings: set[int] = field(default_factory=set)
    """Those that took weights used unseen for data, and are left to the way of the latter."""
    folds: dict[int, Fold] | None = None
    """Batch norms to fold; None before the first pass."""
    activation: float = 0.0
    """Bytes of a site's output per sample, the mean over sites."""
    weight: float = 0.0
    """Bytes of the weights of a site, the mean over sites."""
    total: float = 0.0
    """Bytes of all sites' outputs per sample."""

    channels_last: bool = True
    """Whether images go in with their channels side by side, which is faster on a CPU."""

    def give_up_format(self, x: Tensor) -> bool:
        """Whether the network, which failed, can be spared maps whose channels are side by side; it is from now on."""
        given, self.channels_last = self.format_of(x) == torch.channels_last, False
        return given

    def give_up(self, fold: Fold) -> None:
        self.folds = {key: kept for key, kept in (self.folds or {}).items() if kept.weight is not fold.weight}

    def format_of(self, x: Tensor) -> torch.memory_format:
        last = self.channels_last and x.dim() == 4 and x.device.type == "cpu"
        return torch.channels_last if last else torch.preserve_format

    def chunk(self, n: int, device: torch.device) -> int:
        """How many of ``n`` samples to take at a time: what keeps a layer in cache, or in half a GPU's free memory."""
        if not self.settled or not self.total:
            return n
        if device.type == "cuda":
            return max(1, min(n, int(_free_memory(device) / 6 / self.total)))
        parts = max(1, round(n * self.activation / (_CACHE + self.weight)))
        return -(-n // parts)


def _free_memory(device: torch.device) -> int:
    """Bytes that can be had on a GPU: free ones, and those that torch holds and does not use."""
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + held


@dataclass
class _Try:
    """How a call is made, and what is asked only when all of it is done, since asking makes a GPU's host wait."""

    limit: int | None = None
    """The most samples in one pass."""
    probe: bool = False
    """Whether each pass finds its layouts out anew."""
    alone: Collection[int] = ()
    """Images to set apart."""
    doubts: list[Tensor] | None = None
    """Whether terms of a sum cancel, or a gradient has come where none was seen yet; None to see to it at once."""
    mixing: list[Tensor] = field(default_factory=list)
    """Whether a loss hangs on other samples' logits."""

    def forget(self) -> None:
        """Let go of what an earlier try noted."""
        self.mixing.clear()
        if self.doubts is not None:
            self.doubts.clear()


_plans: weakref.WeakKeyDictionary[nn.Module, dict[Any, _Plan]] = weakref.WeakKeyDictionary()


def grad_sq_norms(
    model: nn.Module,
    x: Tensor,
    losses: Sequence[Loss] | Loss,
    *,
    parameters: Iterable[str] | None = None,
    max_batch: int | None = None,
    small: bool | Iterable[str] = False,
    on_restart: Callable[[], None] | None = None,
) -> GradResult:
    """Squared L2 norm of each sample's loss gradient with respect to each parameter, exactly.

    Parameters
    ----------
    model
        A network in evaluation mode whose output is ``[N, C]``. It is left as it was: mode, ``requires_grad``,
        ``.grad``, hooks and tensors that it keeps in attributes (buffers apart). Frozen parameters have norms like the
        others.
    x
        ``[N, …]``, a batch of inputs.
    losses
        K functions of the logits ``[n, C]`` that give one loss per sample, ``[n]``. Each costs one backward pass. They
        are called with the logits of a part of the batch at a time, as many as fit: a loss must not use anything that
        is of the whole batch, such as its labels; derive what it needs from the logits.
    parameters
        Names to restrict the work to; left out, all of ``model.named_parameters()``. A parameter shared by several
        modules counts once, under its first name (here any of them will do), and has the norm of the summed gradient.
    max_batch
        The most samples in one pass. Left out, chosen by the size of the activations.
    small
        True, or names, to get the gradients themselves of one-dimensional parameters (biases, the scales and shifts of
        normalisation) too.
    on_restart
        Called before the whole call starts again: with half the batch because a GPU ran out of memory, in another
        memory format because the network needs it, because a gradient that was zero so far no longer is, or to set
        images apart whose values overflow; and after a look at the first few images of a new network. Forward hooks of
        the caller see each image exactly once, in order, chunk by chunk, but for such a restart: clear what they
        captured.

    Returns
    -------
    GradResult
        ``norms [K, N, P]``, ``names``, ``logits [N, C]``, ``small [K, N, Q]`` or None, ``small_names``,
        ``small_sizes``.

    Raises
    ------
    ValueError
        For a layer that mixes samples (batch normalisation without running statistics), naming it; for an unknown
        parameter name, no parameter, no image or no loss; for a loss that does not give ``[n]`` values, or depends on
        other samples' logits or on anything but logits.
    RuntimeError
        Where a gradient cannot be attributed to single samples: logits that depend on other samples or on chance,
        gradients that meet, hooks on parameters, gradients taken during the forward pass, tensors made of parameters
        that are overwritten after their use or with data; and for a network that checkpoints activations or calls
        ``backward`` itself.

    Notes
    -----
    Goodfellow, 2015, arXiv:1510.01799, for linear layers; Rochette, Manoel and Tramel, 2019, arXiv:1912.06015, and
    Bu, Mao and Xu, 2022, arXiv:2205.10683, for convolutions. ``docs/gradients.md`` derives the rules.
    """
    losses = [losses] if callable(losses) else list(losses)
    _refuse_mixing(model)
    wanted = _select(model, parameters)
    small_names = _select_small(model, wanted, small)
    if not len(x) or not losses or not wanted:
        raise ValueError(f"{len(x)} images, {len(losses)} losses and {len(wanted)} parameters: each must be at least 1")
    if max_batch is not None and max_batch < 1:
        raise ValueError(f"max_batch must be at least 1, not {max_batch}")
    with torch.inference_mode(False):
        x = x.clone() if x.is_inference() else x
        plan = _plan_for(model, x, wanted)

        def run(part: Tensor, how: _Try) -> GradResult:
            return _run(model, part, losses, wanted, small_names, plan, how)

        return _restarting(run, model, x, plan, max_batch, on_restart)


def _restarting(
    run: Callable[[Tensor, _Try], GradResult],
    model: nn.Module,
    x: Tensor,
    plan: _Plan,
    limit: int | None,
    on_restart: Callable[[], None] | None,
) -> GradResult:
    """What ``run`` gives, from as many tries as it takes to learn what a pass must know of the network."""
    how, off = _Try(limit, doubts=[] if queued(x.device) else None), 0.0
    look = not plan.compared and (on_restart is not None or not hooked(model))
    while True:
        try:
            first = x[: min(_PROBE, how.limit or _PROBE)]
            if look and len(first) > 1:
                off = _off_in_company(model, first)
                while not plan.settled:  # so that a first call gives, to the last bit, what later ones give
                    run(first, how)
                plan.compared, look = not off, False
                if on_restart is not None:
                    on_restart()
            how.forget()
            result = run(x, how)
            if how.doubts is not None and _any(how.doubts):
                how.doubts = None
            elif how.alone or not (spoilt := _spoilt(result)):
                break
            else:
                how.alone = spoilt
        except torch.OutOfMemoryError:
            size = min(how.limit or len(x), len(x))
            if size <= 1:
                raise
            how.limit = size // 2
        except Unsure:
            how.probe = True
        except Again as again:
            again.learn(plan)
        except Exception:
            if not plan.give_up_format(x):
                raise
        finally:
            free_scratch()
        if x.device.type == "cuda":
            torch.cuda.empty_cache()
        if on_restart is not None:
            on_restart()
    if _any(how.mixing):
        raise ValueError("a loss must depend on a sample's own logits alone, not on those of other samples")
    if off:
        raise RuntimeError(
            f"the logits of an image depend on the other images of the batch, or on chance (off by {off:.1e} of the"
            " largest), so no image has a gradient of its own; use running statistics, and no dropout"
        )
    return result


def _run(
    model: nn.Module,
    x: Tensor,
    losses: list[Loss],
    wanted: dict[str, nn.Parameter],
    small: list[str],
    plan: _Plan,
    how: _Try,
) -> GradResult:
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    folds = refreshed(plan.folds or {})
    start = 0
    while start < len(x):
        size = plan.chunk(len(x) - start, x.device) if how.limit is None else how.limit
        if not plan.settled:
            size = min(size, _PROBE)
        size = 1 if start in how.alone else min([size, *(i - start for i in how.alone if i > start)])
        part = _Pass(model, x[start : start + size], losses, wanted, small, plan, folds, how)
        try:
            parts.append(part.result())
        finally:
            part.close()
        if part.learned:
            folds = refreshed(plan.folds or {})
        start += size
    norms, logits, grads = zip(*parts, strict=True)
    return GradResult(
        torch.cat(norms, dim=1),
        tuple(wanted),
        torch.cat(logits),
        torch.cat(grads, dim=1) if small else None,
        tuple(small),
        tuple(wanted[name].numel() for name in small),
    )


def _any(noted: list[Tensor]) -> bool:
    return bool(noted) and bool(torch.stack(noted).any())


def _spoilt(result: GradResult) -> set[int]:
    """Images with gradients that are not finite, if logits of some of them are: an overflow spoils, on the general
    path, the others of its chunk (0 · inf)."""
    bad = ~result.norms.isfinite().all(dim=2).all(dim=0)
    if not (bad & result.logits.isfinite().all(dim=1)).any():
        return set()
    return set(bad.nonzero().flatten().tolist())


def explain(model: nn.Module, x: Tensor) -> list[tuple[str, str]]:
    """Which rule each parameter takes for inputs like ``x`` (at most four of them are used): ``[(name, rule)]``."""
    _refuse_mixing(model)
    wanted = _select(model, None)
    if not len(x) or not wanted:
        raise ValueError(f"{len(x)} images and {len(wanted)} parameters: each must be at least 1")
    plan = _Plan()
    while True:
        folds = refreshed(plan.folds or {})
        first = _Pass(model, x[:_PROBE], [lambda z: z.sum(1)], wanted, [], plan, folds, _Try(probe=True), explains=True)
        try:
            first.result()
            if not first.learned:
                return _rules_taken(first, wanted)
        except Again as again:
            again.learn(plan)
        except Exception:
            if not plan.give_up_format(x):
                raise
        finally:
            first.close()


def _rules_taken(first: _Pass, wanted: dict[str, nn.Parameter]) -> list[tuple[str, str]]:
    rules: dict[str, list[str]] = {name: [] for name in wanted}
    names = {id(p): name for name, p in wanted.items()}
    for site in first.tracer.sites:
        for key, weight in site.weights.items():
            rule = site.rule.describe(key, first.n)
            for p in first.ledger.sources(weight):
                rules[names[id(p)]].append(rule if p is weight else f"{rule}, then pulled back to the parameter")
    for leaf in first.hidden:
        p = first.ledger.alias_of.get(id(leaf), leaf)
        rules[names[id(p)]].append("used unseen: whole-network vector-Jacobian product, sample by sample")
    return [(name, " + ".join(found) if found else "no gradient") for name, found in rules.items()]


class Unsure(Exception):
    """A gradient has come where none was seen yet, or the network reads its maps in memory: the pass starts again."""


class Unrooted(Again):
    """Calls took for data what is made of weights that were used unseen, and so have no samples."""

    def __init__(self, meetings: set[int]):
        super().__init__("weights that were used unseen met others")
        self.meetings = meetings

    def learn(self, plan: Any) -> None:
        plan.unseen_meetings |= self.meetings


class _Pass:
    """One chunk: a forward pass that finds the sites, then a backward pass per loss that serves them."""

    def __init__(
        self,
        model: nn.Module,
        x: Tensor,
        losses: list[Loss],
        wanted: dict[str, nn.Parameter],
        small: list[str],
        plan: _Plan,
        folds: dict[int, Fold],
        how: _Try,
        explains: bool = False,
    ):
        self.model, self.losses, self.wanted, self.small, self.plan = model, losses, wanted, small, plan
        self.folds, self.how, self.explains, self.learned = folds, how, explains, False
        self.x = x.detach().clone(memory_format=plan.format_of(x))
        self.n = len(x)
        self.serve: Callable[[Site, tuple], None] = _pass_by
        self.hidden: list[Tensor] = []
        self.unrooted: set[int] = set()
        self.rooted: set[int] = set()
        """Sites in the graph of the logits."""
        self.awaited: set[int] = set()
        """Those of them that no gradient has come to in this backward pass."""
        self.keeps_inputs = True

    def result(self) -> tuple[Tensor, Tensor, Tensor]:
        chosen = {id(p) for p in self.wanted.values()}
        others = [p for p in self.model.parameters() if id(p) not in chosen]
        folds = None if self.plan.folds is None else self.folds
        sink = lambda site, grads: self.serve(site, grads)  # noqa: E731
        met = self.plan.general_meetings, self.plan.unseen_meetings
        self.tracer = Tracer(self.model, self.wanted, others, self.x, sink, folds, *met)
        with torch.enable_grad(), caches_aside(self.model), _requires_grad(self.model, self.wanted.values()):
            with disable_saved_tensors_hooks(_HOOKS_AROUND):  # raises where some are on already
                pass
            with _eagerly(self.model), disable_saved_tensors_hooks(_CHECKPOINTS), self.tracer:
                logits = self.model(self.x)
            self.tracer.check_folds()
            if self.tracer.reads_memory and self.plan.give_up_format(self.x):
                raise Unsure
            if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != self.n:
                raise ValueError(
                    f"the network must map {self.n} inputs to logits [{self.n}, C], not to {_shape(logits)}"
                )
            if not logits.is_floating_point():
                raise ValueError(f"the logits must be floating-point numbers, not {logits.dtype}")
            self.hidden = self._find_hidden(logits)
            seeds = [_seed(loss, logits, self.how.mixing) for loss in self.losses]
            with torch.no_grad(), autocasting(self.x.device.type, False):
                return self._backward(logits, seeds)

    def close(self) -> None:
        """Break the circle of hooks, tracer and saved tensors, which the collector cannot see inside the graph."""
        if hasattr(self, "tracer"):
            self.tracer.close()

    def _find_hidden(self, logits: Tensor) -> list[Tensor]:
        """Parameters (or their aliases) that reach the logits by a way the tracer did not see."""
        signature = (self.tracer.calls, *(_signature(site) for site in self.tracer.sites))
        if self.plan.signature != signature:
            self.plan.signature, self.plan.settled = signature, False
        known = {id(p) for p in self.wanted.values()} | {id(a) for a in self.tracer.aliases.values()}
        ends, nodes = graph_of(logits)
        found = [t for t in ends if t is not self.tracer.anchor]
        stray = {site.index for node, site in self.tracer.nodes.items() if node not in nodes}
        self.rooted = {site.index for site in self.tracer.sites} - stray
        if any(id(t) not in known for t in found):
            raise RuntimeError(
                "the network's output hangs on a tensor that requires grad but is none of its parameters, perhaps one"
                " kept from an earlier pass; detach it, or clear the network's cache"
            )
        return found

    def _backward(self, logits: Tensor, seeds: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        self.ledger = Ledger(self.wanted, self.small, self.tracer, self.hidden, self.n, logits)
        for site in self.tracer.sites:
            site.rule.doubts = self.how.doubts
        self._find_layouts(logits)
        self._find_folds(logits)
        for k, seed in enumerate(seeds):
            self.serve, self.awaited = self._account, set(self.rooted)
            self.ledger.open()
            last = k == len(seeds) - 1
            self.keeps_inputs = not last or self.explains
            self._pull(logits, seed, keep=not last or bool(self.hidden))
            self.serve = _pass_by
            if self.hidden:
                self._add_hidden(logits, seed)
            self.ledger.close()
        norms, small = self.ledger.result()
        return norms, logits.detach(), small

    def _find_folds(self, logits: Tensor) -> None:
        """Once for a network; with folds its calls are others, so that they are probed again."""
        plan = self.plan
        if plan.folds is None and plan.settled:
            plan.folds = find(self.tracer.nodes, self.tracer.reads(), logits, self.ledger.direct)
            self.learned = bool(plan.folds)
            plan.settled = not self.learned

    def _pull(self, logits: Tensor, seed: Tensor, keep: bool = True) -> None:
        """A backward pass through every site, also those that hang on nothing but a parameter that is used unseen."""
        if self.tracer.sites and logits.requires_grad:
            ends = [self.tracer.anchor, *self.hidden]
            torch.autograd.grad(logits, ends, seed, retain_graph=keep, allow_unused=True)

    def _add_hidden(self, logits: Tensor, seed: Tensor) -> None:
        rows = torch.diag_embed(seed.T).permute(1, 2, 0)
        for leaf, grads in zip(self.hidden, pull_back([logits], self.hidden, [rows]), strict=True):
            if grads is not None:
                self.ledger.add_leaf(leaf, grads)

    def _account(self, site: Site, grads: tuple) -> None:
        grads = tuple(g if g is not None and g.numel() else None for g in grads)
        if all(g is None for g in grads):
            return
        self._refuse_unsure(site, grads, self.how.doubts)
        if site.index not in self.awaited:
            raise RuntimeError(
                f"{site.label}: a gradient arrives that is not of the loss alone, since the network takes one itself in"
                " the backward pass (in a hook, as of equilibrium models)"
            )
        self.awaited.remove(site.index)
        site.check_inputs()
        with torch.no_grad():
            self.ledger.serve(site, tuple(g if g is None or g.dtype in _FULL else g.float() for g in grads))
        if not self.keeps_inputs:
            site.release()

    # -- layouts ------------------------------------------------------------------------------------------------

    def _find_layouts(self, logits: Tensor) -> None:
        plan, n = self.plan, self.n
        self.unsure: set[int] = set()
        if n == 1:
            for site in self.tracer.sites:
                site.layout = tuple(Layout(0, shape[0] if shape else 1) for shape in site.shapes)
            return
        if self.how.probe or self.tracer.depends or not plan.settled or not self._apply(plan):
            self._probe(logits)
        if n not in plan.apart or self.tracer.depends or self.tracer.branches:
            self._refuse_meeting(logits)
            plan.apart.add(n)

    def _apply(self, plan: _Plan) -> bool:
        for site, options in zip(self.tracer.sites, plan.layouts, strict=True):
            if not all(o and o[0].fits(torch.Size(s), self.n) for o, s in zip(options, site.shapes, strict=True) if o):
                return False
            site.layout = tuple(o[0] if o else Layout() for o in options)
            if any(len(o) != 1 for o in options):
                self.unsure.add(site.index)
        return True

    def _refuse_unsure(self, site: Site, grads: tuple, doubts: list[Tensor] | None = None) -> None:
        """Raise ``Unsure`` where a gradient that was zero in every probe so far no longer is, or note whether."""
        if site.index in self.unsure:
            options = self.plan.layouts[site.index]
            came = [g.any() for g, o in zip(grads, options, strict=True) if g is not None and len(o) != 1]
            if doubts is not None:
                doubts += came
            elif any(came):
                raise Unsure

    def _refuse_meeting(self, logits: Tensor) -> None:
        """A backward pass from some of the samples: nothing may arrive at the others, not the smallest number."""
        generator = torch.Generator().manual_seed(self.n)
        order = torch.randperm(self.n, generator=generator, device="cpu").to(logits.device)
        some, others = order[: self.n // 2], order[self.n // 2 :]
        seed = torch.zeros_like(logits)
        seed[some] = torch.randn(seed[some].shape, generator=generator, device="cpu").to(logits)

        def look(site: Site, grads: tuple) -> None:
            self._refuse_unsure(site, grads)
            for g, layout in zip(grads, site.layout, strict=True):
                if g is not None and g.numel() and layout.split(g, self.n)[others].nan_to_num(0, 0, 0).any():
                    self._refuse_or_defer(site)

        self.serve = look
        self._pull(logits, seed)
        self._raise_deferred()

    def _refuse_or_defer(self, site: Site) -> None:
        """Raise since samples meet at a site, or note it until the pass is through if it may have none."""
        if not self.hidden or self.tracer.hangs_on_data(site):
            raise RuntimeError(_meet(site))
        self.unrooted.add(site.meeting)

    def _raise_deferred(self) -> None:
        if self.unrooted:
            raise Unrooted(self.unrooted)

    def _probe(self, logits: Tensor) -> None:
        """Two backward passes, the second with each sample's seed scaled by its code, show whose each entry is; a third
        tells samples of one code apart, where their order may hang on the data."""
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

        self.serve = keep
        self._pull(logits, seed)
        self.serve = compare
        digits = 2 if self.tracer.depends and self.n > 8 else 1
        for digit in range(digits):
            factors = codes(self.n, seed, digit)
            self._pull(logits, seed * factors[:, None])
        self._raise_deferred()
        plan, known = self.plan, self.plan.layouts if self.plan.settled else []
        found = [options.get(site.index, ([],) * len(site.shapes)) for site in self.tracer.sites]
        for site, layouts in zip(self.tracer.sites, found, strict=True):
            site.layout = tuple(o[0] if o else Layout() for o in layouts)
        plan.layouts = [
            tuple(_both(old, new) for old, new in zip(olds, news, strict=True))
            for olds, news in zip(known or found, found, strict=True)
        ]
        if not plan.settled:
            plan.apart.clear()
        plan.settled = True
        self._measure(plan)

    def _measure(self, plan: _Plan) -> None:
        sites, width = self.tracer.sites, self.x.element_size()
        plan.total = width * sum(prod(shape) for site in sites for shape in site.shapes) / self.n
        plan.activation = plan.total / max(len(sites), 1)
        plan.weight = width * sum(p.numel() for p in self.wanted.values()) / max(len(sites), 1)

    def _explained(
        self, site: Site, plain: Tensor, coded: Tensor, allowed: list[Layout], factors: Tensor
    ) -> list[Layout]:
        if not plain.numel():
            return []
        found = [layout for layout in allowed if explains(layout, plain, coded, factors)]
        if not found:
            self._refuse_or_defer(site)
        return found


def _both(old: list[Layout], new: list[Layout]) -> list[Layout]:
    """What two probes allow; where they share nothing, as when sizes changed, what the later one does."""
    return [layout for layout in old if layout in new] or new or old


def _pass_by(site: Site, grads: tuple) -> None:
    """Attribute nothing."""


def _meet(site: Site) -> str:
    return (
        f"the gradients of different samples meet at {site.label}, so no sample has a gradient of its own there: the"
        " network mixes the samples of a batch, or its values overflow; if it only sorts or routes them, so that each"
        " alone has the same logits, pass max_batch=1"
    )


_CHECKPOINTS = (
    "the network computes activations anew during the backward pass (checkpointing), where its calls are not seen;"
    " switch that off (in timm: model.set_grad_checkpointing(False)); memory is kept in bounds by splitting the batch"
)
_HOOKS_AROUND = "hooks on saved tensors are on around the call (save_on_cpu, say), which cannot be; leave them first"
_FULL = (torch.float32, torch.float64, torch.complex64, torch.complex128)


def _signature(site: Site) -> tuple:
    return site.label, tuple(s[1:] if len(s) > 1 else () for s in site.shapes)


def _shape(value: Any) -> str:
    return str(list(value.shape)) if isinstance(value, Tensor) else type(value).__name__


def _seed(loss: Loss, logits: Tensor, mixing: list[Tensor]) -> Tensor:
    """The loss's gradient at the logits; whether it hangs on other samples is noted."""
    with torch.enable_grad():
        z = logits.detach().requires_grad_()
        values = loss(z.clone())
        if values.shape != z.shape[:1]:
            raise ValueError(f"a loss must give one value per sample, [{len(z)}], not {_shape(values)}")
        if not values.requires_grad:
            return torch.zeros_like(z)
        if any(leaf is not z for leaf in leaves(values)):
            raise ValueError("a loss must depend on the logits alone; detach what else it uses")
        factors = codes(len(z), values)
        (seed,) = torch.autograd.grad(values, [z], torch.ones_like(values), retain_graph=True, allow_unused=True)
        if seed is None:
            return torch.zeros_like(z)
        (coded,) = torch.autograd.grad(values, [z], factors)
    if len(z) > 1:
        mixing.append(seed.isfinite().all() & ~explains(Layout(), seed, coded, factors))
    return seed.detach()


_STANCE = threading.RLock()


@contextmanager
def _eagerly(model: nn.Module) -> Iterator[None]:
    """Compiled modules run as plain Python meanwhile, so that their calls are seen and the tracer's are not compiled.
    What says so holds for the process: one at a time."""
    compiled = any(hasattr(m, "_orig_mod") or m._compiled_call_impl is not None for m in model.modules())
    if not compiled or not hasattr(torch.compiler, "set_stance"):
        yield
        return
    with _STANCE, torch.compiler.set_stance("force_eager"):
        yield


def _off_in_company(model: nn.Module, x: Tensor) -> float:
    """How far the logits of the first images are others when all of a few stand beside them, in parts of the largest;
    0 where that is rounding."""
    few, more = min(2, len(x) - 1), len(x)
    watched = _select(model, None).values()
    with torch.enable_grad(), caches_aside(model), _requires_grad(model, watched), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        alone, among = (model(x[:n].detach().clone()) for n in (few, more))
    if not all(isinstance(z, Tensor) and z.dim() == 2 and z.is_floating_point() for z in (alone, among)):
        return 0
    alone, among = alone.detach(), among.detach()
    off = (alone - among[:few]).abs().amax() / among.abs().amax().clamp_min(torch.finfo(among.dtype).tiny)
    return float(off) if off > _TOLERANCE.get(among.dtype, 0.1) else 0


def _plan_for(model: nn.Module, x: Tensor, wanted: dict[str, Any]) -> _Plan:
    plans = _plans.setdefault(model, {})
    modes = tuple(module.training for module in model.modules())
    return plans.setdefault((tuple(x.shape[1:]), x.dtype, x.device, tuple(wanted), modes), _Plan())


def _first_names(model: nn.Module) -> dict[str, str]:
    """Of each name of a parameter, also of one that is shared, the first."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(p), name) for name, p in model.named_parameters(remove_duplicate=False)}


def _select(model: nn.Module, names: Iterable[str] | None) -> dict[str, nn.Parameter]:
    available = {name: p for name, p in model.named_parameters() if p.is_floating_point() or p.is_complex()}
    hooked = [name for name, p in available.items() if p._backward_hooks]
    if hooked:
        raise RuntimeError(f"{hooked[0]} has a hook that may change its gradient, which belongs to no single sample")
    if names is None:
        return available
    first = _first_names(model)
    chosen = [first.get(name, name) for name in ([names] if isinstance(names, str) else names)]
    unknown = [name for name in chosen if name not in available]
    if unknown:
        raise ValueError(f"the network has no parameter {unknown[0]!r}; it has {', '.join(list(available)[:5])}, …")
    return {name: p for name, p in available.items() if name in set(chosen)}


def _select_small(model: nn.Module, wanted: dict[str, nn.Parameter], small: bool | Iterable[str]) -> list[str]:
    flat = [name for name, p in wanted.items() if p.dim() == 1 and not p.is_complex()]
    if isinstance(small, bool):
        return flat if small else []
    first = _first_names(model)
    chosen = {first.get(name, name) for name in ([small] if isinstance(small, str) else small)}
    wrong = [name for name in chosen if name not in flat]
    if wrong:
        raise ValueError(f"{wrong[0]!r} is not a one-dimensional (real) parameter among those asked for")
    return [name for name in flat if name in chosen]


def _refuse_mixing(model: nn.Module) -> None:
    for name, module in model.named_modules():
        norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
        norm |= "BatchNorm" in str(getattr(module, "original_name", ""))  # a scripted one
        if norm and (module.training or module.running_mean is None):
            why = "is in training mode" if module.training else "keeps no running statistics"
            raise ValueError(
                f"{name or 'the network'} ({type(module).__name__}) {why}, so it normalises by the batch and no sample"
                " has a gradient of its own; call model.eval() and use running statistics"
            )


@contextmanager
def _requires_grad(model: nn.Module, watched: Iterable[nn.Parameter]) -> Iterator[None]:
    """Parameters that a call might use unseen require grad meanwhile, and no other does. None may get a ``.grad``."""
    before = [(name, p, p.requires_grad, p.grad) for name, p in model.named_parameters()]
    on = {id(p) for p in watched}
    summed: list[str] = []
    try:
        for _, p, was, grad in before:
            if was != (id(p) in on):
                p.requires_grad_(id(p) in on)
            if grad is not None:
                p.grad = None
        yield
    finally:
        for name, p, was, grad in before:
            p.requires_grad_(was)
            if p.grad is not grad:
                summed += [name] if p.grad is not None else []
                p.grad = grad
    if summed:
        raise RuntimeError(
            f"{summed[0]}: the network adds its gradient up by itself (an autograd function whose backward pass calls"
            " backward, as in reversible blocks), so it is of no single sample; use the plain form of that function"
        )
