"""Representations: what is computed once from a network and an image, and then scored in many ways.

A representation is a frozen dataclass: equal parameters mean equal arrays, so methods that need the same one share it.
It declares what to read during the forward pass (`taps`) and which losses to differentiate (`losses`); `compute` then
turns a batch into arrays with one row per image. A method's file may define its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn

from .errors import UserError
from .images import image_id
from .losses import Loss

if TYPE_CHECKING:
    from .network import Network

V = TypeVar("V")


@dataclass(frozen=True)
class Tap:
    """A layer to read during the forward pass.

    `reduce(value, module)` maps the layer's `side` ("input" or "output") to one row per image, `[n, …]`. Use a
    module-level function: taps compare equal, and are read only once, if their functions are the same object.
    """

    layer: str
    reduce: Callable[[Tensor, nn.Module], Tensor]
    side: str = "output"


class Grads(NamedTuple):
    """Gradients of one loss per image.

    `sq_norms [n, P]`: squared L2 norms, one column per parameter set. `small [n, Q]`: the gradients of all
    one-dimensional parameters, or None if no representation asked for them.
    """

    sq_norms: Tensor
    small: Tensor | None


@dataclass
class Batch:
    """What one pass over `n` images gives to `Representation.compute`.

    Attributes:
        network: the network; leave it as you find it.
        images: normalised inputs `[n, channels, H, W]`.
        labels: class indices `[n]`.
        readings: what each tap read.
        grads: gradients by loss.
    """

    network: Network
    images: Tensor
    labels: Tensor
    _ids: Tensor | None
    readings: Mapping[Tap, Tensor]
    grads: Mapping[Loss, Grads]
    _logits: Tensor | None = None
    _shared: dict[Any, Any] = field(default_factory=dict)

    @property
    def logits(self) -> Tensor:
        """The network's output `[n, C]`, float32. Raises UserError if the shared pass was left out."""
        if self._logits is None:
            raise UserError("a representation with `reads_logits = False` reads `batch.logits`; remove that line")
        return self._logits

    @property
    def ids(self) -> Tensor:
        """A hash of each image, int64 `[n]`; of its inputs where nobody knows its pixels."""
        if self._ids is None:
            self._ids = torch.tensor(
                [image_id(image.numpy()) for image in self.images.cpu().float()], dtype=torch.int64
            )
        return self._ids

    def share(self, key: Any, make: Callable[[], V]) -> V:
        """The result of `make`, computed once per batch for all representations that ask with an equal `key`.

        For the costly part of a computation that does not depend on the hyper-parameter being tuned.
        """
        if key not in self._shared:
            self._shared[key] = make()
        return cast(V, self._shared[key])


@dataclass(frozen=True)
class Representation(Generic[V]):
    """Arrays with one row per image. The value is a tensor or a dict of tensors.

    Attributes:
        cost: `"free"`, `"forward"` (read in the shared forward pass), `"backward"` (plus one backward pass per loss) or
            `"passes"` (passes of its own).
        reads_logits: False if `compute` never reads `batch.logits`. Without taps and losses either, the shared forward
            pass is left out.
        per_image: False for what belongs to the network rather than to an image.
        small: whether the gradients of one-dimensional parameters are wanted too, not only the squared norms.
        fit_only: True for what a method's `fit` may read, but not `score`, for which it is not computed.
        needs: representations of the in-distribution training images that `fit` reads.
    """

    cost: ClassVar[str] = "forward"
    reads_logits: ClassVar[bool] = True
    per_image: ClassVar[bool] = True
    small: ClassVar[bool] = False
    fit_only: ClassVar[bool] = False
    needs: ClassVar[Any] = ()

    def skip(self, network: Network) -> str | None:
        """Why this network has no such representation, or None if it has."""
        return None

    def taps(self, network: Network) -> tuple[Tap, ...]:
        """Layers to read during the forward pass."""
        return ()

    def losses(self) -> tuple[Loss, ...]:
        """Losses to differentiate with respect to the parameters."""
        return ()

    def fit(self, train: Reps) -> dict[str, Tensor]:
        """State from in-distribution training images, passed to `compute` by name; only called if there are `needs`."""
        return {}

    def compute(self, batch: Batch, **state: Tensor) -> V:
        """The rows of one batch; another process may compute those of the next."""
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
        """The number of images."""
        packed = next(rep.pack(value) for rep, value in self._values.items() if rep.per_image)
        return len(next(iter(packed.values())))

    def not_finite(self) -> str | None:
        """Which representation is NaN or infinite, and for how many images, in one line; None if all are finite."""
        for rep, value in self._values.items():
            arrays = rep.pack(value).values() if rep.per_image else ()
            bad = [~v.reshape(len(v), -1).isfinite().all(1) for v in arrays if v.is_floating_point() and v.numel()]
            count = int(torch.stack(bad).any(0).sum()) if bad else 0
            if count:
                return f"{type(rep).__name__} is NaN or infinite for {count} of {self.images} images"
        return None

    def only(self, needs: tuple[Representation[Any], ...], owner: str) -> Reps:
        """A copy of what `needs` declares and nothing else; writing into it affects nobody else."""
        return Reps({rep: rep.unpack({k: v.clone() for k, v in rep.pack(self[rep]).items()}) for rep in needs}, owner)

    def take(self, index: Tensor) -> Reps:
        """The rows of the images selected by an index or a mask."""
        return self._map(lambda rep, value: rep.unpack({k: v[index] for k, v in rep.pack(value).items()}))

    @staticmethod
    def concat(parts: list[Reps]) -> Reps:
        """Several sets of images as one set."""
        first = parts[0]

        def join(rep: Representation[Any], value: Any) -> Any:
            packed = [rep.pack(part[rep]) for part in parts]
            return rep.unpack({key: torch.cat([p[key] for p in packed]) for key in packed[0]})

        return first._map(join)

    def _map(self, change: Callable[[Representation[Any], Any], Any]) -> Reps:
        return Reps({rep: change(rep, v) if rep.per_image else v for rep, v in self._values.items()}, self.owner)
