"""The gradient engine on the networks that people use: equal to autograd on single images, in float64."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from howsure.gradients import grad_sq_norms
from howsure.gradients.caches import caches_aside

ARCHITECTURES = """
tv/resnet18 resnet10t tv/resnet50 resnext50_32x4d tv/wide_resnet50_2 resnetv2_50 resnetv2_50x1_bit seresnet33ts
skresnet18:64 resnest14d:64 res2net50_14w_8s tv/densenet121 tv/vgg11 tv/vgg11_bn tv/googlenet:64 tv/inception_v3:75
inception_v4:75 tv/squeezenet1_1:64 tv/shufflenet_v2_x0_5 tv/mobilenet_v2 tv/mobilenet_v3_small mobilenetv3_small_050
tv/mnasnet0_5 tv/efficientnet_b0 efficientnet_lite0 tinynet_e lcnet_050 hardcorenas_a rexnet_100 tv/regnet_x_400mf
regnety_002 regnetz_b16 convnext_atto tv/convnext_tiny repvgg_a0 mobileone_s0 repvit_m0_9 ghostnet_050 hgnetv2_b0
dpn68 dla34 hrnet_w18_small cspresnet50 darknet53 selecsls42 xception41 nf_resnet50 dm_nfnet_f0 convmixer_768_32
inception_next_atto starnet_s1:64 fastvit_t8:64 edgenext_xx_small:64 mobilevit_xxs:64 mobilevitv2_050:64
vit_tiny_patch16_224:32 tv/vit_b_16:32 deit_tiny_distilled_patch16_224:32 deit3_small_patch16_224:32
beit_base_patch16_224:32 eva02_tiny_patch14_224:28 cait_xxs24_224:32 swin_tiny_patch4_window7_224:64 tv/swin_t:64
swinv2_tiny_window8_256:64 swinv2_cr_tiny_224:64 maxvit_rmlp_pico_rw_256:64 coatnet_pico_rw_224:64
coatnet_nano_rw_224:64 xcit_nano_12_p16_224:32 poolformer_s12 mixer_s32_224:64 gmlp_s16_224:32 resmlp_12_224:32
pit_ti_224:64 pvt_v2_b0:64 twins_pcpvt_small:64 mvitv2_tiny:64 efficientvit_b0:64 tiny_vit_5m_224:64
levit_128s:224 efficientformer_l1:224 davit_tiny:64 visformer_tiny:64
vit_dwee_patch16_reg1_gap_256:32 crossvit_tiny_240:240
coat_tiny:64 volo_d1_224:64 nest_tiny:64 focalnet_tiny_srf:64 mambaout_femto:64 vitamin_small_224:64
""".split()


def build(name: str) -> tuple[nn.Module, int]:
    name, _, size = name.partition(":")
    side = int(size or 32)
    if name.startswith("tv/"):
        options = {"init_weights": False} if name in ("tv/googlenet", "tv/inception_v3") else {}
        if name.startswith("tv/vit"):
            options["image_size"] = side
        return torchvision.models.get_model(name[3:], weights=None, num_classes=5, **options), side
    try:
        return timm.create_model(name, pretrained=False, num_classes=5, img_size=side), side
    except TypeError:
        return timm.create_model(name, pretrained=False, num_classes=5), side


def shake(net: nn.Module) -> nn.Module:
    """No gradient is zero for its initial value alone: scales of zero, empty heads, unit statistics."""
    torch.manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            if p.dim() <= 1:
                p.add_(0.1 * torch.randn_like(p))
            elif not p.any():
                p.normal_(std=0.05)
        for name, b in net.named_buffers():
            if "running_mean" in name:
                b.normal_(std=0.1)
            elif "running_var" in name:
                b.uniform_(0.5, 1.5)
    return net.double().eval()


def spread(z: Tensor) -> Tensor:
    return z.logsumexp(1) - z.mean(1)


def alone(net: nn.Module, image: Tensor) -> Tensor:
    """Squared gradient norms of one image by autograd.

    The image goes in twice and one of the two outputs is used: with a batch of one, torch 2.14 computes a wrong batch
    norm gradient on the CPU where the gradient comes in channels-last order (XCiT, LeViT, EfficientFormer).
    """
    with caches_aside(list(net.modules())):
        value = spread(net(torch.stack([image, image])))[0]
        grads = torch.autograd.grad(value, list(net.parameters()), allow_unused=True)
    return torch.stack([value.new_zeros(()) if g is None else g.square().sum() for g in grads])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_equal_to_autograd_on_one_image_at_a_time(name):
    net, side = build(name)
    shake(net)
    x = torch.randn(3, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    got = grad_sq_norms(net, x, spread)
    want = torch.stack([alone(net, image) for image in x[:2]])
    assert got.names == tuple(name for name, _ in net.named_parameters())
    # below this a gradient is zero but for rounding: a bias in front of a normalisation, a key's bias in attention
    noise = 1e-18 * want.amax(1, keepdim=True)
    error = (got.norms[0, :2] - want).abs() / (want + noise)
    worst = int(error.amax(0).argmax())
    assert error.max() < 1e-9, f"{got.names[worst]}: {float(error.max()):.1e}"
