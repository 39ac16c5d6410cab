"""The gradient engine on single layers and awkward networks: equal to autograd on one image at a time."""

from __future__ import annotations

import copy
import gc
import threading
import weakref
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from howsure.gradients import device, explain, grad_sq_norms, one_by_one, verify
from howsure.gradients.conv import Conv
from howsure.gradients.fold import Folded
from howsure.gradients.gram import sequence_gram_sq_norms
from howsure.gradients.graph import pull_back
from howsure.gradients.linear import Linear, linear_sq_norms, reached
from howsure.gradients.plan import Plan

C = 3


def spread(z: Tensor) -> Tensor:
    return z.logsumexp(1) - z.mean(1)


def confounding(z: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(z, torch.ones_like(z), reduction="none").sum(1)


LOSSES = (spread, confounding)


class Head(nn.Module):
    """Any tensor ``[n, …]`` to ``[n, C]``, by a fixed and uneven function without parameters."""

    def forward(self, x: Tensor) -> Tensor:
        flat = torch.tanh(x.flatten(1))
        ramp = torch.linspace(-1, 1, flat.shape[1], dtype=x.dtype)
        return torch.stack([(flat * (ramp * (k + 1)).sin()).sum(1) for k in range(C)], dim=1)


def model_of(*layers: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(*layers, Head()).double().eval()
    for name, b in net.named_buffers():
        if "running" in name:
            b.copy_(torch.rand_like(b) + 0.5)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return net


def exact(net: nn.Module, x: Tensor, **options) -> None:
    want = one_by_one(net, x, LOSSES)
    for _ in range(2):  # the second call uses what the first learned
        got = grad_sq_norms(net, x, LOSSES, **options).norms
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-22)


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


batches = st.integers(1, 5)


@settings(deadline=None, max_examples=25)
@given(
    n=batches,
    i=st.integers(1, 9),
    o=st.integers(1, 9),
    lead=st.lists(st.integers(1, 12), max_size=3),
    bias=st.booleans(),
)
def test_linear_with_any_leading_dimensions(n, i, o, lead, bias):
    exact(model_of(nn.Linear(i, o, bias=bias)), images(n, *lead, i))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_convolution_of_any_configuration(data):
    dims = data.draw(st.integers(1, 3))
    each = lambda low, high: tuple(data.draw(st.integers(low, high)) for _ in range(dims))  # noqa: E731
    groups = data.draw(st.sampled_from([1, 1, 2, 4]))
    i, o = groups * data.draw(st.integers(1, 2)), groups * data.draw(st.integers(1, 2))
    kernel, dilation = each(1, 3), each(1, 2)
    padding = data.draw(st.sampled_from(["same", "valid", "numbers"]))
    stride = (1,) * dims if padding == "same" else each(1, 3)
    padding = each(0, 2) if padding == "numbers" else padding
    mode = data.draw(st.sampled_from(["zeros", "zeros", "reflect", "replicate", "circular"]))
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    layer = kind(i, o, kernel, stride, padding, dilation, groups, data.draw(st.booleans()), mode)
    exact(model_of(layer), images(data.draw(batches), i, *(data.draw(st.integers(5, 8)) for _ in range(dims))))


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_convolution_of_maps_smaller_than_its_kernel(data):
    dims = data.draw(st.integers(1, 2))
    each = lambda low, high: tuple(data.draw(st.integers(low, high)) for _ in range(dims))  # noqa: E731
    groups, bias, normed = data.draw(st.sampled_from([1, 2])), data.draw(st.booleans()), data.draw(st.booleans())
    kernel, stride, dilation, size = each(1, 5), each(1, 3), each(1, 2), each(1, 3)
    padding = tuple((e * (k - 1) + 1) // 2 for e, k in zip(dilation, kernel, strict=True))
    kind, norm = ((nn.Conv1d, nn.BatchNorm1d), (nn.Conv2d, nn.BatchNorm2d))[dims - 1]
    layers = [kind(2 * groups, 4, kernel, stride, padding, dilation, groups, bias), *([norm(4)] if normed else [])]
    exact(model_of(*layers), images(data.draw(batches), 2 * groups, *size), small=True)


class Twice(nn.Module):
    """A layer used twice, so that its gradients are added up before they are squared."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + 2 * self.layer(x.sin())


@pytest.mark.parametrize("rule", ["gram", "unfolded", "windows", "grouped"])
@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_each_rule_holds_for_a_convolution_of_any_configuration(rule, data):
    """Most of them are chosen for many channels alone, whose gradients take long one by one: here each is told to."""
    dims = data.draw(st.integers(1, 3))
    each = lambda low, high: tuple(data.draw(st.integers(low, high)) for _ in range(dims))  # noqa: E731
    groups = data.draw(st.sampled_from([1, 2])) if rule in ("gram", "grouped") else 1
    layer = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1](
        2 * groups, 2 * groups, each(1, 3), each(1, 3), each(0, 2), each(1, 3), groups
    )
    net = model_of(Twice(layer) if data.draw(st.booleans()) else layer)
    x = images(data.draw(batches), 2 * groups, *each(7, 8))
    copies = data.draw(st.sampled_from([1, 1e6]))  # a few samples at a time, or all
    with (
        mock.patch.object(Conv, "way", rule),
        mock.patch("howsure.gradients.gram._BAND", 20),
        mock.patch("howsure.gradients.conv._COPIES", copies),
    ):
        exact(net, x)


@pytest.mark.parametrize("size", [1, 2])
def test_a_cut_kernel_used_twice(size):
    exact(model_of(Twice(nn.Conv2d(3, 2, 3, padding=1))), images(3, 3, size, size))


def test_the_gram_form_of_a_strided_convolution_that_keeps_the_size():
    with mock.patch.object(Conv, "way", "gram"):
        exact(model_of(nn.Conv2d(2, 3, 4, stride=2, padding=3)), images(3, 2, 4, 4))


def test_grouped_convolution_of_maps_of_one_position():
    exact(model_of(nn.Conv2d(4, 4, (1, 2), 1, (0, 1), 1, 2)), images(2, 4, 1, 1))


@pytest.mark.parametrize("layer", [nn.Conv1d, nn.Conv2d, nn.Conv3d])
@pytest.mark.parametrize("bias", [False, True])
def test_a_kernel_as_large_as_the_map(layer, bias):
    dims = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}[layer]
    net = model_of(layer(2, 5, 3, padding=1), nn.Tanh(), layer(5, 4, 3, bias=bias), nn.Tanh(), layer(4, 3, 1))
    exact(net, images(3, 2, *[3] * dims))


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding"),
    [
        *[((2, 2), 3, 1, 1), ((2, 2), 3, 2, 1), ((1, 2), 3, 1, 1), ((2, 1), (3, 2), 1, (1, 1))],
        *[((4,), 7, 2, 3), ((2,), 3, 1, 1), ((2, 1, 2), 3, 1, 1)],
    ],
)
@pytest.mark.parametrize("bias", [False, True])
def test_a_kernel_that_meets_all_of_the_map_at_each_position_is_a_linear_layer(size, kernel, stride, padding, bias):
    layer = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(size) - 1](3, 4, kernel, stride, padding, bias=bias)
    net, x = model_of(layer), images(3, 3, *size)
    with mock.patch.object(Conv, "_at_once", autospec=True, side_effect=Conv._at_once) as at_once:
        exact(net, x, small=True)
    assert at_once.called


@pytest.mark.parametrize(
    ("size", "kernel", "dilation"), [((3, 3), 3, 1), ((2, 2), 3, 2), ((4, 4), 7, 1)], ids=["part", "dilated", "many"]
)
def test_other_kernels_on_small_maps_are_convolutions(size, kernel, dilation):
    layer = nn.Conv2d(3, 4, kernel, padding=dilation * (kernel // 2), dilation=dilation)
    with mock.patch.object(Conv, "_at_once", side_effect=AssertionError):
        exact(model_of(layer), images(3, 3, *size))


@pytest.mark.parametrize("groups", [1, 3, 6])
@pytest.mark.parametrize("kernel", [3, 5, (1, 3)])
@pytest.mark.parametrize("fast", [True, False])
def test_grouped_convolution_of_maps_whose_channels_lie_side_by_side(groups, kernel, fast):
    """In single precision, where another library makes it: its own error is what can be asked for."""
    padding = kernel // 2 if isinstance(kernel, int) else (0, 1)
    net, x = model_of(nn.Conv2d(6, 12, kernel, padding=padding, groups=groups)), images(3, 6, 20, 20) / 9
    want = one_by_one(net, x, [spread])
    with (
        mock.patch.object(Conv, "way", "grouped"),
        mock.patch("howsure.gradients.conv.fast_grouped", return_value=fast),
    ):
        got = grad_sq_norms(net.float(), x.float(), [spread]).norms.double()
    torch.testing.assert_close(got, want, rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("layer", "size", "ways"),
    [
        (nn.Conv2d(3, 64, 7, 2, 3), 32, ("grouped", "unfolded")),
        (nn.Conv2d(3, 16, 3, 1, 1), 32, ("unfolded", "unfolded")),
        (nn.Conv2d(16, 16, 3, 1, 1), 32, ("grouped", "windows")),
        (nn.Conv2d(64, 64, 3, 1, 1), 16, ("grouped", "windows")),
        (nn.Conv2d(64, 8, 3, 1, 1), 32, ("grouped", "grouped")),
        (nn.Conv2d(64, 64, 3, 1, 1, groups=4), 32, ("grouped", "grouped")),
        (nn.Conv2d(64, 64, 3, 1, 1), 8, ("gram", "gram")),
    ],
)
def test_the_rule_depends_on_how_fast_grouped_convolutions_are(layer, size, ways):
    for fast, way in zip((True, False), ways, strict=True):
        with mock.patch("howsure.gradients.conv.fast_grouped", return_value=fast):
            rules = explain(
                nn.Sequential(layer, nn.AdaptiveAvgPool2d(1), nn.Flatten()),
                images(2, layer.in_channels, size, size).float(),
            )
        assert dict(rules)["0.weight"].startswith(f"convolution: {way} ")


def test_kernels_are_cut_to_what_meets_the_input():
    net, x = model_of(nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, 2, 1)), images(3, 8, 1, 1)
    assert dict(explain(net, x))["0.weight"] == "convolution: tiles, |a|² |d|² over 1×1 positions"
    exact(net, x)
    conv = Conv(torch.conv2d, {"input": images(3, 8, 2, 2), "weight": net[1].weight, "stride": 2, "padding": 1}, set())
    conv.forward()
    assert (conv.geometry.kernel, conv.geometry.pads) == ((2, 2), ((0, 0), (0, 0)))


@settings(deadline=None, max_examples=10)
@given(n=batches, stride=st.integers(1, 2), groups=st.sampled_from([1, 2]), dims=st.integers(1, 3))
def test_transposed_convolution(n, stride, groups, dims):
    kind = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 1]
    exact(model_of(kind(2, 4, 3, stride, 1, groups=groups)), images(n, 2, *[4] * dims))


@pytest.mark.parametrize("n", [1, 2, 4, 7])
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (lambda: nn.BatchNorm1d(4), (4,)),
        (lambda: nn.BatchNorm1d(4), (4, 6)),
        (lambda: nn.BatchNorm2d(4), (4, 3, 5)),
        (lambda: nn.BatchNorm3d(4), (4, 2, 3, 2)),
        (lambda: nn.LayerNorm(5), (4, 5)),
        (lambda: nn.LayerNorm((4, 5)), (3, 4, 5)),
        (lambda: nn.LayerNorm((4, 5), bias=False), (4, 5)),
        (lambda: nn.GroupNorm(2, 4), (4, 3, 3)),
        (lambda: nn.InstanceNorm2d(4, affine=True), (4, 3, 3)),
        (lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True), (4, 3, 3)),
        (lambda: nn.RMSNorm(5), (4, 5)),
        (lambda: nn.PReLU(4), (4, 3)),
        (lambda: nn.Bilinear(3, 3, 2), None),
        (lambda: nn.LSTM(3, 4, batch_first=True), None),
        (lambda: parametrizations.weight_norm(nn.Conv2d(2, 3, 3)), (2, 5, 5)),
        (lambda: parametrizations.orthogonal(nn.Linear(4, 4)), (4,)),
        (lambda: nn.MultiheadAttention(4, 2), None),
        (lambda: nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), (5, 4)),
        (lambda: nn.TransformerDecoderLayer(4, 2, 8), None),
    ],
)
def test_layers(layer, shape, n):
    inner = layer()
    if shape is None:
        inner, shape = _Fed(inner), (6, 3) if isinstance(inner, (nn.Bilinear, nn.LSTM)) else (5, 4)
    exact(model_of(inner), images(n, *shape))


class _Fed(nn.Module):
    """Layers that take several inputs, or have the batch in the second dimension."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.inner, nn.Bilinear):
            return self.inner(x, x.sin())
        if isinstance(self.inner, nn.LSTM):
            out, (h, c) = self.inner(x)
            return torch.cat([out.flatten(1), h[0], c[0]], dim=1)
        t = x.transpose(0, 1)
        if isinstance(self.inner, nn.TransformerDecoderLayer):
            return self.inner(t, t.cos()).transpose(0, 1)
        return self.inner(t, t.cos(), t)[0].transpose(0, 1)


class Odd(nn.Module):
    """Parameters of a container, a layer used twice, tied weights, in-place changes, views, an unused parameter."""

    def __init__(self):
        super().__init__()
        self.cls, self.pos = nn.Parameter(torch.randn(1, 1, 4)), nn.Parameter(torch.randn(1, 7, 4))
        self.gamma, self.table = nn.Parameter(torch.randn(4)), nn.Parameter(torch.randn(9, 1))
        self.mix, self.unused = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.randn(3))
        self.scale, self.part, self.q_bias = (
            nn.Parameter(torch.randn(())),
            nn.Parameter(torch.randn(4)),
            nn.Parameter(torch.randn(4)),
        )
        self.twice, self.tied = nn.Linear(4, 4), nn.Linear(4, 4)
        self.tied.weight = self.twice.weight
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.qkv = nn.Linear(4, 12, bias=False)
        self.register_buffer("index", torch.arange(49) % 9)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.conv(x)), inplace=True)
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], dim=1)
        x += self.pos
        bias = self.table[self.index].view(1, 7, 7)
        qkv_bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.q_bias])
        q, k, v = F.linear(x, self.qkv.weight, qkv_bias).chunk(3, dim=-1)
        x = x + F.scaled_dot_product_attention(q, k, v, attn_mask=bias).mul_(self.gamma)
        x = torch.einsum("nld,de->nle", x, self.mix) @ self.mix.T
        y = self.twice(x)
        y.tanh_()
        y = self.tied(self.twice(y))[:, 1:]
        y = torch.where(y > 0.5, self.part, y) / self.scale
        windows = y.reshape(len(y) * 2, 3, 4)
        return y + self.tied(windows).reshape(y.shape)


