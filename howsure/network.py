"""A trained classifier together with what the rest of the program must know about it."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from .backbone import InputSpec
from .errors import UserError, why
from .gradients.result import no_logits
from .keys import layers_of
from .layers import find_heads, norm_layers, stages


@dataclass(eq=False)
class Network:
    """A classifier in eval mode. Its weights are never changed.

    Attributes:
        name: the backbone's name in the suite.
        model: `[N, channels, H, W] -> [N, num_classes]`.
        input: how images are prepared for it.
        num_classes: C.
        accuracy: top-1 accuracy, 0 to 1, on the in-distribution test split, once it is known.
        members: further networks of the same kind, trained independently, for ensembles.
        origin: identifies the code that built it; part of its digest.
    """

    name: str
    model: nn.Module
    input: InputSpec
    num_classes: int
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    accuracy: float | None = None
    members: list[nn.Module] = field(default_factory=list)
    origin: str = ""

    def __post_init__(self) -> None:
        for model in (self.model, *self.members):
            model.eval().to(self.device)

    @cached_property
    def heads(self) -> tuple[str, ...]:
        """Dotted names of the layers whose mean is the logits (linear, or 1×1 convolutions): usually one."""
        return find_heads(self.model, self.example())

    @cached_property
    def norms(self) -> list[str]:
        """Dotted names of the normalisation layers (`howsure.layers.norm_layers`)."""
        return norm_layers(self.model, self.example())

    @cached_property
    def stages(self) -> list[str]:
        """Dotted names of the last layer of each stage (`howsure.layers.stages`)."""
        return stages(self.model, self.example())

    @cached_property
    def digest(self) -> str:
        """A hash of the weights and their names, the layers' code, the input transform and `origin`.

        It also covers the logits of two random images, to three digits: they catch changes in code that neither the
        layers nor the origin lead to.
        """
        digest = hashlib.sha256(f"{layers_of(self.model)} {self.origin} {self.input}".encode())
        for model in (self.model, *self.members):
            for name, value in model.state_dict().items():
                raw = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
                digest.update(name.encode() + raw.numpy().tobytes())
            with torch.no_grad():
                logits = model(self.example()).double().cpu()
            ramp = torch.linspace(-1, 1, logits.numel(), dtype=logits.dtype).view_as(logits)
            said = (logits.std(), (logits * ramp).sum(), (logits * ramp.square()).sum())
            digest.update(" ".join(f"{float(value):.2e}" for value in said).encode())
        return digest.hexdigest()

    def lay_channels_last(self) -> None:
        """On a CPU, switch to the channels-last memory format, which is faster since no layer has to reorder its input.

        A network that takes a `view` of a feature map fails in this format and is left as it was.
        """
        if self.device.type != "cpu":
            return
        x = self.example().requires_grad_()
        for model in (self.model, *self.members):
            try:
                torch.autograd.grad(model.to(memory_format=torch.channels_last)(x).sum(), x, allow_unused=True)
            except RuntimeError:
                model.to(memory_format=torch.contiguous_format)

    def example(self, n: int = 2) -> Tensor:
        """`n` random inputs `[n, channels, H, W]`, the same at every call, for probing the network."""
        generator = torch.Generator().manual_seed(0)
        shape = (n, self.input.channels, *self.input.size)
        return torch.randn(shape, generator=generator).to(self.device, self.dtype)

    @property
    def dtype(self) -> torch.dtype:
        """The data type of its inputs: that of its first floating-point parameter."""
        return next((p.dtype for p in self.model.parameters() if p.is_floating_point()), torch.float32)

    def prepare(self, image: Image.Image) -> np.ndarray:
        """An image at the network's input size, uint8 `[H, W, channels]`."""
        return self.input.prepare(image)

    def normalise(self, pixels: Tensor) -> Tensor:
        """uint8 pixels `[N, H, W, channels]` as inputs `[N, channels, H, W]`."""
        x = pixels.to(self.device).permute(0, 3, 1, 2).contiguous().float() / 255
        mean, std = (torch.tensor(v, device=self.device).view(1, -1, 1, 1) for v in (self.input.mean, self.input.std))
        return ((x - mean) / std).to(self.dtype)

    @cached_property
    def std(self) -> Tensor:
        """`input.std` as `[1, channels, 1, 1]`: a step of ε in pixel values is one of ε / std in the inputs."""
        return torch.tensor(self.input.std, device=self.device, dtype=self.dtype).view(1, -1, 1, 1)


@torch.no_grad()
def check_output(network: Network, use: str) -> None:
    """Run one forward pass. Raises UserError unless it works and gives one finite logit per class.

    `use` is how the user names the network.
    """
    shape = [network.input.channels, *network.input.size]
    try:
        out = network.model(network.example())
    except Exception as error:
        raise UserError(
            f"{use}: fails on images {shape} (channels, height, width): {why(error)}; check size and mean"
        ) from error
    if not isinstance(out, Tensor) or out.dim() != 2 or len(out) != 2:
        raise UserError(
            f"{use}: must map [2, {', '.join(map(str, shape))}] to logits [2, classes], not to {no_logits(out)}"
        )
    if out.shape[1] != network.num_classes:
        raise UserError(
            f"{use}: a network of {out.shape[1]} classes, but the data has {network.num_classes}; "
            "give checkpoint = the weights of a network trained on this data"
        )
    if not out.isfinite().all():
        raise UserError(f"{use}: its logits are NaN or infinite; give other weights, or train with a smaller lr")


def warn_of_low_accuracy(network: Network, accuracy: float) -> None:
    """Say on stderr where a network does hardly better than chance."""
    chance = 1 / network.num_classes
    if accuracy < chance + 0.1 * (1 - chance):
        print(
            f"howsure: {network.name}: accuracy {100 * accuracy:.1f} %, hardly above chance; does it have its weights"
            " (a checkpoint), and its classes in the order of the data?",
            file=sys.stderr,
        )


@torch.no_grad()
def doubts_of_output(network: Network) -> list[str]:
    """Reasons to distrust scores though the network runs: it is random, depends on the batch, or ends in a softmax."""
    example = network.example()
    together, again, twice = (network.model(x) for x in (example, example, torch.cat([example[:1]] * 2)))
    slack, found = 1e-3 * float(together.abs().amax()), []
    if float((together - again).abs().amax()) > slack:
        found.append("gives different logits for the same images each time (dropout?), so scores are random")
    elif float((together[:1] - twice[:1]).abs().amax()) > slack:
        found.append(
            "gives an image different logits in different batches (batch norm without running statistics?), so scores"
            " depend on the order of images"
        )
    if network.num_classes > 1 and bool((together >= 0).all() & ((together.sum(1) - 1).abs() < 1e-4).all()):
        found.append("gives what look like probabilities, but methods expect logits; remove its final softmax")
    return found
