"""The usual networks for 32×32 colour images: CIFAR ResNets, ResNet-18 with a 3×3 stem, WideResNet, DenseNet-BC."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import resnet

from howsure.backbone import Backbone, InputSpec, Recipe

CIFAR = InputSpec(size=(32, 32), mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))
RECIPE = Recipe(epochs=30, lr=0.003, batch_size=128, weight_decay=0.05, shift=4)


class _ResNet(Backbone):
    input = CIFAR
    recipe = RECIPE
    depth: ClassVar[int]

    def build(self, num_classes: int) -> nn.Module:
        return CifarResNet(self.depth, num_classes)


class ResNet20(_ResNet):
    """ResNet-20 for CIFAR. He et al., 2016, arXiv:1512.03385. 0.27 M parameters."""

    name = "cifar-resnet20"
    depth = 20


class ResNet32(_ResNet):
    """ResNet-32 for CIFAR. He et al., 2016, arXiv:1512.03385. 0.46 M parameters."""

    name = "cifar-resnet32"
    depth = 32


class ResNet44(_ResNet):
    """ResNet-44 for CIFAR. He et al., 2016, arXiv:1512.03385. 0.66 M parameters."""

    name = "cifar-resnet44"
    depth = 44


class ResNet56(_ResNet):
    """ResNet-56 for CIFAR. He et al., 2016, arXiv:1512.03385. 0.85 M parameters."""

    name = "cifar-resnet56"
    depth = 56


class ResNet18(Backbone):
    """torchvision's ResNet-18 with a 3×3 stem at stride 1 and no max pooling. 11.2 M parameters."""

    name = "cifar-resnet18"
    input = CIFAR
    recipe = RECIPE

    def build(self, num_classes: int) -> nn.Module:
        return _with_small_stem(resnet.resnet18(num_classes=num_classes))


class ResNet34(Backbone):
    """torchvision's ResNet-34 with a 3×3 stem at stride 1 and no max pooling. 21.3 M parameters."""

    name = "cifar-resnet34"
    input = CIFAR
    recipe = RECIPE

    def build(self, num_classes: int) -> nn.Module:
        return _with_small_stem(resnet.resnet34(num_classes=num_classes))


class WideResNet40x2(Backbone):
    """WideResNet-40-2. Zagoruyko & Komodakis, 2016, arXiv:1605.07146. 2.2 M parameters."""

    name = "cifar-wrn-40-2"
    input = CIFAR
    recipe = RECIPE

    def build(self, num_classes: int) -> nn.Module:
        return WideResNet(40, 2, num_classes)


class WideResNet28x10(Backbone):
    """WideResNet-28-10. Zagoruyko & Komodakis, 2016, arXiv:1605.07146. 36.5 M parameters."""

    name = "cifar-wrn-28-10"
    input = CIFAR
    recipe = RECIPE

    def build(self, num_classes: int) -> nn.Module:
        return WideResNet(28, 10, num_classes)


class DenseNet(Backbone):
    """DenseNet-BC, 100 layers, growth 12. Huang et al., 2017, arXiv:1608.06993. 0.77 M parameters."""

    name = "cifar-densenet"
    input = CIFAR
    recipe = RECIPE

    def build(self, num_classes: int) -> nn.Module:
        return DenseNetBC(100, 12, num_classes)


class SmallDenseNet(Backbone):
    """DenseNet-BC, 40 layers, growth 12. Huang et al., 2017, arXiv:1608.06993. 0.18 M parameters."""

    name = "cifar-densenet40"
    input = CIFAR
    recipe = replace(RECIPE, epochs=20)

    def build(self, num_classes: int) -> nn.Module:
        return DenseNetBC(40, 12, num_classes)