@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_odd_network(n):
    net = model_of(Odd())
    exact(net, images(n, 2, 2, 3))
    at = [name for name, _ in net.named_parameters()].index("0.unused")
    assert (grad_sq_norms(net, images(n, 2, 2, 3), LOSSES).norms[..., at] == 0).all()


def test_batch_folded_behind_other_dimensions():
    class Folded(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.norm = nn.Linear(4, 4), nn.Linear(4, 4), nn.LayerNorm(4)
            self.conv = nn.Conv1d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            n, length, d = x.shape
            y = self.a(x.transpose(0, 1).reshape(length * n, d))  # sample = index % n
            y = self.norm(y) + self.b(y.view(length, n, d)).view(length * n, d)
            y = self.conv(y.view(length, n, d).flatten(0, 1)[:, :, None])[..., 0]
            return y.view(length, n, d).transpose(0, 1)

    for n in (1, 2, 3, 5):
        exact(model_of(Folded()), images(n, 5, 4))


class Meeting(nn.Module):
    """A weight meets data as `how` says: the network's input, or, `late`, what a layer made of it."""

    def __init__(self, how, late: bool):
        super().__init__()
        self.how, self.late = how, late
        self.weight, self.layer = nn.Parameter(torch.randn(6)), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(x)
        return self.how(self.weight, h if self.late else x) + h.tanh()


MEETINGS = {
    "type_as": lambda w, h: w.sum().type_as(h) * h.sin(),
    "to": lambda w, h: w.cos().to(h) * h.sin(),
    "expand_as": lambda w, h: w.expand_as(h) * h.sin(),
    "view_as": lambda w, h: w.view_as(h[0]) * h.sin(),
    "reshape_as": lambda w, h: w.reshape(2, 3).reshape_as(h[0]) * h.sin(),
    "broadcast_tensors": lambda w, h: torch.broadcast_tensors(w, h)[0] * h.sin(),
    "zeros_like": lambda w, h: (torch.zeros_like(h) + w) * h.sin(),
    "copy_": lambda w, h: torch.empty_like(h).copy_(w) * h.sin(),
    "where": lambda w, h: torch.where(h > 0, w, 2 * w) * h.sin(),
    "masked_fill": lambda w, h: w.expand(h.shape).masked_fill(h > 0, 0.3) * h.cos(),
    "chosen": lambda w, h: w[(2 * h.abs()).long().clamp(max=5)] * h.cos(),
    "lerp": lambda w, h: torch.lerp(w.expand(h.shape), h, 0.3),
    "power": lambda w, h: w.abs() ** h,
    "subtracted": lambda w, h: (h.sin() - w) * (w - h),
    "subtracted with a factor": lambda w, h: torch.sub(h, w, alpha=2).sin(),
    "compared": lambda w, h: h * (h > w) + w,
    "distance": lambda w, h: torch.cdist(h, w.outer(w)),
    "complex": lambda w, h: torch.view_as_real(torch.complex(h, h.sin()) * torch.complex(w, w.cos())).sum(-1),
    "real by complex": lambda w, h: torch.view_as_real(torch.complex(h, h.sin()) * w).prod(-1),
    "complex layer": lambda w, h: F.linear(torch.complex(h, h.sin()), torch.complex(w.outer(w), w.diag())).abs(),
    "fourier": lambda w, h: torch.fft.irfft(torch.fft.rfft(h) * torch.view_as_complex(w.view(3, 2))[[0, 1, 2, 0]], n=6),
}


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("how", MEETINGS)
def test_however_a_weight_meets_data(how, late):
    for n in (1, 3):
        exact(model_of(Meeting(MEETINGS[how], late)), images(n, 6))


def test_a_gradient_that_would_be_lost_is_an_error(monkeypatch):
    monkeypatch.setattr("howsure.gradients.trace.SHAPE_ONLY", set())
    with pytest.raises(RuntimeError, match=r"0\.weight: its gradient would be lost in expand_as"):
        grad_sq_norms(model_of(Meeting(MEETINGS["expand_as"], True)), images(3, 6), LOSSES)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_is_an_error_that_says_what_to_do(reentrant):
    class Checkpointed(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(super().forward, x, use_reentrant=reentrant)

    part = Checkpointed(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3))
    with pytest.raises(RuntimeError, match=r"set_grad_checkpointing\(False\)"):
        grad_sq_norms(model_of(nn.Conv2d(2, 2, 1), part), images(3, 2, 5, 5), LOSSES)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is")
def test_a_scripted_part_is_exact_too():
    part = torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.Tanh()).double())
    exact(model_of(nn.Linear(4, 4), part, nn.Linear(4, 2)), images(4, 4))


