"""The gradient engine where work is queued, as on a GPU: nothing is asked of the device until a call is through."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from howsure.gradients import explain, grad_sq_norms, one_by_one
from howsure.gradients.plan import Plan, _plans
from howsure.losses import Confound, Predicted, Uniform

ASKING = {"_local_scalar_dense", "nonzero", "equal", "masked_select", "_unique2", "unique_dim", "is_nonzero"}
LOSSES = (Confound(), Confound(hot=2, output="softmax"), Predicted(), Uniform())


class Asked(TorchDispatchMode):
    """Counts what makes a GPU's host wait, indices by a mask among it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        by_mask = name in ("index", "index_put_") and any(i is not None and i.dtype == torch.bool for i in args[1])
        if name in ASKING or by_mask:
            self.calls[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("name", "side"),
    [("resnet18", 32), ("mobilenetv3_small_050", 32), ("convnext_atto", 32), ("test_vit", 160)],
)
def test_a_call_asks_the_device_for_at_most_three_numbers(queued, name, side):
    """Whether a loss mixes samples, whether there are doubts, and whether a value overflows."""
    net = timm.create_model(name, pretrained=False, num_classes=5).eval()
    x = torch.randn(4, 3, side, side, generator=torch.Generator().manual_seed(0))
    grad_sq_norms(net, x, LOSSES, max_batch=2)
    with Asked() as asked:
        grad_sq_norms(net, x, LOSSES, max_batch=2)
    assert set(asked.calls) == {"_local_scalar_dense"}
    assert asked.calls["_local_scalar_dense"] <= 3


class Centred(nn.Module):
    """Logits from a layer whose output gradients sum to zero over positions."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(64, 64), nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        return self.head((y - y.mean(1, keepdim=True)).sin().square().sum(1))


def test_terms_that_cancel_are_mended_in_a_second_try(queued):
    torch.manual_seed(0)
    net, restarts = Centred().double().eval(), []
    plain, near = torch.randn(4, 20, 64).double(), 1 + 1e-6 * torch.randn(4, 20, 64).double()
    assert "Gram" in dict(explain(net, plain))["layer.weight"]
    for x, tries in ((plain, 1), (near, 2), (plain, 1)):
        grad_sq_norms(net, plain, LOSSES)
        restarts.clear()
        got = grad_sq_norms(net, x, LOSSES, on_restart=lambda: restarts.append(1)).norms
        torch.testing.assert_close(got, one_by_one(net, x, LOSSES), rtol=1e-9, atol=1e-22)
        assert len(restarts) == tries - 1


def test_a_gate_that_opens_is_seen_in_a_second_try(queued):
    net, restarts = timm.create_model("resnet18", pretrained=False, num_classes=5).double().eval(), []
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)).double()
    grad_sq_norms(net, x, LOSSES)
    with torch.no_grad():
        for block in (m for m in net.modules() if hasattr(m, "bn2")):
            block.bn2.weight.fill_(0.5)
    got = grad_sq_norms(net, x, LOSSES, on_restart=lambda: restarts.append(1)).norms
    torch.testing.assert_close(got, one_by_one(net, x, LOSSES), rtol=1e-9, atol=1e-22)
    assert restarts


class Restless(TorchDispatchMode):
    """Gradients behind a convolution differ a little from pass to pass, as where sums are made in no fixed order."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.convolution_backward.default and out[0] is not None:
            size = out[0].square().mean((1, 2, 3), keepdim=True).sqrt()
            out[0].add_(1e-5 * size * torch.randn_like(out[0]) * (out[0] != 0))
        return out


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "mobilenetv3_small_050"])
def test_gradients_that_differ_from_pass_to_pass_are_not_taken_for_samples_that_meet(queued, name):
    net = timm.create_model(name, pretrained=False, num_classes=5).eval()
    x = torch.randn(4, 3, 64, 64)
    with Restless():
        got = grad_sq_norms(net, x, LOSSES).norms
    torch.testing.assert_close(got, one_by_one(net, x, LOSSES), rtol=1e-2, atol=1e-12)


def test_in_double_precision_such_differences_are_not_borne_but_taken_one_by_one(queued):
    net = timm.create_model("mobilenetv3_small_050", pretrained=False, num_classes=5).double().eval()
    with Restless(), pytest.warns(UserWarning, match="one at a time"):
        grad_sq_norms(net, torch.randn(4, 3, 64, 64).double(), LOSSES)
    assert [plan.one_by_one for plan in _plans[net].values()] == [True]


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto"])
def test_a_backward_pass_may_run_on_a_thread_of_its_own(queued, monkeypatch, name):
    net = timm.create_model(name, pretrained=False, num_classes=5).double().eval()
    x = torch.randn(4, 3, 32, 32).double()
    want, grad, passes = one_by_one(net, x, LOSSES), torch.autograd.grad, []
    with ThreadPoolExecutor(1) as pool:

        def elsewhere(*args, **kwargs):
            if torch.is_grad_enabled() or threading.current_thread() is not threading.main_thread():
                return grad(*args, **kwargs)
            passes.append(pool.submit(grad, *args, **kwargs))
            return passes[-1].result()

        monkeypatch.setattr(torch.autograd, "grad", elsewhere)
        got = grad_sq_norms(net, x, LOSSES).norms
    assert len(passes) >= len(LOSSES)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-22)


def test_chunks_on_a_gpu_count_the_memory_that_torch_holds_unused(monkeypatch):
    plan = Plan(settled=True, outputs=10.0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (600, 10_000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 1000)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 400)
    assert plan.chunk(128, torch.device("cuda")) == 20
    assert plan.chunk(8, torch.device("cuda")) == 8
    plan.gradients = 30
    assert plan.chunk(128, torch.device("cuda")) == 5
