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
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from .calls import (
    CHOOSING,
    INDEXING,
    REACHING,
    SHAPE_ONLY,
    STRIDED,
    VALUES,
    first,
    in_place,
    name_of,
    order_of,
    transform_level,
)
from .chance import Chance, draws
from .conv import Conv
from .fold import SHAPES, Fold, Folded, Unfolded
from .general import General
from .graph import graph_of
from .rewrites import FLIPPED, SOUND, attention, opened
from .rule import Rule, map_tensors, tensors
from .rules import rule_for
from .site import Site, Start, Tie
from .weights import Weights


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
    blanks
        Whether tensors in the form of data that hold nothing of them are no data.
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
        blanks: bool = False,
        general: Collection[int] = (),
        unseen: Collection[int] = (),
    ):
        super().__init__()
        self.chance, self.general, self.unseen, self.meetings = Chance(model), general, unseen, 0
        self.sink, self.folds, self.counts, self.blanks = sink, folds or {}, folds is None, blanks
        self.weights = Weights(selected, others)
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
        self.reads_memory = False
        """Whether the network looks at how data lie in memory."""
        self.took_blanks = False
        """Whether tensors that may hold nothing of the data were taken for data."""
        self.ungraded = False
        """Whether weights that are asked for were used while the network keeps no graph."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if transform_level() is not None:
            return func(*args, **kwargs)
        name = name_of(func)
        self.calls = hash((self.calls, name, order_of(name, args, kwargs)))
        self.chance.check(name, args, kwargs)
        if draws(name, kwargs):
            out = func(*args, **kwargs)
            self.chance.note(name, out)
            return out
        if func is torch.autograd.grad and (kwargs.get("create_graph") or any(args[4:5])):
            raise RuntimeError(
                "the network takes a gradient during its forward pass, whose own gradient cannot be followed"
            )
        weight = data = False
        for t in tensors((args, kwargs) if kwargs else args):
            key = id(t)
            if t in self.weights:
                weight = True
            elif key in self.watched and func not in SHAPES:
                out = self.watched[key].read(func, args, kwargs)
                if out is not None:
                    self.meetings += 1
                    return out
                data = True
            elif t.requires_grad or key in self.data:
                data = True
        if data and name in VALUES:
            holds = any(t.requires_grad or id(t) in self.data for t in tensors((args[VALUES[name]], kwargs)))
            self.took_blanks |= not holds
            data = holds or not self.blanks
        if data:
            self._notice(name, args, kwargs)
        if not weight:
            if data and in_place(func, args, kwargs):
                self._before_overwrite(first(args, kwargs))
                return self._overwriting(func, args, kwargs)
            out = SOUND.get(func, func)(*args, **kwargs)
            if data:
                self._mark(out)
            return out
        if not data:
            if self.folds and (func in REACHING or in_place(func, args, kwargs)):
                self._unfold(first(args, kwargs))
            return self.weights.derive(func, args, kwargs)
        return self._meet(func, args, kwargs)

    def reads(self) -> dict[int, int]:
        """How often the output of each convolution was read, by index."""
        return {watched.index: watched.reads for watched in self.watched.values()}

    def hangs_on_data(self, site: Site) -> bool:
        """Whether data is seen to come to a site; otherwise it may be of weights alone, some used unseen before."""
        node = next((node for node, other in self.nodes.items() if other is site), None)
        return node is None or any(t is self.anchor or id(t) in self.data for t in graph_of(node)[0])

    def check_folds(self) -> None:
        """Raise ``Unfolded`` where a folded batch norm was not called, or someone keeps an empty shell for later."""
        for watched in self.watched.values():
            if watched.fold is not None and (not watched.reads or sys.getrefcount(watched.t) > 2):
                raise Unfolded(watched.fold)

    def close(self) -> None:
        """Let go of every tensor."""
        for site in self.sites:
            site.rule.saved.clear()
            site.rule.arguments.clear()
        for kept in (self.sites, self.nodes, self.watched, self.saved, self.data, self.chance.drawn, self.weights):
            kept.clear()

    # -- data ---------------------------------------------------------------------------------------------------

    def _notice(self, name: str, args: tuple, kwargs: dict) -> None:
        """Note calls that order or choose by the data, and those that read strides."""
        if name in STRIDED:
            self.reads_memory = True
        elif name in CHOOSING or (name in INDEXING and any(id(t) in self.data for t in tensors((args[1:], kwargs)))):
            self.depends = True
        elif name == "__bool__":
            self.branches = True

    def _mark(self, out: Any) -> None:
        for t in tensors((out,)):
            if not t.requires_grad and not self.weights.wants(t):
                self.data[id(t)] = t

    def _overwriting(self, func: Any, args: tuple, kwargs: dict) -> Any:
        out = func(*args, **kwargs)
        self._mark((first(args, kwargs), out))
        return out

    def _before_overwrite(self, target: Tensor) -> None:
        for site, key in self.saved.pop(target.untyped_storage()._cdata, ()):
            site.release_for_overwrite(key)

    # -- weights and data ---------------------------------------------------------------------------------------

    def _meet(self, func: Any, args: tuple, kwargs: dict) -> Any:
        if func in FLIPPED:
            func, args = FLIPPED[func], (args[1], args[0])
        name = name_of(func)
        shape_only = name in SHAPE_ONLY
        if shape_only and self.weights.wants(args[0]):
            return self.weights.derive(func, args, kwargs)
        wanted = any(self.weights.wants(t) for t in tensors((args, kwargs) if kwargs else args))
        self.ungraded |= wanted and not torch.is_grad_enabled()
        if not wanted or not torch.is_grad_enabled() or shape_only:
            out = self._plainly(func, args, kwargs, self.weights.strip)
            self._mark(out)
            return out
        self.meetings += 1
        if self.meetings in self.unseen or any(t.is_nested for t in tensors(args)):
            return self._plainly(func, args, kwargs, self.weights.alias)
        if in_place(func, args, kwargs):
            return self._meet_in_place(func, args, kwargs)
        if self.meetings in self.general:
            return self._site(*General.bind(func, args, kwargs, self.weights), name)
        rule, weights = rule_for(func, args, kwargs, self.weights)
        if rule is None and func is F.scaled_dot_product_attention:
            try:
                with self:
                    return attention(*args, **kwargs)
            except NotImplementedError:
                pass
        if rule is None and isinstance(func, types.FunctionType):
            with self:
                return opened(func)(*args, **kwargs)
        if rule is None:
            rule, weights = General.bind(func, args, kwargs, self.weights)
        fold = self.folds.get(id(weights.get("weight")))
        if fold is not None and fold.takes(rule, weights.get("bias")):
            return self._fold(fold, rule, weights, name)
        return self._site(rule, weights, name)

    def _plainly(self, func: Any, args: tuple, kwargs: dict, see: Callable[[Tensor], Tensor]) -> Any:
        """The call itself, with what ``see`` makes of its tensors."""
        if in_place(func, args, kwargs):
            self._before_overwrite(first(args, kwargs))
        return SOUND.get(func, func)(*map_tensors(see, args), **map_tensors(see, kwargs))

    def _unfold(self, changed: Tensor) -> None:
        """Raise ``Unfolded`` where what is folded may be changed after it was."""
        memory = changed.untyped_storage()._cdata
        for fold in self.folds.values():
            parts = (fold.weight, fold.bias, *fold.weights().values())
            if any(t is not None and t.untyped_storage()._cdata == memory for t in parts):
                raise Unfolded(fold)

    def _fold(self, fold: Fold, conv: Rule, weights: dict[Any, Tensor], name: str) -> Tensor:
        out = self._site(Folded(conv, fold), {**weights, **fold.weights()}, name)
        shell = torch.full((), torch.nan, dtype=out.dtype, device=out.device).expand(out.shape)
        self.watched[id(shell)] = _Watched(shell, len(self.sites) - 1, out, fold)
        return shell

    def _meet_in_place(self, func: Any, args: tuple, kwargs: dict) -> Any:
        target = args[0]
        if target in self.weights:
            if not self.weights.release(target):
                raise NotImplementedError(f"{name_of(func)}: a parameter is overwritten with data")
            return self._plainly(func, args, kwargs, self.weights.alias)
        rule, weights = rule_for(func, args, kwargs, self.weights)
        if rule is None:
            args = (target.clone(), *args[1:])
            rule, weights = General.bind(func, args, kwargs, self.weights, overwrites=True)
        out = self._site(rule, weights, name_of(func))
        self._before_overwrite(target)
        target.copy_(out)
        self._mark((target,))
        return None if name_of(func) == "__setitem__" else target

    def _site(self, rule: Rule, weights: dict[Any, Tensor], name: str) -> Any:
        out = rule.forward() if rule.connected() else Start.apply(self.anchor, rule.forward)
        several = not isinstance(out, Tensor)
        names = self.weights.names
        label = ", ".join([names.get(id(w)) or f"a tensor made of parameters in {name}" for w in weights.values()])
        outputs = list(tensors((out,))) if several else [out]
        if not any(t.requires_grad for t in outputs):
            if any(t.is_floating_point() for t in outputs):
                raise RuntimeError(f"{label}: its gradient would be lost in {name}, whose result hangs on no data")
            self._mark(out)
            return out
        site = Site(len(self.sites), self.meetings, rule, weights, label, outputs)
        if several:
            tied = Tie.apply(lambda grads: self.sink(site, grads), *out)
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