def small_net() -> nn.Module:
    return model_of(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(True), nn.Flatten(), nn.Linear(36, 5))


def test_parameter_selection_small_gradients_and_batches():
    net, x = small_net(), images(11, 2, 5, 5)
    full = grad_sq_norms(net, x, LOSSES, small=True)
    assert full.small_names == ("0.bias", "1.weight", "1.bias", "4.bias")
    assert full.small_sizes == (4, 4, 4, 5)
    squares = [part.square().sum(2) for part in full.small.split(full.small_sizes, dim=2)]
    for name, square in zip(full.small_names, squares, strict=True):
        torch.testing.assert_close(square, full.norms[..., full.names.index(name)])
    net.zero_grad()
    spread(net(x[3:4])).sum().backward()
    torch.testing.assert_close(full.small[0, 3, :4], net[0].bias.grad)
    net.zero_grad()
    part = grad_sq_norms(net, x, LOSSES, parameters=["4.weight", "1.bias"], max_batch=3, small=["1.bias"])
    assert part.names == ("1.bias", "4.weight")
    torch.testing.assert_close(part.norms[..., 1], full.norms[..., full.names.index("4.weight")])
    torch.testing.assert_close(part.small, full.small[..., 8:12])
    torch.testing.assert_close(part.logits, net(x).detach())
    assert part.logits.grad_fn is None


