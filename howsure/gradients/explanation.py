"""Which rule each parameter takes."""

from __future__ import annotations

from contextlib import closing

import torch
from torch import Tensor, nn

from .attempts import PROBE, Attempt
from .attribution import Meet
from .chunk import Chunk, Task
from .device import free_scratch
from .fold import refreshed
from .parameters import Contents, refuse_mixing, select
from .plan import Again, Plan, lock_of


def explain(model: nn.Module, x: Tensor) -> list[tuple[str, str]]:
    """Which rule each parameter takes for inputs like ``x`` (at most four of them are used): ``[(name, rule)]``."""
    net = Contents.of(model)
    refuse_mixing(net)
    wanted = select(net, None)
    if not len(x) or not wanted:
        raise ValueError(f"{len(x)} images and {len(wanted)} parameters: each must be at least 1")
    with torch.inference_mode(False), lock_of(model):
        x = x[:PROBE].clone() if x.is_inference() else x[:PROBE]
        try:
            return _explained(Task(net, [lambda z: z.sum(1)], wanted, [], Plan()), x)
        finally:
            free_scratch()


def _explained(task: Task, x: Tensor) -> list[tuple[str, str]]:
    while True:
        with closing(Chunk(task, x, refreshed(task.plan.folds), Attempt(probe=True), keep=True)) as chunk:
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
