"""Three small networks of different kinds for grey images, trained on the spot.

For the 8×8 digits in seconds; for the 28×28 images of Fashion-MNIST, a little wider, in minutes.
"""

from __future__ import annotations

from timm.models.resnet import BasicBlock
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from howsure.backbone import Backbone, InputSpec, Recipe

DIGITS = InputSpec(size=(8, 8), mean=(0.305,), std=(0.377,))
FASHION = InputSpec(size=(28, 28), mean=(0.286,), std=(0.353,))


class SmallCNN(Backbone):
    """Three convolutions with batch norm, pooled to a vector, then dropout and two linear layers. 0.07 M parameters."""

    name = "small-cnn"
    input = DIGITS
    recipe = Recipe(epochs=20, lr=0.005, shift=1, smoothing=0.05)

    def build(self, num_classes: int) -> nn.Module:
        return ConvNet(num_classes)


class SmallResNet(Backbone):
    """A stem and three stages of one residual block (timm's `BasicBlock`): 16 to 64 channels. 0.08 M parameters."""

    name = "small-resnet"
    input = DIGITS
    recipe = Recipe(epochs=20, lr=0.005, shift=1, smoothing=0.05)

    def build(self, num_classes: int) -> nn.Module:
        return ResNet(num_classes)


class SmallViT(Backbone):
    """timm's vision transformer: 3 blocks of width 48 with 4 heads, one token for 2×2 pixels. 0.07 M parameters.

    Tokens come from two convolutions, which lets it learn from under a thousand images (Xiao et al., 2021,
    arXiv:2106.14881).
    """

    name = "small-vit"
    input = DIGITS
    recipe = Recipe(epochs=30, lr=0.003, weight_decay=0.05, shift=1, smoothing=0.05)

    def build(self, num_classes: int) -> nn.Module:
        return vision_transformer(num_classes, size=8)


class FashionCNN(Backbone):
    """`small-cnn` for 28×28. 0.07 M parameters."""

    name = "fashion-cnn"
    input = FASHION
    recipe = Recipe(epochs=5, lr=0.005, batch_size=128, shift=1, smoothing=0.05)

    def build(self, num_classes: int) -> nn.Module:
        return ConvNet(num_classes)


class FashionResNet(Backbone):
    """`small-resnet` for 28×28. 0.08 M parameters."""

    name = "fashion-resnet"
    input = FASHION
    recipe = Recipe(epochs=5, lr=0.005, batch_size=128, shift=1, smoothing=0.05)

    def build(self, num_classes: int) -> nn.Module:
        return ResNet(num_classes)


class FashionViT(Backbone):
    """`small-vit` for 28×28: 4 blocks of width 64, a token for 4×4 pixels. 0.2 M parameters."""

    name = "fashion-vit"
    input = FASHION
    recipe = Recipe(epochs=8, lr=0.002, batch_size=128, weight_decay=0.05, shift=1, smoothing=0.05)

    def build(self, num_classes: int) -> nn.Module:
        return vision_transformer(num_classes, size=28, patch=4, width=64, depth=4)


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


def vision_transformer(num_classes: int, size: int, patch: int = 2, width: int = 48, depth: int = 3) -> nn.Module:
    """`[N, 1, size, size] -> [N, num_classes]`: timm's vision transformer with tokens from two convolutions."""
    model = VisionTransformer(
        img_size=size, patch_size=patch, in_chans=1, num_classes=num_classes,
        embed_dim=width, depth=depth, num_heads=4, mlp_ratio=2,
    )  # fmt: skip
    stem = nn.Conv2d(1, width // 2, 3, 1, 1), nn.GELU(), nn.Conv2d(width // 2, width, 2 * patch, patch, patch // 2)
    model.patch_embed.proj = nn.Sequential(*stem)
    return model


def _conv(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    shortcut = None
    if stride > 1 or inputs != outputs:
        shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
    first = BasicBlock(inputs, outputs, stride, downsample=shortcut)
    return nn.Sequential(first, *(BasicBlock(outputs, outputs) for _ in range(blocks - 1)))