def test_float32_is_exact_to_1e_4_or_to_what_autograd_is():
    net, x = small_net().float(), images(6, 2, 5, 5).float()
    want = one_by_one(copy.deepcopy(net).double(), x.double(), LOSSES)
    ours, its = (((n - want) / want).abs() for n in (grad_sq_norms(net, x, LOSSES).norms, one_by_one(net, x, LOSSES)))
    assert (ours <= its.amax((0, 1)).clamp_min(1e-4)).all()


def test_a_first_call_gives_what_later_ones_give_to_the_last_bit():
    net, x = model_of(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3)).float(), images(40, 2, 9, 9)
    first, second = (grad_sq_norms(net, x.float(), LOSSES, small=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first[:1] + first[2:4], second[:1] + second[2:4], strict=True))


def test_positions_that_cancel():
    """A sum of products far below its terms: the Gram rule must hand over to the gradient itself."""

    torch.manual_seed(0)
    a = 1 + 1e-2 * torch.randn(3, 64, 70)
    d = torch.randn(3, 64, 70)
    d[:2] -= d[:2].mean(2, keepdim=True)
    want = (d.double() @ a.double().mT).square().sum((1, 2))
    torch.testing.assert_close(sequence_gram_sq_norms(a, d).double(), want, rtol=1e-4, atol=0)


