"""The gradient engine on networks whose code it cannot see, whose samples meet, or which change between calls."""

import copy
import warnings
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from howsure.gradients import explain, grad_sq_norms, one_by_one, verify
from howsure.gradients.chunk import Chunk
from howsure.gradients.layout import Layout, candidates, codes, explains, plausible
from howsure.gradients.parts import Call
from howsure.gradients.plan import _plans
from howsure.gradients.sums import sq_norm
from howsure.gradients.trees import tensors
from howsure.losses import Predicted


def spread(z: Tensor) -> Tensor:
    return z.logsumexp(1) - z.mean(1)


def images(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def plainly(net: nn.Module, x: Tensor, loss=spread) -> Tensor:
    """`[N, P]`, one image and one ordinary backward pass at a time."""
    rows = []
    for i in range(len(x)):
        grads = torch.autograd.grad(loss(net(x[i : i + 1])).sum(), list(net.parameters()), allow_unused=True)
        rows.append(torch.stack([torch.zeros(()).double() if g is None else g.abs().square().sum() for g in grads]))
    return torch.stack(rows)


def exact(net: nn.Module, x: Tensor, calls: int = 2, **options) -> None:
    net = net.double().eval()
    want = plainly(net, x)
    for _ in range(calls):
        torch.testing.assert_close(grad_sq_norms(net, x, spread, **options).norms[0], want, rtol=1e-9, atol=1e-18)


class Net(nn.Module):
    """`forward(self, x)` as given, over `first` (4 to 4) and `last` (4 to 3) linear layers and parameters `a`, `b`."""

    def __init__(self, forward):
        super().__init__()
        self.first, self.last, self.a = nn.Linear(4, 4), nn.Linear(4, 3), nn.Parameter(torch.rand(4))
        self.b = nn.Parameter(torch.rand(4))
        self.run, self.flag = forward, False

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def script(what):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(what)


def _doubled(x: Tensor) -> Tensor:
    return x * 2


doubled = script(_doubled)


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x * w

    @staticmethod
    def backward(ctx, d):
        x, w = ctx.saved_tensors
        return d * w, (d * x).sum(0)


def image_for_each_group(net: Net, x: Tensor) -> Tensor:
    kernels = net.first.weight[:, :1, None].repeat(len(x), 1, 1)
    return net.last(F.conv1d(x.view(1, len(x), 4), kernels, groups=len(x)).view(len(x), 4, 4).tanh().sum(2))


class Rounded(torch.autograd.Function):
    """A straight-through quantiser."""

    @staticmethod
    def forward(ctx, w):
        return torch.round(w * 8) / 8

    @staticmethod
    def backward(ctx, d):
        return d


def through_a_mapped_grad(net: Net, x: Tensor) -> Tensor:
    return net.last(torch.func.vmap(torch.func.grad(lambda row: net.first(row).tanh().sum()))(x))


Pair = namedtuple("Pair", "a b")


def write_rows(net: Net, x: Tensor) -> Tensor:
    k = torch.eye(4, dtype=x.dtype)
    k[0][1] = net.a[0]
    k[2][3] = net.a[1]
    return net.last(net.first(x) @ k)


def write_view(net: Net, x: Tensor) -> Tensor:
    k = torch.eye(4, dtype=x.dtype)
    k.view(-1)[:4].copy_(net.a)
    return net.last(x @ k)


def repeat_then_add(net: Net, x: Tensor) -> Tensor:
    t = net.a[None].repeat(len(x), 1)
    t += net.first.bias
    return net.last(t * x)


def nested(net: Net, x: Tensor) -> Tensor:
    """Sequences of several lengths without padding."""
    rows = torch.nested.as_nested_tensor([image[: 2 + int(image[0] > 0), None] for image in x], layout=torch.jagged)
    h = F.layer_norm(F.linear(rows, net.first.weight[:, :1], net.first.bias), (4,), net.a, net.b)
    return net.last(torch.stack([image.sum(0) for image in h.unbind()]))


UNSEEN = {
    "nested tensors": nested,
    "a scripted function before all layers": lambda net, x: net.last(net.first(doubled(x)).tanh()),
    "data by way of a list": lambda net, x: net.last(net.first(torch.tensor(x.tolist(), dtype=x.dtype))),
    "data by way of numpy": lambda net, x: net.last(net.first(torch.from_numpy(x.numpy() * 2))),
    "a function of its own on a derived weight": lambda net, x: net.last(Doubled.apply(net.first(x), net.a * 2)),
    "a constant written to row by row": write_rows,
    "a constant written to through a view": write_view,
    "a diagonal": lambda net, x: net.last(x @ torch.diag_embed(net.a)),
    "logits of weights alone": lambda net, x: net.last.bias.expand(len(x), 3) * 1,
    "a repeated weight that is added to": repeat_then_add,
    "the first weight quantised": lambda net, x: net.last(F.linear(x, Rounded.apply(net.first.weight)).tanh() * net.a),
    "a quantised weight with a scale": lambda net, x: net.last(
        F.linear(x, Rounded.apply(net.first.weight / net.a) * net.a, net.first.bias).tanh() * net.b
    ),
    "two quantised weights with a scale and each other": lambda net, x: net.last(
        x @ (Rounded.apply(net.first.weight) * net.a + Rounded.apply(net.b)).add_(net.b).T
    ),
    "a quantised scale of a batch norm": lambda net, x: net.last(
        F.batch_norm(net.first(x), x.new_zeros(4), x.new_ones(4), Rounded.apply(net.a), net.b)
    ),
    "a mapped layer": lambda net, x: net.last(torch.vmap(net.first)(x).tanh() * net.a),
    "a derivative along the data": lambda net, x: net.last(
        torch.func.jvp(lambda t: net.first(t).sin(), (x,), (x.cos(),))[1] * net.a
    ),
    "a gradient of a mapped layer": through_a_mapped_grad,
    "a named tuple of parameters": lambda net, x: net.last(x * torch.stack(Pair(net.a, net.b)).prod(0)),
    "overloads in place": lambda net, x: net.last(torch.ops.aten.mul_.Tensor(net.first(x) * 1, net.a)),
    "an image for each group": image_for_each_group,
    "a layer of no inputs": lambda net, x: net.last(x) + F.linear(x[:, :0], net.last.weight[:, :0], net.last.bias),
}


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is")
@pytest.mark.parametrize("how", UNSEEN)
@pytest.mark.parametrize("n", [1, 3, 9])
def test_weights_that_are_used_unseen(how, n):
    net = Net(UNSEEN[how])
    before = copy.deepcopy(net.double().state_dict())
    exact(net, images(n, 4))
    exact(net, images(n, 4), max_batch=2)
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)


def test_a_repeated_constant_is_not_overwritten():
    net, x = Net(repeat_then_add).double(), images(5, 4)
    before = net.a.detach().clone()
    got = grad_sq_norms(net, x, spread, parameters=["last.weight"], max_batch=1).norms[0, :, 0]
    torch.testing.assert_close(got, plainly(net, x)[:, 4], rtol=1e-9, atol=0)
    torch.testing.assert_close(net.a.detach(), before, rtol=0, atol=0)


def test_a_layer_that_is_scripted_after_the_first_call():
    net, x = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 4), nn.Linear(4, 3)), images(7, 4)
    exact(net, x)
    net[1] = script(net[1])
    exact(net, x)


def flagged(on):
    def run(net: Net, x: Tensor) -> Tensor:
        h = net.first(x)
        return net.last(on(net, h) if net.flag else h)

    return run


def test_a_network_that_takes_another_way_after_the_first_call():
    net, x = Net(flagged(lambda net, h: Doubled.apply(h, net.a * 2))), images(7, 4)
    exact(net, x)
    net.flag = True
    exact(net, x)
    net = Net(flagged(lambda net, h: h - h.mean(0)))
    exact(net, x)
    net.flag = True
    with pytest.raises(RuntimeError, match="mixes the samples"):
        grad_sq_norms(net, x, spread)


def halves(net: Net, x: Tensor) -> Tensor:
    a, b = net.first(torch.cat([x, x.flip(1)])).tanh().chunk(2)
    return net.last(x) + net.a[3] * (a + b)[:, :3]


@pytest.mark.usefixtures("queued_or_not")
@pytest.mark.parametrize("n", [2, 4, 9])
def test_a_gradient_that_was_zero_at_first(n):
    net, x = Net(halves), images(n, 4)
    net.a.data.zero_()
    exact(net, x)
    net.a.data.fill_(1.0)
    exact(net, x)


@pytest.mark.usefixtures("queued_or_not")
def test_a_gate_that_opens_for_later_images():
    def run(net: Net, x: Tensor) -> Tensor:
        a, b = net.first(torch.cat([x, x.flip(1)])).tanh().chunk(2)
        return net.last(x) + x[:, :1].relu() * (a + b)[:, :3]

    x = images(12, 4)
    x[:, 0] = x[:, 0].abs()
    x[:4, 0] *= -1
    exact(Net(run), x, max_batch=4)
    exact(Net(run), x)


def test_gates_that_open_in_turn_are_learned_once():
    def run(net: Net, x: Tensor) -> Tensor:
        return net.last(x) + x[:, :1].relu() * net.first(x)[:, :3] + (-x[:, :1]).relu() * (x * net.a)[:, :3]

    net, x, restarts = Net(run).double().eval(), images(4, 4), []
    x[:, 0] = x[:, 0].abs()
    other = torch.cat([-x[:, :1], x[:, 1:]], 1)
    for part in (x, other):
        grad_sq_norms(net, part, spread)
    for part in (x, other):
        got = grad_sq_norms(net, part, spread, on_restart=lambda: restarts.append(1)).norms[0]
        torch.testing.assert_close(got, plainly(net, part), rtol=1e-9, atol=1e-18)
    assert not restarts


