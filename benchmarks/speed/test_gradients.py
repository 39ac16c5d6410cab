"""The gradient engine against other ways to the same numbers, with pytest-benchmark: ``tox -e speed``.

Each network in ``ratios.py`` is a group. The yardstick is ``ordinary``: forward, summed loss, backward, which gives no
per-sample norms at all. The results of every other way are compared with the engine's before it is timed.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from ratios import NETWORKS, loss, ordinary, prepare
from torch import Tensor, nn

from howsure.gradients import grad_sq_norms, one_by_one

Way = Callable[[Tensor], Tensor]


def yardstick(model: nn.Module) -> Callable[[Tensor], None]:
    return lambda x: ordinary(model, x)


def engine(model: nn.Module) -> Way:
    return lambda x: grad_sq_norms(model, x, loss).norms[0]


def single_images(model: nn.Module) -> Way:
    return lambda x: one_by_one(model, x, [loss])[0]


def vmap_of_grad(model: nn.Module) -> Way:
    weights = {name: p.detach() for name, p in model.named_parameters()}
    others = dict(model.named_buffers())

    def value(weights: dict[str, Tensor], image: Tensor) -> Tensor:
        return loss(torch.func.functional_call(model, (weights, others), image[None])).sum()

    per_sample = torch.func.vmap(torch.func.grad(value), in_dims=(None, 0))
    return lambda x: torch.stack([g.flatten(1).square().sum(1) for g in per_sample(weights, x).values()], dim=1)


def backpack(model: nn.Module) -> Way:
    """BackPACK's ``BatchL2Grad``, after its converter has broken the network down into layers."""
    package = pytest.importorskip("backpack")
    from backpack.extensions import BatchL2Grad

    extended = package.extend(model, use_converter=not isinstance(model, nn.Sequential))
    criterion = package.extend(nn.BCEWithLogitsLoss(reduction="sum"))

    def norms(x: Tensor) -> Tensor:
        z = extended(x)
        with package.backpack(BatchL2Grad()):
            criterion(z, torch.ones_like(z)).backward()
        return torch.stack([p.batch_l2 for p in extended.parameters()], dim=1)

    return norms


WAYS = {
    "ordinary": yardstick,
    "engine": engine,
    "one by one": single_images,
    "vmap of grad": vmap_of_grad,
    "BackPACK": backpack,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("network", NETWORKS)
def test_gradients(benchmark, network, way):
    model, x = prepare(network, "cpu")
    benchmark.group = network
    want = engine(model)(x[:2])
    try:
        action = WAYS[way](model)
        got = action(x[:2])
    except Exception as error:
        if way != "BackPACK":
            raise
        pytest.skip(f"{type(error).__name__}: {error}")
    if got is not None:
        torch.testing.assert_close(got, want, rtol=1e-2, atol=1e-4 * float(want.max()))
    benchmark.pedantic(action, (x,), rounds=3, warmup_rounds=1)
