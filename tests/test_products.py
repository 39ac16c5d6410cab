"""Large products by a 1×1 convolution, wherever that would be taken for the faster."""

from __future__ import annotations

from contextlib import contextmanager
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from howsure import products
from howsure.detector import fit_detector
from howsure.gradients import grad_sq_norms, one_by_one
from howsure.gradients.conv import Conv
from howsure.products import convolutions_win, rows_times

WAYS = ("_convolved", "_turned")


@pytest.fixture
def won(monkeypatch):
    """oneDNN is the faster, and every product is worth it."""
    for module in ("products", "gradients.conv"):
        monkeypatch.setattr(f"howsure.{module}.convolutions_win", lambda: True)
    for least in ("_ROWS", "_WORK", "_WORK_TURNED"):
        monkeypatch.setattr(products, least, 1)


@pytest.fixture
def undecided():
    convolutions_win.cache_clear()
    yield
    convolutions_win.cache_clear()


@settings(deadline=None, max_examples=60)
@given(
    m=st.integers(1, 40),
    i=st.integers(1, 20),
    o=st.integers(1, 20),
    bias=st.booleans(),
    lies=st.sampled_from(["by rows", "by columns", "apart"]),
    way=st.sampled_from([products._convolved, products._turned]),
)
def test_a_product_by_convolution(m, i, o, bias, lies, way):
    torch.manual_seed(0)
    x, b = torch.randn(m, i), torch.randn(o) if bias else None
    w = {"by rows": torch.randn(o, i), "by columns": torch.randn(i, o).mT, "apart": torch.randn(o, 2 * i)[:, ::2]}[lies]
    got = way(x, w, b)
    torch.testing.assert_close(got, F.linear(x, w, b), rtol=1e-4, atol=1e-4)
    assert got.is_contiguous()


@pytest.mark.parametrize(
    ("rows", "out", "size", "dtype", "wins", "way"),
    [
        (500, 200, 200, torch.float32, True, "_convolved"),
        (500, 200, 200, torch.float32, False, None),
        (500, 200, 200, torch.float64, True, None),
        (300, 100, 100, torch.float32, True, None),  # little work
        (100, 150, 1000, torch.float32, True, None),  # few rows on both sides
        (64, 1024, 600, torch.float32, True, "_turned"),
        (600, 1024, 600, torch.float32, True, "_convolved"),
        (32, 1024, 600, torch.float32, True, None),  # little work for few rows
        (1, 8192, 4096, torch.float32, True, None),
        (20, 100, 20000, torch.float32, True, None),  # few rows on both sides
    ],
)
def test_long_products_in_single_precision_go_by_convolution_where_it_wins(rows, out, size, dtype, wins, way):
    x, w = torch.randn(rows, size, dtype=dtype), torch.randn(out, size, dtype=dtype)
    with mock.patch.object(products, "convolutions_win", return_value=wins), watched() as calls:
        torch.testing.assert_close(rows_times(x, w), F.linear(x, w), rtol=1e-4, atol=1e-3)
    assert calls == {"_convolved": way in ("_convolved", "_turned"), "_turned": way == "_turned"}


@contextmanager
def watched():
    """How often a product went each way; one that is turned goes both if its weight lies by rows."""
    ways = {name: mock.patch.object(products, name, side_effect=getattr(products, name)) for name in WAYS}
    calls = dict.fromkeys(ways, 0)
    with ways["_convolved"] as convolved, ways["_turned"] as turned:
        yield calls
        calls.update(_convolved=convolved.call_count, _turned=turned.call_count)


@pytest.mark.parametrize(
    ("capability", "times", "wins"),
    [("AVX512", (1, 2), True), ("AVX512", (1.8, 2), False), ("AVX2", (1, 2), False)],
)
def test_which_wins_is_timed_once(undecided, capability, times, wins):
    with (
        mock.patch("torch.backends.cpu.get_cpu_capability", return_value=capability),
        mock.patch.object(products, "repeat", side_effect=[[9, t] for t in times]) as timed,
    ):
        assert [convolutions_win() for _ in range(2)] == [wins, wins]
    assert timed.call_count == (2 if capability == "AVX512" else 0)