SORTED = {
    "the order of the data": lambda net, x: ordered(net, x, x.abs().sum(1).argsort()),
    "an order for some sizes alone": lambda net, x: ordered(net, x, torch.arange(len(x)).roll(int(len(x) > 4))),
}
MIXED = {
    "a mean taken off the images": lambda net, x: net.last(x - x.mean(0)),
    "a scale by the largest of all": lambda net, x: net.last((x / x.detach().abs().max()).exp()),
    "batch statistics without weights": lambda net, x: net.last(F.batch_norm(x, None, None, training=True)),
    "a little of the mean": lambda net, x: net.last(net.first(x) - 1e-4 * net.first(x).mean(0)),
    "gradients alone": lambda net, x: net.last(x + net.first(x).mean(0) - net.first(x).mean(0).detach()),
    "dropout": lambda net, x: net.last(F.dropout(net.first(x))),
}


def ordered(net: Net, x: Tensor, order: Tensor) -> Tensor:
    return net.last(net.first(x[order]).tanh())[order.argsort()]


@pytest.mark.parametrize("how", MIXED)
def test_samples_that_meet_are_an_error(how):
    x = images(12, 4)
    x[:4] = x[:4][x[:4].abs().sum(1).argsort()]  # in order at first
    with pytest.raises(RuntimeError, match=r"mixes the samples|on chance"):
        grad_sq_norms(Net(MIXED[how]).double(), x, spread)


def test_samples_that_mix_a_little_in_single_precision_are_not_taken_one_at_a_time():
    net = Net(lambda net, x: net.last(net.first(x) - 5e-4 * net.first(x).mean(0)))
    with pytest.raises(RuntimeError, match="mixes the samples"):
        grad_sq_norms(net, images(12, 4).float(), spread)


@pytest.mark.parametrize("how", SORTED)
def test_samples_that_are_only_sorted_go_one_at_a_time(how):
    x = images(12, 4)
    x[:4] = x[:4][x[:4].abs().sum(1).argsort()]  # in order at first
    with pytest.warns(UserWarning, match="one at a time") as told:
        exact(Net(SORTED[how]), x)
    assert len(told) == 1
    assert told[0].filename == __file__


@pytest.mark.filterwarnings("ignore:images go through the network one at a time")
def test_a_choice_that_hangs_on_the_data_is_looked_at_every_time():
    net, x = Net(SORTED["the order of the data"]).double(), images(8, 4)
    x = x[x.abs().sum(1).argsort()]
    exact(net, x)
    exact(net, x.flip(0))


def test_samples_that_are_sorted_by_a_network_that_takes_no_single_one():
    def run(net: Net, x: Tensor) -> Tensor:
        assert len(x) > 1
        return SORTED["the order of the data"](net, x)

    with pytest.raises(RuntimeError, match=r"pass max_batch=1"):
        grad_sq_norms(Net(run).double(), images(8, 4), spread)


def test_samples_that_are_sorted_are_not_shown_again_to_hooks_of_the_caller():
    net, x, seen = Net(SORTED["the order of the data"]).double(), images(8, 4), []
    net.first.register_forward_hook(lambda *_: seen.append(1))
    with pytest.raises(RuntimeError, match=r"pass max_batch=1"):
        grad_sq_norms(net, x, spread)
    exact(net, x, max_batch=1)


def test_a_scripted_batch_norm_in_training_mode_is_an_error():
    net = script(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).double()).train()
    with pytest.raises(ValueError, match="training mode"):
        grad_sq_norms(net, images(6, 4), spread)


def test_gradients_within_the_forward_pass_are_an_error():
    def run(net: Net, x: Tensor) -> Tensor:
        h = net.last(x)
        return torch.autograd.grad(net.first(x * h.sum(1, keepdim=True)).tanh().sum(), h, create_graph=True)[0]

    with pytest.raises(RuntimeError, match="gradient during its forward pass"):
        grad_sq_norms(Net(run).double(), images(3, 4), spread)


def test_hooks_on_parameters_are_an_error():
    net = nn.Linear(4, 3).double()
    handle = net.weight.register_hook(lambda g: g * 2)
    with pytest.raises(RuntimeError, match="weight has a hook"):
        grad_sq_norms(net, images(3, 4), spread)
    handle.remove()
    exact(net, images(3, 4))


def test_in_inference_mode():
    net, x = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double(), images(6, 4)
    want = plainly(net, x)
    with torch.inference_mode():
        got = grad_sq_norms(net, x * 1, spread).norms[0]
    torch.testing.assert_close(got, want, rtol=1e-9, atol=0)


def test_a_bias_that_is_replaced_under_a_fold():
    net, x = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(784, 3)), images(5, 2, 16, 16)
    exact(net, x)
    net[0].bias = nn.Parameter(torch.randn(4).double())
    exact(net, x)


@pytest.mark.parametrize("channels", [3, 24])
def test_folded_convolutions_along_one_dimension(channels):
    net = nn.Sequential(nn.Conv1d(channels, 8, 3), nn.BatchNorm1d(8), nn.ReLU(), nn.Flatten(), nn.Linear(496, 3))
    exact(net, images(3, channels, 64))


@pytest.mark.parametrize("shape", [(1,), (), (5, 4)])
@pytest.mark.parametrize("n", [1, 3])
def test_linear_with_a_bias_of_another_shape(shape, n):
    def run(net: nn.Module, x: Tensor) -> Tensor:
        return net.last(F.linear(x, net.first.weight, net.b).tanh().mean(1))

    net = Net(run)
    net.b = nn.Parameter(torch.randn(shape))
    exact(net, images(n, 5, 4))


def test_losses_that_are_not_of_a_sample_are_an_error():
    net = nn.Linear(4, 3).double()
    with pytest.raises(ValueError, match="own logits"):
        grad_sq_norms(net, images(5, 4), lambda z: (z - z.mean(0)).square().sum(1))
    with pytest.raises(ValueError, match="logits alone"):
        grad_sq_norms(net, images(5, 4), lambda z: spread(z / net.bias.sum()))


def test_complex_parameters():
    class Spectral(nn.Module):
        def __init__(self):
            super().__init__()
            self.w, self.last = nn.Parameter(torch.randn(2, 5, 3, dtype=torch.complex128)), nn.Linear(50, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.fft.irfft2(torch.fft.rfft2(x) * self.w, s=x.shape[-2:]).flatten(1))

    net, x = Spectral(), images(4, 2, 5, 5)
    net.last.double()
    names = grad_sq_norms(net, x, spread).names
    assert names == ("w", "last.weight", "last.bias")
    torch.testing.assert_close(grad_sq_norms(net, x, spread).norms[0], plainly(net, x), rtol=1e-9, atol=0)
    torch.testing.assert_close(one_by_one(net, x, [spread])[0], plainly(net, x), rtol=1e-9, atol=0)


def test_a_network_that_looks_at_memory():
    def run(net: Net, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return net.last(x.as_strided((n, c * h), (c * h * w, w)).tanh())

    exact(Net(run), images(5, 2, 2, 3))


def test_images_that_the_network_changes_in_place():
    def run(net: Net, x: Tensor) -> Tensor:
        return net.last(net.first(x.mul_(2)).tanh())

    net, x = Net(run).double(), images(6, 4)
    kept = x.clone()
    want = torch.cat([plainly(net, x[i : i + 1].clone()) for i in range(len(x))])
    for _ in range(2):
        torch.testing.assert_close(grad_sq_norms(net, x, spread).norms[0], want, rtol=1e-9, atol=0)
    torch.testing.assert_close(x, kept, rtol=0, atol=0)


def test_large_integers_in_a_product():
    def run(net: Net, x: Tensor) -> Tensor:
        return net.last(net.a * (x * 2**30).long() / 2**30)

    exact(Net(run), images(5, 4))


def test_what_a_forward_pass_leaves_on_a_module_is_put_back():
    with pytest.warns(FutureWarning):
        net = nn.Sequential(torch.nn.utils.weight_norm(nn.Linear(4, 3))).double().eval()
    x = images(5, 4)
    with torch.no_grad():
        net(x)
    exact(net, x)
    net(x)
    weight = net[0].weight
    grad_sq_norms(net, x, spread)
    assert net[0].weight is weight
    assert torch.autograd.grad(weight.sum(), net[0].weight_v)[0].abs().sum() > 0


class Words(nn.Module):
    """Pixels as words; `table` is an embedding of single words or of bags of them."""

    def __init__(self, table: nn.Module):
        super().__init__()
        self.table, self.last = table, nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        found = self.table((x.abs() * 3).long().clamp(max=9))
        return self.last(found.mean(1) if found.dim() == 3 else found)


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_sparse_embeddings_and_those_that_count_words(kind):
    net, x = Words(kind(10, 4, sparse=True)).double(), images(5, 6)
    got = grad_sq_norms(net, x, spread).norms[0]
    dense = Words(kind(10, 4)).double()
    dense.load_state_dict(net.state_dict())
    torch.testing.assert_close(got, plainly(dense, x), rtol=1e-9, atol=0)
    with pytest.raises(RuntimeError, match="how often each index occurs"):
        grad_sq_norms(Words(kind(10, 4, scale_grad_by_freq=True)).double(), x, spread)


def test_an_exit_that_no_image_takes():
    def run(net: Net, x: Tensor) -> Tensor:
        early = x[:, 0] > 100
        out = x.new_zeros(len(x), 3)
        out[~early] = net.last(net.first(x[~early]))
        out[early] = net.last(x[early])
        return out

    exact(Net(run), images(5, 4))


@pytest.mark.parametrize(
    ("options", "says"),
    [({"losses": []}, "0 losses"), ({"parameters": []}, "0 parameters"), ({"max_batch": 0}, "at least 1, not 0"),
     ({"x": images(0, 4)}, "0 images")],
)  # fmt: skip
def test_nothing_to_do_is_an_error(options, says):
    net = nn.Linear(4, 3).double()
    with pytest.raises(ValueError, match=says):
        grad_sq_norms(net, **{"x": images(3, 4), "losses": [spread], **options})


def test_one_small_parameter_by_its_name():
    result = grad_sq_norms(nn.Linear(4, 3).double(), images(3, 4), spread, small="bias")
    assert result.small_names == ("bias",)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("bad", [0, 5])
@pytest.mark.parametrize(
    "net", [lambda: nn.ConvTranspose2d(3, 4, 2, 2), lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))]
)
def test_an_image_that_overflows_leaves_the_others_theirs(net, bad, value):
    net = nn.Sequential(net(), nn.Tanh(), nn.Flatten(), nn.LazyLinear(3)).double().eval()
    x = images(7, 3, 4, 4)
    net(x)
    want = plainly(net, x)
    others = [i for i in range(len(x)) if i != bad]
    x[bad] = value
    seen: list[Tensor] = []
    for _ in range(2):
        seen.clear()
        with net[1].register_forward_hook(lambda module, args, out: seen.append(out)):
            result = grad_sq_norms(net, x, spread, on_restart=seen.clear)
        torch.testing.assert_close(result.norms[0, others], want[others], rtol=1e-9, atol=1e-18)
        assert not result.norms[0, bad].isfinite().all()
        torch.testing.assert_close(torch.cat(seen), net[1](net[0](x)), rtol=1e-9, atol=0, equal_nan=True)


