"""Decoders of transformers: next-token loss over all tokens."""

from __future__ import annotations

from typing import Any

import transformers

from tests.zoo.verdict import TOLERANCE

from .base import TEXT, VOCABULARY, Architecture, ids, labels, of_output, values

SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {**SMALL, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4}
GEMMA = {"sliding_window": 4, "query_pre_attn_scalar": 4}
EXPERTS = {**GROUPED, "num_experts_per_tok": 2, "moe_intermediate_size": 12}


def text(n: int, t: int) -> dict[str, Any]:
    tokens = ids(n, t)
    return {"input_ids": tokens, "labels": tokens}


def causal(
    config: str, model: str, sizes: Any = TEXT, tolerance: float = TOLERANCE, experts: str = "eager", **settings: Any
) -> Architecture:
    def make() -> Any:
        made = getattr(transformers, model)(getattr(transformers, config)(**settings)).train()
        if "num_experts_per_tok" in settings:  # the kernel that is the default has no float64
            made.set_experts_implementation(experts)
        return made

    return Architecture(make, text, of_output, sizes, tolerance)


def llava() -> Any:
    vision = transformers.CLIPVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4
    )
    config = transformers.LlavaConfig(
        vision_config=vision,
        text_config=transformers.LlamaConfig(**GROUPED),
        image_token_index=30,
        vision_feature_layer=-1,
        image_seq_length=4,
    )
    return transformers.LlavaForConditionalGeneration(config).train()


def images_and_text(n: int, t: int) -> dict[str, Any]:
    tokens = ids(n, t + 4).clamp(max=29)
    tokens[:, :4] = 30
    return {"input_ids": tokens, "pixel_values": values(n, 3, 8, 8), "labels": tokens.where(tokens < 30, -100)}


def classifier() -> Any:
    return transformers.LlamaForSequenceClassification(transformers.LlamaConfig(**GROUPED, num_labels=3)).train()


def clip() -> Any:
    vision = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 8,
        "patch_size": 4,
        "projection_dim": 8,
    }
    text_config = {**SMALL, "projection_dim": 8}
    config = transformers.CLIPConfig(text_config=text_config, vision_config=vision, projection_dim=8)
    return transformers.CLIPModel(config).train()


def pairs(n: int, t: int) -> dict[str, Any]:
    return {"input_ids": ids(n, t), "pixel_values": values(n, 3, 8, 8)}


def of_embeddings(model: Any, batch: Any) -> Any:
    output = model(**batch)
    return (output.image_embeds - output.text_embeds).square().sum(1).mean()


MIXTRAL: dict[str, Any] = {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}
DEEPSEEK: dict[str, Any] = {
    **SMALL,
    "moe_intermediate_size": 12,
    "num_key_value_heads": 2,
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
}
BATCHED: dict[str, Any] = {"experts": "batched_mm"}
"""The weights of every token's experts read by their index; "eager" runs each expert on the tokens that chose it."""

