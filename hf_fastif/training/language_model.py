"""From the settings of a recipe to a trainer of a causal language model: tokenizer, model, adapters, completions."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from datasets import Dataset, DatasetDict
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.utils import find_adapter_config_file

from hf_fastif.config import InfluenceConfig
from hf_fastif.errors import InfluenceError
from hf_fastif.model import IGNORED, freeze
from hf_fastif.trainer import InfluenceTrainer
from hf_fastif.training.classifier import ModelArguments, check_model_path
from hf_fastif.training.corpora.facts import generate_facts
from hf_fastif.training.datasets import DataArguments, read_splits


END, PAD = "<|endoftext|>", "<|pad|>"
VOCABULARY = 2000  # of a tokenizer that is trained here, unless `config_overrides` says another size


@dataclass
class LanguageArguments(ModelArguments):
    """Which causal language model a recipe works on, and which columns it completes; without them, a classifier."""

    completion_column: str | None = field(
        default=None,
        metadata={"help": "Column of the texts that a causal language model learns to write; makes it one."},
    )
    prompt_column: str | None = field(
        default=None, metadata={"help": "Column of the texts that they complete, which have no loss of their own."}
    )
    model_type: str | None = field(
        default=None,
        metadata={"help": "Build a language model of this type, such as gpt2 or llama, in place of loading one."},
    )
    config_overrides: str | None = field(
        default=None, metadata={"help": "Its sizes, such as n_embd=64,n_layer=2,vocab_size=1000."}
    )
    fact_column: str | None = field(
        default=None,
        metadata={"help": "Column with the number of the fact that an example states, to see whether it is found."},
    )
    lora_rank: int | None = field(
        default=None, metadata={"help": "Train LoRA adapters of this rank on all linear layers, and nothing else."}
    )

    @property
    def columns(self) -> list[str]:
        """The columns of a causal language model's texts."""
        return [name for name in (self.prompt_column, self.completion_column) if name is not None]


def make_language_trainer(
    model: LanguageArguments, data: DataArguments, config: InfluenceConfig
) -> tuple[InfluenceTrainer, DatasetDict]:
    """A trainer of a causal language model with its training set, and the splits `train` and `validation`.

    Without a dataset of its own, the model is given invented facts (`hf_fastif.training.generate_facts`). A model
    that is built from a config is trained wholly, tokenizer included. Of a loaded model `num_frozen_layers` layers
    are frozen, or it gets adapters.

    Raises:
        ValueError: If it is not clear which model is meant, or one that is not trained yet is not to be trained.
    """
    _check(model, config)
    columns = [*model.columns, *([] if model.fact_column is None else [model.fact_column])]
    examples = read_splits(data, columns, "--prompt_column, --completion_column and --fact_column", generate_facts)
    if model.model_type is None:
        tokenizer = AutoTokenizer.from_pretrained(model.model_name_or_path)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        language_model = _loaded(model)
    else:
        made = AutoConfig.for_model(model.model_type, vocab_size=VOCABULARY)
        if model.config_overrides:
            made.update_from_string(model.config_overrides)
        tokenizer = train_tokenizer(examples["train"].select_columns(model.columns), made.vocab_size)
        made.bos_token_id = made.eos_token_id = tokenizer.eos_token_id
        made.pad_token_id = tokenizer.pad_token_id
        language_model = AutoModelForCausalLM.from_config(made)
    with config.main_process_first(desc="tokenizing"):
        examples = tokenize_completions(examples, tokenizer, model, data.max_length)
    trainer = InfluenceTrainer(
        model=language_model,
        args=config,
        train_dataset=examples["train"],
        eval_dataset=examples["validation"],
        processing_class=tokenizer,
        data_collator=DataCollatorForSeq2Seq(tokenizer),
    )
    return trainer, examples


def _check(model: LanguageArguments, config: InfluenceConfig) -> None:
    if (model.model_name_or_path is None) == (model.model_type is None):
        raise InfluenceError(
            f"model_name_or_path={model.model_name_or_path!r}, model_type={model.model_type!r}: give one of them, a "
            "language model to load or the type of one to build."
        )
    if model.model_type is not None and (model.lora_rank is not None or not config.do_train):
        raise InfluenceError(
            f"model_type={model.model_type!r}: a model that is built from a config must be trained, as a whole; give "
            "--do_train and no --lora_rank, or the folder of a trained one as --model_name_or_path."
        )
    if model.model_name_or_path is not None:
        check_model_path(model.model_name_or_path)
    if model.lora_rank is not None and model.lora_rank < 1:
        raise InfluenceError(f"lora_rank={model.lora_rank}: give at least 1.")


def _loaded(model: LanguageArguments) -> torch.nn.Module:
    """A language model with what is trained of it: adapters that it has, those that are wanted, or its last layers."""
    path = model.model_name_or_path
    if find_adapter_config_file(path) is not None:
        from peft import AutoPeftModelForCausalLM

        return AutoPeftModelForCausalLM.from_pretrained(path, is_trainable=True)
    loaded = AutoModelForCausalLM.from_pretrained(path)
    if model.lora_rank is not None:
        from peft import LoraConfig, get_peft_model

        settings = {"lora_alpha": 2 * model.lora_rank, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
        return get_peft_model(loaded, LoraConfig(r=model.lora_rank, **settings))
    if model.num_frozen_layers >= 0:
        freeze(loaded, model.num_frozen_layers)
    return loaded


def train_tokenizer(texts: Dataset, vocabulary_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of at most that many tokens, trained on all columns of some texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((text for row in texts for text in row.values()), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END, pad_token=PAD)


def tokenize_completions(
    splits: DatasetDict, tokenizer: PreTrainedTokenizerBase, model: LanguageArguments, max_length: int
) -> DatasetDict:
    """Adds `input_ids` and `labels` of prompt, completion and end of text; labels of the prompt are -100.

    Prompt and completion follow each other as they are, so a space between them is part of one. What is too long
    loses the beginning of the prompt.
    """

    def tokenize(row: dict[str, str]) -> dict[str, list[int]]:
        prompt = tokenizer(row[model.prompt_column])["input_ids"] if model.prompt_column else []
        completion = tokenizer(row[model.completion_column], add_special_tokens=not prompt)["input_ids"]
        completion = [*completion, tokenizer.eos_token_id][:max_length]
        prompt = prompt[max(0, len(prompt) + len(completion) - max_length) :]
        ids = prompt + completion
        return {
            "input_ids": ids,
            "attention_mask": [1] * len(ids),
            "labels": [IGNORED] * len(prompt) + completion,
        }

    return splits.map(tokenize, desc="Tokenizing")
