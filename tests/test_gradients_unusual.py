"""The gradient engine on networks whose code it cannot see, whose samples meet, or which change between calls."""

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from howsure.gradients import grad_sq_norms, one_by_one


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
    """`forward(self, x)` as given, over `first` (4 to 4) and `last` (4 to 3) linear layers and a parameter `a [4]`."""

    def __init__(self, forward):
        super().__init__()
        self.first, self.last, self.a = nn.Linear(4, 4), nn.Linear(4, 3), nn.Parameter(torch.rand(4))
        self.run, self.flag = forward, False

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def script(what):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
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


UNSEEN = {
    "a scripted function before all layers": lambda net, x: net.last(net.first(doubled(x)).tanh()),
    "data by way of a list": lambda net, x: net.last(net.first(torch.tensor(x.tolist(), dtype=x.dtype))),
    "data by way of numpy": lambda net, x: net.last(net.first(torch.from_numpy(x.numpy() * 2))),
    "a function of its own on a derived weight": lambda net, x: net.last(Doubled.apply(net.first(x), net.a * 2)),
    "a constant written to row by row": write_rows,
    "a constant written to through a view": write_view,
    "a diagonal": lambda net, x: net.last(x @ torch.diag_embed(net.a)),
    "logits of weights alone": lambda net, x: net.last.bias.expand(len(x), 3) * 1,
    "a repeated weight that is added to": repeat_then_add,
}


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
    torch.testing.assert_close(got, plainly(net, x)[:, 3], rtol=1e-9, atol=0)
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


@pytest.mark.parametrize("n", [2, 4, 9])
def test_a_gradient_that_was_zero_at_first(n):
    net, x = Net(halves), images(n, 4)
    net.a.data.zero_()
    exact(net, x)
    net.a.data.fill_(1.0)
    exact(net, x)


def test_a_gate_that_opens_for_later_images():
    def run(net: Net, x: Tensor) -> Tensor:
        a, b = net.first(torch.cat([x, x.flip(1)])).tanh().chunk(2)
        return net.last(x) + x[:, :1].relu() * (a + b)[:, :3]

    x = images(12, 4)
    x[:, 0] = x[:, 0].abs()
    x[:4, 0] *= -1
    exact(Net(run), x, max_batch=4)
    exact(Net(run), x)


MIXED = {
    "the order of the data": lambda net, x: ordered(net, x, x.abs().sum(1).argsort()),
    "an order for some sizes alone": lambda net, x: ordered(net, x, torch.arange(len(x)).roll(int(len(x) > 4))),
    "a mean taken off the images": lambda net, x: net.last(x - x.mean(0)),
    "a scale by the largest of all": lambda net, x: net.last((x / x.detach().abs().max()).exp()),
    "batch statistics without weights": lambda net, x: net.last(F.batch_norm(x, None, None, training=True)),
    "a little of the mean": lambda net, x: net.last(net.first(x) - 1e-4 * net.first(x).mean(0)),
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


def test_a_choice_that_hangs_on_the_data_is_looked_at_every_time():
    net, x = Net(MIXED["the order of the data"]).double(), images(8, 4)
    x = x[x.abs().sum(1).argsort()]
    exact(net, x)
    with pytest.raises(RuntimeError, match="mixes the samples"):
        grad_sq_norms(net, x.flip(0), spread)


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
    with pytest.raises(RuntimeError, match="frequency"):
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