MODELS = {
    "GPT-2": causal("GPT2Config", "GPT2LMHeadModel", vocab_size=31, n_embd=16, n_layer=2, n_head=2, n_positions=32),
    "GPT-Neo": causal(
        "GPTNeoConfig",
        "GPTNeoForCausalLM",
        vocab_size=31,
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        attention_types=[[["global", "local"], 1]],
        max_position_embeddings=32,
        window_size=4,
    ),
    "GPT-J": causal("GPTJConfig", "GPTJForCausalLM", vocab_size=31, n_embd=16, n_layer=2, n_head=2, rotary_dim=4),
    "GPT-NeoX": causal("GPTNeoXConfig", "GPTNeoXForCausalLM", **SMALL),
    "BLOOM": causal("BloomConfig", "BloomForCausalLM", vocab_size=31, hidden_size=16, n_layer=2, n_head=2),
    "OPT": causal(
        "OPTConfig",
        "OPTForCausalLM",
        vocab_size=31,
        hidden_size=16,
        ffn_dim=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
        word_embed_proj_dim=16,
    ),
    "Llama": causal("LlamaConfig", "LlamaForCausalLM", **GROUPED),
    "Llama, tied head": causal("LlamaConfig", "LlamaForCausalLM", **GROUPED, tie_word_embeddings=True),
    "Llama, classifier": Architecture(
        classifier, lambda n, t: {"input_ids": ids(n, t), "labels": labels(n)}, of_output
    ),
    "Mistral": causal("MistralConfig", "MistralForCausalLM", **GROUPED, sliding_window=4),
    "Qwen2": causal("Qwen2Config", "Qwen2ForCausalLM", **GROUPED),
    "Qwen3": causal("Qwen3Config", "Qwen3ForCausalLM", **GROUPED),
    # Gemma's norms compute in float32 whatever they are given.
    "Gemma 2": causal("Gemma2Config", "Gemma2ForCausalLM", tolerance=1e-5, **GROUPED, **GEMMA),
    "Gemma 3": causal("Gemma3TextConfig", "Gemma3ForCausalLM", tolerance=1e-5, **GROUPED, **GEMMA),
    "Phi": causal("PhiConfig", "PhiForCausalLM", **SMALL),
    "Phi-3": causal("Phi3Config", "Phi3ForCausalLM", **SMALL),
    "Falcon": causal(
        "FalconConfig", "FalconForCausalLM", vocab_size=31, hidden_size=16, num_hidden_layers=2, num_attention_heads=2
    ),
    "StableLM": causal("StableLmConfig", "StableLmForCausalLM", **SMALL, num_key_value_heads=2),
    "OLMo 2": causal("Olmo2Config", "Olmo2ForCausalLM", **SMALL),
    "RWKV": causal(
        "RwkvConfig",
        "RwkvForCausalLM",
        vocab_size=31,
        hidden_size=16,
        attention_hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        context_length=32,
    ),
    "Mamba": causal(
        "MambaConfig", "MambaForCausalLM", vocab_size=31, hidden_size=16, state_size=4, num_hidden_layers=2
    ),
    "Mamba 2": causal(
        "Mamba2Config",
        "Mamba2ForCausalLM",
        vocab_size=31,
        hidden_size=16,
        state_size=4,
        num_heads=4,
        head_dim=8,
        n_groups=1,
        num_hidden_layers=2,
        chunk_size=4,
    ),
    "RecurrentGemma": causal(
        "RecurrentGemmaConfig",
        "RecurrentGemmaForCausalLM",
        vocab_size=31,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        lru_width=16,
        attention_window_size=4,
        head_dim=8,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "Mixtral": causal("MixtralConfig", "MixtralForCausalLM", **MIXTRAL),
    "Mixtral, experts batched": causal("MixtralConfig", "MixtralForCausalLM", **MIXTRAL, **BATCHED),
    "Qwen3-MoE": causal("Qwen3MoeConfig", "Qwen3MoeForCausalLM", **EXPERTS, num_experts=4),
    "Qwen3-MoE, experts batched": causal("Qwen3MoeConfig", "Qwen3MoeForCausalLM", **EXPERTS, num_experts=4, **BATCHED),
    "OLMoE": causal("OlmoeConfig", "OlmoeForCausalLM", **SMALL, num_experts=4, num_experts_per_tok=2),
    "OLMoE, experts batched": causal(
        "OlmoeConfig", "OlmoeForCausalLM", **SMALL, num_experts=4, num_experts_per_tok=2, **BATCHED
    ),
    "GPT-OSS": causal("GptOssConfig", "GptOssForCausalLM", **MIXTRAL, sliding_window=4),
    "GPT-OSS, experts batched": causal("GptOssConfig", "GptOssForCausalLM", **MIXTRAL, sliding_window=4, **BATCHED),
    "DeepSeek-V3": causal("DeepseekV3Config", "DeepseekV3ForCausalLM", **DEEPSEEK),
    "DeepSeek-V3, experts batched": causal("DeepseekV3Config", "DeepseekV3ForCausalLM", **DEEPSEEK, **BATCHED),
    "LLaVA": Architecture(llava, images_and_text, of_output),
    "CLIP, embeddings": Architecture(clip, pairs, of_embeddings),
    "CLIP, contrastive loss": Architecture(
        clip,
        lambda n, t: {**pairs(n, t), "return_loss": True},
        of_output,
        mixes="the loss compares every image with every text",
    ),
}