def test_images_of_a_first_look_that_all_overflow():
    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    with pytest.raises(RuntimeError, match="values overflow"):
        grad_sq_norms(net, images(5, 4) * float("nan"), spread)


def test_a_first_layer_that_is_scripted():
    exact(nn.Sequential(script(nn.Linear(4, 4)), nn.Tanh(), nn.Linear(4, 3)), images(7, 4))


class First(nn.Module):
    """A layer of sequences, on sequences of one vector."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        out = self.layer(x[:, None])
        return (out[0] if isinstance(out, tuple) else out)[:, 0]


RANDOM = {
    "dropout": lambda: nn.Dropout(0.5),
    "alpha dropout": lambda: nn.AlphaDropout(0.5),
    "stochastic depth": lambda: torchvision.ops.StochasticDepth(0.5, "row"),
    "randomised slopes": lambda: nn.RReLU(),
    "between recurrent layers": lambda: First(nn.LSTM(4, 4, 2, batch_first=True, dropout=0.5)),
    "attention": lambda: First(nn.TransformerEncoderLayer(4, 2, 8, 0.5, batch_first=True)),
}


@pytest.mark.parametrize("when", ["after a call in evaluation mode", "with a hook", "one image", "one at a time"])
@pytest.mark.parametrize("layer", RANDOM)
def test_layers_that_draw_random_numbers_are_an_error_that_names_them(layer, when):
    net = nn.Sequential(nn.Linear(4, 4), RANDOM[layer](), nn.Linear(4, 3)).double().eval()
    x = images(1 if when == "one image" else 6, 4)
    if when == "after a call in evaluation mode":
        exact(net, x)
    if when == "with a hook":
        net[0].register_forward_hook(lambda *_: None)
    with pytest.raises(RuntimeError, match=r"^1\S* \(\w+\) draws random numbers \(\w+\), .* on chance"):
        grad_sq_norms(net.train(), x, spread, max_batch=1 if when == "one at a time" else None)


def test_training_mode_without_chance():
    net, x = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.0), nn.LayerNorm(4), nn.Linear(4, 3)).double(), images(7, 4)
    want = plainly(net.eval(), x)
    torch.testing.assert_close(grad_sq_norms(net.train(), x, spread).norms[0], want, rtol=1e-9, atol=1e-18)


class Keeping(nn.Module):
    """Keeps what it makes of a parameter in the first pass, as `how` says."""

    def __init__(self, how: str):
        super().__init__()
        self.table, self.last, self.how, self.store = nn.Parameter(torch.rand(3)), nn.Linear(4, 3), how, {}
        if how == "an attribute":
            self.kept = None

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "a dictionary":
            if len(self.store) == 0:
                self.store["bias"] = (self.table * 2,)
            return self.last(x) + self.store["bias"][0]
        if getattr(self, "kept", None) is None:
            self.kept = self.table * 2
        return self.last(x) + self.kept


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("how", ["an attribute", "a new attribute", "a dictionary"])
def test_what_a_network_keeps_is_taken_off_again(how, frozen):
    net, x = Keeping(how).double(), images(7, 4)
    want = plainly(copy.deepcopy(net), x[:1])[0]
    net.requires_grad_(not frozen)
    before = dict(vars(net))
    for options in ({"parameters": ["last.bias"]}, {}, {"max_batch": 2}):
        result = grad_sq_norms(net, x, spread, **options)
        torch.testing.assert_close(result.norms[0, 0, -1], want[-1], rtol=1e-9, atol=0)
        assert vars(net) == before
        assert not net.store
    torch.testing.assert_close(result.norms[0, 0], want, rtol=1e-9, atol=0)


def test_a_cache_that_the_network_does_not_fill_is_left():
    net = Net(lambda net, x: net.last(x * net.rope_cache["cos"] * net.a))
    net.rope_cache = {"cos": torch.rand(4).double()}
    again = copy.deepcopy(net).double()
    exact(net, images(7, 4))
    torch.testing.assert_close(one_by_one(again, images(7, 4), spread)[0], plainly(net, images(7, 4)))
    assert list(net.rope_cache) == ["cos"]


class Mixed(nn.Module):
    """`how` of a map and a weight in half precision by itself, whatever is around the call."""

    def __init__(self, how):
        super().__init__()
        self.how, self.first, self.w = how, nn.Linear(4, 4), nn.Parameter(torch.rand(4, 4))
        self.rnn, self.up = nn.GRU(4, 4, batch_first=True), nn.ConvTranspose1d(4, 4, 2)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.how(self, self.first(x)).float().sum(1)


MIXED_PRECISION = {
    "product": lambda net, h: h.tanh() @ net.w,
    "einsum": lambda net, h: torch.einsum("nld,de->nle", h, net.w),
    "transposed convolution": lambda net, h: net.up(h.mT).mT,
    "recurrent": lambda net, h: net.rnn(h)[0],
}


@pytest.mark.parametrize("how", MIXED_PRECISION)
def test_mixed_precision_within_the_network(how):
    net, x = Mixed(MIXED_PRECISION[how]), images(5, 3, 4).float()
    want = one_by_one(net, x, spread)
    for _ in range(2):
        torch.testing.assert_close(grad_sq_norms(net, x, spread).norms, want, rtol=0.05, atol=1e-4)


def test_mixed_precision_around_the_call_is_that_of_the_network_alone():
    net, x = Mixed(lambda net, h: F.linear(h.tanh(), net.w)), images(5, 40, 4).float()
    want = grad_sq_norms(net, x, spread).norms
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(grad_sq_norms(net, x, spread).norms, want, rtol=1e-5, atol=0)


def add_and_change(net: Net, x: Tensor) -> Tensor:
    h, s = net.first(x).tanh(), net.a.clone()
    for _ in range(3):
        h = (h + s).sin()
        s.add_(net.b)
    return net.last(h)


def write_between(net: Net, x: Tensor) -> Tensor:
    k = torch.zeros(4, dtype=x.dtype)
    k[0] = net.a[0]
    y = k * x
    k[1] = net.a[1]
    return net.last(y + (k * x).sin())


def data_through_an_older_view(net: Net, x: Tensor) -> Tensor:
    rows = torch.zeros(len(x), 2, 4, dtype=x.dtype)
    flat = rows.view(len(x), 8)
    rows += net.a
    h = net.first(x)
    flat[:, :4] = h
    return net.last((rows * h[:, None].sin()).sum(1))


OVERWRITTEN = {
    "added to in a loop": (add_and_change, "changed in place after it was used"),
    "written to between uses": (write_between, "changed in place after it was used"),
    "data by way of an older view": (data_through_an_older_view, "holds data"),
}


@pytest.mark.parametrize("how", OVERWRITTEN)
@pytest.mark.parametrize("n", [1, 7])
def test_tensors_of_parameters_that_are_overwritten_are_an_error(how, n):
    run, says = OVERWRITTEN[how]
    with pytest.raises(RuntimeError, match=f"a tensor made of parameters in .* {says}"):
        grad_sq_norms(Net(run).double(), images(n, 4), spread)


@pytest.mark.filterwarnings("ignore:images go through the network one at a time")
@pytest.mark.parametrize("n", [4, 12, 24])
def test_images_in_an_order_of_their_own_never_exchange_their_norms(n):
    net, g = Net(SORTED["the order of the data"]).double(), torch.Generator().manual_seed(0)
    for k in range(40):
        x = torch.randn(n, 4, generator=g, dtype=torch.float64)
        x = x[x.abs().sum(1).argsort()]
        i, j = torch.randperm(n, generator=g)[:2].tolist()
        x[[i, j]] = x[[j, i]] if k else x[[i, j]]
        for plan in _plans.get(net, {}).values():
            plan.one_by_one = False
        got = grad_sq_norms(net, x, spread).norms[0]
        torch.testing.assert_close(got, plainly(net, x), rtol=1e-9, atol=1e-18)


@pytest.mark.parametrize(
    "moved",
    [
        lambda t, on: t.transpose(0, int(on)),
        lambda t, on: t.transpose(dim0=0, dim1=int(on)),
        lambda t, on: t.permute([1, 0, 2] if on else [0, 1, 2]),
        lambda t, on: torch.einsum("abc->bac" if on else "abc->abc", t),
        lambda t, on: torch.stack(t.unbind(int(on))),
    ],
    ids=["positions", "keywords", "list", "equation", "taken apart"],
)
def test_samples_that_are_moved_elsewhere_in_the_same_shape(moved):
    def run(net: Net, x: Tensor) -> Tensor:
        return net.last(moved(net.first(moved(x, net.flag).tanh()).tanh(), net.flag)).mean(1)

    net, x = Net(run), images(4, 4, 4)
    for net.flag in (False, True, False):
        exact(net, x)


@pytest.mark.parametrize(
    "put",
    [
        lambda a, b, on: torch.stack([a, b], int(on)).flatten(0, 1),
        lambda a, b, on: torch.cat([a, b], dim=int(on)).view(-1, 4),
        lambda a, b, on: a.unsqueeze(int(on)).expand(*((len(a), 2) if on else (2, len(a))), 4).reshape(-1, 4),
    ],
    ids=["stack", "cat", "unsqueeze"],
)
def test_samples_that_are_put_together_in_another_order(put):
    def run(net: Net, x: Tensor) -> Tensor:
        h = net.last(put(net.first(x), net.first(x * x), net.flag).tanh())
        return h.view(-1, 2, 3).sum(1) if net.flag else h.view(2, -1, 3).sum(0)

    net, x = Net(run), images(6, 4)
    for net.flag in (False, True, False):
        exact(net, x)


def test_a_dimension_that_is_moved_elsewhere_after_the_first_call():
    def run(net: Net, x: Tensor) -> Tensor:
        h = net.first(x).view(len(x), 2, 2)
        order = (1, 0, 2) if net.flag else (0, 1, 2)
        h = net.last(F.pad(h.permute(order).reshape(-1, 2), (0, 2))).tanh()
        return h.view(*(h.new_empty(len(x), 2, 1).permute(order).shape[:2]), 3).permute(order).sum(1)

    net, x = Net(run), images(6, 4)
    for net.flag in (False, True, False):
        exact(net, x)


class Reversible(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, inner):
        ctx.inner = inner
        ctx.save_for_backward(x)
        return inner(x)

    @staticmethod
    def backward(ctx, d):
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            torch.autograd.backward(ctx.inner(x), d)
        return x.grad, None


@pytest.mark.parametrize("n", [1, 7])
def test_gradients_that_a_network_adds_up_by_itself_are_an_error(n):
    net = Net(lambda net, x: net.last(Reversible.apply(net.first(x), lambda t: t * net.a))).double()
    net.last.bias.grad = kept = torch.ones(3).double()
    with pytest.raises(RuntimeError, match=r"^a: the network sums its gradient over the batch by itself"):
        grad_sq_norms(net, images(n, 4), spread)
    assert net.a.grad is None
    assert net.last.bias.grad is kept
    assert (kept == 1).all()


def shifted(z: Tensor) -> Tensor:
    z -= z.max(1, keepdim=True).values.detach()
    return spread(z)


def spoiling(z: Tensor) -> Tensor:
    value = spread(z * 1)
    z.detach().mul_(2)
    return value


def test_losses_that_write_to_the_logits():
    net, x = nn.Linear(4, 3).double(), images(5, 4)
    result = grad_sq_norms(net, x, [shifted, spoiling, spread])
    want = grad_sq_norms(net, x, [spread] * 3)
    torch.testing.assert_close(result.norms, want.norms)
    torch.testing.assert_close(result.logits, net(x).detach(), rtol=0, atol=0)


def test_any_name_of_a_shared_parameter():
    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)).double()
    net[2].weight, net[2].bias = net[0].weight, net[0].bias
    result = grad_sq_norms(net, images(5, 4), spread, parameters=["2.weight", "2.bias"], small=["2.bias"])
    assert (result.names, result.small_names) == (("0.weight", "0.bias"), ("0.bias",))


@pytest.mark.parametrize("layer", [nn.LayerNorm(4), nn.RMSNorm(4), nn.Linear(4, 4), nn.PReLU()])
def test_layers_of_a_single_image_without_its_dimension(layer):
    net, x = nn.Sequential(nn.Linear(4, 4), Squeezed(layer), nn.Linear(4, 3)).double(), images(5, 4)
    exact(net, x)
    exact(net, x, max_batch=1)
    exact(net, x[:1])


class Squeezed(nn.Module):
    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.squeeze()).reshape(len(x), -1)


BOXES = {
    "dict": (lambda x, z: {"maps": x, "logits": z}, r"\['logits'\]"),
    "tuple": (lambda x, z: (x[:, None], z), r"\[1\]"),
    "Pair": (lambda x, z: Pair(z, None), r"\[0\]"),
}


@pytest.mark.parametrize("kind", BOXES)
@pytest.mark.parametrize("ask", [grad_sq_norms, one_by_one, verify])
def test_logits_within_something_are_an_error_that_says_where(kind, ask):
    box, says = BOXES[kind]
    net = Net(lambda net, x: box(x, net.last(net.first(x)))).double()
    with pytest.raises(
        ValueError, match=rf"not to {kind}; wrap it in a module whose forward returns network\(x\){says}"
    ):
        ask(net, images(3, 4), spread)


def test_integer_logits_are_an_error():
    with pytest.raises(ValueError, match=r"floating-point numbers, not torch\.int64"):
        grad_sq_norms(Net(lambda net, x: net.last(x).long()).double(), images(5, 4), spread)


@pytest.mark.filterwarnings("ignore:images go through the network one at a time")
def test_networks_that_route_their_samples_go_one_at_a_time():
    def run(net: Net, x: Tensor) -> Tensor:
        left = x[:, 0] > 0
        out = x.new_zeros(len(x), 4)
        out[left], out[~left] = net.first(x[left]), net.first(x[~left]) * net.a
        return net.last(out.tanh())

    net, x = Net(run).double(), images(7, 4)
    assert {rule for _, rule in explain(net, x)} == {rule for _, rule in explain(net, x[:1])}
    exact(net, x)
    exact(net, x, max_batch=3)
    exact(net, x[:1])


def test_saved_tensors_that_are_moved_away_are_an_error():
    with torch.autograd.graph.save_on_cpu(), pytest.raises(RuntimeError, match="hooks on saved tensors are on around"):
        grad_sq_norms(nn.Linear(4, 3).double(), images(5, 4), spread)


def test_another_default_device():
    net, x = Net(lambda net, x: net.last(net.first(x).tanh())).double(), images(5, 4)
    want = plainly(net, x)
    with torch.device("meta"):
        torch.testing.assert_close(grad_sq_norms(net, x, spread).norms[0], want, rtol=1e-9, atol=0)


def test_hooks_on_every_module_see_each_image_once():
    net, x, seen = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3)).double(), images(7, 4), []
    look = torch.nn.modules.module.register_module_forward_hook(lambda module, args, out: seen.append(out.detach()))
    with look:
        grad_sq_norms(net, x, spread)
    assert sum(len(out) for out in seen) == 3 * len(x)


def test_folded_kernels_are_not_kept():
    net, x = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(784, 3)), images(5, 2, 16, 16)
    exact(net, x)
    folds = [fold for plan in _plans[net].values() for fold in (plan.folds or {}).values()]
    assert folds
    assert not any(hasattr(fold, "folded") for fold in folds)


def test_a_compiled_network_is_followed_as_plain_python():
    def compiles(graph, inputs):
        raise AssertionError("compiled")

    net, x = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)).double(), images(5, 4)
    want = plainly(net, x)
    net[0].register_forward_hook(lambda *_: None)
    got = grad_sq_norms(torch.compile(net, backend=compiles), x, spread).norms[0]
    torch.testing.assert_close(got, want, rtol=1e-9, atol=0)


@pytest.mark.parametrize("steps", [1, 3])
def test_a_gradient_taken_in_a_hook_is_an_error(steps):
    def run(net: Net, x: Tensor) -> Tensor:
        h, z = net.first(x), x.detach().clone().requires_grad_()
        inner = (z * net.a).sin()

        def solve(d: Tensor) -> Tensor:
            for _ in range(steps):
                d = d + torch.autograd.grad(inner, z, d, retain_graph=True)[0]
            return d

        if h.requires_grad:
            h.register_hook(solve)
        return net.last(h)

    with pytest.raises(RuntimeError, match=r"^a: a gradient arrives that is not of the loss alone"):
        grad_sq_norms(Net(run).double(), images(1, 4), spread)


def test_what_hooks_keep_on_modules_stays():
    net, x = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3)).double(), images(4, 4)
    net.seen = []
    net[0].register_forward_hook(lambda module, args, out: net.seen.append(out.detach()))
    net[1].register_forward_hook(lambda module, args, out: setattr(module, "seen", out))
    grad_sq_norms(net, x, spread)
    torch.testing.assert_close(torch.cat(net.seen), net[0](x).detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(net[1].seen, net(x).detach(), rtol=1e-12, atol=0)


class Rotary(nn.Module):
    """Keeps a table and the length that it is for."""

    def __init__(self):
        super().__init__()
        self.linear, self.length, self.table = nn.Linear(4, 3), 0, None

    def forward(self, x: Tensor) -> Tensor:
        if len(x) != self.length or self.table.device != x.device:
            self.length, self.table = len(x), torch.arange(4.0, dtype=x.dtype).cos()
        return self.linear(x * self.table)


class Lazy(nn.Module):
    """Makes a table of a parameter in the first pass and keeps it, in an attribute or a list."""

    def __init__(self, listed: bool):
        super().__init__()
        self.linear, self.a, self.listed = nn.Linear(4, 3), nn.Parameter(torch.rand(4)), listed

    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, "kept"):
            self.kept = [self.a * 2] if self.listed else self.a * 2
        return self.linear(x * (self.kept[0] if self.listed else self.kept))


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("make", [Rotary, lambda: Lazy(False), lambda: Lazy(True)])
@pytest.mark.parametrize("hooked", [False, True])
def test_what_belongs_together_in_attributes_is_put_back_together(make, warm, hooked):
    net, x = make().double().eval(), images(5, 4)
    fresh, logits = copy.deepcopy(net), copy.deepcopy(net)(x)
    if warm and isinstance(net, Rotary):
        net(x[:2])
    hook = net.linear.register_forward_hook(lambda *_: None) if hooked else None
    want = torch.cat([plainly(copy.deepcopy(fresh), image[None]) for image in x])
    for _ in range(2):
        torch.testing.assert_close(grad_sq_norms(net, x, spread).norms[0], want, rtol=1e-9, atol=0)
    if hook:
        hook.remove()
    torch.testing.assert_close(net(x), logits, rtol=1e-12, atol=0)


def test_integer_parameters_are_let_be():
    net = Net(lambda net, x: net.last(net.first(x) * net.scale)).double().eval()
    net.scale = nn.Parameter(torch.tensor(3), requires_grad=False)
    result = grad_sq_norms(net, images(5, 4), spread)
    assert "scale" not in result.names
    assert result.norms.isfinite().all()


class Biased(nn.Module):
    """LeViT's way: a bias gathered from a parameter once and kept in a dictionary; another that it never fills."""

    def __init__(self):
        super().__init__()
        self.linear, self.table = nn.Linear(4, 3), nn.Parameter(torch.rand(4))
        self.attention_bias_cache: dict[str, Tensor] = {}
        self.rope_cache = {"cos": torch.arange(4.0, dtype=torch.float64).cos()}
        self.cache_options = {"scale": 2.0}

    def forward(self, x: Tensor) -> Tensor:
        if "bias" not in self.attention_bias_cache:
            self.attention_bias_cache["bias"] = self.table[[2, 0, 1, 3]]
        scale = self.cache_options.get("scale", 1.0)
        return self.linear(x * self.rope_cache["cos"] * scale + self.attention_bias_cache["bias"])


