"""The trainer that the benchmarks share: a fine-tuned classifier on files of examples."""

from __future__ import annotations

from datasets import Dataset
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from hf_fastif import InfluenceConfig, InfluenceTrainer, freeze
from hf_fastif.data import DataArguments, load_examples, tokenize


def load_trainer(
    path: str, num_frozen_layers: int, data: DataArguments, config: InfluenceConfig
) -> tuple[InfluenceTrainer, Dataset]:
    """A trainer with its training set, and the validation examples, shuffled."""
    examples = load_examples(data, AutoConfig.from_pretrained(path).id2label, new_head=False)
    model = AutoModelForSequenceClassification.from_pretrained(path)
    freeze(model, num_frozen_layers)
    tokenizer = AutoTokenizer.from_pretrained(path)
    examples = tokenize(examples, tokenizer, data)
    trainer = InfluenceTrainer(model, config, train_dataset=examples["train"], processing_class=tokenizer)
    return trainer, examples["validation"].shuffle(config.seed)