@pytest.mark.parametrize("length", [2, 63, 64, 65, 128, 150])
def test_gram_matrices_are_made_in_bands_of_any_length(length):
    a, d = images(3, 5, length), images(3, 4, length).flip(2)
    torch.testing.assert_close(sequence_gram_sq_norms(a, d), (d @ a.mT).square().sum((1, 2)))


class Pick(nn.Module):
    """Of the positions of a sequence, the first; or of each sample the one where a feature is largest."""

    def __init__(self, largest: bool):
        super().__init__()
        self.largest = largest

    def forward(self, x: Tensor) -> Tensor:
        at = x[..., 0].argmax(1) if self.largest else torch.zeros(len(x), dtype=torch.long)
        return x.gather(1, at[:, None, None].expand(-1, 1, x.shape[2]))[:, 0]


@pytest.mark.parametrize("queues", [False, True])
@pytest.mark.parametrize("largest", [False, True])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_positions_without_a_gradient_are_left_out(n, largest, queues, monkeypatch):
    """As behind a class token; on a GPU, which would have to be asked, they are not."""
    monkeypatch.setattr("howsure.gradients.device.QUEUED", {"cpu"} if queues else set())
    lengths = []

    def spy(a: Tensor, d: Tensor, doubts: list[Tensor] | None) -> Tensor:
        lengths.append(a.shape[2])
        return linear_sq_norms(a, d, doubts)

    net = model_of(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 7), nn.Tanh(), Pick(largest))
    x = torch.cat([images(n, 1, 6), images(n, 20, 6) / 9], dim=1)
    with mock.patch("howsure.gradients.linear.linear_sq_norms", spy):
        exact(net, x, max_batch=3)
    assert queues == (max(lengths) == 21)


def test_many_gradients_at_once_go_through_a_linear_layer_of_positions():
    """As a parameter used unseen needs them: vectorised, not one after the other."""
    layer = Linear(F.linear, {"input": images(2, 3, 5).requires_grad_(), "weight": images(4, 5)}, {"weight"})
    x, rows = layer.arguments["input"], images(7, 2, 3, 4)
    out = layer.forward()
    with mock.patch("torch.autograd.grad", wraps=torch.autograd.grad) as calls:
        (got,) = pull_back([out], [x], [rows])
    torch.testing.assert_close(got, rows @ images(4, 5))
    assert calls.call_count == 1


def test_few_positions_are_told_from_many():
    d = torch.zeros(2, 6, 3)
    assert reached(d).tolist() == []
    d[1, 4, 2] = torch.nan
    d[0, 1, 1] = 1e-40
    assert reached(d).tolist() == [1, 4]
    d[:, :3, 0] = 1
    assert all(reached(many) is None for many in (d, torch.ones(2, 6, 3), torch.ones(2, 0, 3)))


def test_groups_that_cancel():
    """The same where one group of a convolution cancels."""
    net = model_of(nn.Conv2d(128, 128, 3, groups=2, padding=1))
    x = 1 + 1e-4 * images(3, 128, 4, 4)
    x[:, :64] = images(3, 64, 4, 4)
    assert "gram" in dict(explain(net, x))["0.weight"]
    exact(net, x)


