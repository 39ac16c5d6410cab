"""Makes a call again until its passes know all that they must of the network."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .attribution import Meet, Unsure
from .caches import hooked
from .device import free_scratch, queued
from .independence import doubt_of_logits, same_alone
from .parameters import Contents
from .plan import Again, Plan
from .result import GradResult

PROBE = 4  # samples of a first pass, which learns the layouts


@dataclass
class Attempt:
    """How a call is made, and questions noted until all of it is done, since asking makes a GPU's host wait."""

    limit: int | None = None
    """The most samples in one pass."""
    size: int = 0
    """How many the latest pass takes."""
    probe: bool = False
    """Whether each pass finds its layouts out anew."""
    spoilt: Collection[int] = ()
    """Images whose values overflow, to take one by one."""
    doubts: list[Tensor] | None = None
    """Whether terms of a sum cancel, or a gradient has come where none was seen yet; None to deal with it at once."""
    mixing: list[Tensor] = field(default_factory=list)
    """Whether a loss depends on other samples' logits."""

    def next_size(self, plan: Plan, x: Tensor, start: int) -> int:
        """How many of the images ``x`` to take from ``start`` on."""
        left = len(x) - start
        if plan.one_by_one or start in self.spoilt:
            return 1
        size = min(left, self.limit or plan.chunk(left, x.device), left if plan.settled else PROBE)
        return min([size, *(i - start for i in self.spoilt if i > start)])

    def holds(self, result: GradResult) -> bool:
        """Whether the result stands, now that all is done; otherwise the next attempt is made another way."""
        if self.doubts is not None and _any(self.doubts):
            self.doubts = None
            return False
        if self.spoilt:
            return True
        self.spoilt = _spoilt(result)
        return not self.spoilt

    def forget(self) -> None:
        """Let go of what an earlier try noted."""
        self.mixing.clear()
        if self.doubts is not None:
            self.doubts.clear()


def until_it_holds(
    run: Callable[[Tensor, Attempt], GradResult],
    net: Contents,
    x: Tensor,
    plan: Plan,
    limit: int | None,
    on_restart: Callable[[], None] | None,
) -> GradResult:
    """What ``run`` gives, from as many attempts as it takes to learn what a pass must know of the network."""
    attempt, doubt = Attempt(limit, doubts=[] if queued(x.device) else None), ""
    watched = hooked(net.modules.values())
    may_repeat = on_restart is not None or not watched
    versions = _versions(net) if watched else []
    restarted = on_restart or (lambda: None)
    look = not plan.compared and may_repeat
    while True:
        try:
            first = x[: 1 if plan.one_by_one else min(PROBE, attempt.limit or PROBE)]
            if look and len(first) > 1:
                attempt.size = len(first)
                doubt = doubt_of_logits(net, first)
                while not plan.settled:  # so that a first call gives, to the last bit, what later ones give
                    run(first, attempt)
                plan.compared, look = not doubt, False
                restarted()
            attempt.forget()
            result = run(x, attempt)
            if attempt.holds(result):
                break
        except Exception as error:
            if not _learns(error, attempt, plan, x, lambda: may_repeat and same_alone(net, x)):
                raise
        finally:
            free_scratch()
        if x.device.type == "cuda":
            torch.cuda.empty_cache()
        restarted()
    if watched and versions != _versions(net) and len(first) > 1 and not doubt:  # worth showing the hooks images again
        doubt = doubt_of_logits(net, first)
    if _any(attempt.mixing):
        raise ValueError("a loss must depend on a sample's own logits alone, not on those of other samples")
    if doubt:
        raise RuntimeError(doubt)
    return result


def _learns(error: Exception, attempt: Attempt, plan: Plan, x: Tensor, sorts: Callable[[], bool]) -> bool:
    """Whether an error shows what the next attempt must do otherwise, which is noted.

    ``sorts`` tells whether the network only sorts or routes its samples.
    """
    if isinstance(error, torch.OutOfMemoryError):
        attempt.limit = attempt.size // 2
        return attempt.limit > 0
    if isinstance(error, Unsure):
        attempt.probe = True
        return True
    if isinstance(error, Again):
        error.learn(plan)
        return True
    if plan.give_up_format(x):
        return True
    if isinstance(error, Meet) and not plan.one_by_one and sorts():
        plan.one_by_one = True
        warnings.warn(
            "images go through the network one at a time, which is slow: their gradients meet, though each has the same"
            " logits alone as among others (a network that sorts or routes its images does this)",
            stacklevel=4,
        )
        return True
    return False


def _any(noted: list[Tensor]) -> bool:
    return bool(noted) and bool(torch.stack(noted).any())


def _versions(net: Contents) -> list[int]:
    """How often each buffer was written to."""
    return [b._version for m in net.modules.values() for b in m._buffers.values() if b is not None]


def _spoilt(result: GradResult) -> set[int]:
    """Images whose gradients are not finite, if the logits of some of them are: on the general path an overflow spoils
    the other images of its chunk (0 · inf)."""
    bad = ~result.norms.isfinite().all(dim=2).all(dim=0)
    if not (bad & result.logits.isfinite().all(dim=1)).any():
        return set()
    return set(bad.nonzero().flatten().tolist())