def test_a_key_that_a_loss_misses_is_its_own_affair():
    net, x = Biased().double().eval(), images(5, 4)
    with torch.no_grad():
        logits = net(x)
    want = torch.cat([plainly(without_bias(net), image[None]) for image in x])
    with pytest.raises(KeyError, match="no"):
        grad_sq_norms(net, x, lambda z: {}["no"])
    for _ in range(2):
        result = grad_sq_norms(net, x, spread)
        torch.testing.assert_close(result.norms[0], want, rtol=1e-9, atol=0)
        torch.testing.assert_close(result.logits, logits, rtol=1e-12, atol=0)


def without_bias(net: Biased) -> Biased:
    other = copy.deepcopy(net)
    other.attention_bias_cache.clear()
    return other


@pytest.mark.parametrize(
    "draw",
    [lambda x: torch.rand([]), lambda x: torch.randn(4, generator=torch.Generator().manual_seed(0)),
     lambda x: torch.empty(4).bernoulli_(0.5)],
)  # fmt: skip
def test_random_numbers_that_nothing_reads_are_no_chance(draw):
    def run(net: Net, x: Tensor) -> Tensor:
        p = draw(x)
        return net.last(net.first(x).tanh()) if net.training and p.max() < 0.1 else net.last(net.first(x).sin())

    exact(Net(run), images(5, 4))