def test_a_network_that_views_its_maps_starts_again_with_plain_ones():
    class Views(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.view(len(x), -1)

    net, x, restarts = model_of(nn.Conv2d(2, 4, 3), Views(), nn.Linear(36, 5)), images(6, 2, 5, 5), []
    got = [grad_sq_norms(net, x, LOSSES, on_restart=lambda: restarts.append(1)).norms for _ in range(2)]
    torch.testing.assert_close(got, [one_by_one(net, x, LOSSES)] * 2)
    assert restarts == [1, 1]  # after a look at the first images, and in the other format
    assert dict(explain(net, x))["0.weight"].startswith("convolution: ")


class ReadTwice(nn.Module):
    """The output of the convolution is read by batch norm, and once more by `how`."""

    def __init__(self, how: str):
        super().__init__()
        self.how, self.conv, self.bn = how, nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv(x)
        if self.how == "not normed":
            return out
        if self.how == "overwritten before":
            out.mul_(2)
        if self.how == "overwritten in part":
            out[:, :2].mul_(2)
        if self.how == "measured":
            assert (out.shape[1], out.dim()) == (out.size(1), out.ndim)
        if self.how == "otherwise normed":
            return F.batch_norm(out, self.bn.running_mean, self.bn.running_var, self.bn.weight, self.bn.bias, eps=0.5)
        normed = self.bn(out)
        if self.how == "unused":
            out.sin()
        if self.how == "twice normed":
            return normed * self.bn(out)
        return normed + out if self.how == "skip" else normed


FOLDED = "batch norm: from the convolution's gradient"
READINGS = {
    "once": True,
    "measured": True,
    "otherwise normed": True,
    "not normed": False,
    "unused": False,
    "skip": False,
    "twice normed": False,
    "overwritten before": False,
    "overwritten in part": False,
}


@pytest.mark.parametrize("how", READINGS)
def test_batch_norm_is_folded_where_nothing_else_reads_the_convolution(how):
    net, x = model_of(ReadTwice(how)), images(5, 2, 17, 17)
    exact(net, x, small=True)
    alone = grad_sq_norms(net, x, LOSSES, parameters=["0.bn.weight"])
    torch.testing.assert_close(alone.norms, one_by_one(net, x, LOSSES)[:, :, 2:3], rtol=1e-9, atol=1e-22)
    rules = dict(explain(net, x))
    assert (rules["0.bn.weight"] == FOLDED) == READINGS[how], rules["0.bn.weight"]


@pytest.mark.parametrize("how", READINGS)
def test_a_network_that_changes_its_mind_is_not_folded(how):
    net, x, restarts = model_of(ReadTwice("once")), images(9, 2, 17, 17), []
    exact(net, x)
    net[0].how = how
    exact(net, x, small=True, on_restart=lambda: restarts.append(how))
    assert len(restarts) == (how not in ("once", "measured"))


LOOKS = {
    "at the convolution": ("conv", lambda args, out: out.detach().clone()),
    "at the norm": ("bn", lambda args, out: args[0].detach().clone()),
    "later": ("conv", lambda args, out: out),
}


@pytest.mark.parametrize("when", LOOKS)
def test_hooks_see_what_a_convolution_gives_though_it_was_folded(when):
    net, x, seen, restarts = model_of(ReadTwice("once")), images(9, 2, 17, 17), [], []
    exact(net, x)
    name, look = LOOKS[when]
    want = net[0].conv(x).detach()
    with getattr(net[0], name).register_forward_hook(lambda module, args, out: seen.append(look(args, out))):
        grad_sq_norms(net, x, LOSSES, on_restart=lambda: (seen.clear(), restarts.append(1)))
    torch.testing.assert_close(torch.cat(seen).detach(), want)
    assert restarts == [1]


def test_folded_parameters_are_those_of_now():
    net, x = model_of(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)), images(5, 2, 16, 16)
    exact(net, x)
    net[0].weight.data.mul_(-1.5)
    net[1].weight.data.add_(0.5)
    net[1].running_var.mul_(2)
    exact(net, x)
    net[1].running_mean = torch.ones(4, dtype=torch.float64)
    exact(net, x)
    net[1].running_mean.fill_(1e4)  # its scale's gradient would cancel
    exact(net, x + 1e4)
    net[0] = nn.Conv2d(2, 4, 3).double()
    net[1] = nn.BatchNorm2d(4, affine=False).double().eval()
    exact(net, x)


@settings(deadline=None, max_examples=25)
@given(
    n=batches,
    i=st.sampled_from([1, 3, 24]),
    o=st.integers(1, 6),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 3),
    bias=st.booleans(),
    affine=st.booleans(),
)
def test_convolution_and_batch_norm(n, i, o, kernel, stride, bias, affine):
    net = model_of(
        nn.Conv2d(i, o, kernel, stride, padding=1 if kernel > 1 else 0, bias=bias),
        nn.BatchNorm2d(o, affine=affine),
        nn.ReLU(inplace=True),
        nn.Conv2d(o, 2, 1, bias=False),
        nn.BatchNorm2d(2),
    )
    exact(net, images(n, i, 15, 13))


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_grouped_convolution_and_batch_norm(groups):
    net, x = model_of(nn.Conv2d(4, 8, 3, groups=groups), nn.BatchNorm2d(8)), images(4, 4, 16, 16)
    assert dict(explain(net, x))["1.weight"] == FOLDED
    exact(net, x)
    assert verify(net.float(), x.float(), LOSSES) < 1e-4


@pytest.mark.parametrize("scale", [0.0, 1e-30, -2.0])
def test_batch_norm_of_any_scale_is_folded(scale):
    net, x = model_of(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)), images(3, 2, 16, 16)
    with torch.no_grad():
        net[1].weight[1] = scale
    assert dict(explain(net, x))["1.weight"] == FOLDED
    exact(net, x)


