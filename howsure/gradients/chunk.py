"""One chunk of a batch: a forward pass that finds the sites, then a backward pass per loss that serves them."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import disable_saved_tensors_hooks

from .attempts import Attempt
from .attribution import Attribution, Serve, Unsure
from .caches import caches_aside
from .fold import Fold, find
from .general import autocasting, pull_back
from .graph import graph_of
from .ledger import Ledger
from .parameters import Contents, requires_grad
from .plan import Plan
from .result import no_logits
from .seed import Loss, seed_of
from .site import Site
from .trace import Tracer

_FULL = (torch.float32, torch.float64, torch.complex64, torch.complex128)
_CHECKPOINTS = (
    "the network computes activations anew during the backward pass (checkpointing), where its calls are not seen;"
    " switch that off (in timm: model.set_grad_checkpointing(False)); memory is kept in bounds by splitting the batch"
)
_UNGRADED = "the network's forward runs under torch.no_grad or inference_mode, so it has no gradients; take that off"
_HOOKS_AROUND = "hooks on saved tensors are on around the call (save_on_cpu, say), which cannot be; leave them first"


@dataclass(frozen=True)
class Task:
    """What is asked of a network: the losses, the parameters wanted, and which gradients themselves."""

    net: Contents
    losses: Sequence[Loss]
    wanted: dict[str, nn.Parameter]
    small: list[str]
    plan: Plan


class Chunk:
    """Some images of a batch, and the passes that answer a task for them.

    Parameters
    ----------
    folds
        The plan's folds with the parameters as they are now.
    keep
        Whether the sites keep what they hold, for ``explain``.
    """

    def __init__(self, task: Task, x: Tensor, folds: dict[int, Fold], attempt: Attempt, keep: bool = False):
        net, plan = task.net, task.plan
        self.task, self.attempt, self.keep, self.learned = task, attempt, keep, False
        self.x = x.detach().clone(memory_format=plan.format_of(x))
        self.n = len(x)
        self.serve: Serve = _pass_by
        self.hidden: list[Tensor] = []
        """Parameters, or their aliases, that are used unseen."""
        self.inner: list[Tensor] = []
        """Data that the network itself lets require grad."""
        self.rooted: set[int] = set()
        """Sites in the graph of the logits."""
        self.awaited: set[int] = set()
        """Those of them that no gradient has come to in this backward pass."""
        chosen = {id(p) for p in task.wanted.values()}
        others = [p for p in net.parameters.values() if id(p) not in chosen]
        sink = lambda site, grads: self.serve(site, grads)  # noqa: E731
        known = None if plan.folds is None else folds, plan.blanks, plan.general_meetings, plan.unseen_meetings
        self.tracer = Tracer(net.model, task.wanted, others, self.x, sink, *known)

    def result(self) -> tuple[Tensor, Tensor, Tensor]:
        """``norms [K, n, P]``, ``logits [n, C]`` and the gradients of small parameters ``[K, n, Q]``."""
        with (
            torch.enable_grad(),
            caches_aside(self.task.net.modules.values()),
            requires_grad(self.task.net, self.task.wanted.values()),
        ):
            logits = self._forward()
            self.hidden = self._find_hidden(logits)
            seeds = [seed_of(loss, logits, self.attempt.mixing) for loss in self.task.losses]
            with torch.no_grad(), autocasting(self.x.device.type, False):
                return self._backward(logits, seeds)

    def close(self) -> None:
        """Break the circle of hooks, tracer and saved tensors, which the collector cannot see inside the graph."""
        self.tracer.close()

    def _forward(self) -> Tensor:
        with disable_saved_tensors_hooks(_HOOKS_AROUND):  # raises where some are on already
            pass
        with _eagerly(self.task.net.modules.values()), disable_saved_tensors_hooks(_CHECKPOINTS), self.tracer:
            logits = self.task.net.model(self.x)
        self.tracer.check_folds()
        if self.tracer.reads_memory and self.task.plan.give_up_format(self.x):
            raise Unsure
        if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != self.n:
            raise ValueError(
                f"the network must map {self.n} inputs to logits [{self.n}, C], not to {no_logits(logits)}"
            )
        if not logits.is_floating_point():
            raise ValueError(f"the logits must be floating-point numbers, not {logits.dtype}")
        if self.tracer.ungraded and not logits.requires_grad:
            raise RuntimeError(_UNGRADED)
        return logits

    def _find_hidden(self, logits: Tensor) -> list[Tensor]:
        """Parameters (or their aliases) that reach the logits by a way the tracer did not see."""
        signature = (self.tracer.calls, *(_signature(site) for site in self.tracer.sites))
        if self.task.plan.signature != signature:
            self.task.plan.signature, self.task.plan.settled = signature, False
        known = {id(p) for p in self.task.wanted.values()} | {id(a) for a in self.tracer.weights.aliases.values()}
        ends, nodes = graph_of(logits)
        self.inner = [t for t in ends if id(t) in self.tracer.data]
        found = [t for t in ends if t is not self.tracer.anchor and id(t) not in self.tracer.data]
        stray = {site.index for node, site in self.tracer.nodes.items() if node not in nodes}
        self.rooted = {site.index for site in self.tracer.sites} - stray
        if any(id(t) not in known for t in found):
            raise RuntimeError(
                "the network's output hangs on a tensor that requires grad but is none of its parameters, perhaps one"
                " kept from an earlier pass; detach it, or clear the network's cache"
            )
        return found

    def _backward(self, logits: Tensor, seeds: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        task = self.task
        self.ledger = Ledger(task.wanted, task.small, self.tracer, self.hidden, self.n, logits, task.plan.ways)
        for site in self.tracer.sites:
            site.rule.doubts = self.attempt.doubts
        self.attribution = Attribution(self.tracer, self.task.plan, self.n, bool(self.hidden))
        self.attribution.find(logits, partial(self._pull, logits), self.attempt.probe)
        self._find_folds(logits)
        for k, seed in enumerate(seeds):
            last = k == len(seeds) - 1
            self.awaited, self.releases = set(self.rooted), last and not self.keep
            self.ledger.open()
            self._pull(logits, seed, self._account, keep=not last or bool(self.hidden))
            if self.hidden:
                self._add_hidden(logits, seed)
            self.ledger.close()
        norms, small = self.ledger.result()
        return norms, logits.detach(), small

    def _find_folds(self, logits: Tensor) -> None:
        """Once for a network; with folds its calls are others, so that they are probed again."""
        plan = self.task.plan
        if plan.folds is None and plan.settled:
            plan.folds = find(self.tracer.nodes, self.tracer.reads(), logits, self.ledger.direct)
            self.learned = bool(plan.folds)
            plan.settled = not self.learned

    def _pull(self, logits: Tensor, seed: Tensor, serve: Serve, keep: bool = True) -> None:
        """A backward pass through every site, also those that hang on nothing but a parameter that is used unseen."""
        if self.tracer.sites and logits.requires_grad:
            ends, self.serve = [self.tracer.anchor, *self.hidden, *self.inner], serve
            torch.autograd.grad(logits, ends, seed, retain_graph=keep, allow_unused=True)
            self.serve = _pass_by

    def _add_hidden(self, logits: Tensor, seed: Tensor) -> None:
        rows = torch.diag_embed(seed.T).permute(1, 2, 0)
        for leaf, grads in zip(self.hidden, pull_back([logits], self.hidden, [rows]), strict=True):
            if grads is not None:
                self.ledger.add_leaf(leaf, grads)

    def _account(self, site: Site, grads: tuple) -> None:
        grads = tuple([g if g is not None and g.numel() else None for g in grads])
        if all(g is None for g in grads):
            return
        self.attribution.refuse_unsure(site, grads, self.attempt.doubts)
        if site.index not in self.awaited:
            raise RuntimeError(
                f"{site.label}: a gradient arrives that is not of the loss alone, since the network takes one itself in"
                " the backward pass (in a hook, as of equilibrium models)"
            )
        self.awaited.remove(site.index)
        site.check_inputs()
        with torch.no_grad():
            self.ledger.serve(site, tuple([g if g is None or g.dtype in _FULL else g.float() for g in grads]))
        if self.releases:
            site.release()


def _pass_by(site: Site, grads: tuple) -> None:
    """Attribute nothing."""


def _signature(site: Site) -> tuple[Any, ...]:
    return site.label, tuple(s[1:] if len(s) > 1 else () for s in site.shapes)


_STANCE = threading.RLock()


@contextmanager
def _eagerly(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Compiled modules run as plain Python meanwhile, so that their calls are seen and the tracer's are not compiled.
    What says so holds for the process: one at a time."""
    compiled = any("_orig_mod" in m._modules or m._compiled_call_impl is not None for m in modules)
    if not compiled:
        yield
        return
    with _STANCE, torch.compiler.set_stance("force_eager"):
        yield
