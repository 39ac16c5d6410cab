"""Two networks for colour images that train in minutes, for choosing methods."""

from __future__ import annotations

from itertools import pairwise

from timm.models.vision_transformer import VisionTransformer
from torch import nn

from howsure.backbone import Backbone, InputSpec, Recipe

COLOUR = InputSpec(size=(32, 32), mean=(0.491, 0.482, 0.447), std=(0.247, 0.243, 0.262))


class ColourVGG(Backbone):
    """Six convolutions with batch norm in three stages, pooled to a vector. 0.3 M parameters."""

    name = "colour-vgg"
    input = COLOUR
    recipe = Recipe(epochs=15, lr=0.005, batch_size=128, shift=3, smoothing=0.05)

    def build(self, num_classes: int) -> nn.Module:
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise((3, 32, 64, 128)):
            layers += [*_conv(inputs, outputs), *_conv(outputs, outputs), nn.MaxPool2d(2)]
        return nn.Sequential(*layers[:-1], nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, num_classes))


class ColourViT(Backbone):
    """timm's vision transformer: 5 blocks of width 96, one token per 4×4 pixels. 0.5 M parameters."""

    name = "colour-vit"
    input = COLOUR
    recipe = Recipe(epochs=25, lr=0.002, batch_size=128, weight_decay=0.05, shift=3, smoothing=0.05)

    def build(self, num_classes: int) -> nn.Module:
        model = VisionTransformer(
            img_size=32, patch_size=4, num_classes=num_classes, embed_dim=96, depth=5, num_heads=4, mlp_ratio=2
        )
        model.patch_embed.proj = nn.Sequential(nn.Conv2d(3, 48, 3, 1, 1), nn.GELU(), nn.Conv2d(48, 96, 8, 4, 2))
        return model


def _conv(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
