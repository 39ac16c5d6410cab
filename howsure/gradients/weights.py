"""The parameters of one pass, and the tensors made only of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from .calls import SET_DATA, in_place, name_of
from .rewrites import repeat_as_expand
from .trees import map_tensors, tensors


class Weights:
    """Tells weights from data, by identity.

    Parameters
    ----------
    selected
        Parameters whose gradients are wanted, by name.
    parameters
        All of the network's. The others are constants in this pass.
    """

    def __init__(self, selected: Mapping[str, Tensor], parameters: Iterable[Tensor]):
        self.names = {id(p): name for name, p in selected.items()}
        self.wanted: dict[int, Tensor] = {id(p): p for p in selected.values()}
        """The selected parameters, and the tensors made of them."""
        self.constants: dict[int, Tensor] = {id(p): p for p in parameters if id(p) not in self.names}
        self.aliases: dict[int, Tensor] = {}
        """For each selected parameter that others were made of, the leaf in their graph."""
        self._plain: dict[int, Tensor] = {}

    def __contains__(self, t: Tensor) -> bool:
        return id(t) in self.wanted or id(t) in self.constants

    def wants(self, t: Tensor) -> bool:
        return id(t) in self.wanted

    def strip(self, t: Tensor) -> Tensor:
        """``t`` as a call with data sees it: a weight without its graph."""
        return self._detached(t) if t in self else t

    def alias(self, t: Tensor) -> Tensor:
        """``t`` as a call without data sees it: for a parameter its leaf, a derived weight itself."""
        if id(t) in self.constants:
            return self._detached(t)
        if id(t) not in self.names:
            return t
        if id(t) not in self.aliases:
            self.aliases[id(t)] = t.detach().requires_grad_()
        return self.aliases[id(t)]

    def derive(self, func: Any, args: tuple, kwargs: dict) -> Any:
        """Make a call that takes no data; its results are weights too."""
        if name_of(func) == "repeat" and len(args) > 1:
            func = repeat_as_expand
        if func == SET_DATA:  # change the parameter too, not only its leaf; what was detached before is out of date
            func(*args)
            self._plain.pop(id(args[0]), None)
        out = func(*map_tensors(self.alias, args), **map_tensors(self.alias, kwargs))
        changed = list(tensors((args[0],))) if in_place(func, args, kwargs) else []
        for t in tensors((changed, [t._base for t in changed if t._is_view()], out)):
            if t.requires_grad and id(t) not in self.names:
                self.wanted[id(t)] = t
        return out

    def release(self, made: Tensor) -> bool:
        """Treat a tensor made of parameters as data from now on, and those parameters as used unseen; False where it
        is a parameter itself, or a view of one."""
        bases = [t for t in (made, made._base) if t is not None]
        if any(id(t) in self.names or id(t) in self.constants for t in bases):
            return False
        for t in bases:
            self.wanted.pop(id(t), None)
        return True

    def clear(self) -> None:
        for kept in (self.wanted, self.constants, self.aliases, self._plain):
            kept.clear()

    def _detached(self, t: Tensor) -> Tensor:
        if id(t) not in self._plain:
            self._plain[id(t)] = t.detach()
        return self._plain[id(t)]
