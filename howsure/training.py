"""Training a network on the spot, the same from the same seed."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor, nn

from .backbone import Recipe
from .images import Images
from .network import Network

Progress = Callable[[int, int], object]
"""Called with the number of the epoch that has just finished and how many there are."""


def train(network: Network, images: Images, recipe: Recipe, seed: int = 0, progress: Progress | None = None) -> None:
    """Train `network` in place on `images`: AdamW, one-cycle schedule, cross-entropy, random shifts.

    The same seed, images and number of threads give the same weights. It is left in eval mode.

    Args:
        progress: called after each epoch with (its number from 1, how many there are).
    """
    pixels, labels = load_pixels(network, images)
    labels = labels.to(network.device)
    generator = torch.Generator().manual_seed(seed)
    steps = -(-len(pixels) // recipe.batch_size)
    optimiser = torch.optim.AdamW(_groups(network.model, recipe.weight_decay), lr=recipe.lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.lr, epochs=recipe.epochs, steps_per_epoch=steps)
    loss = nn.CrossEntropyLoss(label_smoothing=recipe.smoothing)
    devices = [network.device] if network.device.type == "cuda" else []
    network.model.train()
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        for epoch in range(recipe.epochs):
            for batch in torch.randperm(len(pixels), generator=generator).tensor_split(steps):
                shifted = shift(pixels[batch], recipe.shift, generator)
                optimiser.zero_grad(set_to_none=True)
                loss(network.model(network.normalise(shifted)), labels[batch.to(labels.device)]).backward()
                optimiser.step()
                schedule.step()
            if progress:
                progress(epoch + 1, recipe.epochs)
    optimiser.zero_grad(set_to_none=True)
    network.model.eval()


@torch.no_grad()
def accuracy(network: Network, images: Images, batch_size: int = 256) -> float:
    """Share of `images` whose label is the class with the largest logit."""
    pixels, labels = load_pixels(network, images)
    guesses = [network.model(network.normalise(batch)).argmax(1).cpu() for batch in pixels.split(batch_size)]
    return (torch.cat(guesses) == labels).double().mean().item()


def load_pixels(network: Network, images: Images) -> tuple[Tensor, Tensor]:
    """All images at the network's size, uint8 `[N, H, W, channels]`, and their labels `[N]`."""
    pairs = [images[index] for index in range(len(images))]
    pixels = np.stack([network.prepare(image) for image, _ in pairs])
    return torch.from_numpy(pixels), torch.tensor([label for _, label in pairs])


def shift(pixels: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Each image of `[N, H, W, C]` moved by its own random offset of up to `most` pixels a side, zeros moving in."""
    if not most:
        return pixels
    n, height, width, _ = pixels.shape
    padded = nn.functional.pad(pixels, (0, 0, most, most, most, most))
    top, left = torch.randint(0, 2 * most + 1, (2, n, 1), generator=generator)
    rows, columns = top + torch.arange(height), left + torch.arange(width)
    return padded[torch.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]


def _groups(model: nn.Module, weight_decay: float) -> Iterable[dict[str, object]]:
    """Weight decay for matrices and kernels; none for biases, norms and tokens."""
    decayed = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() <= 1]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
