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
from .attribution import Attribution, Serve
from .caches import caches_aside
from .fold import Fold, Misread, find
from .general import autocasting
from .graph import graph_of, pull_back
from .ledger import Ledger
from .parameters import Contents, requires_grad
from .plan import Again, Plan
from .result import no_logits
from .seed import Loss, seed_of
from .site import Site
from .trace import Tracer

_FULL = (torch.float32, torch.float64, torch.complex64, torch.complex128)
_CHECKPOINTS = (
    "the network recomputes activations during the backward pass (checkpointing), where its calls are not seen; switch"
    " that off (in timm: model.set_grad_checkpointing(False)); memory is bounded by splitting the batch"
)
_UNGRADED = "the network's forward runs under torch.no_grad or inference_mode, so it has no gradients; remove that"
_HOOKS_AROUND = (
    "hooks on saved tensors are on around the call (save_on_cpu, say) and would change what it keeps; call it outside"
)


class ReadsMemory(Again):
    """The network looks at how its maps lie in memory, which is to be the usual order."""

    def learn(self, plan: Plan) -> None:
        plan.channels_last = False


@dataclass(frozen=True)
class Task:
    """What is asked of a network: the losses, the parameters wanted, and those whose gradients themselves are."""

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
        self.task, self.attempt, self.keep = task, attempt, keep
        self.learned = False
        """Whether batch norms to fold were found."""
        self.x = x.detach().clone(memory_format=task.plan.format_of(x))
        self.n = len(x)
        self.serve: Serve = _pass_by
        self.hidden: list[Tensor] = []
        """Parameters, or their aliases, that reach the logits in a way that the tracer did not see."""
        self.inner: list[Tensor] = []
        """Data that the network itself makes require grad."""
        self.rooted: set[int] = set()
        """Sites in the graph of the logits."""
        self.awaited: set[int] = set()
        """Those of them that no gradient has reached in this backward pass."""
        self.releases = False
        """Whether this backward pass is the last, so that sites may let go of their inputs."""
        sink = lambda site, grads: self.serve(site, grads)  # noqa: E731
        self.tracer = Tracer(task.net, task.wanted, self.x, sink, folds, task.plan)

    def result(self) -> tuple[Tensor, Tensor, Tensor]:
        """``norms [K, n, P]``, ``logits [n, C]`` and the gradients of small parameters ``[K, n, Q]``."""
        with (
            torch.enable_grad(),
            caches_aside(self.task.net.modules.values()),
            requires_grad(self.task.net, self.task.wanted.values()),
        ):
            logits = self._forward()
            self._note_calls()
            self._walk(logits)
            seeds = [seed_of(loss, logits, self.attempt.mixing) for loss in self.task.losses]
            with torch.no_grad(), autocasting(self.x.device.type, False):
                return self._backward(logits, seeds)

    def close(self) -> None:
        """Break the cycle of hooks, tracer and saved tensors, which the collector cannot see inside the graph."""
        self.tracer.close()

    def _forward(self) -> Tensor:
        with disable_saved_tensors_hooks(_HOOKS_AROUND):  # raises where some are on already
            pass
        with _eagerly(self.task.net.modules.values()), disable_saved_tensors_hooks(_CHECKPOINTS), self.tracer:
            try:
                logits = self.task.net.model(self.x)
            except (Again, torch.OutOfMemoryError):
                raise
            except Exception as error:
                if self.tracer.shells:
                    raise Misread from error
                raise
        self.tracer.check_folds()
        if self.tracer.reads_memory and self.task.plan.format_of(self.x) == torch.channels_last:
            raise ReadsMemory
        if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != self.n:
            raise ValueError(
                f"the network must map {self.n} inputs to logits [{self.n}, C], not to {no_logits(logits)}"
            )
        if not logits.is_floating_point():
            raise ValueError(f"the logits must be floating-point numbers, not {logits.dtype}")
        if self.tracer.ungraded and not logits.requires_grad:
            raise RuntimeError(_UNGRADED)
        return logits

    def _note_calls(self) -> None:
        """What the plan knows of the layouts holds for the calls that it was learned from."""
        plan, signature = self.task.plan, (self.tracer.calls, *(_signature(site) for site in self.tracer.sites))
        if plan.signature != signature:
            plan.signature, plan.settled = signature, False

    def _walk(self, logits: Tensor) -> None:
        """Find what the graph of the logits consists of, and ends in."""
        ends, nodes = graph_of(logits)
        anchor, data = self.tracer.anchor, self.tracer.data
        self.inner = [t for t in ends if id(t) in data]
        self.hidden = [t for t in ends if t is not anchor and id(t) not in data]
        stray = {site.index for node, site in self.tracer.nodes.items() if node not in nodes}
        self.rooted = {site.index for site in self.tracer.sites} - stray
        known = {id(p) for p in self.task.wanted.values()} | {id(a) for a in self.tracer.weights.aliases.values()}
        if any(id(t) not in known for t in self.hidden):
            raise RuntimeError(
                "the network's output depends on a tensor that requires grad but is none of its parameters, perhaps one"
                " kept from an earlier pass; detach it, or clear the network's cache"
            )

    def _backward(self, logits: Tensor, seeds: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        task, plan = self.task, self.task.plan
        self.ledger = Ledger(task.wanted, task.small, self.tracer, self.hidden, self.n, logits, plan.guesses)
        for site in self.tracer.sites:
            site.rule.doubts = self.attempt.doubts
        plan.gradients = self.ledger.kept
        self.attribution = Attribution(self.tracer, plan, self.n, bool(self.hidden))
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
        """Once for a network; with folds its calls are different, so that they are probed again."""
        plan = self.task.plan
        if plan.folds is None and plan.settled:
            plan.folds = find(self.tracer.nodes, self.tracer.reads(), logits, self.ledger.direct)
            self.learned = bool(plan.folds)
            plan.settled = not self.learned

    def _pull(self, logits: Tensor, seed: Tensor, serve: Serve, keep: bool = True) -> None:
        """A backward pass through every site, even one that depends only on a parameter used unseen."""
        if self.tracer.sites and logits.requires_grad:
            ends, self.serve = [self.tracer.anchor, *self.hidden, *self.inner], serve
            try:
                torch.autograd.grad(logits, ends, seed, retain_graph=keep, allow_unused=True)
            except RuntimeError as error:
                if "use_reentrant" in str(error):
                    raise RuntimeError(_CHECKPOINTS) from error
                raise
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
                " the backward pass (in a hook, as equilibrium models do)"
            )
        self.awaited.remove(site.index)
        site.check_inputs()
        grads = tuple([None if g is not None and not g.dim() and self.n > 1 else g for g in grads])
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
    """Run compiled modules as plain Python, so that their calls are seen and the tracer's are not compiled.

    The setting is the whole process's, so one network at a time."""
    compiled = any("_orig_mod" in m._modules or m._compiled_call_impl is not None for m in modules)
    if not compiled:
        yield
        return
    with _STANCE, torch.compiler.set_stance("force_eager"):
        yield
