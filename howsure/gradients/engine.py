"""Per-sample squared gradient norms of a whole network from one batched forward and backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from functools import partial

import torch
from torch import Tensor, nn

from .attempts import Attempt, until_it_holds
from .chunk import Chunk, Task
from .fold import refreshed
from .parameters import Contents, refuse_mixing, select, select_small
from .plan import lock_of, plan_for
from .result import GradResult
from .seed import Loss


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
        ``.grad``, hooks, and tensors that it keeps in attributes (but not its buffers). Frozen parameters have norms
        like any other.
    x
        ``[N, …]``, a batch of inputs.
    losses
        K functions of the logits ``[n, C]`` that give one loss per sample, ``[n]``. Each costs one backward pass. They
        are called with the logits of part of the batch at a time, so a loss must not use anything that belongs to the
        whole batch, such as its labels; derive what it needs from the logits.
    parameters
        Names to restrict the work to; by default all of ``model.named_parameters()``. A parameter shared by several
        modules counts once, under its first name (here any of them will do), and has the norm of the summed gradient.
    max_batch
        The most samples in one pass; by default chosen by the size of the activations. Networks that sort or route
        their samples, whose gradients meet although each alone has the logits that it has among others, always take
        one at a time, and warn of it once.
    small
        True, or names, to return the gradients themselves of one-dimensional parameters (biases, the scales and shifts
        of normalisation) too.
    on_restart
        Called before the whole call starts again: with half as many images in a pass because memory ran out, in another
        memory format because the network needs it, because a gradient that was zero so far no longer is, to set apart
        images whose values overflow, or to take all one by one; and after a look at the first few images of a new
        network. Except for such restarts, the caller's forward hooks see each image exactly once, in order, chunk by
        chunk: clear what they captured. If the network writes to its buffers, they see the first few images again at
        the end.

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
        and overwritten after use; and for a network that checkpoints activations or calls ``backward`` itself.

    Notes
    -----
    Goodfellow, 2015, arXiv:1510.01799, for linear layers; Rochette, Manoel and Tramel, 2019, arXiv:1912.06015, and
    Bu, Mao and Xu, 2022, arXiv:2205.10683, for convolutions. ``docs/gradients.md`` derives the rules.
    """
    losses, net = [losses] if callable(losses) else list(losses), Contents.of(model)
    refuse_mixing(net)
    wanted = select(net, parameters)
    small_names = select_small(net, wanted, small)
    if not len(x) or not losses or not wanted:
        raise ValueError(f"{len(x)} images, {len(losses)} losses and {len(wanted)} parameters: each must be at least 1")
    if max_batch is not None and max_batch < 1:
        raise ValueError(f"max_batch must be at least 1, not {max_batch}")
    with torch.inference_mode(False), lock_of(model):
        x = x.clone() if x.is_inference() else x
        task = Task(net, losses, wanted, small_names, plan_for(net, x, wanted))
        return until_it_holds(partial(_in_chunks, task), net, x, task.plan, max_batch, on_restart)


def _in_chunks(task: Task, x: Tensor, attempt: Attempt) -> GradResult:
    plan, start = task.plan, 0
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    folds = refreshed(plan.folds)
    while start < len(x):
        attempt.size = attempt.next_size(plan, x, start)
        with closing(Chunk(task, x[start : start + attempt.size], folds, attempt)) as chunk:
            parts.append(chunk.result())
        if chunk.learned:
            folds = refreshed(plan.folds)
        start += attempt.size
    norms, logits, grads = zip(*parts, strict=True)
    return GradResult(
        torch.cat(norms, dim=1),
        tuple(task.wanted),
        torch.cat(logits),
        torch.cat(grads, dim=1) if task.small else None,
        tuple(task.small),
        tuple(task.wanted[name].numel() for name in task.small),
    )