class CifarResNet(nn.Module):
    """`[N, 3, 32, 32] -> [N, num_classes]`: three stages of 16, 32 and 64 channels, (depth - 2) / 6 blocks each."""

    def __init__(self, depth: int, num_classes: int) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = _conv3(3, 16)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _residual(16, 16, blocks, 1)
        self.layer2 = _residual(16, 32, blocks, 2)
        self.layer3 = _residual(32, 64, blocks, 2)
        self.linear = nn.Linear(64, num_classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut without parameters (option A): every second pixel, zeros for new channels."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv3(inputs, outputs, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = _conv3(outputs, outputs)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.extra = stride, (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self.shortcut(x))

    def shortcut(self, x: Tensor) -> Tensor:
        if self.stride == 1 and not self.extra:
            return x
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.extra, self.extra))


class WideResNet(nn.Module):
    """`[N, 3, 32, 32] -> [N, num_classes]`: pre-activation blocks, (depth - 4) / 6 in each of three stages."""

    def __init__(self, depth: int, widen: int, num_classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        blocks, widths = (depth - 4) // 6, (16, 16 * widen, 32 * widen, 64 * widen)
        self.conv1 = _conv3(3, widths[0])
        self.block1 = _wide(widths[0], widths[1], blocks, 1, dropout)
        self.block2 = _wide(widths[1], widths[2], blocks, 2, dropout)
        self.block3 = _wide(widths[2], widths[3], blocks, 2, dropout)
        self.bn = nn.BatchNorm2d(widths[3])
        self.fc = nn.Linear(widths[3], num_classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(F.relu(self.bn(x)).mean((2, 3)))


class WideBlock(nn.Module):
    """Batch norm and ReLU before each of two 3×3 convolutions; a 1×1 convolution as shortcut where shapes differ."""

    def __init__(self, inputs: int, outputs: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = _conv3(inputs, outputs, stride)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = _conv3(outputs, outputs)
        same = stride == 1 and inputs == outputs
        self.shortcut = None if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        out = self.conv2(self.dropout(F.relu(self.bn2(self.conv1(active)))))
        return out + (x if self.shortcut is None else self.shortcut(active))


class DenseNetBC(nn.Module):
    """`[N, 3, 32, 32] -> [N, num_classes]`: three dense blocks with bottlenecks; transitions halve the channels."""

    def __init__(self, depth: int, growth: int, num_classes: int) -> None:
        super().__init__()
        layers, width = (depth - 4) // 6, 2 * growth
        self.conv1 = _conv3(3, width)
        stages: list[nn.Module] = []
        for stage in range(3):
            stages.append(nn.Sequential(*(DenseLayer(width + i * growth, growth) for i in range(layers))))
            width += layers * growth
            if stage < 2:
                stages.append(Transition(width, width // 2))
                width //= 2
        self.dense1, self.trans1, self.dense2, self.trans2, self.dense3 = stages
        self.bn = nn.BatchNorm2d(width)
        self.fc = nn.Linear(width, num_classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.trans1(self.dense1(self.conv1(x)))
        x = self.dense3(self.trans2(self.dense2(x)))
        return self.fc(F.relu(self.bn(x)).mean((2, 3)))


class DenseLayer(nn.Module):
    """A 1×1 then a 3×3 convolution; the `growth` new channels are added to the input's."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, 4 * growth, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = _conv3(4 * growth, growth)

    def forward(self, x: Tensor) -> Tensor:
        new = self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(x))))))
        return torch.cat([x, new], dim=1)


class Transition(nn.Module):
    """Batch norm, ReLU, a 1×1 convolution, and the mean of each 2×2 pixels."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(inputs)
        self.conv = nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(self.conv(F.relu(self.bn(x))), 2)


def _with_small_stem(model: resnet.ResNet) -> resnet.ResNet:
    model.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    model.maxpool = nn.Identity()
    return model


def _conv3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)


def _residual(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    rest = (ResidualBlock(outputs, outputs, 1) for _ in range(blocks - 1))
    return nn.Sequential(ResidualBlock(inputs, outputs, stride), *rest)


def _wide(inputs: int, outputs: int, blocks: int, stride: int, dropout: float) -> nn.Sequential:
    rest = (WideBlock(outputs, outputs, 1, dropout) for _ in range(blocks - 1))
    return nn.Sequential(WideBlock(inputs, outputs, stride, dropout), *rest)


def _initialise(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
