"""Time and peak memory of the gradient engine against one ordinary batched forward and backward pass.

    python benchmarks/speed/ratios.py --device cpu --repeats 7

prints a Markdown table. Every ratio is a quotient of medians within one process; both sides are timed alternately, so
that a busy machine slows both. "best split" divides by the ordinary pass with the batch split in the way that is
fastest for it. Memory is the peak of what a pass allocates in tensors, including parameter gradients.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from howsure.gradients import grad_sq_norms
from howsure.timing import peak_memory


class Block(nn.Module):
    """A basic block of He et al., 2015, arXiv:1512.03385, with the parameter-free shortcut used on CIFAR."""

    def __init__(self, i: int, o: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o)
        self.conv2, self.bn2 = nn.Conv2d(o, o, 3, 1, 1, bias=False), nn.BatchNorm2d(o)
        self.stride, self.extra = stride, o - i

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride > 1 or self.extra:
            x = F.pad(
                x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.extra // 2, self.extra - self.extra // 2)
            )
        return F.relu(out + x)


def cifar_resnet(depth: int) -> nn.Module:
    """ResNet-20, 56, …: three stages of 16, 32 and 64 channels on 32×32 images."""
    blocks, width = [], 16
    for stage, channels in enumerate((16, 32, 64)):
        for k in range((depth - 2) // 6):
            blocks.append(Block(width, channels, 2 if stage and not k else 1))
            width = channels
    stem = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def resnet18_small_stem() -> nn.Module:
    """torchvision's ResNet-18 with a 3×3 stem and no pooling, as is usual for 32×32 images."""
    net = torchvision.models.resnet18(num_classes=10)
    net.conv1, net.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    return net


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "ResNet-18 32² b32": (lambda: torchvision.models.resnet18(num_classes=10), 32, 32),
    "ResNet-18, 3×3 stem, 32² b32": (resnet18_small_stem, 32, 32),
    "ResNet-20 32² b100": (lambda: cifar_resnet(20), 32, 100),
    "ResNet-56 32² b64": (lambda: cifar_resnet(56), 32, 64),
    "ResNet-50 224² b8": (lambda: torchvision.models.resnet50(num_classes=1000), 224, 8),
    "ViT-S/16 224² b8": (lambda: timm.create_model("vit_small_patch16_224", pretrained=False), 224, 8),
}


def loss(logits: Tensor) -> Tensor:
    """The confounding-label loss with all ones, one value per sample."""
    return F.binary_cross_entropy_with_logits(logits, torch.ones_like(logits), reduction="none").sum(1)


def prepare(name: str, device: str, batch: int | None = None) -> tuple[nn.Module, Tensor]:
    build, size, usual = NETWORKS[name]
    torch.manual_seed(0)
    return build().eval().to(device), torch.randn(batch or usual, 3, size, size, device=device)


def ordinary(model: nn.Module, x: Tensor, split: int | None = None) -> None:
    """The yardstick: forward, summed loss, backward into every parameter."""
    for part in x.split(split or len(x)):
        model.zero_grad(set_to_none=split is None)
        loss(model(part)).sum().backward()


def engine(model: nn.Module, x: Tensor) -> None:
    grad_sq_norms(model, x, [loss])


def seconds(action: Callable[[], None], device: str) -> float:
    if device != "cpu":
        torch.cuda.synchronize()
    start = time.perf_counter()
    action()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def compare(name: str, device: str, repeats: int, batch: int | None) -> tuple[float, float, float, float]:
    """Ratios to the ordinary pass, to its best split and to it in channels-last format, and the seconds it takes."""
    model, x = prepare(name, device, batch)
    splits = sorted({len(x), -(-len(x) // 2), -(-len(x) // 4)})
    actions: dict[str, Callable[[], None]] = {"engine": lambda: engine(model, x)}
    actions |= {f"split {s}": lambda s=s: ordinary(model, x, s) for s in splits}  # type: ignore[misc]
    actions["ordinary"] = lambda: ordinary(model, x)
    last = copy.deepcopy(model).to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    actions["channels last"] = lambda: ordinary(*last)
    times: dict[str, list[float]] = {key: [] for key in actions}
    for _ in range(repeats + 2):
        for key, action in actions.items():
            times[key].append(seconds(action, device))
    median = {key: statistics.median(values[2:]) for key, values in times.items()}
    best = min(value for key, value in median.items() if key not in ("engine", "channels last"))
    mine = median["engine"]
    return mine / median["ordinary"], mine / best, mine / median["channels last"], median["ordinary"]


def peak(name: str, device: str, action: Callable[[nn.Module, Tensor], None], batch: int | None) -> int:
    """The peak of the tensor memory that one pass allocates, in bytes, including parameter gradients."""
    model, x = prepare(name, device, batch)
    action(model, x)
    model.zero_grad(set_to_none=True)
    return peak_memory(torch.device(device), lambda: action(model, x))


def memory_ratio(name: str, device: str, batch: int | None) -> float:
    return peak(name, device, engine, batch) / peak(name, device, ordinary, batch)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--network", choices=NETWORKS)
    parser.add_argument("--no-memory", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(
        "| network | engine / ordinary | / its best split | / it channels-last | ordinary, ms | peak memory ratio |\n"
        "|---|---|---|---|---|---|"
    )
    for name in [options.network] if options.network else NETWORKS:
        ratio, best, last, base = compare(name, options.device, options.repeats, options.batch)
        memory = "" if options.no_memory else f"{memory_ratio(name, options.device, options.batch):.2f}"
        print(f"| {name} | {ratio:.2f} | {best:.2f} | {last:.2f} | {1000 * base:.0f} | {memory} |", flush=True)


if __name__ == "__main__":
    main()