def test_a_recurrent_layer_of_one_level_has_no_dropout_to_draw():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lstm = nn.LSTM(4, 3, dropout=0.5, batch_first=True).double()

    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = lstm

        def forward(self, x: Tensor) -> Tensor:
            return self.lstm(x)[0][:, -1]

    net = Last().train()
    x = images(5, 3, 4)
    torch.testing.assert_close(grad_sq_norms(net, x, spread).norms[0], plainly(net, x), rtol=1e-9, atol=0)


def test_a_check_of_the_data_costs_no_new_probe(monkeypatch):
    def run(net: Net, x: Tensor) -> Tensor:
        if x.max() > 1e9:
            raise ValueError
        return net.last(net.first(x).tanh())

    net, x, pulls = Net(run).double().eval(), images(5, 4), []
    grad_sq_norms(net, x, spread)
    pull = Chunk._pull
    monkeypatch.setattr(Chunk, "_pull", lambda *args, **options: (pulls.append(1), pull(*args, **options))[1])
    grad_sq_norms(net, x, spread)
    assert len(pulls) == 2


def test_what_is_not_compiled_leaves_the_compiler_alone(monkeypatch):
    def refuse(*_):
        raise AssertionError

    monkeypatch.setattr(torch.compiler, "set_stance", refuse)
    exact(nn.Linear(4, 3), images(5, 4))


def test_two_threads_on_one_network_with_folds():
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(),
                        nn.Linear(8 * 64, 3)).double().eval()  # fmt: skip
    x = images(6, 3, 8, 8)
    want = plainly(net, x)
    grad_sq_norms(net, x, spread)
    with ThreadPoolExecutor(3) as pool:
        for result in pool.map(lambda _: grad_sq_norms(net, x, spread), range(12)):
            torch.testing.assert_close(result.norms[0], want, rtol=1e-9, atol=0)
    assert next(iter(_plans[net].values())).channels_last


@pytest.mark.parametrize("how", ["half", "autocast"])
def test_half_precision_whose_small_gradients_keep_few_digits(how):
    torch.manual_seed(0)
    net = torchvision.models.resnet18(num_classes=10).eval()
    x = torch.randn(4, 3, 32, 32)
    want = grad_sq_norms(net, x, spread).norms.sum(2)
    if how == "half":
        got = grad_sq_norms(net.half(), x.half(), spread).norms.sum(2)
    else:
        with torch.autocast("cpu", torch.float16):
            got = grad_sq_norms(net, x, spread).norms.sum(2)
    torch.testing.assert_close(got.float(), want, rtol=0.05, atol=0)


