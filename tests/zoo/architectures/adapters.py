"""Adapters of peft on small models of transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import peft
import torch
import transformers

from .base import Architecture, ids, of_output
from .decoders import GROUPED, text
from .encoders import SMALL, T5, classified, translation

TARGETS = ["q_proj", "v_proj"]


def llama() -> Any:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**GROUPED))


def bert() -> Any:
    return transformers.BertForSequenceClassification(transformers.BertConfig(**SMALL, num_labels=3))


def t5() -> Any:
    return transformers.T5ForConditionalGeneration(transformers.T5Config(**T5))


def adapted(
    config: Callable[[], Any], base: Callable[[], Any] = llama, batch: Callable[[int, int], Any] = text
) -> Architecture:
    return Architecture(lambda: peft.get_peft_model(base(), config()).train(), batch, of_output)


def lora(**settings: Any) -> Callable[[], Any]:
    return lambda: peft.LoraConfig(**{"r": 2, "target_modules": TARGETS, "lora_dropout": 0.1, **settings})


def checkpointed(reentrant: bool) -> Callable[[], Any]:
    """LoRA as it is trained where memory is short: checkpoints, and inputs that carry a gradient."""

    def make() -> Any:
        base = llama()
        base.gradient_checkpointing_enable({"use_reentrant": reentrant})
        base.enable_input_require_grads()
        return peft.get_peft_model(base, lora(lora_dropout=0.0)()).train()

    return make


def two_adapters() -> Any:
    model = peft.get_peft_model(llama(), lora()())
    model.add_adapter("second", lora(r=3)())
    model.set_adapter("second")
    return model.train()


def adalora() -> Any:
    return peft.AdaLoraConfig(target_modules=TARGETS, init_r=3, target_r=2, total_step=100, tinit=1, tfinal=1)


def words_kept(n: int, t: int) -> dict[str, torch.Tensor]:
    return {"input_ids": ids(n, t) % 8 + 3, "labels": ids(n, t)}


MODELS = {
    "LoRA": adapted(lora()),
    "LoRA on BERT, head saved": adapted(lora(target_modules=["query", "value"], task_type="SEQ_CLS"), bert, classified),
    "LoRA on T5": adapted(lora(target_modules=["q", "v"]), t5, translation),
    "LoRA with biases": adapted(lora(target_modules=["query", "value"], bias="all"), bert, classified),
    "LoRA, rank-stabilised": adapted(lora(use_rslora=True)),
    "LoRA, modules saved": adapted(lora(modules_to_save=["lm_head", "embed_tokens"])),
    "LoRA on embeddings": adapted(lora(target_modules=["embed_tokens", "q_proj"])),
    "LoRA, all linear layers": adapted(lora(target_modules="all-linear")),
    "LoRA, two adapters": Architecture(two_adapters, text, of_output),
    "LoRA, reentrant checkpoints": Architecture(checkpointed(True), text, of_output),
    "LoRA, checkpoints": Architecture(checkpointed(False), text, of_output),
    "DoRA": adapted(lora(use_dora=True)),
    "AdaLoRA": adapted(adalora),
    "LoHa": adapted(lambda: peft.LoHaConfig(r=2, target_modules=TARGETS)),
    "LoKr": adapted(lambda: peft.LoKrConfig(r=2, target_modules=TARGETS)),
    "VeRA": adapted(lambda: peft.VeraConfig(r=4, target_modules=["q_proj", "o_proj"])),
    "IA3": adapted(
        lambda: peft.IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"])
    ),
    "OFT": adapted(lambda: peft.OFTConfig(oft_block_size=4, target_modules=TARGETS)),
    "LN tuning": adapted(lambda: peft.LNTuningConfig(target_modules=["input_layernorm", "norm"])),
    "Trainable tokens": adapted(
        lambda: peft.TrainableTokensConfig(token_indices=[3, 4, 5], target_modules=["embed_tokens"]), batch=words_kept
    ),
    "Prompt tuning": adapted(lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)),
    "P-tuning": adapted(
        lambda: peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, encoder_hidden_size=8)
    ),
    "Prefix tuning": adapted(lambda: peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)),
    "VB-LoRA": adapted(lambda: peft.VBLoRAConfig(r=2, num_vectors=8, vector_length=4, topk=2, target_modules=TARGETS)),
}
