"""Finds, during one forward pass, every place where a parameter meets data.

The model is not touched: a ``TorchFunctionMode`` of this thread sees each call of a torch function. A call that takes
only parameters (a reshape, a weight standardisation) gives a *derived* weight. A call that takes a weight and data is
a *site*: it is made with the weight detached, so that autograd computes no summed weight gradient, and a rule that
knows the call's inputs turns the gradient at its output into per-sample gradients of the weight.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Collection, Iterable, Mapping
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from .conv import Conv
from .fold import SHAPES, Fold, Folded, Unfolded
from .general import General
from .layout import Layout
from .rule import Rule, map_tensors, tensors
from .rules import rule_for

_IN_PLACE = {"__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__ipow__", "__ifloordiv__"}
_STRIDED = {"as_strided", "stride"}
_CHOOSING = {
    *("argsort", "sort", "msort", "topk", "kthvalue", "nonzero", "argwhere", "unique", "unique_consecutive"),
    *("bincount", "masked_select", "multinomial", "item", "tolist", "numpy", "__int__", "__float__", "__index__"),
    "_pack_padded_sequence",
}
_INDEXING = {"__getitem__", "__setitem__", "index", "index_select", "index_put", "index_put_", "index_add",
             "index_add_", "gather", "take_along_dim", "take", "scatter", "scatter_", "scatter_add",
             "scatter_add_"}  # fmt: skip
_ORDERING = {"roll", "flip", "transpose", "permute", "movedim", "moveaxis", "swapaxes", "swapdims", "rot90"}
_DROPOUTS = {
    *("dropout", "dropout_", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "alpha_dropout_"),
    *("feature_dropout", "feature_dropout_", "feature_alpha_dropout", "feature_alpha_dropout_", "native_dropout"),
}
_DRAWS = {
    *("rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like", "normal", "normal_"),
    *(
        "poisson",
        "bernoulli",
        "bernoulli_",
        "uniform_",
        "exponential_",
        "geometric_",
        "cauchy_",
        "log_normal_",
        "random_",
    ),
    *("multinomial", "binomial", "gumbel_softmax"),
}
_CHANCE = {
    *_DROPOUTS,
    *("lstm", "gru", "rnn_tanh", "rnn_relu", "rrelu", "rrelu_"),
    *("scaled_dot_product_attention", "multi_head_attention_forward"),
}
_SHAPE_ONLY = {
    "type_as",
    "expand_as",
    "view_as",
    "reshape_as",
    "to",
    "zeros_like",
    "ones_like",
    "empty_like",
    "is_same_size",
}


class Site:
    """One call in which weights met data."""

    def __init__(
        self, index: int, meeting: int, rule: Rule, weights: dict[Any, Tensor], label: str, outputs: list[Tensor]
    ):
        self.index, self.meeting, self.rule, self.weights, self.label = index, meeting, rule, weights, label
        self.shapes = tuple(tuple(t.shape) for t in outputs)
        self.made = {key: t._version for key, t in weights.items()}
        self.versions = {key: t._version for key, t in rule.saved.items()}
        self.layout: tuple[Layout, ...] = ()

    def check_inputs(self) -> None:
        for key, version in self.versions.items():
            if self.rule.saved[key]._version != version:
                raise RuntimeError(
                    f"the input of {self.label} was overwritten in place after it was used, so its gradient is lost"
                    " (ordinary autograd refuses this too); make the later operation out of place"
                )

    def check_weight(self, key: Any) -> None:
        if self.weights[key]._version != self.made[key]:
            raise RuntimeError(
                f"{self.label} was changed in place after it was used, so what it was made of at that time is lost;"
                " make the change out of place"
            )

    def release(self) -> None:
        """Let go of the inputs, which no later pass needs."""
        self.rule.saved, self.versions = {}, {}

    def release_for_overwrite(self, key: Any) -> None:
        self.rule.saved[key] = self.rule.saved[key].clone()
        self.versions[key] = self.rule.saved[key]._version


class _Start(torch.autograd.Function):
    """Makes the output of the first site require grad though neither its input nor its weights do."""

    @staticmethod
    def forward(ctx, anchor, run):
        return run()

    @staticmethod
    def backward(ctx, *grads):
        return None, None


class _Tie(torch.autograd.Function):
    """Holds several outputs of one call together, so that their gradients arrive at one time."""

    @staticmethod
    def forward(ctx, sink, *outputs):
        ctx.sink = sink
        ctx.set_materialize_grads(True)
        return tuple(o.clone() for o in outputs)

    @staticmethod
    def backward(ctx, *grads):
        ctx.sink(grads)
        return (None, *grads)


def _name(func: Any) -> str:
    """Its name, of an overload (``mul_.Tensor``) that of the operator."""
    return getattr(func, "__name__", "").partition(".")[0]


def _by_chance(name: str, args: tuple, kwargs: dict) -> bool:
    """Whether a call of one of ``_CHANCE`` gives something else each time."""
    if name in _DROPOUTS:
        p = args[1] if len(args) > 1 else kwargs.get("p", 0.5)
        on = args[2] if len(args) > 2 else kwargs.get("training", kwargs.get("train", "alpha" not in name))
        return bool(p and on)
    if name == "scaled_dot_product_attention":
        return bool(args[4] if len(args) > 4 else kwargs.get("dropout_p"))
    if name == "multi_head_attention_forward":
        p, on = (args[at] if len(args) > at else kwargs.get(key) for at, key in ((10, "dropout_p"), (13, "training")))
        return bool(p) and on is not False
    if name.startswith("rrelu"):
        return bool(args[3] if len(args) > 3 else kwargs.get("training"))
    recurrent = zip(args, args[1:], args[2:], strict=False)  # …, number of layers, dropout, training, …
    return any(type(p) is float and p > 0 and on is True and layers > 1 for layers, p, on in recurrent)


def _in_place(func: Any, args: tuple, kwargs: dict) -> bool:
    name = _name(func)
    if name in _IN_PLACE or (name.endswith("_") and not name.endswith("__")):
        return True
    if not isinstance(func, types.FunctionType):
        return False
    names = func.__code__.co_varnames[: func.__code__.co_argcount]
    if "inplace" not in names:
        return False
    position = names.index("inplace")
    return bool(args[position] if len(args) > position else kwargs.get("inplace", False))


def _first(args: tuple, kwargs: dict) -> Any:
    return args[0] if args else next(iter(kwargs.values()))


def _opened(func: types.FunctionType) -> Callable[..., Any]:
    """``func`` of ``torch.nn.functional`` without its own dispatch, so that the calls in its body are seen."""
    blind = {name: (lambda *_: False) for name in func.__globals__ if name.startswith("has_torch_function")}
    copy = types.FunctionType(
        func.__code__, {**func.__globals__, **blind}, func.__name__, func.__defaults__, func.__closure__
    )
    copy.__kwdefaults__ = func.__kwdefaults__
    return copy


def _attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    """Scaled dot product attention in single steps, so that a mask made of parameters is a plain addition."""
    if dropout_p or is_causal or enable_gqa or attn_mask is None or attn_mask.dtype == torch.bool:
        raise NotImplementedError
    scores = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.transpose(-2, -1)
    return (scores + attn_mask).softmax(dim=-1) @ value


class _Watched:
    """The output ``t`` of a convolution, and how often it was read; or the empty shell of a folded one, and ``out``."""

    def __init__(self, t: Tensor, index: int, out: Tensor | None = None, fold: Fold | None = None):
        self.t, self.index, self.out, self.fold, self.reads = t, index, out, fold, 0

    def read(self, func: Any, args: tuple, kwargs: dict) -> Tensor | None:
        """Count a reading; of a shell, the output for its batch norm, once, and an error for anything else."""
        self.reads += 1
        if self.fold is None:
            return None
        if self.reads > 1 or not self.fold.is_call(func, args, kwargs):
            raise Unfolded(self.fold)
        out, self.out = self.out, None
        return out


class Tracer(TorchFunctionMode):
    """Records the sites of the calls made while it is active.

    Parameters
    ----------
    model
        The network, to name the layer that draws random numbers.
    selected, others
        Parameters by name: those whose gradients are wanted, and those that are constants of this pass.
    data
        The input batch.
    sink
        Called as ``sink(site, grad)`` during the backward pass.
    folds
        Batch norms to fold, by the id of the convolution's weight; None to count who reads convolutions' outputs.
    general, unseen
        Of the calls in which weights meet data, by number, those whose samples lie so that no rule but the general path
        holds, and those to be made as if they were not seen.
    """

    def __init__(
        self,
        model: nn.Module,
        selected: Mapping[str, Tensor],
        others: Iterable[Tensor],
        data: Tensor,
        sink: Callable,
        folds: Mapping[int, Fold] | None,
        general: Collection[int] = (),
        unseen: Collection[int] = (),
    ):
        super().__init__()
        self.model, self.general, self.unseen, self.meetings = model, general, unseen, 0
        self.sink, self.folds, self.counts = sink, folds or {}, folds is None
        self.names = {id(p): name for name, p in selected.items()}
        self.weights: dict[int, Tensor] = {id(p): p for p in selected.values()}
        self.constants: dict[int, Tensor] = {id(p): p for p in others}
        self.aliases: dict[int, Tensor] = {}
        self.plain: dict[int, Tensor] = {}
        self.data: dict[int, Tensor] = {id(data): data}
        self.sites: list[Site] = []
        self.saved: dict[int, list[tuple[Site, Any]]] = {}
        self.nodes: dict[Any, Site] = {}
        self.watched: dict[int, _Watched] = {}
        self.anchor = torch.zeros((), device=data.device, requires_grad=True)
        self.calls = 0
        """A hash of all calls by name, and how they reorder: where others are made, what was learned is void."""
        self.depends = False
        """Whether the order or choice of what is computed may hang on the data."""
        self.branches = False
        """Whether which calls are made hangs on the data."""
        self.drawn: dict[int, tuple[str, Tensor]] = {}
        """Random numbers, by what they were drawn with; nothing may read them."""
        self.reads_memory = False
        """Whether the network looks at how data lie in memory."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if _transform_level() is not None:
            return func(*args, **kwargs)
        name = _name(func)
        self.calls = hash((self.calls, name, str(args[1:]) if name in _ORDERING else None))
        if name in _CHANCE and _by_chance(name, args, kwargs):
            raise RuntimeError(_random(self.model, name))
        for t in tensors((args, kwargs)) if self.drawn else ():
            if id(t) in self.drawn:
                raise RuntimeError(_random(self.model, self.drawn[id(t)][0]))
        if name in _DRAWS and kwargs.get("generator") is None:
            out = func(*args, **kwargs)
            self.drawn |= {id(t): (name, t) for t in tensors((out,))}
            return out
        if func is torch.autograd.grad and (kwargs.get("create_graph") or any(args[4:5])):
            raise RuntimeError(
                "the network takes a gradient during its forward pass, whose own gradient cannot be followed"
            )
        weight = data = False
        for t in tensors((args, kwargs) if kwargs else args):
            key = id(t)
            if key in self.weights or key in self.constants:
                weight = True
            elif key in self.watched and func not in SHAPES:
                out = self.watched[key].read(func, args, kwargs)
                if out is not None:
                    self.meetings += 1
                    return out
                data = True
            elif t.requires_grad or key in self.data:
                data = True
        if data:
            self._notice(name, args, kwargs)
        if not weight:
            if data and _in_place(func, args, kwargs):
                self._before_overwrite(_first(args, kwargs))
                return self._overwriting(func, args, kwargs)
            out = func(*args, **kwargs)
            if data:
                self._mark(out)
            return out
        if not data:
            return self._derive(func, args, kwargs)
        return self._meet(func, args, kwargs)

    # -- data ---------------------------------------------------------------------------------------------------

    def _notice(self, name: str, args: tuple, kwargs: dict) -> None:
        """Note calls that order or choose by the data, and those that read strides."""
        if name in _STRIDED:
            self.reads_memory = True
        elif name in _CHOOSING or (name in _INDEXING and any(id(t) in self.data for t in tensors((args[1:], kwargs)))):
            self.depends = True
        elif name == "__bool__":
            self.branches = True

    def _mark(self, out: Any) -> None:
        for t in tensors((out,)):
            if not t.requires_grad and id(t) not in self.weights:
                self.data[id(t)] = t

    def _overwriting(self, func: Any, args: tuple, kwargs: dict) -> Any:
        out = func(*args, **kwargs)
        self._mark((_first(args, kwargs), out))
        return out

    def _before_overwrite(self, target: Tensor) -> None:
        for site, key in self.saved.pop(target.untyped_storage()._cdata, ()):
            site.release_for_overwrite(key)

    # -- weights alone ------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Let go of every tensor."""
        for site in self.sites:
            site.rule.saved.clear()
            site.rule.arguments.clear()
        for kept in (
            self.sites,
            self.nodes,
            self.watched,
            self.saved,
            self.data,
            self.weights,
            self.constants,
            self.aliases,
            self.plain,
        ):
            kept.clear()

    def _alias(self, t: Tensor) -> Tensor:
        """What a weight-only call sees: a leaf for a parameter, itself for a derived weight."""
        if id(t) in self.constants:
            return self._detached(t)
        if id(t) not in self.names:
            return t
        if id(t) not in self.aliases:
            self.aliases[id(t)] = t.detach().requires_grad_()
        return self.aliases[id(t)]

    def _detached(self, t: Tensor) -> Tensor:
        if id(t) not in self.plain:
            self.plain[id(t)] = t.detach()
        return self.plain[id(t)]

    def _derive(self, func: Any, args: tuple, kwargs: dict) -> Any:
        if _name(func) == "repeat" and len(args) > 1:
            func = _repeat_as_expand
        out = func(*map_tensors(self._alias, args), **map_tensors(self._alias, kwargs))
        changed = [args[0], *([args[0]._base] if args[0]._is_view() else [])] if _in_place(func, args, kwargs) else []
        for t in tensors((changed, out)):
            if t.requires_grad and id(t) not in self.names:
                self.weights[id(t)] = t
        return out

    # -- weights and data ---------------------------------------------------------------------------------------

    def _strip(self, t: Tensor) -> Tensor:
        return self._detached(t) if id(t) in self.weights or id(t) in self.constants else t

    def _meet(self, func: Any, args: tuple, kwargs: dict) -> Any:
        if func in _FLIPPED:
            func, args = _FLIPPED[func], (args[1], args[0])
        name = _name(func)
        shape_only = name in _SHAPE_ONLY
        if shape_only and id(args[0]) in self.weights:
            return self._derive(func, args, kwargs)
        wanted = any(id(t) in self.weights for t in tensors((args, kwargs)))
        if not wanted or not torch.is_grad_enabled() or shape_only:
            if _in_place(func, args, kwargs):
                self._before_overwrite(_first(args, kwargs))
            out = func(*map_tensors(self._strip, args), **map_tensors(self._strip, kwargs))
            self._mark(out)
            return out
        self.meetings += 1
        if self.meetings in self.unseen:
            if _in_place(func, args, kwargs):
                self._before_overwrite(_first(args, kwargs))
            return func(*map_tensors(self._alias, args), **map_tensors(self._alias, kwargs))
        if _in_place(func, args, kwargs):
            return self._meet_in_place(func, args, kwargs)
        is_weight = lambda t: id(t) in self.weights  # noqa: E731
        if self.meetings in self.general:
            return self._site(*General.bind(func, args, kwargs, is_weight, self._strip), name)
        rule, weights = rule_for(func, args, kwargs, is_weight, self._strip)
        if rule is None and func is F.scaled_dot_product_attention:
            try:
                with self:
                    return _attention(*args, **kwargs)
            except NotImplementedError:
                pass
        if rule is None and isinstance(func, types.FunctionType):
            with self:
                return _opened(func)(*args, **kwargs)
        if rule is None:
            rule, weights = General.bind(func, args, kwargs, is_weight, self._strip)
        fold = self.folds.get(id(weights.get("weight")))
        if fold is not None and fold.takes(rule, weights.get("bias")):
            return self._fold(fold, rule, weights, name)
        return self._site(rule, weights, name)

    def _fold(self, fold: Fold, conv: Rule, weights: dict[Any, Tensor], name: str) -> Tensor:
        out = self._site(Folded(conv, fold), {**weights, **fold.weights()}, name)
        shell = torch.full((), torch.nan, dtype=out.dtype, device=out.device).expand(out.shape)
        self.watched[id(shell)] = _Watched(shell, len(self.sites) - 1, out, fold)
        return shell

    def reads(self) -> dict[int, int]:
        """How often the output of each convolution was read, by index."""
        return {watched.index: watched.reads for watched in self.watched.values()}

    def hangs_on_data(self, site: Site) -> bool:
        """Whether data is seen to come to a site; otherwise it may be of weights alone, some used unseen before."""
        node = next((node for node, other in self.nodes.items() if other is site), None)
        return node is None or any(leaf is self.anchor for leaf in graph_of(node)[0])

    def check_folds(self) -> None:
        """Raise ``Unfolded`` where a folded batch norm was not called, or someone keeps an empty shell for later."""
        for watched in self.watched.values():
            if watched.fold is not None and (not watched.reads or sys.getrefcount(watched.t) > 2):
                raise Unfolded(watched.fold)

    def _meet_in_place(self, func: Any, args: tuple, kwargs: dict) -> Any:
        target = args[0]
        if id(target) in self.weights or id(target) in self.constants:
            raise NotImplementedError(
                f"{_name(func)}: a parameter, or a tensor made of parameters, is overwritten with data"
            )
        is_weight = lambda t: id(t) in self.weights  # noqa: E731
        rule, weights = rule_for(func, args, kwargs, is_weight, self._strip)
        if rule is None:
            args = (target.clone(), *args[1:])
            rule, weights = General.bind(func, args, kwargs, is_weight, self._strip, overwrites=True)
        out = self._site(rule, weights, _name(func))
        self._before_overwrite(target)
        target.copy_(out)
        self._mark((target,))
        return None if _name(func) == "__setitem__" else target

    def _site(self, rule: Rule, weights: dict[Any, Tensor], name: str) -> Any:
        connected = any(t.requires_grad for t in rule.inputs())
        out = rule.forward() if connected else _Start.apply(self.anchor, rule.forward)
        several = not isinstance(out, Tensor)
        label = ", ".join(self.names.get(id(w), f"a tensor made of parameters in {name}") for w in weights.values())
        if not any(t.requires_grad for t in tensors((out,))):
            if any(t.is_floating_point() for t in tensors((out,))):
                raise RuntimeError(f"{label}: its gradient would be lost in {name}, whose result hangs on no data")
            self._mark(out)
            return out
        site = Site(len(self.sites), self.meetings, rule, weights, label, list(tensors((out,))))
        if several:
            tied = _Tie.apply(lambda grads: self.sink(site, grads), *out)
            out = tied if type(out) in (tuple, list) else type(out)(tied)
        else:
            if out._is_view():
                out = out.clone()
            slot = out.output_nr
            out.grad_fn.register_prehook(lambda grads: self.sink(site, (grads[slot],)))
            self.nodes[out.grad_fn] = site
            if self.counts and isinstance(rule, Conv):
                self.watched[id(out)] = _Watched(out, site.index)
        for key, t in rule.saved.items():
            self.saved.setdefault(t.untyped_storage()._cdata, []).append((site, key))
        self.sites.append(site)
        return out


