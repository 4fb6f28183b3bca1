"""Tiny models, data and trainers that every test can afford."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AlbertConfig,
    AutoModelForSequenceClassification,
    BertConfig,
    DataCollatorWithPadding,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    GPT2Config,
    LlamaConfig,
    ModernBertConfig,
    MPNetConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
)

from hf_fastif import InfluenceConfig, InfluenceTrainer, freeze
from hf_fastif.data.batches import ExampleBatches


VOCABULARY = ["[PAD]", "[UNK]", *(f"w{i}" for i in range(58))]
SIZES = {"vocab_size": len(VOCABULARY), "pad_token_id": 0, "attn_implementation": "eager"}
BERT_SIZES = {
    **SIZES,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 40,
}


def tiny_config(architecture: str, **changes):
    if architecture == "bert":
        return BertConfig(**BERT_SIZES | changes)
    if architecture == "roberta":
        return RobertaConfig(**BERT_SIZES | changes)
    if architecture == "mpnet":
        return MPNetConfig(**BERT_SIZES | changes)
    if architecture == "deberta":
        return DebertaV2Config(**BERT_SIZES | changes)
    if architecture == "llama":
        return LlamaConfig(num_key_value_heads=1, bos_token_id=1, eos_token_id=1, **BERT_SIZES | changes)
    if architecture == "electra":
        return ElectraConfig(embedding_size=6, **BERT_SIZES | changes)
    if architecture == "albert":
        return AlbertConfig(embedding_size=6, **BERT_SIZES | changes)
    if architecture == "distilbert":
        sizes = {"dim": 8, "n_layers": 2, "n_heads": 2, "hidden_dim": 12, "max_position_embeddings": 40}
        return DistilBertConfig(**SIZES | sizes | changes)
    if architecture == "modernbert":
        tokens = {
            "bos_token_id": 1,
            "eos_token_id": 1,
            "cls_token_id": 1,
            "sep_token_id": 1,
            "reference_compile": False,
        }
        return ModernBertConfig(**BERT_SIZES | tokens | changes)
    if architecture == "gpt2":
        sizes = {"n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 40, "bos_token_id": 1, "eos_token_id": 1}
        return GPT2Config(**SIZES | sizes | changes)
    raise ValueError(architecture)


def tiny_model(architecture: str = "bert", frozen: int | None = 1, double: bool = False, **changes) -> PreTrainedModel:
    """A random classifier with three labels, whose outputs and derivatives are not small."""
    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_config(
        tiny_config(architecture, **{"num_labels": 3, "initializer_range": 0.5} | changes)
    )
    if frozen is not None:
        freeze(model, frozen)
    return model.double().eval() if double else model.eval()


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")


def tiny_data(size: int, seed: int = 0, labels: int = 3, lengths: tuple[int, int] = (3, 12)) -> Dataset:
    """Random sentences of differing length with random labels, tokenized."""
    random = np.random.default_rng(seed)
    texts = [" ".join(random.choice(VOCABULARY[2:], random.integers(*lengths))) for _ in range(size)]
    data = Dataset.from_dict({"text": texts, "label": random.integers(0, labels, size).tolist()})
    return data.map(lambda rows: tiny_tokenizer()(rows["text"]), batched=True).remove_columns(
        [name for name in ("token_type_ids",) if name in data.column_names]
    )


def batches(data: Dataset) -> ExampleBatches:
    columns = data.select_columns(["input_ids", "attention_mask", "label"])
    return ExampleBatches(columns, DataCollatorWithPadding(tiny_tokenizer()), dict)


def tiny_trainer(tmp_path, model=None, train=None, **settings) -> InfluenceTrainer:
    defaults = {"output_dir": str(tmp_path), "use_cpu": True, "disable_tqdm": True, "report_to": "none"}
    return InfluenceTrainer(
        model=model if model is not None else tiny_model(),
        args=InfluenceConfig(**defaults | settings),
        train_dataset=train if train is not None else tiny_data(40),
        processing_class=tiny_tokenizer(),
    )


def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


def one_process(index: int, count: int) -> SimpleNamespace:
    """What one of several processes does on its own, before the parts are added up."""
    return SimpleNamespace(
        process_index=index, num_processes=count, is_main_process=index == 0, reduce=lambda part, _: part
    )


def quick_config(folder, **changes):
    """Settings of a training that takes two steps and says nothing."""
    quiet = {"use_cpu": True, "disable_tqdm": True, "report_to": "none", "save_strategy": "no", "do_train": True}
    return InfluenceConfig(str(folder), **{"max_steps": 2, "learning_rate": 1e-2} | quiet | changes)
