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
from .layers import by_channel, module, norm_layers
from .losses import Confound, Loss

if TYPE_CHECKING:
    from .network import Network

V = TypeVar("V")
EPSILON = 1e-20
CACHED = 2**18


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
        pixels: the same as uint8 `[n, H, W, channels]`.
        labels: class indices `[n]`.
        logits: `[n, C]`.
        readings: what the taps read.
        grads: gradients by loss.
    """

    network: Network
    images: Tensor
    pixels: Tensor
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
        self._values, self._owner = dict(values), owner

    def __getitem__(self, rep: Representation[V]) -> V:
        try:
            return cast(V, self._values[rep])
        except KeyError:
            declared = ", ".join(map(repr, self._values)) or "nothing"
            raise UserError(
                f"{self._owner or 'a method'} reads {rep!r} but declares {declared}; add it to `needs`"
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
        return Reps({rep: change(rep, v) if rep.per_image else v for rep, v in self._values.items()}, self._owner)


@dataclass(frozen=True)
class Logits(Representation[Tensor]):
    """The network's output, `[N, C]`, float32."""

    def compute(self, batch: Batch, **state: Tensor) -> Tensor:
        return batch.logits


@dataclass(frozen=True)
class Labels(Representation[Tensor]):
    """True class indices `[N]`, int64; meaningless for images of no known class."""

    cost = "free"

    def compute(self, batch: Batch, **state: Tensor) -> Tensor:
        return batch.labels


@dataclass(frozen=True)
class ImageIds(Representation[Tensor]):
    """A 63-bit hash of each image's pixels, `[N]`, int64; that of the clean image where it is corrupted."""

    cost = "free"

    def compute(self, batch: Batch, **state: Tensor) -> Tensor:
        return batch.ids


class HeadWeights(NamedTuple):
    """The last linear layer: `weight [C, D]`, `bias [C]` (zeros where it has none)."""

    weight: Tensor
    bias: Tensor


@dataclass(frozen=True)
class Head(Representation[HeadWeights]):
    """The last linear layer of the network; no image is looked at."""

    cost = "free"
    per_image = False

    def skip(self, network: Network) -> str | None:
        return None if network.head else "the network has no single last linear layer"

    def compute(self, batch: Batch, **state: Tensor) -> HeadWeights:
        layer = cast(nn.Linear, module(batch.network.model, str(batch.network.head)))
        bias = torch.zeros_like(layer.weight[:, 0]) if layer.bias is None else layer.bias
        return HeadWeights(layer.weight.detach().clone(), bias.detach().clone())

    def pack(self, value: HeadWeights) -> dict[str, Tensor]:
        return value._asdict()

    def unpack(self, arrays: dict[str, Tensor]) -> HeadWeights:
        return HeadWeights(**arrays)


def as_is(value: Tensor, layer: nn.Module) -> Tensor:
    """The reading itself."""
    return value


def channel_means(value: Tensor, layer: nn.Module) -> Tensor:
    """Mean of each channel over positions, `[n, C]`."""
    return by_channel(value, layer).mean(2)


def channel_moments(value: Tensor, layer: nn.Module) -> Tensor:
    """Mean and standard deviation of each channel over positions, `[n, 2, C]`."""
    x = by_channel(value, layer)
    mean = x.mean(2)
    return torch.stack([mean, rms_difference(x, mean[..., None])], 1)


def rms_difference(x: Tensor, y: Tensor) -> Tensor:
    """Root mean square of `x - y` over positions, `[n, C, L]` and `[n, C, L or 1]` to `[n, C]`.

    On a CPU a few images at a time, so that the differences stay in cache: torch's `std` takes ten times as long.
    """
    few = max(1, CACHED // max(1, x[:1].numel())) if x.device.type == "cpu" else max(1, len(x))
    pairs = zip(x.split(few), y.split(few), strict=True)
    return torch.cat([(a - b).square_().mean(2) for a, b in pairs]).sqrt_()


def moment_norms(value: Tensor, layer: nn.Module) -> Tensor:
    """Norms over channels of the channels' means and of their standard deviations, `[n, 2]`."""
    return channel_moments(value, layer).norm(dim=2)


@dataclass(frozen=True)
class Features(Representation[Tensor]):
    """Penultimate features: the input of the last linear layer, `[N, D]`."""

    def skip(self, network: Network) -> str | None:
        return Head().skip(network)

    def taps(self, network: Network) -> tuple[Tap, ...]:
        return (Tap(str(network.head), as_is, "input"),)

    def compute(self, batch: Batch, **state: Tensor) -> Tensor:
        (tap,) = self.taps(batch.network)
        return batch.readings[tap]


@dataclass(frozen=True)
class LayerMeans(Representation[dict[str, Tensor]]):
    """Channel means of feature maps, `{layer: [N, C_l]}`.

    `layers` are dotted names; left out, the ends of the network's stages, found by rule (`howsure.layers.stages`).
    """

    layers: tuple[str, ...] | None = None

    def taps(self, network: Network) -> tuple[Tap, ...]:
        names = self.layers or network.stages
        return tuple(Tap(name, channel_means) for name in names)

    def compute(self, batch: Batch, **state: Tensor) -> dict[str, Tensor]:
        return {tap.layer: batch.readings[tap] for tap in self.taps(batch.network)}


@dataclass(frozen=True)
class LayerMoments(Representation[dict[str, Tensor]]):
    """Mean and deviation over positions of each channel of each normalisation layer, `{layer: [N, 2, C_l]}`."""

    def taps(self, network: Network) -> tuple[Tap, ...]:
        return tuple(Tap(name, channel_moments) for name in norm_layers(network.model))

    def compute(self, batch: Batch, **state: Tensor) -> dict[str, Tensor]:
        return {tap.layer: batch.readings[tap] for tap in self.taps(batch.network)}


@dataclass(frozen=True)
class ActivationNorms(Representation[Tensor]):
    """Log norms, over channels, of channel means and deviations of each normalisation layer's output, `[N, 2L]`."""

    def taps(self, network: Network) -> tuple[Tap, ...]:
        return tuple(Tap(name, moment_norms) for name in norm_layers(network.model))

    def compute(self, batch: Batch, **state: Tensor) -> Tensor:
        norms = torch.cat([batch.readings[tap] for tap in self.taps(batch.network)], 1)
        return norms.clamp_min(EPSILON).log()


@dataclass(frozen=True)
class GradNorms(Representation[Tensor]):
    """Squared L2 norms of the loss gradient, `[N, P]`: one column a parameter set of `model.named_parameters()`.

    The representation of Lee & AlRegib, 2020, arXiv:2008.08030, with their all-ones confounding label by default.
    """

    cost = "backward"
    loss: Loss = field(default_factory=Confound)

    def losses(self) -> tuple[Loss, ...]:
        return (self.loss,)

    def compute(self, batch: Batch, **state: Tensor) -> Tensor:
        return batch.grads[self.loss].sq_norms


@dataclass(frozen=True)
class SmallGrads(Representation[Tensor]):
    """Gradients of the one-dimensional parameters (biases, scales and shifts of normalisation), `[N, Q]`."""

    cost = "backward"
    small = True
    loss: Loss = field(default_factory=Confound)

    def losses(self) -> tuple[Loss, ...]:
        return (self.loss,)

    def compute(self, batch: Batch, **state: Tensor) -> Tensor:
        small = batch.grads[self.loss].small
        assert small is not None
        return small
