"""Finds, during one forward pass, every place where a parameter meets data.

The model is not touched: a ``TorchFunctionMode`` of this thread sees each call of a torch function. A call that takes
only parameters (a reshape, a weight standardisation) gives a *derived* weight. A call that takes a weight and data is a
*site*: it is made with the weight detached, so that autograd computes no summed weight gradient, and a rule that knows
the call's inputs turns the gradient at its output into per-sample gradients of the weight.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
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
from .fold import DEVICE, SHAPES, Fold, Folded, Unfolded
from .general import General
from .graph import graph_of
from .parameters import Contents
from .plan import Plan
from .rewrites import SOUND, STEPS, opened
from .rule import Rule
from .rules import rule_for
from .site import Site, Tie, like, start
from .trees import map_tensors, memory_of, tensors
from .weights import Weights


class _Output:
    """The output of a convolution, and how often it was read."""

    def __init__(self, t: Tensor, index: int):
        self.t, self.index, self.reads = t, index, 0


class _Shell:
    """The empty output ``t`` of a folded convolution, and what its batch norm gives when called with it, once."""

    def __init__(self, t: Tensor, fold: Fold, out: Tensor):
        self.t, self.fold, self.device = t, fold, out.device
        self.out: Tensor | None = out

    def exchange(self, func: Any, args: tuple, kwargs: dict) -> Tensor:
        if self.out is None or not self.fold.is_call(func, args, kwargs):
            raise Unfolded(self.fold)
        out, self.out = self.out, None
        return out


class Tracer(TorchFunctionMode):
    """Records the sites of the calls made while it is active.

    Parameters
    ----------
    net, wanted
        The network, and the parameters whose gradients are wanted, by name.
    data
        The input batch.
    sink
        Called as ``sink(site, grads)`` during the backward pass.
    folds
        Batch norms to fold, by the id of the convolution's weight.
    plan
        What is known of the network. Before its folds are, the readers of convolutions' outputs are counted.
    """

    def __init__(
        self,
        net: Contents,
        wanted: Mapping[str, Tensor],
        data: Tensor,
        sink: Callable[[Site, tuple], None],
        folds: Mapping[int, Fold],
        plan: Plan,
    ):
        super().__init__()
        self.sink, self.folds, self.plan, self.counts_readers = sink, folds, plan, plan.folds is None
        self.chance, self.weights = Chance(net.model), Weights(wanted, net.parameters.values())
        self.data: dict[int, Tensor] = {id(data): data}
        """Data that do not require grad."""
        self.sites: list[Site] = []
        self.nodes: dict[Any, Site] = {}
        """By node of the graph, the site whose output it made."""
        self.saved: dict[int, list[tuple[Site, Any]]] = {}
        """By memory, the sites that need what is there, and under which key."""
        self.outputs: dict[int, _Output] = {}
        self.shells: dict[int, _Shell] = {}
        self.anchor = torch.zeros((), device=data.device, requires_grad=True)
        self.meetings = 0
        """The number of calls so far in which weights met data."""
        self.calls = 0
        """A hash of all calls by name, and of how they reorder: if it changes, what was learned is void."""
        self.depends = False
        """Whether the order or choice of what is computed may depend on the data."""
        self.branches = False
        """Whether which calls are made depends on the data."""
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
                "the network takes a gradient during its forward pass, whose own gradient cannot be followed;"
                " replace that gradient by its formula"
            )
        weight = wanted = data = False
        for t in tensors((args, kwargs) if kwargs else args):
            key = id(t)
            if t in self.weights:
                weight, wanted = True, wanted or self.weights.wants(t)
            elif key in self.shells and func not in SHAPES:
                self.meetings += 1
                return self.shells[key].exchange(func, args, kwargs)
            elif key in self.shells and func == DEVICE:
                return self.shells[key].device
            elif t.requires_grad or key in self.data:
                data = True
                if key in self.outputs and func not in SHAPES:
                    self.outputs[key].reads += 1
        if data and name in VALUES:
            data = self._takes_values(name, args, kwargs)
        if data:
            self._notice(name, args, kwargs)
            return self._meet(func, args, kwargs, wanted) if weight else self._pass_on(func, args, kwargs)
        return self._derive(func, args, kwargs) if weight else SOUND.get(func, func)(*args, **kwargs)

    def reads(self) -> dict[int, int]:
        """How often the output of each convolution was read, by index."""
        return {output.index: output.reads for output in self.outputs.values()}

    def reached_by_data(self, site: Site) -> bool:
        """Whether data are seen to reach a site; otherwise it may be one of weights alone, some used unseen before."""
        node = next((node for node, other in self.nodes.items() if other is site), None)
        return node is None or any(t is self.anchor or id(t) in self.data for t in graph_of(node)[0])

    def check_folds(self) -> None:
        """Raise ``Unfolded`` where a folded batch norm was not called, or someone keeps an empty shell for later."""
        for shell in self.shells.values():
            if shell.out is not None or sys.getrefcount(shell.t) > 2:
                raise Unfolded(shell.fold)

    def close(self) -> None:
        """Let go of every tensor."""
        for site in self.sites:
            site.rule.saved.clear()
            site.rule.arguments.clear()
        for kept in (self.sites, self.nodes, self.outputs, self.shells, self.saved, self.data, self.chance.drawn):
            kept.clear()
        self.weights.clear()

    # -- data alone, weights alone ------------------------------------------------------------------------------

    def _takes_values(self, name: str, args: tuple, kwargs: dict) -> bool:
        """Whether a tensor made in the form of another counts as data: where it holds some, or may yet hold some."""
        holds = any(t.requires_grad or id(t) in self.data for t in tensors((args[VALUES[name]], kwargs)))
        self.took_blanks |= not holds
        return holds or not self.plan.blanks

    def _notice(self, name: str, args: tuple, kwargs: dict) -> None:
        """Note calls that order or choose by the data, and those that read strides."""
        if name in STRIDED:
            self.reads_memory = True
        elif name in CHOOSING or (name in INDEXING and any(id(t) in self.data for t in tensors((args[1:], kwargs)))):
            self.depends = True
        elif name == "__bool__":
            self.branches = True

    def _pass_on(self, func: Any, args: tuple, kwargs: dict) -> Any:
        """A call of data alone."""
        if in_place(func, args, kwargs):
            target = first(args, kwargs)
            self._before_overwrite(target)
            out = func(*args, **kwargs)
            self._mark((target, out))
        else:
            out = SOUND.get(func, func)(*args, **kwargs)
            self._mark(out)
        return out

    def _derive(self, func: Any, args: tuple, kwargs: dict) -> Any:
        """A call of weights alone."""
        if self.folds and (func in REACHING or in_place(func, args, kwargs)):
            self._unfold(first(args, kwargs))
        return self.weights.derive(func, args, kwargs)

    def _mark(self, out: Any) -> None:
        """Know for data what does not show it by requiring grad."""
        for t in tensors((out,)):
            if not t.requires_grad and not self.weights.wants(t):
                self.data[id(t)] = t

    def _before_overwrite(self, target: Tensor | Sequence[Tensor]) -> None:
        for t in tensors((target,)):
            for site, key in self.saved.pop(memory_of(t), ()):
                site.keep_copy(key)

    def _unfold(self, changed: Tensor | Sequence[Tensor]) -> None:
        """Raise ``Unfolded`` where something folded may be changed afterwards."""
        memory = [memory_of(t) for t in tensors((changed,))]
        for fold in self.folds.values():
            parts = (fold.weight, fold.bias, *fold.weights().values())
            if any(t is not None and memory_of(t) in memory for t in parts):
                raise Unfolded(fold)

    # -- weights and data ---------------------------------------------------------------------------------------

    def _meet(self, func: Any, args: tuple, kwargs: dict, wanted: bool) -> Any:
        name = name_of(func)
        shape_only = name in SHAPE_ONLY
        if shape_only and self.weights.wants(args[0]):
            return self.weights.derive(func, args, kwargs)
        self.ungraded |= wanted and not torch.is_grad_enabled()
        if not wanted or not torch.is_grad_enabled() or shape_only:
            out = self._plainly(func, args, kwargs, self.weights.strip)
            self._mark(out)
            return out
        self.meetings += 1
        if self.meetings in self.plan.unseen_meetings or any(t.is_nested for t in tensors(args)):
            return self._plainly(func, args, kwargs, self.weights.alias)
        if in_place(func, args, kwargs):
            return self._meet_in_place(func, args, kwargs)
        if self.meetings in self.plan.general_meetings:
            return self._site(*General.bind(func, args, kwargs, self.weights), name)
        rule, weights = rule_for(func, args, kwargs, self.weights)
        if rule is None:
            return self._without_rule(func, args, kwargs, name)
        fold = self.folds.get(id(weights.get("weight")))
        if fold is not None and fold.takes(rule, weights.get("bias")):
            return self._fold(fold, rule, weights, name)
        return self._site(rule, weights, name)

    def _plainly(self, func: Any, args: tuple, kwargs: dict, see: Callable[[Tensor], Tensor]) -> Any:
        """The call itself, with what ``see`` makes of its tensors."""
        if in_place(func, args, kwargs):
            self._before_overwrite(first(args, kwargs))
        return SOUND.get(func, func)(*map_tensors(see, args), **map_tensors(see, kwargs))

    def _without_rule(self, func: Any, args: tuple, kwargs: dict, name: str) -> Any:
        """The calls that this one consists of, where they can be seen; otherwise the general path."""
        if func in STEPS:
            try:
                with self:
                    return STEPS[func](*args, **kwargs)
            except NotImplementedError:
                pass
        if isinstance(func, types.FunctionType):
            with self:
                return opened(func)(*args, **kwargs)
        return self._site(*General.bind(func, args, kwargs, self.weights), name)

    def _meet_in_place(self, func: Any, args: tuple, kwargs: dict) -> Any:
        target = args[0]
        if not isinstance(target, Tensor):
            raise NotImplementedError(
                f"{name_of(func)}: parameters meet several tensors in place at once; write into one at a time"
            )
        if target in self.weights:
            if not self.weights.release(target):
                raise NotImplementedError(
                    f"{name_of(func)}: a parameter is overwritten with data; write into a copy of it instead"
                )
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

    def _fold(self, fold: Fold, conv: Rule, weights: dict[Any, Tensor], name: str) -> Tensor:
        """The convolution and its batch norm as one; the network gets an empty shell to call the batch norm with."""
        out = self._site(Folded(conv, fold), {**weights, **fold.weights()}, name)
        shell = torch.empty(out.shape, dtype=out.dtype, device="meta")
        self.shells[id(shell)] = _Shell(shell, fold, out)
        return shell

    def _site(self, rule: Rule, weights: dict[Any, Tensor], name: str) -> Any:
        out = rule.forward() if rule.connected() else start(self.anchor, rule.forward)
        outputs = [out] if isinstance(out, Tensor) else list(tensors((out,)))
        names = self.weights.names
        label = ", ".join([names.get(id(w)) or f"a tensor made of parameters in {name}" for w in weights.values()])
        if not any(t.requires_grad for t in outputs):
            if any(t.is_floating_point() for t in outputs):
                raise RuntimeError(
                    f"{label}: its gradient would be lost in {name}, whose result depends on no data; give that call"
                    " sizes instead of data"
                )
            self._mark(out)
            return out
        site = Site(len(self.sites), self.meetings, rule, weights, label, outputs)
        for key, t in rule.saved.items():
            self.saved.setdefault(memory_of(t), []).append((site, key))
        self.sites.append(site)
        return self._listen(site, out)

    def _listen(self, site: Site, out: Any) -> Any:
        """``out``, whose gradient is handed to the sink when it arrives."""
        if not isinstance(out, Tensor):
            tied = Tie.apply(lambda grads: self.sink(site, grads), *out)
            return like(out, tied)
        if out._is_view():
            with torch._C.DisableTorchFunctionSubclass():  # which gives a view again, of a tensor of its own kind
                out = out.clone()
        slot = out.output_nr
        out.grad_fn.register_prehook(lambda grads: self.sink(site, (grads[slot],)))
        self.nodes[out.grad_fn] = site
        if self.counts_readers and isinstance(site.rule, Conv):
            self.outputs[id(out)] = _Output(out, site.index)
        return out