def test_a_folded_batch_norm_that_is_used_twice_later():
    class Twice(nn.Module):
        times = 1

        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Tanh())

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(self.times):
                x = self.layers(x)
            return x

    net, x = model_of(Twice()), images(3, 4, 16, 16)
    assert dict(explain(net, x))["0.layers.1.weight"] == FOLDED
    for net[0].times in (1, 2, 1):
        exact(net, x)


@pytest.mark.parametrize(("way", "copies", "sizes"), [("windows", 1, [3, 3, 3]), ("grouped", 11e3, [2, 2, 2, 2, 1])])
def test_a_fold_takes_a_few_images_at_a_time(way, copies, sizes):
    """At most four of windows, in equal parts; two of grouped, whose maps and kernels take 5400 bytes an image."""
    net, x = model_of(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Tanh()), images(9, 3, 9, 9)
    with (
        mock.patch.object(Conv, "way", way),
        mock.patch("howsure.gradients.conv._COPIES", copies),
        mock.patch("torch.get_num_threads", return_value=1),
        mock.patch.object(Folded, "_sums", autospec=True, side_effect=Folded._sums) as sums,
    ):
        exact(net, x)
        sums.reset_mock()
        grad_sq_norms(net, x, spread)
    assert [len(call.args[1]) for call in sums.mock_calls] == sizes


def test_gradients_of_a_folded_scale():
    net, x = model_of(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)), images(3, 2, 16, 16)
    assert dict(explain(net, x))["1.weight"] == FOLDED
    got = grad_sq_norms(net, x, LOSSES, small=["1.weight"])
    for k, loss in enumerate(LOSSES):
        for i in range(len(x)):
            (want,) = torch.autograd.grad(loss(net(x[i : i + 1].repeat(2, 1, 1, 1)))[0], [net[1].weight])
            torch.testing.assert_close(got.small[k, i], want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("mean", [0.5, 1e4])
def test_batch_norm_far_from_zero(mean):
    net = model_of(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3))
    net[0].running_mean.fill_(mean)
    exact(net, mean + images(4, 3, 6, 6))


def test_hooks_see_each_image_once_in_order():
    net, x, seen = small_net(), images(11, 2, 5, 5), []
    with net[0].register_forward_hook(lambda module, args, out: seen.append(args[0].detach().clone())):
        grad_sq_norms(net, x, LOSSES)
        torch.testing.assert_close(torch.cat(seen), x)
        seen.clear()
        grad_sq_norms(net, x, LOSSES, max_batch=4)
    torch.testing.assert_close(torch.cat(seen), x)
    assert [len(s) for s in seen] == [4, 4, 3]


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_the_network_comes_back_as_it_was(frozen, fails):
    net, x = small_net(), images(5, 2, 5, 5)
    net[0].weight.requires_grad_(not frozen)
    net[4].bias.grad = torch.ones_like(net[4].bias)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    flags = [p.requires_grad for p in net.parameters()]

    def broken(z: Tensor) -> Tensor:
        raise RuntimeError("broken")

    if fails:
        with pytest.raises(RuntimeError, match="broken"):
            grad_sq_norms(net, x, [broken])
    else:
        exact(net, x)
    assert flags == [p.requires_grad for p in net.parameters()]
    assert (net[4].bias.grad == 1).all()
    assert net[0].weight.grad is None
    assert not net.training
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in net.modules())
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_inside_no_grad():
    net, x = small_net(), images(5, 2, 5, 5)
    with torch.no_grad():
        got = grad_sq_norms(net, x, LOSSES).norms
    torch.testing.assert_close(got, one_by_one(net, x, LOSSES))


def test_a_layer_that_mixes_samples_is_an_error_that_names_it():
    net = small_net().train()
    with pytest.raises(ValueError, match=r"1 \(BatchNorm2d\) is in training mode"):
        grad_sq_norms(net, images(4, 2, 5, 5), LOSSES)
    net = model_of(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4, track_running_stats=False))
    with pytest.raises(ValueError, match="keeps no running statistics"):
        grad_sq_norms(net, images(4, 2, 5, 5), LOSSES)

    class Mixes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x - x.mean(0)

    with pytest.raises(RuntimeError, match="mixes the samples"):
        grad_sq_norms(model_of(nn.Linear(4, 4), Mixes()), images(4, 4), LOSSES)


def test_other_errors_teach():
    net, x = small_net(), images(4, 2, 5, 5)
    with pytest.raises(ValueError, match="no parameter 'nope'"):
        grad_sq_norms(net, x, LOSSES, parameters=["nope"])
    with pytest.raises(ValueError, match="not a one-dimensional"):
        grad_sq_norms(net, x, LOSSES, small=["4.weight"])
    with pytest.raises(ValueError, match="one value per sample"):
        grad_sq_norms(net, x, [lambda z: z.sum()])
    with pytest.raises(ValueError, match="logits"):
        grad_sq_norms(net[:3], x, LOSSES)


