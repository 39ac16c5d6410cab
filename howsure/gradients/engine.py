"""Per-sample squared gradient norms of a whole network from one batched forward and backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from .attempts import PROBE, Attempt, until_it_holds
from .attribution import Meet
from .chunk import Chunk, Task
from .fold import refreshed
from .parameters import Contents, refuse_mixing, select, select_small
from .plan import Plan, lock_of, plan_for
from .result import GradResult
from .rule import Again
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
        The most samples in one pass. Left out, chosen by the size of the activations. One, whatever is given, where
        gradients of different samples meet, but the logits of each alone are what they are among the others, as in
        networks that sort or route their samples.
    small
        True, or names, to get the gradients themselves of one-dimensional parameters (biases, the scales and shifts of
        normalisation) too.
    on_restart
        Called before the whole call starts again: with half the batch because a GPU ran out of memory, in another
        memory format because the network needs it, because a gradient that was zero so far no longer is, or to set
        images apart whose values overflow, or one by one; and after a look at the first few images of a new network.
        Forward hooks of the caller see each image exactly once, in order, chunk by chunk, but for such a restart: clear
        what they captured. Of a network that writes to its buffers they see the first few images again afterwards.

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
        that are overwritten after their use; and for a network that checkpoints activations or calls
        ``backward`` itself.

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
        run = lambda part, attempt: _in_chunks(task, part, attempt)  # noqa: E731
        return until_it_holds(run, net, x, task.plan, max_batch, on_restart)


def _in_chunks(task: Task, x: Tensor, attempt: Attempt) -> GradResult:
    plan = task.plan
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    folds = refreshed(plan.folds or {})
    start = 0
    while start < len(x):
        size = plan.chunk(len(x) - start, x.device) if attempt.limit is None or plan.alone else attempt.limit
        if not plan.settled:
            size = min(size, PROBE)
        size = 1 if start in attempt.alone else min([size, *(i - start for i in attempt.alone if i > start)])
        chunk = Chunk(task, x[start : start + size], folds, attempt)
        try:
            parts.append(chunk.result())
        finally:
            chunk.close()
        if chunk.learned:
            folds = refreshed(plan.folds or {})
        start += size
    norms, logits, grads = zip(*parts, strict=True)
    return GradResult(
        torch.cat(norms, dim=1),
        tuple(task.wanted),
        torch.cat(logits),
        torch.cat(grads, dim=1) if task.small else None,
        tuple(task.small),
        tuple(task.wanted[name].numel() for name in task.small),
    )


def explain(model: nn.Module, x: Tensor) -> list[tuple[str, str]]:
    """Which rule each parameter takes for inputs like ``x`` (at most four of them are used): ``[(name, rule)]``."""
    net = Contents.of(model)
    refuse_mixing(net)
    wanted = select(net, None)
    if not len(x) or not wanted:
        raise ValueError(f"{len(x)} images and {len(wanted)} parameters: each must be at least 1")
    with lock_of(model):
        return _explained(Task(net, [lambda z: z.sum(1)], wanted, [], Plan()), x)


def _explained(task: Task, x: Tensor) -> list[tuple[str, str]]:
    while True:
        chunk = Chunk(task, x[:PROBE], refreshed(task.plan.folds or {}), Attempt(probe=True), keep=True)
        try:
            chunk.result()
            if not chunk.learned:
                return _rules_taken(chunk, task.wanted)
        except Again as again:
            again.learn(task.plan)
        except Exception as error:
            if task.plan.give_up_format(x):
                continue
            if not isinstance(error, Meet) or len(x) == 1:
                raise
            x = x[:1]
        finally:
            chunk.close()


def _rules_taken(chunk: Chunk, wanted: dict[str, nn.Parameter]) -> list[tuple[str, str]]:
    rules: dict[str, list[str]] = {name: [] for name in wanted}
    names = {id(p): name for name, p in wanted.items()}
    for site in chunk.tracer.sites:
        for key, weight in site.weights.items():
            rule = site.rule.describe(key, chunk.n)
            for p in chunk.ledger.sources(weight):
                rules[names[id(p)]].append(rule if p is weight else f"{rule}, then pulled back to the parameter")
    for leaf in chunk.hidden:
        p = chunk.ledger.alias_of.get(id(leaf), leaf)
        rules[names[id(p)]].append("used unseen: whole-network vector-Jacobian product, sample by sample")
    return [(name, " + ".join(found) if found else "no gradient") for name, found in rules.items()]
