"""Image models of timm and torchvision, in tiny configurations."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import timm
import torchvision
from timm.models import (
    coat,
    efficientnet,
    focalnet,
    maxxvit,
    metaformer,
    mlp_mixer,
    mobilenetv3,
    nfnet,
    regnet,
    twins,
    vgg,
    visformer,
    volo,
)
from timm.models._efficientnet_builder import decode_arch_def
from torch import Tensor, nn

from .base import Architecture, of_values, values
from .vision import frozen

SIZES = ((3, 32), (4, 32))
SMALL = ((3, 16), (4, 16))
PATCHES = ((3, 8), (4, 8), (5, 8))
"""2 × 2 patches, with a class token 5 positions."""
VIT = {
    "img_size": 8,
    "patch_size": 4,
    "embed_dim": 16,
    "depth": 2,
    "num_heads": 2,
    "num_classes": 3,
    "drop_path_rate": 0.1,
}
MIXER = {"img_size": 8, "patch_size": 4, "num_blocks": 2, "embed_dim": 16, "num_classes": 3}
VOLO = {
    "layers": (1, 1),
    "img_size": 16,
    "patch_size": 4,
    "embed_dims": (16, 16),
    "num_heads": (2, 2),
    "mlp_ratio": 2.0,
    "downsamples": (True, False),
    "outlook_attention": (True, False),
    "stem_hidden_dim": 8,
    "num_classes": 3,
}
SWIN = {
    "img_size": 16,
    "patch_size": 2,
    "window_size": 2,
    "embed_dim": 8,
    "depths": (2, 1),
    "num_heads": (2, 2),
    "num_classes": 3,
}
FOUR = {"depths": (1, 1, 1, 1), "num_classes": 3, "drop_path_rate": 0.1}


def pictures(n: int, side: int) -> Tensor:
    return values(n, 3, side, side)


def entry(make: Callable[[], nn.Module], sizes: Any = SIZES, *, freeze: bool = False) -> Architecture:
    """`freeze`: BatchNorm in eval mode."""
    train = frozen(lambda: make().train()) if freeze else lambda: make().train()
    return Architecture(train, pictures, of_values, sizes)


def of_timm(name: str, sizes: Any = SIZES, *, freeze: bool = False, **settings: Any) -> Architecture:
    return entry(partial(timm.create_model, name, **{"num_classes": 3, **settings}), sizes, freeze=freeze)


def of_torchvision(name: str, sizes: Any = SIZES, *, freeze: bool = False, **settings: Any) -> Architecture:
    return entry(partial(getattr(torchvision.models, name), num_classes=3, **settings), sizes, freeze=freeze)


def maxvit(block: tuple[str, ...]) -> nn.Module:
    config = maxxvit.MaxxVitCfg(
        embed_dim=(8, 16),
        depths=(1, 1),
        block_type=block,
        stem_width=8,
        head_hidden_size=16,
        transformer_cfg=maxxvit.MaxxVitTransformerCfg(dim_head=8, window_size=(2, 2), grid_size=(2, 2)),
    )
    return maxxvit.MaxxVit(config, img_size=16, num_classes=3)


def norm_free(**settings: Any) -> nn.Module:
    return nfnet.NormFreeNet(nfnet.NfCfg(depths=(1, 1), channels=(16, 32), stem_chs=8, **settings), num_classes=3)


def of_blocks(kind: Callable[..., nn.Module]) -> Callable[[], nn.Module]:
    blocks = [["ds_r1_k3_s1_e1_c8"], ["ir_r1_k3_s2_e4_c16_se0.25"], ["cn_r1_k1_s1_c24"]]
    return lambda: kind(decode_arch_def(blocks), num_classes=3, num_features=32, stem_size=8, drop_rate=0.1)


def resnet_settings(**settings: Any) -> dict[str, Any]:
    return {"layers": (1, 1, 1, 1), "channels": (8, 8, 16, 16), "stem_width": 8, **settings}


TIMM = {
    "vit": of_timm("vit_tiny_patch16_224", PATCHES, **VIT),
    "vit, mean of tokens": of_timm("vit_tiny_patch16_224", PATCHES, **VIT, class_token=False, global_pool="avg"),
    "deit3": of_timm("deit3_small_patch16_224", PATCHES, **VIT),
    "beit": of_timm("beit_base_patch16_224", PATCHES, **VIT),
    "eva02": of_timm("eva02_tiny_patch14_224", PATCHES, **VIT),
    "cait": of_timm("cait_xxs24_224", PATCHES, **VIT),
    "crossvit": of_timm(
        "crossvit_tiny_240",
        SMALL,
        img_size=16,
        patch_size=(4, 8),
        embed_dim=(8, 16),
        num_heads=(2, 2),
        depth=((1, 1, 0),),
        img_scale=(1.0, 1.0),
    ),
    "xcit": of_timm("xcit_nano_12_p16_224", ((3, 32), (4, 32)), **{**VIT, "img_size": 32, "patch_size": 16}),
    "tnt": of_timm(
        "tnt_s_patch16_224",
        ((3, 8), (4, 8)),
        **{k: v for k, v in VIT.items() if k != "num_heads"},
        inner_dim=8,
        num_heads_inner=2,
        num_heads_outer=2,
        first_stride=2,
    ),
    "mixer": entry(partial(mlp_mixer.MlpMixer, **MIXER), PATCHES),
    "gmlp": entry(
        partial(
            mlp_mixer.MlpMixer,
            **MIXER,
            mlp_ratio=2,
            block_layer=mlp_mixer.SpatialGatingBlock,
            mlp_layer=timm.layers.GatedMlp,
        ),
        PATCHES,
    ),
    "resmlp": entry(
        partial(mlp_mixer.MlpMixer, **MIXER, mlp_ratio=4, block_layer=mlp_mixer.ResBlock, norm_layer=mlp_mixer.Affine),
        PATCHES,
    ),
    "convnext": of_timm("convnext_atto", dims=(8, 8, 16, 16), **FOUR),
    "convnextv2": of_timm("convnextv2_atto", dims=(8, 8, 16, 16), **FOUR),
    "edgenext": of_timm("edgenext_xx_small", dims=(8, 8, 16, 16), heads=(2, 2, 2, 2), **FOUR),
    "poolformer": entry(partial(metaformer.MetaFormer, dims=(8, 8, 16, 16), layer_scale_init_values=0.1, **FOUR)),
    "caformer": entry(
        partial(
            metaformer.MetaFormer,
            dims=(8, 8, 32, 32),
            **FOUR,
            norm_layers=[metaformer.LayerNorm2dNoBias] * 2 + [metaformer.LayerNormNoBias] * 2,
            token_mixers=[metaformer.SepConv, metaformer.SepConv, metaformer.Attention, metaformer.Attention],
        )
    ),
    "hiera": of_timm(
        "hiera_tiny_224",
        SMALL,
        img_size=(16, 16),
        embed_dim=8,
        num_heads=1,
        stages=(1, 1),
        q_pool=1,
        mask_unit_size=(2, 2),
        mask_unit_attn=(True, False),
    ),
    "pvt_v2": of_timm("pvt_v2_b0", embed_dims=(8, 8, 16, 16), num_heads=(1, 1, 2, 2), **FOUR),
    "twins": entry(
        partial(
            twins.Twins,
            img_size=32,
            embed_dims=(8, 8, 16, 16),
            num_heads=(1, 1, 2, 2),
            wss=(2, 2, 2, 1),
            sr_ratios=(2, 2, 1, 1),
            **FOUR,
        )
    ),
    "focalnet": entry(partial(focalnet.FocalNet, embed_dim=8, **FOUR)),
    "swin": of_timm("swin_tiny_patch4_window7_224", SMALL, **SWIN),
    "swinv2": of_timm("swinv2_tiny_window8_256", SMALL, **SWIN),
    "swinv2_cr": of_timm("swinv2_cr_tiny_224", SMALL, **SWIN),
    "davit": of_timm("davit_tiny", embed_dims=(8, 8, 16, 16), num_heads=(2, 2, 2, 2), window_size=2, **FOUR),
    "coat": entry(
        partial(
            coat.CoaT,
            img_size=32,
            patch_size=4,
            embed_dims=(8, 8, 8, 8),
            num_heads=2,
            serial_depths=(1, 1, 1, 1),
            parallel_depth=1,
            num_classes=3,
            crpe_window={3: 1, 5: 1},
        )
    ),
    "maxvit": entry(partial(maxvit, ("M", "M")), SMALL),
    "maxvit, BatchNorm frozen": entry(partial(maxvit, ("M", "M")), SMALL, freeze=True),
    "coatnet, BatchNorm frozen": entry(partial(maxvit, ("C", "T")), SMALL, freeze=True),
    "volo": entry(partial(volo.VOLO, **VOLO), SMALL),
    "volo, BatchNorm frozen": entry(partial(volo.VOLO, **VOLO), SMALL, freeze=True),
    "mobilevit, BatchNorm frozen": of_timm("mobilevit_xxs", ((3, 64), (4, 64)), freeze=True),
    "visformer, BatchNorm frozen": entry(
        partial(
            visformer.Visformer,
            img_size=32,
            patch_size=8,
            init_channels=8,
            embed_dim=16,
            depth=(1, 1, 1),
            num_heads=2,
            num_classes=3,
        ),
        freeze=True,
    ),
    "resnet18": of_timm("resnet18", **resnet_settings()),
    "resnet18, BatchNorm frozen": of_timm("resnet18", freeze=True, **resnet_settings()),
    "resnet50_gn": of_timm("resnet50_gn", **resnet_settings(channels=(32, 32, 64, 64), stem_width=32)),
    "nfnet": entry(
        partial(norm_free, num_features=32, gamma_in_act=True, same_padding=True, attn_layer="se", attn_kwargs={})
    ),
    "nf_resnet": entry(norm_free),
    "vgg": entry(partial(vgg.VGG, [8, "M", 8, "M", 16, "M", 16, "M", 16, "M"], num_classes=3, mlp_ratio=1 / 256)),
    "densenet, BatchNorm frozen": of_timm("densenet121", freeze=True, growth_rate=4, block_config=(2, 2)),
    "regnet, BatchNorm frozen": entry(
        partial(regnet.RegNet, regnet.RegNetCfg(w0=8, wa=8.0, wm=2.0, group_size=8, depth=8), num_classes=3),
        freeze=True,
    ),
    "efficientnet, BatchNorm frozen": entry(of_blocks(efficientnet.EfficientNet), freeze=True),
    "mobilenetv3, BatchNorm frozen": entry(of_blocks(mobilenetv3.MobileNetV3), freeze=True),
    "sequencer": of_timm(
        "sequencer2d_s",
        img_size=32,
        layers=(1, 1),
        patch_sizes=(4, 2),
        embed_dims=(16, 16),
        hidden_sizes=(8, 8),
        mlp_ratios=(2.0, 2.0),
    ),
}
TORCHVISION = {
    "vision transformer": entry(lambda: torchvision.models.VisionTransformer(8, 4, 2, 2, 16, 24, 0.1, 0.1, 3), PATCHES),
    "Swin": entry(
        lambda: torchvision.models.SwinTransformer(
            [2, 2], 8, [2, 1], [2, 2], [2, 2], num_classes=3, stochastic_depth_prob=0.1
        ),
        SMALL,
    ),
    "Swin v2": entry(
        lambda: torchvision.models.SwinTransformer(
            [2, 2],
            8,
            [2, 1],
            [2, 2],
            [2, 2],
            num_classes=3,
            block=torchvision.models.swin_transformer.SwinTransformerBlockV2,
            downsample_layer=torchvision.models.swin_transformer.PatchMergingV2,
        ),
        SMALL,
    ),
    "ConvNeXt": entry(
        lambda: torchvision.models.ConvNeXt(
            [
                torchvision.models.convnext.CNBlockConfig(8, 16, 1),
                torchvision.models.convnext.CNBlockConfig(16, None, 1),
            ],
            0.1,
            num_classes=3,
        )
    ),
    "SqueezeNet": of_torchvision("squeezenet1_1"),
    "ShuffleNet v2, BatchNorm frozen": of_torchvision("shufflenet_v2_x0_5", freeze=True),
    "MaxVit, BatchNorm frozen": entry(
        lambda: torchvision.models.MaxVit((16, 16), 8, 2, [8, 16], [1, 1], 8, 0.1, num_classes=3), SMALL, freeze=True
    ),
    "EfficientNet, BatchNorm frozen": entry(
        lambda: torchvision.models.EfficientNet(
            [
                torchvision.models.efficientnet.FusedMBConvConfig(1, 3, 1, 8, 8, 1),
                torchvision.models.efficientnet.MBConvConfig(4, 3, 2, 8, 16, 1),
            ],
            0.1,
            0.1,
            num_classes=3,
            last_channel=32,
        ),
        SMALL,
        freeze=True,
    ),
}
MODELS = TIMM | TORCHVISION
