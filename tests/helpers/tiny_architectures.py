"""Tiny models whose layers are not those of BERT, and the influence that plain autograd finds row by row."""

from __future__ import annotations

import copy

import numpy as np
import torch
from datasets import Dataset
from tiny import BERT_SIZES, VOCABULARY
from torch.nn import functional as F
from transformers import (
    BartConfig,
    BartForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    FunnelConfig,
    FunnelForSequenceClassification,
    GptOssConfig,
    GptOssForCausalLM,
    LongformerConfig,
    LongformerForSequenceClassification,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    SwitchTransformersConfig,
    SwitchTransformersForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
    Wav2Vec2Config,
    Wav2Vec2ForSequenceClassification,
)


WORDS = len(VOCABULARY)
HIDDEN = {name: size for name, size in BERT_SIZES.items() if name != "max_position_embeddings"}
DECODER = HIDDEN | {"num_key_value_heads": 1, "bos_token_id": 1, "eos_token_id": 1}


def relative_deberta(**changes) -> PreTrainedModel:
    relative = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8}
    settings = BERT_SIZES | relative | {"num_labels": 3, "type_vocab_size": 0, "initializer_range": 0.5}
    return DebertaV2ForSequenceClassification(DebertaV2Config(**settings | changes))


def funnel() -> PreTrainedModel:
    sizes = {"block_sizes": [1, 2], "d_model": 8, "n_head": 2, "d_head": 4, "d_inner": 12, "num_labels": 3}
    return FunnelForSequenceClassification(FunnelConfig(vocab_size=WORDS, pad_token_id=0, **sizes))


def longformer() -> PreTrainedModel:
    """It pads rows to a multiple of its window."""
    sizes = BERT_SIZES | {"attention_window": 4, "num_labels": 3, "initializer_range": 0.5}
    return LongformerForSequenceClassification(LongformerConfig(**sizes))


def bart() -> PreTrainedModel:
    sizes = {"d_model": 8, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 12, "decoder_ffn_dim": 12}
    sizes |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_position_embeddings": 40}
    return BartForSequenceClassification(BartConfig(vocab_size=WORDS, num_labels=3, **sizes))


def t5() -> PreTrainedModel:
    return T5ForConditionalGeneration(
        T5Config(vocab_size=WORDS, d_model=8, d_kv=4, d_ff=12, num_layers=2, num_heads=2, decoder_start_token_id=0)
    )


def wav2vec2() -> PreTrainedModel:
    """Its position embedding is a convolution with weight norm, which knows no forward mode."""
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12}
    sizes |= {"conv_dim": (8, 8), "conv_stride": (5, 4), "conv_kernel": (10, 8), "classifier_proj_size": 6}
    sizes |= {"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, "num_labels": 3}
    model = Wav2Vec2ForSequenceClassification(Wav2Vec2Config(**sizes))
    model.freeze_feature_encoder()
    return model


EXPERTS = {
    "mixtral": lambda **changes: MixtralForCausalLM(
        MixtralConfig(**DECODER | {"num_local_experts": 4, "num_experts_per_tok": 2} | changes)
    ),
    "qwen3": lambda: Qwen3MoeForCausalLM(
        Qwen3MoeConfig(**DECODER, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=6, head_dim=4)
    ),
    "gpt-oss": lambda: GptOssForCausalLM(
        GptOssConfig(**DECODER, num_local_experts=4, num_experts_per_tok=2, head_dim=4)
    ),
}


def switch() -> PreTrainedModel:
    """A mixture of experts that changes tensors in a way that no transform of functions bears."""
    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 12, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 2}
    sizes |= {"num_experts": 3, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1}
    return SwitchTransformersForConditionalGeneration(
        SwitchTransformersConfig(vocab_size=WORDS, decoder_start_token_id=0, **sizes)
    )


def language_data(size: int, seed: int = 0) -> Dataset:
    """Texts of differing length that are their own labels."""
    random = np.random.default_rng(seed)
    texts = [random.integers(2, WORDS, random.integers(3, 8)).tolist() for _ in range(size)]
    return Dataset.from_dict({"input_ids": texts, "attention_mask": [[1] * len(t) for t in texts], "labels": texts})


def sound_data(size: int, seed: int = 0) -> Dataset:
    """Sounds of one length with labels."""
    random = np.random.default_rng(seed)
    sounds = random.standard_normal((size, 400)).tolist()
    return Dataset.from_dict({"input_values": sounds, "label": random.integers(0, 3, size).tolist()})


def collate_sounds(rows: list[dict]) -> dict[str, torch.Tensor]:
    sounds = torch.tensor([row["input_values"] for row in rows])
    return {"input_values": sounds, "labels": torch.tensor([row["label"] for row in rows])}


def row_gradients(model: PreTrainedModel, rows: list[dict[str, torch.Tensor]]) -> torch.Tensor:
    """grad L (N, P) of batches of one example each, by plain autograd in float64."""
    double = copy.deepcopy(model).double().eval()
    double.set_attn_implementation("eager")
    double.set_experts_implementation("eager")  # grouped kernels are not for float64
    parameters = [p for p in double.parameters() if p.requires_grad]
    found = []
    for row in rows:
        # A decoder makes its inputs of the labels.
        kept = {name: v for name, v in row.items() if name != "labels" or double.config.is_encoder_decoder}
        inputs = {name: v.double() if v.is_floating_point() else v for name, v in kept.items()}
        logits, labels = double(**inputs).logits, row["labels"]
        if logits.ndim == 3:
            logits, labels = logits[0], labels[0]
            if not double.config.is_encoder_decoder:  # each place predicts the next
                logits, labels = logits[:-1], labels[1:]
        loss = F.cross_entropy(logits, labels, reduction="sum")
        partials = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        found.append(torch.cat([piece.flatten() for piece in partials]))
    return torch.stack(found)