def test_half_precision_does_not_hide_that_samples_meet():
    class Meeting(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.head = nn.Linear(6, 8), nn.Linear(8, 5)

        def forward(self, x):
            h = self.layer(x)
            return self.head(h + 0.1 * h.flip(0))

    with pytest.raises(RuntimeError, match=r"meet|depend on the other"):
        grad_sq_norms(Meeting().half().eval(), torch.randn(4, 6).half(), spread)


@pytest.mark.parametrize(
    "layer", [nn.Linear(2048, 2048), nn.Conv2d(1024, 1024, 3, padding=1)], ids=["linear", "convolution"]
)
def test_sums_over_many_entries_keep_their_digits(layer):
    """A weight used twice, whose gradients of millions of entries are made before they are squared."""
    torch.manual_seed(0)
    shape = (2, 2048) if isinstance(layer, nn.Linear) else (1, 1024, 3, 3)
    grads = torch.rand(1, *layer.weight.shape)
    assert abs(float(sq_norm(grads)) / float(grads.double().square().sum()) - 1) < 1e-6
    net = nn.Sequential(layer, nn.Tanh(), layer, nn.Flatten(), nn.LazyLinear(5)).eval()
    net(torch.randn(shape))
    assert verify(net, torch.randn(shape), spread) < 2e-5


def test_gradients_that_vanish_keep_few_digits_and_are_no_company():
    """Subnormal numbers of two passes differ in their digits."""
    layers = [layer for _ in range(50) for layer in (nn.Linear(8, 8), nn.Sigmoid())]
    net, x = nn.Sequential(*layers, nn.Linear(8, 3)), torch.randn(8, 8)
    norms = grad_sq_norms(net, x, spread).norms[0]
    torch.testing.assert_close(norms, plainly(net, x).float(), rtol=1e-4, atol=1e-30)


def test_a_loss_whose_gradient_vanishes():
    net = nn.Linear(3, 3, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.eye(3))
    first = torch.linspace(85, 105, 40)
    grad_sq_norms(net, torch.stack([first, torch.full_like(first, 0.3), torch.zeros_like(first)], 1), Predicted())


def test_small_gradients_do_not_hide_that_samples_meet():
    net = Net(lambda net, x: net.last(net.first(x) * 1e-9 + net.first(x).mean(0) * 1e-9) * 1e-9)
    with pytest.raises(RuntimeError, match=r"depend on the other images|meet"):
        grad_sq_norms(net, torch.randn(6, 4), spread)


class InTheMiddle(nn.Module):
    """`layer` over rows of positions that come before and after the images: `index = (b * n + image) * w + a`."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.stem, self.layer, self.last = nn.Conv2d(3, 8, 3, padding=1), layer, nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.stem(x).permute(2, 0, 3, 1)
        return self.last(self.layer(rows.reshape(-1, 8)).view(*rows.shape[:3], -1).tanh().mean((0, 2)))


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.rand(8)), nn.Parameter(torch.rand(8))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift


IN_THE_MIDDLE = {
    "linear": lambda: nn.Linear(8, 8),
    "layer norm": lambda: nn.LayerNorm(8),
    "batch norm": lambda: nn.BatchNorm1d(8),
    "group norm": lambda: nn.GroupNorm(2, 8),
    "PReLU": lambda: nn.PReLU(8),
    "sums and products": Scaled,
    "convolution": lambda: nn.Sequential(nn.Unflatten(1, (2, 4)), nn.Conv1d(2, 2, 3, padding=1), nn.Flatten()),
}


@pytest.mark.parametrize("n", [2, 5])
@pytest.mark.parametrize("layer", IN_THE_MIDDLE)
def test_images_in_the_middle_of_a_dimension(layer, n):
    exact(InTheMiddle(IN_THE_MIDDLE[layer]()), images(n, 3, 4, 6))


@pytest.mark.parametrize("n", [2, 5])
def test_attention_in_windows(n):
    """With the batch first, it goes over positions, then images and their windows."""

    class Windows(InTheMiddle):
        def forward(self, x: Tensor) -> Tensor:
            windows = self.layer(self.stem(x).permute(0, 2, 3, 1).reshape(-1, 8, 8))
            return self.last(windows.view(len(x), -1, 8).mean(1))

    exact(Windows(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)), images(n, 3, 8, 8))


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_a_network_that_keeps_no_graph_is_refused(off):
    net = Net(off()(lambda net, x: net.last(net.first(x)))).double()
    with pytest.raises(RuntimeError, match=f"{'no_grad' if off is torch.no_grad else 'inference_mode'}"):
        grad_sq_norms(net, images(3, 4), spread)
    exact(Net(lambda net, x: net.last(off()(lambda: net.first(x))().clone())), images(3, 4))


@pytest.mark.parametrize("trial", range(6))
def test_calls_from_several_threads_leave_a_network_as_it_was(trial):
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)
    net, x = nn.Sequential(*layers).double().eval(), images(6, 3, 4, 4)
    net[0].weight.requires_grad_(trial % 2 == 0)
    before = [p.requires_grad for p in net.parameters()]
    with ThreadPoolExecutor(3) as pool:
        first, *others = pool.map(lambda _: grad_sq_norms(net, x, spread).norms, range(9))
    assert [p.requires_grad for p in net.parameters()] == before
    for norms in others:
        torch.testing.assert_close(norms, first)


class Maps(nn.Module):
    """`forward(self, h)` as given, of what `layer` makes of the images; `last` reads four features."""

    def __init__(self, layer: nn.Module, forward):
        super().__init__()
        self.layer, self.read, self.last, self.scale = layer, forward, nn.Linear(4, 3), nn.Parameter(torch.rand(4))
        self.bias = nn.Parameter(torch.rand(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self, self.layer(x))


class Turned(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(1, 2))


MAPS = {
    "few positions": (nn.Conv2d(3, 4, 3, padding=1), (3, 2, 2)),
    "one position": (nn.Conv2d(3, 4, 3, padding=2, stride=2), (3, 1, 1)),
    "along one dimension": (nn.Conv1d(3, 4, 3, padding=1), (3, 2)),
    "batch norm of turned sequences": (Turned(nn.BatchNorm1d(4)), (6, 4)),
}


@pytest.mark.parametrize("viewed", [True, False])
@pytest.mark.parametrize("what", MAPS)
def test_maps_lie_in_memory_as_without_the_engine(what, viewed):
    layer, shape = MAPS[what]
    flat = lambda h: h.view(len(h), -1) if viewed else h.as_strided((len(h), h[0].numel()), (h[0].numel(), 1))  # noqa: E731
    exact(Maps(copy.deepcopy(layer), lambda net, h: net.last(flat(h.sin())[:, 1:5])), images(5, *shape))


def test_images_that_are_resized_in_memory():
    exact(Net(lambda net, x: net.last(net.first((x * 2).resize_(len(x), 4)))), images(5, 2, 2, 1))
    exact(Net(lambda net, x: net.last(net.first((x * 2).resize_(len(x), 12)[:, :4]))), images(5, 3, 2, 2))


def by_channel(training: bool):
    """Instance norm by way of a batch norm of one row, and a view of its output."""

    def run(net: Maps, h: Tensor) -> Tensor:
        n, shape = len(h), (len(h), 4, *h.shape[2:])
        mean, var = h.new_zeros(4 * n), h.new_ones(4 * n)
        weights = net.scale.repeat(n), net.bias.repeat(n)
        h = F.batch_norm(h.reshape(1, 4 * n, *h.shape[2:]), mean, var, *weights, training).view(shape)
        return net.last(h.permute(0, 2, 3, 1)).tanh().mean((1, 2))

    return run


def by_hand(training: bool):
    def run(net: Maps, h: Tensor) -> Tensor:
        var, mean = torch.var_mean(h, (2, 3), correction=0, keepdim=True) if training else (1, 0)
        h = (h - mean) / (var + 1e-5) ** 0.5 * net.scale[:, None, None] + net.bias[:, None, None]
        return net.last(h.permute(0, 2, 3, 1)).tanh().mean((1, 2))

    return run


@pytest.mark.parametrize("names", [None, ["layer.weight", "last.weight"]])
@pytest.mark.parametrize("training", [True, False])
def test_a_batch_norm_of_one_row(training, names):
    net, x = Maps(nn.Conv2d(3, 4, 3), by_channel(training)).double(), images(5, 3, 8, 8)
    plain = Maps(net.layer, by_hand(training)).double()
    plain.load_state_dict(net.state_dict())
    want = plainly(plain, x)
    for size in (None, 2, 1):
        result = grad_sq_norms(net, x, spread, max_batch=size, parameters=names)
        of = [[name for name, _ in net.named_parameters()].index(name) for name in result.names]
        torch.testing.assert_close(result.norms[0], want[:, of], rtol=1e-9, atol=1e-18)


@pytest.mark.parametrize("order", [(0, 2, 3, 1), (2, 3, 0, 1)])
@pytest.mark.parametrize("affine", [True, False])
def test_instance_norm_of_single_images_and_of_several(affine, order):
    """It is a batch norm of one row inside."""

    def run(net: Maps, h: Tensor) -> Tensor:
        h = net.norm(h)
        if affine:
            h = h * net.norm.weight[:, None, None].cos() + net.norm.bias[:, None, None]
        h = net.last(h.permute(order).sin()).movedim(order.index(0), 0)
        return h.tanh().flatten(1, 2).mean(1)

    def normalised(h: Tensor) -> Tensor:
        var, mean = torch.var_mean(h, (2, 3), correction=0, keepdim=True)
        h = (h - mean) / (var + 1e-5).sqrt()
        return h * net.norm.weight[:, None, None] + net.norm.bias[:, None, None] if affine else h

    net, x = Maps(nn.Conv2d(3, 4, 3), run), images(5, 3, 8, 9)
    net.norm = nn.InstanceNorm2d(4, affine=affine)
    net.double()
    with mock.patch.object(net.norm, "forward", normalised):
        want = plainly(net, x)
    for size in (None, 2, 1):
        result = grad_sq_norms(net, x, spread, max_batch=size)
        torch.testing.assert_close(result.norms[0], want, rtol=1e-9, atol=1e-18)


def zeros_then_weight_then_data(make):
    def run(net: Net, x: Tensor) -> Tensor:
        rows = make(x)
        rows[:, 0] = net.a
        rows[:, 1] = net.first(x)
        return net.last((rows * rows.flip(1).sin()).sum(1) * net.b)

    return run


IN_THE_FORM_OF_DATA = {
    "a mask": lambda net, x: net.last(net.first(x) @ (net.first.weight * x.new_ones(4, 4).tril())),
    "a mask like an image": lambda net, x: net.last(net.first(x) * (net.a * torch.ones_like(x[0]).cumsum(0))),
    "positions by type_as": lambda net, x: net.last(net.first(x) * (torch.arange(4).type_as(x) * net.a).cos()),
    "positions by to": lambda net, x: net.last(net.first(x) + torch.outer(torch.arange(2.0).to(x), net.a).cos()[1]),
    "distances": lambda net, x: net.last(net.first(x) + net.a * x.new_tensor([0.0, 1.0, 2.0, 3.0])),
    "a mask, and rows made first": lambda net, x: zeros_then_weight_then_data(lambda x: x.new_zeros(len(x), 2, 4))(
        net, x * (net.b * x.new_ones(4))
    ),
    "rows made first": zeros_then_weight_then_data(lambda x: x.new_zeros(len(x), 2, 4)),
    "rows made of nothing": zeros_then_weight_then_data(lambda x: torch.zeros(len(x), 2, 4, dtype=x.dtype)),
}


@pytest.mark.parametrize("n", [1, 2, 4, 9])
@pytest.mark.parametrize("how", IN_THE_FORM_OF_DATA)
def test_what_is_made_in_the_form_of_data_may_hold_none(how, n):
    exact(Net(IN_THE_FORM_OF_DATA[how]), images(n, 4))
    exact(Net(IN_THE_FORM_OF_DATA[how]), images(n, 4), max_batch=2)


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("view", [lambda a: a, lambda a: a.view(2, 2)[1]])
def test_parameters_that_data_are_written_into_are_an_error(view, n):
    def run(net: Net, x: Tensor) -> Tensor:
        view(net.a)[:2] = net.first(x)[0, :2]
        return net.last(x * net.a)

    net = Net(run).double()
    before = net.a.detach().clone()
    with pytest.raises((RuntimeError, NotImplementedError), match=r"parameter is overwritten|in-place operation"):
        grad_sq_norms(net, images(n, 4), spread)
    torch.testing.assert_close(net.a.detach(), before, rtol=0, atol=0)


@pytest.mark.parametrize("names", [None, ["first.weight"]])
def test_data_that_the_network_lets_require_grad(names):
    def run(net: Net, x: Tensor) -> Tensor:
        h = net.first(x.requires_grad_())
        return net.last(h.tanh() + (h.detach().requires_grad_() + torch.zeros_like(h).requires_grad_()).sin() * net.a)

    net, x = Net(run).double(), images(5, 4)
    want = plainly(net, x.clone())
    result = grad_sq_norms(net, x, spread, parameters=names)
    of = [[name for name, _ in net.named_parameters()].index(name) for name in result.names]
    torch.testing.assert_close(result.norms[0], want[:, of], rtol=1e-9, atol=0)
    assert not x.requires_grad


def write_data(conv: nn.Module, mask: Tensor) -> None:
    conv.weight.data = conv.weight.data * mask


def write_without_grad(conv: nn.Module, mask: Tensor) -> None:
    with torch.no_grad():
        conv.weight[:, :, 2].mul_(mask[2, 0])


MASKING = {
    "new data": write_data,
    "in place": lambda conv, mask: conv.weight.data.mul_(mask),
    "detached": lambda conv, mask: conv.weight.detach().mul_(mask),
    "a part": write_without_grad,
}


@pytest.mark.parametrize("n", [1, 5])
@pytest.mark.parametrize("how", MASKING)
def test_weights_that_the_network_itself_changes(how, n):
    class Masked(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            MASKING[how](self[0], (torch.arange(3) < 2).double()[:, None])
            return super().forward(x)

    net = Masked(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(784, 3)).double().eval()
    x = images(5, 3, 16, 16)
    net[0].register_forward_hook(lambda *_: None)
    for _ in range(2):
        nn.init.normal_(net[0].weight)
        want = plainly(copy.deepcopy(net), x[:n])
        torch.testing.assert_close(grad_sq_norms(net, x[:n], spread).norms[0], want, rtol=1e-9, atol=1e-18)
        net[0]._forward_hooks.clear()
        grad_sq_norms(net, x, spread)
        assert (net[0].weight[:, :, 2] == 0).all()


class Transposed(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(0, 1))


class Last(nn.Module):
    def forward(self, out: tuple[Tensor, Tensor]) -> Tensor:
        return out[0][-1]


GENERAL = {
    "a product": lambda: Net(lambda net, x: net.last(x[:, None].expand(-1, 7, -1) @ net.first.weight).tanh().mean(1)),
    "an einsum": lambda: Net(lambda net, x: net.last(torch.einsum("bi,io->bo", x, net.first.weight).tanh())),
    "a slope": lambda: nn.Sequential(nn.Linear(4, 4), nn.PReLU(4), nn.Linear(4, 3)),
    "a transposed convolution": lambda: nn.Sequential(
        nn.Unflatten(1, (4, 1, 1)), nn.ConvTranspose2d(4, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(54, 3)
    ),
    "a recurrent layer": lambda: Transposed(
        nn.Flatten(0, 1), nn.Unflatten(0, (4, -1)), nn.Unflatten(1, (-1, 1)), nn.LSTM(1, 5), Last(), nn.Linear(5, 3)
    ),
}


@pytest.mark.parametrize("what", GENERAL)
def test_the_general_path_costs_each_image_once(what):
    class Sizes(TorchDispatchMode):
        entries = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            self.entries += sum(t.numel() for t in tensors((out,)))
            return out

    net, cost = GENERAL[what](), []
    for n in (6, 48):
        exact(net, images(n, 4), max_batch=n)
        with Sizes() as sizes:
            grad_sq_norms(net, images(n, 4), spread, max_batch=n)
        cost.append(sizes.entries)
    assert cost[1] < 10 * cost[0]


def test_calls_that_torch_cannot_batch_are_made_without_a_word(capfd):
    exact(Net(lambda net, x: net.last(F.embedding_bag(x.argsort(1), net.first.weight).tanh())), images(8, 4))
    assert not capfd.readouterr().err


def test_gradients_of_parts_of_a_call_are_checked():
    x, w, d = images(5, 3, 4), images(3), images(5, 3, 4).flip(0)
    call = Call(lambda given: [F.prelu(given[0], given[1])], {0: x, 1: w}, {1}, [d], [Layout()], 5)
    (good,) = [found for cut in call.guesses() if (found := call.in_parts(cut)) is not None]
    torch.testing.assert_close(good[1], torch.where(x < 0, x * d, 0).sum(2))
    assert call.adds_up(good)
    others = good[1].clone()
    others[:2] = good[1][:2].flip(0)
    for wrong in (others, good[1] * torch.arange(5)[:, None].clamp(max=1), good[1] * (1 + 1e-6), good[1] * 0):
        assert not call.adds_up({1: wrong})
    small = torch.tensor([1, 1e-12, 1, 0, 1], dtype=x.dtype)[:, None]
    call = Call(call.outputs, call.given, {1}, [d * small[..., None]], [Layout()], 5)
    assert call.adds_up({1: good[1] * small})
    assert not call.adds_up({1: good[1] * small.where(small != 1e-12, -1e-12)})


class Observed(nn.Module):
    """Rounds to steps that follow the range of the maps, in eval mode too, as observers of quantisation do."""

    def __init__(self):
        super().__init__()
        self.register_buffer("largest", torch.ones(()))
        self.register_buffer("passes", torch.zeros((), dtype=torch.long))
        self.on = True

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        if self.on:
            self.largest.lerp_(x.detach().abs().amax(), 0.01)
        step = self.largest / 127
        return x + ((x / step).round() * step - x).detach()


@pytest.mark.parametrize("hooked", [False, True])
def test_observers_that_are_on_are_an_error_that_names_them(hooked):
    net, x = nn.Sequential(nn.Linear(4, 8), Observed(), nn.Tanh(), nn.Linear(8, 3)).eval(), images(5, 4).float()
    if hooked:
        net[0].register_forward_hook(lambda *_: None)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"changes 1\.largest .*disable_observer"):
            grad_sq_norms(net, x, spread)
    net[1].on = False
    exact(net, x.double())
    exact(net, x.double(), max_batch=1)


class Normalised(nn.Module):
    """A layer of each kind that an exported network calls by operators of its own."""

    def __init__(self):
        super().__init__()
        self.conv, self.batch, self.group = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.GroupNorm(2, 6)
        self.a, self.layer, self.last = nn.Parameter(torch.rand(6)), nn.LayerNorm(6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.group(F.silu(self.batch(self.conv(x))))
        return self.last(self.layer(x.mean((2, 3)) * self.a + self.a))


def test_an_exported_network_takes_the_rules_of_its_own():
    net, x = Normalised().double(), images(5, 3, 6, 6)
    net(x + 1)
    net.eval()
    batch = torch.export.Dim("batch")
    exported = torch.export.export(net, (x,), dynamic_shapes=({0: batch},)).module()
    own, its = explain(net, x), explain(exported, x)
    assert [rule for _, rule in its] == [rule for _, rule in own]
    torch.testing.assert_close(grad_sq_norms(exported, x, spread).norms, grad_sq_norms(net, x, spread).norms)


def test_a_bias_made_of_data():
    def forward(net, x):
        return F.linear(torch.stack([x, x.sin()], 1), net.last.weight, net.first(x)[0, :3]).mean(1)

    exact(Net(forward), torch.rand(1, 4).double())


class Labelled(Tensor):
    """A tensor whose kind survives operations."""


class Shifted(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("by", torch.rand(4, dtype=torch.float64).as_subclass(Labelled))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.by


@pytest.mark.parametrize("where", ["images", "buffer", "weight"])
def test_tensors_of_a_kind_of_their_own_before_an_operation_in_place(where):
    net = nn.Sequential(Shifted() if where == "buffer" else nn.Identity(), nn.Linear(4, 4), nn.ReLU(inplace=True))
    net.append(nn.Linear(4, 3))
    net, x = net.double(), images(5, 4)
    if where == "weight":
        net[1].weight = nn.Parameter(net[1].weight.detach().as_subclass(Labelled))
        assert isinstance(net[1].weight, Labelled)
    exact(net, x.as_subclass(Labelled) if where == "images" else x)


def positive(y: Tensor) -> Tensor:
    return (y > 0).to(y.dtype)


positive_scripted = script(positive)


def size_of(y: Tensor) -> Tensor:
    return y.abs().mean().expand(1, 1, 1)


def in_a_thread(y: Tensor) -> Tensor:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: positive(y.detach())).result()


class Masked(nn.Module):
    """A convolution's output is read by its batch norm, and by `mask`."""

    def __init__(self, mask):
        super().__init__()
        self.mask, self.conv, self.norm, self.last = mask, nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.last((self.norm(y) * self.mask(y.detach() if self.mask is positive_scripted else y)).mean((2, 3)))


@pytest.mark.parametrize(
    "mask",
    [
        positive,
        positive_scripted,
        in_a_thread,
        torch.vmap(positive),
        torch.vmap(lambda y: size_of(y.detach())),
        lambda y: positive(y.to(y.device)),
    ],
    ids=["seen", "scripted", "in a thread", "mapped", "mapped values", "on its device"],
)
@pytest.mark.parametrize("n", [1, 5])
def test_the_output_of_a_folded_convolution_read_unseen(mask, n):
    net, x = Masked(mask).double().eval(), images(n, 3, 8, 8)
    exact(net, x)
    torch.testing.assert_close(grad_sq_norms(net, x, spread).logits, net(x).detach())


def test_an_error_of_the_network_itself_under_a_fold():
    net, x = Masked(positive).double().eval(), images(3, 3, 8, 8)
    exact(net, x)
    net.mask = lambda y: 1 / 0
    with pytest.raises(ZeroDivisionError):
        grad_sq_norms(net, x, spread)
    net.mask = positive
    exact(net, x)


class Graph(nn.Module):
    """A layer on 12 nodes, and their neighbours' sums by a sparse matrix."""

    def __init__(self, kept: str, layout: torch.layout):
        super().__init__()
        matrix = (torch.eye(12, dtype=torch.float64) + (torch.rand(12, 12) < 0.2)).to_sparse(layout=layout)
        self.register_buffer("matrix", matrix) if kept == "buffer" else setattr(self, "matrix", matrix)
        self.first, self.last, self.bias = nn.Linear(4, 6), nn.Linear(6, 3), nn.Parameter(torch.rand(12, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).tanh().transpose(0, 1).reshape(12, -1)
        y = torch.sparse.addmm(self.bias.expand_as(y), self.matrix, y)
        return self.last(y.view(12, len(x), 6).mean(0))


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
@pytest.mark.parametrize("kept", ["buffer", "attribute"])
def test_sparse_matrices(kept, layout):
    exact(Graph(kept, layout), images(5, 12, 4))


def test_several_tensors_in_place():
    def forward(net, x):
        y, scale = net.first(x) * 1, net.a * 1
        torch._foreach_mul_([y], 2.0)
        torch._foreach_add_([scale], 1.0)
        return net.last(y.tanh() * scale)

    exact(Net(forward), images(5, 4))


def test_several_tensors_in_place_with_parameters_is_an_error():
    def forward(net, x):
        y = net.first(x) * 1
        torch._foreach_mul_([y], [net.a])
        return net.last(y)

    with pytest.raises(NotImplementedError, match="several tensors in place"):
        grad_sq_norms(Net(forward).double().eval(), images(5, 4), spread)


@pytest.mark.parametrize("first", [True, False])
def test_a_call_with_named_outputs(first):
    def forward(net, x):
        matrix = net.first.weight + 4 * torch.eye(4, dtype=x.dtype)
        return net.last(
            torch.linalg.lstsq(matrix, (x if first else x @ net.last.weight.T @ net.last.weight).T).solution.T
        )

    exact(Net(forward), images(5, 4))


class Old(Doubled):
    """The same, whose backward pass warns that it is out of date."""

    @staticmethod
    def backward(ctx, d):
        warnings.warn("out of date", DeprecationWarning, stacklevel=1)
        return Doubled.backward(ctx, d)


@pytest.mark.filterwarnings("ignore:out of date")
def test_a_backward_pass_that_warns():
    exact(Net(lambda net, x: net.last(Old.apply(net.first(x), net.a))), images(5, 4))


def by_cells(cell, state):
    def forward(net, x):
        h = x[:, 0] * 0
        for row in x.unbind(1):
            h = net.cell(row, (h, h * 2) if state else h)
            h = h[0] + h[1] if state else h
        return net.last(h)

    def make(bias):
        net = Net(forward)
        net.cell = cell(4, 4, bias)
        del net.first, net.a, net.b
        return net, images(5, 3, 4)

    return make


def test_a_bilinear_layer_at_several_positions():
    net = Net(lambda net, x: net.last(net.cell(x, x.sin()).mean(1)))
    net.cell = nn.Bilinear(4, 4, 4)
    exact(net, images(5, 3, 4))
    assert [rule for _, rule in explain(net, images(5, 3, 4)) if "general" in rule]


def by_products(bias):
    net = Net(lambda net, x: net.last(net.cell(x, x.sin())))
    net.cell = nn.Bilinear(4, 4, 4, bias)
    del net.first, net.a, net.b
    return net, images(5, 4)


STEPWISE = {
    "lstm": by_cells(nn.LSTMCell, True),
    "gru": by_cells(nn.GRUCell, False),
    "rnn": by_cells(nn.RNNCell, False),
    "relu rnn": by_cells(lambda i, h, bias: nn.RNNCell(i, h, bias, "relu"), False),
    "bilinear": by_products,
}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", STEPWISE)
def test_layers_that_are_made_of_linear_ones(name, bias):
    net, x = STEPWISE[name](bias)
    exact(net, x)
    assert not [rule for _, rule in explain(net, x) if "general" in rule]


def test_the_device_of_a_folded_output_may_be_asked_for():
    net, x = Masked(lambda y: torch.ones((), dtype=y.dtype, device=y.device)).double().eval(), images(5, 3, 8, 8)
    exact(net, x)
    assert [plan.folds for plan in _plans[net].values()] != [{}]


def test_an_output_of_no_dimension_that_has_a_gradient_is_where_images_meet():
    net = Net(lambda net, x: net.last(net.first(x)) + torch.linalg.vector_norm(net.a * x[0])).double().eval()
    net.register_forward_hook(lambda *_: None)  # so that the logits are not compared first
    with pytest.raises(RuntimeError, match=r"meet|depend on the other images"):
        grad_sq_norms(net, images(5, 4), spread)
    net = Net(lambda net, x: net.last(net.first(x)) + torch.dot(net.a, x[0])).double().eval()
    net.register_forward_hook(lambda *_: None)
    with pytest.raises(RuntimeError, match=r"meet|depend on the other images"):
        grad_sq_norms(net, images(5, 4), spread)


@pytest.mark.parametrize("shared", [True, False, None])
def test_gradients_that_are_kept_whole_are_kept_for_few_images_at_a_time(shared, monkeypatch):
    def forward(net, x):
        if shared is None:
            return net.last(torch.kron(net.first(x).tanh(), net.c)[::2, :4])
        return net.last(
            net.first(net.first(x)) if shared else torch.kron(net.first(x).tanh(), net.b.view(2, 2))[::2, :4]
        )

    net, x, sizes = Net(forward), images(11, 4), []
    net.c = nn.Parameter(torch.rand(2, 2))
    net = net.double().eval()
    exact(net, x)
    monkeypatch.setattr("howsure.gradients.plan._KEPT", 3 * 8 * (20 if shared else 4))
    run = Chunk.result
    monkeypatch.setattr(Chunk, "result", lambda self: sizes.append(self.n) or run(self))
    exact(net, x, calls=1)
    assert max(sizes) == 3
    assert sum(sizes) == 11


@pytest.mark.parametrize("what", ["overflows", "complex"])
def test_a_fast_look_at_layouts_of_odd_gradients(what):
    plain = torch.randn(4 * 12, 8, dtype=torch.complex128 if what == "complex" else torch.float32)
    options, factors, coded = candidates(plain.shape, 4), codes(4, plain.real), plain.clone()
    Layout(0, 12).apart(coded, 4).mul_(factors[:, None, None, None])
    if what == "overflows":
        coded[:12] = torch.inf
    kept = plausible(options, plain, coded, factors)
    assert Layout(0, 12) in kept
    assert len(kept) < len(options)


@given(st.integers(2, 5), st.lists(st.integers(1, 4), min_size=1, max_size=3), st.data())
@settings(max_examples=60, deadline=None)
def test_a_fast_look_at_layouts_keeps_those_that_explain_a_gradient(n, sizes, data):
    shape = [size * n if data.draw(st.booleans()) else size for size in sizes] + [12 * n]
    options = candidates(torch.Size(shape), n)
    true, plain = data.draw(st.sampled_from(options)), torch.randn(shape, dtype=torch.float64)
    plain[torch.rand(shape) < data.draw(st.sampled_from([0.0, 0.5, 0.99]))] = 0
    factors, coded = codes(n, plain), plain.clone()
    rows = true.apart(coded, n)
    rows.mul_(factors.view(n, *[1] * (rows.dim() - 1)))
    kept = plausible(options, plain, coded, factors)
    wanted = [layout for layout in options if explains(layout, plain, coded, factors)]
    assert [layout for layout in kept if explains(layout, plain, coded, factors)] == wanted
    assert true in wanted


def test_a_fast_look_at_layouts_leaves_few():
    plain, true = torch.randn(4 * 360, 8, dtype=torch.float64), Layout(0, 60, 6)
    factors, coded = codes(4, plain), plain.clone()
    true.apart(coded, 4).mul_(factors[:, None, None, None])
    assert plausible(candidates(plain.shape, 4), plain, coded, factors) == [true]


@pytest.mark.parametrize("affine", [True, False])
def test_group_norm_is_as_exact_on_maps_with_their_channels_side_by_side(affine):
    net = nn.Sequential(nn.GroupNorm(8, 8, affine=affine), nn.Flatten(), nn.Linear(8 * 32 * 32, 3)).eval()
    x = torch.randn(4, 8, 32, 32) + 3
    last = F.group_norm(x.to(memory_format=torch.channels_last), 8)
    assert not torch.equal(last, F.group_norm(x, 8))  # or torch has become more exact, and the rewrite is of no use
    torch.testing.assert_close(grad_sq_norms(net, x, spread).logits, net(x), rtol=0, atol=0)
    assert verify(net, x, spread) < 1e-5


class Turned(nn.Module):
    """Group norm of maps turned on their side, which comes out in the plain order."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4), nn.Linear(4 * 5 * 6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.first(x).contiguous().transpose(2, 3)).view(len(x), -1))


def test_group_norm_of_maps_in_another_order():
    exact(Turned(), images(5, 3, 6, 5))
