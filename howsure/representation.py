"""What is computed from a network and an image once, and then scored many ways.

A representation is a frozen dataclass: equal parameters mean the same arrays, so two methods that need the same one
share it. It says what it reads during the one forward pass (`taps`) and which losses it wants gradients of (`losses`);
`compute` then turns a batch into arrays of one row an image. A method's file may define its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn

from .errors import UserError
from .losses import Loss

if TYPE_CHECKING:
    from .network import Network

V = TypeVar("V")


@dataclass(frozen=True)
class Tap:
    """A reading of a layer during the forward pass.

    `reduce(value, module)` maps the layer's `side` ("input" or "output") to one row an image, `[n, …]`. Use a function
    of a module's top level, so that equal taps are read once.
    """

    layer: str
    reduce: Callable[[Tensor, nn.Module], Tensor]
    side: str = "output"


class Grads(NamedTuple):
    """Gradients of one loss: squared norms `[n, P]`, a column a parameter set; one-dimensional ones `[n, Q]`."""

    sq_norms: Tensor
    small: Tensor | None


@dataclass
class Batch:
    """What one pass over `n` images gives to `Representation.compute`.

    Attributes:
        network: the network; leave it as you find it.
        images: normalised inputs `[n, channels, H, W]`.
        labels: class indices `[n]`.
        logits: `[n, C]`.
        readings: what the taps read.
        grads: gradients by loss.
    """

    network: Network
    images: Tensor
    labels: Tensor
    ids: Tensor
    logits: Tensor
    readings: Mapping[Tap, Tensor]
    grads: Mapping[Loss, Grads]
    _shared: dict[Any, Any] = field(default_factory=dict)

    def share(self, key: Any, make: Callable[[], V]) -> V:
        """What `make` gives, made once a batch for all representations that ask under an equal key: the part of a
        costly computation that does not depend on the hyper-parameter being tuned."""
        if key not in self._shared:
            self._shared[key] = make()
        return cast(V, self._shared[key])


@dataclass(frozen=True)
class Representation(Generic[V]):
    """Arrays of one row an image. The value is a tensor or a dict of tensors.

    Attributes:
        cost: `"forward"` (read in the shared pass), `"backward"` (one more backward for its loss), `"passes"` (passes
            of its own), `"free"`.
        per_image: False for what belongs to the network and not to an image.
        small: whether `losses` are also wanted as gradients of one-dimensional parameters.
        needs: representations of the in-distribution training images that `fit` reads.
    """

    cost: ClassVar[str] = "forward"
    per_image: ClassVar[bool] = True
    small: ClassVar[bool] = False
    needs: ClassVar[Any] = ()

    def skip(self, network: Network) -> str | None:
        """A reason why this network has no such representation, or None."""
        return None

    def taps(self, network: Network) -> tuple[Tap, ...]:
        """What to read during the forward pass."""
        return ()

    def losses(self) -> tuple[Loss, ...]:
        """Losses whose parameter gradients to compute."""
        return ()

    def fit(self, train: Reps) -> dict[str, Tensor]:
        """State from in-distribution training images, passed to `compute` by name; for those that have `needs`."""
        return {}

    def compute(self, batch: Batch, **state: Tensor) -> V:
        """The rows of one batch."""
        raise NotImplementedError

    def pack(self, value: V) -> dict[str, Tensor]:
        """The value as a flat dict, for storage."""
        return value if isinstance(value, dict) else {"value": cast(Tensor, value)}

    def unpack(self, arrays: dict[str, Tensor]) -> V:
        """The inverse of `pack`."""
        return cast(V, arrays["value"] if arrays.keys() == {"value"} else arrays)


class Reps(Mapping[Representation[Any], Any]):
    """Representations of a set of images: `reps[Logits()]` is `[N, C]`."""

    def __init__(self, values: Mapping[Representation[Any], Any], owner: str = "") -> None:
        self._values, self.owner = dict(values), owner

    def __getitem__(self, rep: Representation[V]) -> V:
        try:
            return cast(V, self._values[rep])
        except KeyError:
            declared = ", ".join(map(repr, self._values)) or "nothing"
            raise UserError(
                f"{self.owner or 'a method'} reads {rep!r} but declares {declared}; add it to `needs`"
            ) from None

    def __contains__(self, rep: object) -> bool:
        return rep in self._values

    def __iter__(self) -> Iterator[Representation[Any]]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    @property
    def images(self) -> int:
        """How many images these are of."""
        packed = next(rep.pack(value) for rep, value in self._values.items() if rep.per_image)
        return len(next(iter(packed.values())))

    def lost(self) -> str | None:
        """What is NaN or infinite here, and of how many images; a method might take such a value for any other."""
        for rep, value in self._values.items():
            arrays = rep.pack(value).values() if rep.per_image else ()
            bad = [~v.reshape(len(v), -1).isfinite().all(1) for v in arrays if v.is_floating_point() and v.numel()]
            count = int(torch.stack(bad).any(0).sum()) if bad else 0
            if count:
                return f"{type(rep).__name__} of {count} of {self.images} images are NaN or infinite"
        return None

    def only(self, needs: tuple[Representation[Any], ...], owner: str) -> Reps:
        """What `needs` declares and nothing else, in arrays of its own: whoever writes into them spoils no other."""
        return Reps({rep: rep.unpack({k: v.clone() for k, v in rep.pack(self[rep]).items()}) for rep in needs}, owner)

    def take(self, index: Tensor) -> Reps:
        """The rows of some images, by index or mask."""
        return self._map(lambda rep, value: rep.unpack({k: v[index] for k, v in rep.pack(value).items()}))

    @staticmethod
    def concat(parts: list[Reps]) -> Reps:
        """Several sets of images as one."""
        first = parts[0]

        def join(rep: Representation[Any], value: Any) -> Any:
            packed = [rep.pack(part[rep]) for part in parts]
            return rep.unpack({key: torch.cat([p[key] for p in packed]) for key in packed[0]})

        return first._map(join)

    def _map(self, change: Callable[[Representation[Any], Any], Any]) -> Reps:
        return Reps({rep: change(rep, v) if rep.per_image else v for rep, v in self._values.items()}, self.owner)