def test_out_of_memory_halves_the_batch_and_starts_again():
    net, x, restarts = small_net(), images(8, 2, 5, 5), []

    class Full(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if len(x) > 2:
                raise torch.OutOfMemoryError("full")
            return x

    full = nn.Sequential(Full(), *net).eval()
    got = grad_sq_norms(full, x, LOSSES, on_restart=lambda: restarts.append(1)).norms
    torch.testing.assert_close(got, one_by_one(net, x, LOSSES))
    assert len(restarts) == 2  # from the first 4 to 2, and after a look at them


def test_out_of_memory_never_tries_more_than_what_failed(monkeypatch):
    monkeypatch.setattr(Plan, "chunk", lambda *_: 4)
    net, sizes = small_net(), []

    class Full(nn.Module):
        room = 4

        def forward(self, x: Tensor) -> Tensor:
            sizes.append(len(x))
            if len(x) > self.room:
                raise torch.OutOfMemoryError("full")
            return x

    full, x = nn.Sequential(Full(), *net).eval(), images(20, 2, 5, 5)
    grad_sq_norms(full, x, LOSSES)
    sizes.clear()
    full[0].room = 2
    got = grad_sq_norms(full, x, LOSSES).norms
    assert sizes == [4] + [2] * 10
    torch.testing.assert_close(got, one_by_one(net, x, LOSSES))


def test_two_threads_on_two_networks():
    nets, x, got = [small_net(), model_of(nn.Linear(50, 5))], images(9, 2, 5, 5), {}
    inputs = [x, x.flatten(1)]
    want = [one_by_one(net, i, LOSSES) for net, i in zip(nets, inputs, strict=True)]

    def work(k: int) -> None:
        got[k] = [grad_sq_norms(nets[k], inputs[k], LOSSES, max_batch=2).norms for _ in range(5)]

    threads = [threading.Thread(target=work, args=(k,)) for k in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for k in range(2):
        for norms in got[k]:
            torch.testing.assert_close(norms, want[k])


def test_a_bias_cached_by_the_network_is_neither_used_nor_lost():
    class Caching(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.bias_cache = nn.Parameter(torch.randn(9)), {}

        def forward(self, x: Tensor) -> Tensor:
            if "bias" not in self.bias_cache:
                self.bias_cache["bias"] = self.table[torch.arange(4) * 2]
            return x + self.bias_cache["bias"]

    net, x = model_of(nn.Linear(4, 4), Caching()), images(6, 4)
    with torch.no_grad():
        net(x)
    kept = net[1].bias_cache["bias"]
    exact(net, x, max_batch=2)
    assert net[1].bias_cache["bias"] is kept


def test_a_changed_network_is_learned_anew():
    net, x = small_net(), images(6, 2, 5, 5)
    exact(net, x)
    net[4] = nn.Sequential(nn.Linear(36, 6), nn.LayerNorm(6)).double()
    exact(net, x)


def test_verify_and_explain():
    net, x = small_net(), images(6, 2, 5, 5)
    assert verify(net, x, LOSSES) < 1e-10
    rules = dict(explain(net, x))
    assert list(rules) == [name for name, _ in net.named_parameters()]
    assert rules["0.weight"].startswith("convolution: ")
    assert rules["4.weight"] == "linear: |a|² |d|²"
    odd = dict(explain(model_of(Odd()), images(4, 2, 2, 3)))
    assert odd["0.unused"] == "no gradient"
    assert "pulled back" in odd["0.table"]


def test_explain_where_the_network_reads_strides():
    class Reads(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.as_strided(x.shape, x.contiguous().stride()) if x.stride()[1] > 1 else x

    net, x = model_of(nn.Conv2d(2, 4, 3), Reads(), nn.Flatten(), nn.Linear(36, 5)), images(4, 2, 5, 5)
    exact(net, x)
    assert dict(explain(net, x))["3.weight"] == "linear: |a|² |d|²"


def test_verify_and_explain_in_inference_mode():
    net = small_net()
    with torch.inference_mode():
        x = images(4, 2, 5, 5)
        assert verify(net, x, LOSSES) < 1e-10
        assert dict(explain(net, x))["4.weight"] == "linear: |a|² |d|²"


def test_explain_keeps_no_memory():
    explain(model_of(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.Flatten()), images(4, 2, 5, 5))
    assert "kept" not in vars(device._scratch)


def test_the_engine_waits_for_the_reference_on_the_same_network():
    net, x, done = small_net(), images(3, 2, 5, 5), threading.Event()
    waiting = threading.Thread(target=lambda: (grad_sq_norms(net, x, LOSSES), done.set()))

    def loss(z: Tensor) -> Tensor:
        if not waiting.ident:
            waiting.start()
            assert not done.wait(1)
        return z.square().sum(1)

    net.requires_grad_(False)
    one_by_one(net, x, loss)
    waiting.join()
    assert done.is_set()
    assert not any(p.requires_grad for p in net.parameters())


def test_nothing_is_kept_from_call_to_call():
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(144, 3)
    ).eval()
    kept: list[weakref.ref[Tensor]] = []
    hook = net[4].register_forward_hook(lambda m, inputs, out: kept.extend(map(weakref.ref, (inputs[0], out))))
    for _ in range(3):
        grad_sq_norms(net, torch.randn(5, 3, 8, 8), [lambda z: z.logsumexp(1)])
    gc.collect()
    hook.remove()
    assert kept
    assert all(ref() is None for ref in kept)
