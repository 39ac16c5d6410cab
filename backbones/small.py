"""Three small networks of different kinds for the 8×8 grey digits, trained on the spot in seconds."""

from __future__ import annotations

from timm.models.resnet import BasicBlock
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from howsure.backbone import Backbone, InputSpec, Recipe

DIGITS = InputSpec(size=(8, 8), mean=(0.305,), std=(0.377,))


class SmallCNN(Backbone):
    """Three convolutions with batch norm, pooled to a vector, then dropout and two linear layers. 0.1 M parameters."""

    name = "small-cnn"
    input = DIGITS
    recipe = Recipe(epochs=30, lr=0.005, shift=1, smoothing=0.05)

    def build(self, num_classes: int) -> nn.Module:
        return ConvNet(num_classes)


class SmallResNet(Backbone):
    """A stem and three stages of one residual block (timm's `BasicBlock`): 16, 32 and 64 channels. 0.08 M parameters."""

    name = "small-resnet"
    input = DIGITS
    recipe = Recipe(epochs=25, lr=0.005, shift=1, smoothing=0.05)

    def build(self, num_classes: int) -> nn.Module:
        return ResNet(num_classes)


class SmallViT(Backbone):
    """timm's vision transformer on patches of 2×2: 4 blocks of width 64 with 4 heads. 0.2 M parameters."""

    name = "small-vit"
    input = DIGITS
    recipe = Recipe(epochs=60, lr=0.002, weight_decay=0.05, shift=1, smoothing=0.05)

    def build(self, num_classes: int) -> nn.Module:
        return VisionTransformer(
            img_size=8, patch_size=2, in_chans=1, num_classes=num_classes, embed_dim=64, depth=4, num_heads=4, mlp_ratio=2
        )  # fmt: skip


class ConvNet(nn.Module):
    """`[N, channels, H, W] -> [N, num_classes]`; three stages, each halving the resolution of the one before."""

    def __init__(self, num_classes: int, channels: int = 1, width: int = 32, dropout: float = 0.2) -> None:
        super().__init__()
        self.stage1 = _conv(channels, width, stride=1)
        self.stage2 = _conv(width, 2 * width, stride=2)
        self.stage3 = _conv(2 * width, 2 * width, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.hidden = nn.Linear(8 * width, 64)
        self.act = nn.ReLU()
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.stage3(self.stage2(self.stage1(x)))).flatten(1)
        return self.head(self.dropout(self.act(self.hidden(x))))


class ResNet(nn.Module):
    """`[N, channels, H, W] -> [N, num_classes]`; the resolution is halved twice."""

    def __init__(self, num_classes: int, channels: int = 1, width: int = 16, blocks: int = 1) -> None:
        super().__init__()
        self.stem = _conv(channels, width, stride=1)
        self.layer1 = _stage(width, width, blocks, stride=1)
        self.layer2 = _stage(width, 2 * width, blocks, stride=2)
        self.layer3 = _stage(2 * width, 4 * width, blocks, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(4 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.layer3(self.layer2(self.layer1(self.stem(x))))).flatten(1))


def _conv(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    shortcut = None
    if stride > 1 or inputs != outputs:
        shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
    first = BasicBlock(inputs, outputs, stride, downsample=shortcut)
    return nn.Sequential(first, *(BasicBlock(outputs, outputs) for _ in range(blocks - 1)))
