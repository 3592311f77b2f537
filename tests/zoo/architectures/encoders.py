"""Encoders and encoder-decoders of transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers

from .base import VOCABULARY, Architecture, ids, labels, of_output, values

SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
}
ENDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}


def build(config: str, model: str, **settings: Any) -> Callable[[], Any]:
    def make() -> Any:
        return getattr(transformers, model)(getattr(transformers, config)(**settings)).train()

    return make


def words(n: int, t: int) -> dict[str, Any]:
    return {"input_ids": ids(n, t), "attention_mask": torch.ones(n, t, dtype=torch.long)}


def classified(n: int, t: int) -> dict[str, Any]:
    return {**words(n, t), "labels": labels(n)}


def masked(n: int, t: int) -> dict[str, Any]:
    return {**words(n, t), "labels": ids(n, t, seed=4)}


def pretraining(n: int, t: int) -> dict[str, Any]:
    return {**masked(n, t), "next_sentence_label": labels(n, 2)}


def choices(n: int, t: int) -> dict[str, Any]:
    return {"input_ids": ids(3 * n, t).view(n, 3, t), "labels": labels(n)}


def spans(n: int, t: int) -> dict[str, Any]:
    return {**words(n, t), "start_positions": labels(n, t), "end_positions": labels(n, t)}


def translation(n: int, t: int) -> dict[str, Any]:
    return {**words(n, t), "labels": ids(n, t, seed=4)}


def classifier(config: str, model: str, **settings: Any) -> Architecture:
    return Architecture(build(config, model, **settings, num_labels=3), classified, of_output)


def filling(config: str, model: str, **settings: Any) -> Architecture:
    return Architecture(build(config, model, **settings), masked, of_output)


def translator(config: str, model: str, **settings: Any) -> Architecture:
    return Architecture(build(config, model, **settings), translation, of_output)


TRANSLATOR = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    **ENDS,
}
BART = {**TRANSLATOR, "max_position_embeddings": 40}
T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 24,
    "num_layers": 2,
    "num_heads": 2,
    "relative_attention_num_buckets": 8,
    "pad_token_id": 0,
    "eos_token_id": 2,
    "decoder_start_token_id": 0,
}
DEBERTA = {
    **SMALL,
    "relative_attention": True,
    "pos_att_type": ["c2p", "p2c"],
    "max_relative_positions": 8,
    "position_biased_input": False,
}
WHISPER = {
    **TRANSLATOR,
    "num_mel_bins": 8,
    "max_source_positions": 8,
    "max_target_positions": 16,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
}
SPEECH = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "conv_dim": (8, 8),
    "conv_stride": (4, 4),
    "conv_kernel": (8, 4),
    "pad_token_id": 0,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "classifier_proj_size": 8,
    "num_labels": 3,
    "mask_time_length": 2,
    "mask_time_min_masks": 0,
    "mask_feature_length": 2,
}


def speech(n: int, t: int) -> dict[str, Any]:
    """Sound that gives t frames."""
    return {"input_values": values(n, 16 * t + 8), "labels": labels(n)}


def spectrograms(n: int, t: int) -> dict[str, Any]:
    return {"input_features": values(n, 8, 16), "labels": ids(n, t)}


MODELS = {
    "BERT, classifier": classifier("BertConfig", "BertForSequenceClassification", **SMALL),
    "BERT, masked words": filling("BertConfig", "BertForMaskedLM", **SMALL),
    "BERT, pretraining": Architecture(build("BertConfig", "BertForPreTraining", **SMALL), pretraining, of_output),
    "BERT, multiple choice": Architecture(build("BertConfig", "BertForMultipleChoice", **SMALL), choices, of_output),
    "BERT, spans": Architecture(build("BertConfig", "BertForQuestionAnswering", **SMALL), spans, of_output),
    "BERT, words": Architecture(
        build("BertConfig", "BertForTokenClassification", **SMALL, num_labels=31), masked, of_output
    ),
    "RoBERTa, classifier": classifier("RobertaConfig", "RobertaForSequenceClassification", **SMALL),
    "RoBERTa, masked words": filling("RobertaConfig", "RobertaForMaskedLM", **SMALL),
    "XLM-RoBERTa, masked words": filling("XLMRobertaConfig", "XLMRobertaForMaskedLM", **SMALL),
    "DistilBERT, classifier": classifier(
        "DistilBertConfig",
        "DistilBertForSequenceClassification",
        vocab_size=31,
        dim=16,
        hidden_dim=24,
        n_layers=2,
        n_heads=2,
        max_position_embeddings=40,
    ),
    "ModernBERT, masked words": filling(
        "ModernBertConfig",
        "ModernBertForMaskedLM",
        **SMALL,
        local_attention=4,
        bos_token_id=1,
        eos_token_id=2,
        cls_token_id=1,
        sep_token_id=2,
    ),
    "ALBERT, classifier": classifier("AlbertConfig", "AlbertForSequenceClassification", **SMALL, embedding_size=8),
    "ALBERT, masked words": filling("AlbertConfig", "AlbertForMaskedLM", **SMALL, embedding_size=8),
    "ELECTRA, classifier": classifier("ElectraConfig", "ElectraForSequenceClassification", **SMALL, embedding_size=8),
    "ESM, masked residues": filling(
        "EsmConfig", "EsmForMaskedLM", **SMALL, mask_token_id=30, position_embedding_type="rotary"
    ),
    "MPNet, classifier": classifier("MPNetConfig", "MPNetForSequenceClassification", **SMALL),
    "XLNet, classifier": classifier(
        "XLNetConfig", "XLNetForSequenceClassification", vocab_size=31, d_model=16, n_layer=2, n_head=2, d_inner=24
    ),
    "DeBERTa, classifier": classifier("DebertaConfig", "DebertaForSequenceClassification", **DEBERTA),
    "DeBERTa v2, classifier": classifier("DebertaV2Config", "DebertaV2ForSequenceClassification", **DEBERTA),
    "Longformer, classifier": classifier(
        "LongformerConfig", "LongformerForSequenceClassification", **SMALL, attention_window=4
    ),
    "FNet, classifier": classifier("FNetConfig", "FNetForSequenceClassification", **SMALL),
    "BART": translator("BartConfig", "BartForConditionalGeneration", **BART),
    "Marian": translator("MarianConfig", "MarianMTModel", **BART),
    "Pegasus": translator("PegasusConfig", "PegasusForConditionalGeneration", **BART),
    "T5": translator("T5Config", "T5ForConditionalGeneration", **T5),
    "T5, gated": translator("T5Config", "T5ForConditionalGeneration", **T5, feed_forward_proj="gated-gelu"),
    "mT5": translator("MT5Config", "MT5ForConditionalGeneration", **T5),
    "Whisper": Architecture(
        build("WhisperConfig", "WhisperForConditionalGeneration", **WHISPER), spectrograms, of_output
    ),
    "Wav2Vec2, classifier": Architecture(
        build("Wav2Vec2Config", "Wav2Vec2ForSequenceClassification", **SPEECH), speech, of_output
    ),
    "HuBERT, classifier": Architecture(
        build("HubertConfig", "HubertForSequenceClassification", **SPEECH), speech, of_output
    ),
    "WavLM, classifier": Architecture(
        build("WavLMConfig", "WavLMForSequenceClassification", **SPEECH, num_buckets=8), speech, of_output
    ),
}