def _repeat_as_expand(t: Tensor, *sizes: Any) -> Tensor:
    """``t.repeat``; by way of a view where only dimensions of size one are repeated: its gradient is a cheap sum."""
    flat = sizes[0] if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)) else sizes
    shape = (1,) * (len(flat) - t.dim()) + tuple(t.shape)
    if any(r > 1 and s != 1 for r, s in zip(flat, shape, strict=True)):
        return t.repeat(*sizes)
    wide = t.reshape(shape).expand([r * s for r, s in zip(flat, shape, strict=True)])
    return wide.clone(memory_format=torch.contiguous_format)


def _random(model: nn.Module, name: str) -> str:
    layers = {id(m): f"{layer} ({type(m).__name__})" for layer, m in model.named_modules() if layer}
    frame: FrameType | None = sys._getframe()
    while frame is not None and id(frame.f_locals.get("self")) not in layers:
        frame = frame.f_back
    return (
        f"{layers[id(frame.f_locals['self'])] if frame else 'the network'} draws random numbers ({name}), so the"
        " logits hang on chance and no sample has a gradient of its own; call model.eval(), or give a seeded generator"
    )


_transform_level = torch._C._functorch.maybe_current_level
"""Of ``torch.func`` (``vmap``, ``grad``, ``jvp``): within, data and parameters are wrapped, and used unseen."""

_FLIPPED = {torch.Tensor.__radd__: torch.Tensor.add, torch.Tensor.__rmul__: torch.Tensor.mul}


def graph_of(end: Any) -> tuple[list[Tensor], set[Any]]:
    """The leaf tensors that require grad and the nodes in the graph of a tensor, or that ends in a node."""
    found: list[Tensor] = []
    if isinstance(end, Tensor) and end.grad_fn is None:
        return [end] if end.requires_grad else [], set()
    stack, seen = [end.grad_fn if isinstance(end, Tensor) else end], set[Any]()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        stack.extend(f for f, _ in node.next_functions)
    return found, seen


def leaves(t: Tensor) -> list[Tensor]:
    return graph_of(t)[0]
