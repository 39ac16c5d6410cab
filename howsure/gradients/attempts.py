"""Makes a call again, until all is known that its passes must know of the network."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .attribution import Meet, Unsure
from .caches import caches_aside, hooked
from .parameters import Contents, requires_grad, select
from .plan import Plan
from .result import GradResult
from .rule import Again, free_scratch, queued

PROBE = 4  # samples of a first pass, which learns the layouts
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-2}  # of logits that depend on the company, beside the largest
_AGAIN = 1e-3  # the same, in parts of it, of the same images' logits in another pass
_MET = 1e-3  # of the summed gradient of images that a network sorts or routes, beside that of each alone


@dataclass
class Attempt:
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


def until_it_holds(
    run: Callable[[Tensor, Attempt], GradResult],
    net: Contents,
    x: Tensor,
    plan: Plan,
    limit: int | None,
    on_restart: Callable[[], None] | None,
) -> GradResult:
    """What ``run`` gives, from as many tries as it takes to learn what a pass must know of the network."""
    attempt, doubt = Attempt(limit, doubts=[] if queued(x.device) else None), ""
    watches = hooked(net.modules.values())
    shows_again = on_restart is not None or not watches
    look = not plan.compared and shows_again
    versions = _versions(net) if watches else []
    while True:
        try:
            first = x[: 1 if plan.alone else min(PROBE, attempt.limit or PROBE)]
            if look and len(first) > 1:
                doubt = _doubt_of_logits(net, first)
                while not plan.settled:  # so that a first call gives, to the last bit, what later ones give
                    run(first, attempt)
                plan.compared, look = not doubt, False
                if on_restart is not None:
                    on_restart()
            attempt.forget()
            result = run(x, attempt)
            if attempt.doubts is not None and _any(attempt.doubts):
                attempt.doubts = None
            elif attempt.alone or not (spoilt := _spoilt(result)):
                break
            else:
                attempt.alone = spoilt
        except torch.OutOfMemoryError:
            size = min(attempt.limit or len(x), len(x))
            if size <= 1:
                raise
            attempt.limit = size // 2
        except Unsure:
            attempt.probe = True
        except Again as again:
            again.learn(plan)
        except Exception as error:
            if not plan.give_up_format(x):
                if not isinstance(error, Meet) or plan.alone or not shows_again or not _same_alone(net, x):
                    raise
                plan.alone = True
        finally:
            free_scratch()
        if x.device.type == "cuda":
            torch.cuda.empty_cache()
        if on_restart is not None:
            on_restart()
    if watches and versions != _versions(net) and len(first) > 1 and not doubt:  # worth showing the hooks images again
        doubt = _doubt_of_logits(net, first)
    if _any(attempt.mixing):
        raise ValueError("a loss must depend on a sample's own logits alone, not on those of other samples")
    if doubt:
        raise RuntimeError(doubt)
    return result


def _any(noted: list[Tensor]) -> bool:
    return bool(noted) and bool(torch.stack(noted).any())


def _versions(net: Contents) -> list[int]:
    """How often each buffer was written to."""
    return [b._version for m in net.modules.values() for b in m._buffers.values() if b is not None]


def _spoilt(result: GradResult) -> set[int]:
    """Images with gradients that are not finite, if logits of some of them are: an overflow spoils, on the general
    path, the others of its chunk (0 · inf)."""
    bad = ~result.norms.isfinite().all(dim=2).all(dim=0)
    if not (bad & result.logits.isfinite().all(dim=1)).any():
        return set()
    return set(bad.nonzero().flatten().tolist())


def _doubt_of_logits(net: Contents, x: Tensor) -> str:
    """What is wrong with the logits of the first images: that they are others when all of a few stand beside them, or
    when the network, which changes its buffers, has seen others; empty if nothing."""
    few = min(2, len(x) - 1)
    kept = {name: b.clone() for name, b in net.model.named_buffers()}
    with _as_in_a_pass(net):
        alone, among = (net.model(part.detach().clone()) for part in (x[:few], x))
        changed = [name for name, b in net.model.named_buffers() if name in kept and not torch.equal(kept[name], b)]
        again = net.model(x[:few].detach().clone()) if changed else alone
    if not all(isinstance(z, Tensor) and z.dim() == 2 and z.is_floating_point() for z in (alone, among, again)):
        return ""
    off, later = (_off(alone, z[:few], among) for z in (among, again))
    bound = _TOLERANCE.get(among.dtype, 0.1)
    if later > _AGAIN * bound:
        return (
            f"the network changes {changed[0]} in each forward pass, and by it the logits (by {later:.1e} of the"
            " largest), so they depend on the images seen before; switch that off (observers of quantisation-aware"
            " training: model.apply(torch.ao.quantization.disable_observer))"
        )
    if off > bound:
        return (
            f"the logits of an image depend on the other images of the batch, or on chance (off by {off:.1e} of the"
            " largest), so no image has a gradient of its own; use running statistics, and no dropout"
        )
    return ""


def _same_alone(net: Contents, x: Tensor) -> bool:
    """Whether samples have the same logits, but for rounding, and the same gradients in sum, alone as in the batch."""
    watched = list(select(net, None).values())

    def pulled(logits: Tensor, seed: Tensor) -> Sequence[Tensor]:
        return torch.autograd.grad(logits, watched, seed, materialize_grads=True)

    try:
        with _as_in_a_pass(net):
            among, each = net.model(x.detach().clone()), []
            seed = torch.randn(among.shape, generator=torch.Generator().manual_seed(0), device="cpu").to(among)
            sums = [torch.zeros_like(p) for p in watched]
            for image, its in zip(x.split(1), seed.split(1), strict=True):
                each.append(net.model(image.detach().clone()))
                sums = [total + g for total, g in zip(sums, pulled(each[-1], its), strict=True)]
            alike = [bool((g - s).norm() <= _MET * g.norm()) for g, s in zip(pulled(among, seed), sums, strict=True)]
    except Exception:  # the network takes no single image
        return False
    bound = _AGAIN * _TOLERANCE.get(among.dtype, 0.1)
    return all(alike) and _off(torch.cat(each), among, among) <= bound


@contextmanager
def _as_in_a_pass(net: Contents) -> Iterator[None]:
    with (
        torch.enable_grad(),
        caches_aside(net.modules.values()),
        requires_grad(net, select(net, None).values()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


def _off(logits: Tensor, others: Tensor, among: Tensor) -> float:
    """The largest difference, in parts of the largest number."""
    largest = among.detach().abs().amax().clamp_min(torch.finfo(among.dtype).tiny)
    return float((logits - others).detach().abs().amax() / largest)
