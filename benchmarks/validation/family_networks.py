"""Small networks of other families than those that `layerprint` was chosen on, for 32×32 images; trained in minutes."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import timm
from timm.layers import GroupNormAct, StdConv2d
from timm.models.convnext import ConvNeXt
from timm.models.mlp_mixer import MlpMixer
from timm.models.resnetv2 import ResNetV2
from timm.models.swin_transformer import SwinTransformer
from torch import nn

from howsure.backbone import Backbone, InputSpec, Recipe


class _Family(Backbone):
    input = InputSpec(size=(32, 32), mean=(0.4, 0.4, 0.4), std=(0.3, 0.3, 0.3))
    recipe = Recipe(epochs=6, lr=0.003, batch_size=100, weight_decay=0.02, shift=2, smoothing=0.05)


class MobileNet(_Family):
    """MobileNet-v3 with half its width: depthwise convolutions, squeeze-and-excitation; the second stride is 1."""

    name = "mobilenet-v3"

    def build(self, num_classes: int) -> nn.Module:
        model = timm.create_model("mobilenetv3_small_050", num_classes=num_classes)
        model.blocks[0][0].conv_dw.stride = (1, 1)
        return model


class ConvNext(_Family):
    """ConvNeXt, five blocks in four stages, widths 32 to 128: depthwise convolutions of 7×7, layer norm."""

    name = "convnext"

    def build(self, num_classes: int) -> nn.Module:
        return ConvNeXt(num_classes=num_classes, depths=(1, 1, 2, 1), dims=(32, 64, 96, 128), patch_size=2)


class Mixer(_Family):
    """MLP-Mixer, three blocks of width 64, one token for 4×4 pixels: layer norm, no convolution but the first."""

    name = "mixer"

    def build(self, num_classes: int) -> nn.Module:
        return MlpMixer(num_classes=num_classes, img_size=32, patch_size=4, num_blocks=3, embed_dim=64)


class Swin(_Family):
    """Swin transformer, stages of two and two blocks, widths 32 and 64, windows of 4×4 tokens: layer norm."""

    name = "swin"

    def build(self, num_classes: int) -> nn.Module:
        return SwinTransformer(
            32, patch_size=2, num_classes=num_classes, embed_dim=32, depths=(2, 2), num_heads=(2, 4), window_size=4,
            mlp_ratio=2, drop_path_rate=0.0,
        )  # fmt: skip


class ResNetGN(_Family):
    """ResNet-v2: group norm before each convolution, standardised weights; three stages of one bottleneck."""

    name = "resnet-v2-gn"

    def build(self, num_classes: int) -> nn.Module:
        model = ResNetV2([1, 1, 1], (64, 128, 256), num_classes, norm_layer=partial(GroupNormAct, num_groups=8))
        model.stem = nn.Sequential(StdConv2d(3, 64, 4, 2, 1))
        return model


class PlainVGG(_Family):
    """Six convolutions in three stages, without normalisation."""

    name = "vgg-plain"
    recipe = Recipe(epochs=6, lr=0.001, batch_size=100, weight_decay=0.02, shift=2, smoothing=0.05)

    def build(self, num_classes: int) -> nn.Module:
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise((3, 16, 32, 64)):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()]
            layers += [nn.Conv2d(outputs, outputs, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, num_classes))


class NFNet(_Family):
    """timm's smallest NFNet: squeeze-and-excitation and standardised weights, without normalisation."""

    name = "nfnet"

    def build(self, num_classes: int) -> nn.Module:
        return timm.create_model("test_nfnet", num_classes=num_classes)
