"""The models that are cut beside Torch-Pruning: tiny, random, as their libraries make them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Model(NamedTuple):
    """A model as its library makes it, and layers of it by what they are."""

    make: Callable[[], nn.Module]
    example: Callable[[], Any]
    structures: dict[str, str]


def images(size: int = 64) -> Callable[[], Tensor]:
    return lambda: torch.randn(2, 3, size, size)


def texts() -> dict[str, Tensor]:
    return {"input_ids": torch.randint(5, 90, (2, 12))}


def models() -> dict[str, Model]:
    import timm
    import torchvision
    import transformers as hf

    small: dict[str, Any] = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    llama: dict[str, Any] = {**small, "intermediate_size": 48, "num_key_value_heads": 2, "use_cache": False}
    t5 = hf.T5Config(vocab_size=99, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, use_cache=False)

    def from_timm(name: str, **options: Any) -> Callable[[], nn.Module]:
        return lambda: timm.create_model(name, num_classes=10, **options)

    return {
        "GPT-2": Model(
            lambda: hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=99, n_embd=32, n_layer=2, n_head=4, use_cache=False)),
            texts,
            {"MLP (Conv1D)": "transformer.h.0.mlp.c_fc", "heads, fused q k v": "transformer.h.0.attn.c_attn"},
        ),
        "Llama": Model(
            lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**llama)),
            texts,
            {
                "gated MLP": "model.layers.0.mlp.gate_proj",
                "heads, grouped": "model.layers.0.self_attn.q_proj",
                "residual stream": "model.layers.0.mlp.down_proj",
            },
        ),
        "Mixtral": Model(
            lambda: hf.MixtralForCausalLM(hf.MixtralConfig(**llama, num_local_experts=4)),
            texts,
            {"neurons of all experts": "model.layers.0.mlp.experts.gate_up_proj"},
        ),
        "BERT": Model(
            lambda: hf.BertModel(hf.BertConfig(**small, intermediate_size=48)),
            texts,
            {"MLP": "encoder.layer.0.intermediate.dense", "heads": "encoder.layer.0.attention.self.query"},
        ),
        "T5": Model(
            lambda: hf.T5EncoderModel(t5),
            texts,
            {
                "MLP": "encoder.block.0.layer.1.DenseReluDense.wi",
                "heads": "encoder.block.1.layer.0.SelfAttention.q",
            },
        ),
        "ViT (timm)": Model(
            from_timm("vit_tiny_patch16_224", img_size=64, depth=2),
            images(),
            {
                "MLP": "blocks.0.mlp.fc1",
                "heads, fused q k v": "blocks.0.attn.qkv",
                "residual stream": "patch_embed.proj",
            },
        ),
        "Mixer (timm)": Model(
            from_timm("mixer_s32_224", img_size=64),
            images(),
            {"MLP over tokens": "blocks.0.mlp_tokens.fc1", "MLP over channels": "blocks.0.mlp_channels.fc1"},
        ),
        "ResNet18 (torchvision)": Model(
            lambda: torchvision.models.resnet18(),
            images(),
            {"inside a block": "layer1.0.conv1", "residual stream": "conv1"},
        ),
        "SE-ResNet50 (timm)": Model(
            from_timm("seresnet50"),
            images(),
            {"inside a block": "layer1.0.conv2", "stream behind squeeze-and-excitation": "layer1.0.conv3"},
        ),
        "MobileNetV3 (torchvision)": Model(
            lambda: torchvision.models.mobilenet_v3_small(),
            images(),
            {"expansion, depthwise, squeeze": "features.2.block.0.0", "linear bottleneck": "features.2.block.2.0"},
        ),
        "RegNetY (timm)": Model(
            from_timm("regnety_004"),
            images(),
            {"grouped convolution": "s1.b1.conv2.conv", "stream": "s1.b1.conv3.conv"},
        ),
        "ConvNeXt (timm)": Model(
            from_timm("convnext_atto"), images(), {"MLP": "stages.0.blocks.0.mlp.fc1", "residual stream": "stem.0"}
        ),
        "DenseNet121 (torchvision)": Model(
            lambda: torchvision.models.densenet121(),
            images(),
            {"concatenated": "features.conv0", "inside a layer": "features.denseblock1.denselayer1.conv1"},
        ),
        "GoogLeNet (torchvision)": Model(
            lambda: torchvision.models.googlenet(init_weights=False, aux_logits=False),
            images(),
            {"branch of a concatenation": "inception3a.branch1.conv"},
        ),
        "ShuffleNetV2 (torchvision)": Model(
            lambda: torchvision.models.shufflenet_v2_x0_5(), images(), {"inside a branch": "stage2.1.branch2.0"}
        ),
        "NF-ResNet26 (timm)": Model(
            from_timm("nf_resnet26"), images(), {"standardised convolution": "stages.0.0.conv1"}
        ),
    }
