"""Models of transformers for images and time series."""

from __future__ import annotations

from typing import Any

import transformers

from .base import Architecture, labels, of_output, of_values, values
from .encoders import build

SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "num_labels": 3}
IMAGES = ((3, 8), (4, 8), (5, 8))
"""N and the side of the images: 2 × 2 patches, with a class token 5 positions."""


def pictures(n: int, side: int) -> dict[str, Any]:
    return {"pixel_values": values(n, 3, side, side), "labels": labels(n)}


def inputs_alone(n: int, side: int) -> dict[str, Any]:
    return {"pixel_values": values(n, 3, side, side)}


def classifier(config: str, model: str, sizes: Any = IMAGES, **settings: Any) -> Architecture:
    return Architecture(build(config, model, **settings), pictures, of_output, sizes)


def frozen(make: Any) -> Any:
    """BatchNorm in eval mode, as fine-tuning often has it."""

    def made() -> Any:
        model = make()
        for module in model.modules():
            if "BatchNorm" in type(module).__name__:
                module.eval()
        return model

    return made


SWIN = {"image_size": 16, "patch_size": 2, "embed_dim": 8, "depths": [2, 1], "num_heads": [2, 2], "window_size": 2}
CONVNEXT = {"num_labels": 3, "hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "drop_path_rate": 0.1}
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic", "num_labels": 3}
SEGFORMER = {
    "num_encoder_blocks": 2,
    "depths": [1, 1],
    "sr_ratios": [2, 1],
    "hidden_sizes": [8, 16],
    "patch_sizes": [3, 3],
    "strides": [2, 2],
    "num_attention_heads": [1, 2],
    "mlp_ratios": [2, 2],
    "decoder_hidden_size": 8,
    "num_labels": 3,
}
DETR = {
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "num_queries": 4,
    "use_timm_backbone": False,
    "use_pretrained_backbone": False,
}


def detr() -> Any:
    backbone = transformers.ResNetConfig(**{**RESNET, "out_features": ["stage2"]})
    return transformers.DetrModel(transformers.DetrConfig(**DETR, backbone_config=backbone, backbone=None)).train()


MODELS = {
    "ViT": classifier("ViTConfig", "ViTForImageClassification", **SMALL, image_size=8, patch_size=4),
    "DeiT": classifier("DeiTConfig", "DeiTForImageClassification", **SMALL, image_size=8, patch_size=4),
    "DINOv2": classifier("Dinov2Config", "Dinov2ForImageClassification", **SMALL, image_size=8, patch_size=4),
    "BEiT": classifier(
        "BeitConfig",
        "BeitForImageClassification",
        **SMALL,
        image_size=8,
        patch_size=4,
        use_relative_position_bias=True,
        use_mask_token=False,
    ),
    "ViT-MAE": Architecture(
        build("ViTMAEConfig", "ViTMAEModel", **SMALL, image_size=8, patch_size=4, mask_ratio=0.5),
        lambda n, side: {**inputs_alone(n, side), "noise": values(n, 4)},
        of_values,
        IMAGES,
    ),
    "ConvNeXt": classifier("ConvNextConfig", "ConvNextForImageClassification", ((3, 32), (4, 32)), **CONVNEXT),
    "ConvNeXt v2": classifier("ConvNextV2Config", "ConvNextV2ForImageClassification", ((3, 32), (4, 32)), **CONVNEXT),
    "ResNet": classifier("ResNetConfig", "ResNetForImageClassification", ((3, 16), (4, 16)), **RESNET),
    "ResNet, BatchNorm frozen": Architecture(
        frozen(build("ResNetConfig", "ResNetForImageClassification", **RESNET)), pictures, of_output, ((3, 16), (4, 16))
    ),
    "SegFormer": Architecture(
        build("SegformerConfig", "SegformerForSemanticSegmentation", **SEGFORMER),
        inputs_alone,
        of_values,
        ((3, 16), (4, 16)),
    ),
    "SegFormer, BatchNorm frozen": Architecture(
        frozen(build("SegformerConfig", "SegformerForSemanticSegmentation", **SEGFORMER)),
        inputs_alone,
        of_values,
        ((3, 16), (4, 16)),
    ),
    "Swin": classifier("SwinConfig", "SwinForImageClassification", ((3, 16), (4, 16)), **SWIN, num_labels=3),
    "Swin v2": classifier("Swinv2Config", "Swinv2ForImageClassification", ((3, 16), (4, 16)), **SWIN, num_labels=3),
    "DETR": Architecture(detr, inputs_alone, of_values, ((3, 32), (4, 32))),
    "VideoMAE": Architecture(
        build(
            "VideoMAEConfig",
            "VideoMAEForVideoClassification",
            **SMALL,
            image_size=8,
            patch_size=4,
            num_frames=4,
            tubelet_size=2,
        ),
        lambda n, t: {"pixel_values": values(n, 4, 3, 8, 8), "labels": labels(n)},
        of_output,
        ((3, 8), (4, 8)),
    ),
    "TimeSformer": Architecture(
        build(
            "TimesformerConfig", "TimesformerForVideoClassification", **SMALL, image_size=8, patch_size=4, num_frames=4
        ),
        lambda n, t: {"pixel_values": values(n, 4, 3, 8, 8), "labels": labels(n)},
        of_output,
        ((3, 8), (4, 8)),
    ),
    "PatchTST": Architecture(
        build(
            "PatchTSTConfig",
            "PatchTSTForPrediction",
            num_input_channels=3,
            context_length=16,
            patch_length=4,
            patch_stride=4,
            d_model=16,
            num_attention_heads=2,
            num_hidden_layers=2,
            ffn_dim=24,
            prediction_length=4,
            norm_type="layernorm",
        ),
        lambda n, t: {"past_values": values(n, 16, 3), "future_values": values(n, 4, 3, seed=3)},
        of_output,
        ((3, 0), (4, 0)),
    ),
}
