"""How long each method takes to fit 50,000 training images and to score 10,000: `python benchmarks/speed/scale.py`.

Uses synthetic features with 512 channels, and logits of 1,000 classes. Methods that need other representations (maps,
gradients, passes) are left out, since their cost depends on the network.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import Tensor

from howsure import Features, Head, Labels, Logits, Method, Reps
from howsure.plugins import METHODS
from howsure.representations import HasBias, HeadWeights, ImageIds

KNOWN = (Features, HasBias, Head, Labels, Logits, ImageIds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--channels", type=int, default=512)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--methods", nargs="*")
    options = parser.parse_args()
    train, test, outliers = made_up(options.images, options.channels, options.classes)
    print("| method | fit, s | score 10,000, s |\n|---|---|---|")
    for name in options.methods or METHODS:
        method = METHODS[name]()
        if all(isinstance(rep, KNOWN) for rep in method.needs):
            fit, score = times(method, train, test, outliers)
            print(f"| {name} | {fit:.1f} | {score:.1f} |", flush=True)


def made_up(n: int, channels: int, classes: int) -> tuple[Reps, Reps, Reps]:
    """Synthetic training and test images in clusters around their class means, and outliers in weaker clusters."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(classes, channels, generator=generator)
    head = HeadWeights(centres / channels**0.5, torch.zeros(classes))
    labels = [torch.randint(classes, (size,), generator=generator) for size in (n, 10_000, 10_000)]
    sets = []
    for y, pull in zip(labels, (1.0, 1.0, 0.2), strict=True):
        x = (pull * centres[y] + torch.randn(len(y), channels, generator=generator)).relu()
        sets.append(reps(x, y, head))
    return sets[0], sets[1], sets[2]


def reps(x: Tensor, y: Tensor, head: HeadWeights) -> Reps:
    logits = x @ head.weight.T + head.bias
    ids, bias = torch.arange(len(x)), torch.tensor([True])
    return Reps({Features(): x, Logits(): logits, Labels(): y, Head(): head, HasBias(): bias, ImageIds(): ids})


def times(method: Method, train: Reps, test: Reps, outliers: Reps) -> tuple[float, float]:
    """Seconds that `fit` and `score` take, each run once."""
    started = time.perf_counter()
    state = {} if method.supervision == "none" else method.fit(*_seen(method, train, outliers))
    fitted = time.perf_counter()
    method.score(test, **state)
    return fitted - started, time.perf_counter() - fitted


def _seen(method: Method, train: Reps, outliers: Reps) -> tuple[Reps, ...]:
    return (train, outliers) if method.supervision == "outliers" else (train,)


if __name__ == "__main__":
    main()