class Tokens(nn.Module):
    """Patches, thinned out by a 1×1 convolution, two layers on each, and one token, or all, read."""

    def __init__(self, alone: bool) -> None:
        super().__init__()
        self.alone = alone
        self.patches, self.thin = nn.Conv2d(3, 8, 2, 2), nn.Conv2d(8, 6, 1, 2)
        self.one, self.two, self.last = nn.Linear(6, 8), nn.Linear(8, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.thin(self.patches(x).tanh()).flatten(2).mT.contiguous()
        out = self.two(self.one(tokens).tanh()).tanh()
        return self.last(out[:, 0] if self.alone else out.mean(1))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("alone", [False, True])
def test_norms_where_products_go_by_convolution(won, threads, alone):
    torch.manual_seed(0)
    net, x, loss = Tokens(alone).eval(), torch.randn(5, 3, 12, 12), lambda z: z.logsumexp(1)
    want = one_by_one(net.double(), x.double(), [loss])
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for _ in range(2):
            with watched() as calls:
                got = grad_sq_norms(net.float(), x, loss)
            torch.testing.assert_close(got.norms.double(), want, rtol=1e-4, atol=0)
        # forward and backward; the last layer's rows lie apart if it reads one token
        assert calls == {"_convolved": 4 if alone else 6, "_turned": 0}
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("last", [False, True])
def test_norms_where_a_kernel_that_meets_all_goes_by_convolution(won, last):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.Tanh(), nn.Conv2d(6, 5, 3, 1, 1), nn.Tanh(), nn.Flatten()).eval()
    x, loss = torch.randn(5, 3, 4, 4), lambda z: z.logsumexp(1)
    want = one_by_one(net.double(), x.double(), [loss])
    for _ in range(2):
        with watched() as calls:
            got = grad_sq_norms(net.float(), x.contiguous(memory_format=torch.channels_last) if last else x, loss)
        torch.testing.assert_close(got.norms.double(), want, rtol=1e-4, atol=0)
    assert calls == {"_convolved": 1, "_turned": 2}  # forward, and by columns backward


def test_autocast_is_left_alone(won):
    net = nn.Sequential(nn.Conv2d(3, 6, 2), nn.Flatten(), nn.Linear(6, 3)).eval()
    x, loss = torch.randn(4, 3, 2, 2), lambda z: z.float().logsumexp(1)
    with torch.autocast("cpu", torch.bfloat16):
        with watched() as calls:
            got = grad_sq_norms(net, x, loss)
        with mock.patch.object(products, "convolutions_win", return_value=False):
            want = grad_sq_norms(net, x, loss)
    assert calls == {"_convolved": 0, "_turned": 0}
    torch.testing.assert_close(got.norms, want.norms)


@pytest.mark.parametrize("last", [False, True])
def test_a_kernel_is_brought_into_the_order_of_the_maps_before_both_directions(last):
    x, layer = torch.randn(2, 3, 6, 6), nn.Conv2d(3, 4, 3)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    call = {"input": x, "weight": layer.weight.detach(), "bias": layer.bias.detach()}
    conv = Conv(torch.conv2d, dict(call), set())
    with mock.patch.object(conv, "func", side_effect=torch.conv2d) as convolution:
        torch.testing.assert_close(conv.forward(), layer(x).detach())
    assert convolution.call_args.kwargs["weight"].is_contiguous(memory_format=torch.channels_last) == last


def test_a_detector_whose_products_go_by_convolution(won):
    inside, outside = torch.randn(60, 5), torch.randn(30, 5) + 1
    got = fit_detector(inside, outside, steps=3)
    with mock.patch.object(products, "convolutions_win", return_value=False):
        want = fit_detector(inside, outside, steps=3)
    for key, value in want.items():
        torch.testing.assert_close(got[key], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("kernel", "dilation"), [(1, 2), (3, 1)])
def test_kernels_of_one_position_are_dilated(won, kernel, dilation):
    x, layer = torch.randn(2, 3, 6, 6), nn.Conv2d(3, 4, kernel)
    call = {"input": x, "weight": layer.weight.detach(), "bias": layer.bias.detach(), "dilation": (1, 1)}
    conv = Conv(torch.conv2d, dict(call), set())
    with mock.patch.object(conv, "func", side_effect=torch.conv2d) as convolution:
        torch.testing.assert_close(conv.forward(), layer(x).detach())
    assert convolution.call_args.kwargs["dilation"] in (dilation, (dilation,) * 2)
