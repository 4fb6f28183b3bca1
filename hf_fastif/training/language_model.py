"""Make a trainer of a causal language model from the settings of a recipe: tokenizer, model, adapters, completions."""

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
from hf_fastif.training.classifier import ModelArguments, build_trainer, check_model_path
from hf_fastif.training.corpora.facts import generate_facts
from hf_fastif.training.datasets import DataArguments, read_splits


END, PAD = "<|endoftext|>", "<|pad|>"
VOCABULARY = 2000  # size of a tokenizer that is trained here, unless `config_overrides` sets it


@dataclass
class LanguageArguments(ModelArguments):
    """Causal language model that a recipe works on, and the columns it learns; without them, a classifier."""

    completion_column: str | None = field(
        default=None,
        metadata={"help": "Column of the texts to learn to write. Selects a causal language model."},
    )
    prompt_column: str | None = field(
        default=None, metadata={"help": "Column of the texts to complete, which are not part of the loss."}
    )
    model_type: str | None = field(
        default=None,
        metadata={"help": "Type of a language model to build instead of loading one, such as gpt2 or llama."},
    )
    config_overrides: str | None = field(
        default=None, metadata={"help": "Config of the model to build, such as n_embd=64,n_layer=2,vocab_size=1000."}
    )
    fact_column: str | None = field(
        default=None,
        metadata={"help": "Column with the number of the fact that an example states. Measures retrieval of facts."},
    )
    lora_rank: int | None = field(
        default=None,
        metadata={"help": "Rank of LoRA adapters on all linear layers, which are then all that is trained."},
    )

    @property
    def columns(self) -> list[str]:
        """Return the names of the text columns: the prompt, if there is one, and the completion."""
        return [name for name in (self.prompt_column, self.completion_column) if name is not None]


def make_language_trainer(
    model: LanguageArguments, data: DataArguments, config: InfluenceConfig
) -> tuple[InfluenceTrainer, DatasetDict]:
    """Read the texts, load or build the language model, and make the trainer of both.

    Args:
        model ([`LanguageArguments`]): The model and its columns. A model that is built is trained in full, with a
            new tokenizer. A loaded model has its first `num_frozen_layers` layers frozen, or gets adapters.
        data ([`DataArguments`]): The texts; unless given, invented facts (see `generate_facts`).
        config ([`InfluenceConfig`]): The settings of training and influence.

    Returns:
        The trainer with its training set, and the tokenized splits `train` and `validation`.

    Raises:
        InfluenceError: If the choice of model is ambiguous, or an untrained model is not to be trained.

    Example:

    ```python
    model = LanguageArguments("gpt2", prompt_column="question", completion_column="answer")
    trainer, examples = make_language_trainer(model, DataArguments("me/questions"), InfluenceConfig("out"))
    ```
    """
    _check(model, config)
    texts = read_texts(model, data)
    language_model, tokenizer = load_language_model(model, texts["train"])
    with config.main_process_first(desc="tokenizing"):
        examples = tokenize_completions(texts, tokenizer, model, data.max_length)
    return build_trainer(language_model, tokenizer, examples, config, DataCollatorForSeq2Seq(tokenizer)), examples


def read_texts(model: LanguageArguments, data: DataArguments) -> DatasetDict:
    """Read the splits `train` and `validation` of a language model, untokenized.

    Raises:
        InfluenceError: If only one file is given, or a column does not exist.
    """
    columns = [*model.columns, *([] if model.fact_column is None else [model.fact_column])]
    return read_splits(data, columns, "--prompt_column, --completion_column and --fact_column", generate_facts)


def load_language_model(model: LanguageArguments, train: Dataset) -> tuple[torch.nn.Module, PreTrainedTokenizerBase]:
    """Load a causal language model and its tokenizer, or build both.

    Args:
        model ([`LanguageArguments`]): The model.
        train (`datasets.Dataset`): The texts that a new tokenizer is trained on.
    """
    if model.model_type is None:
        tokenizer = AutoTokenizer.from_pretrained(model.model_name_or_path)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        return _load_trainable(model), tokenizer
    config = AutoConfig.for_model(model.model_type, vocab_size=VOCABULARY)
    if model.config_overrides:
        config.update_from_string(model.config_overrides)
    tokenizer = train_tokenizer(train.select_columns(model.columns), config.vocab_size)
    config.bos_token_id = config.eos_token_id = tokenizer.eos_token_id
    config.pad_token_id = tokenizer.pad_token_id
    return AutoModelForCausalLM.from_config(config), tokenizer


def _check(model: LanguageArguments, config: InfluenceConfig) -> None:
    if (model.model_name_or_path is None) == (model.model_type is None):
        raise InfluenceError(
            f"model_name_or_path={model.model_name_or_path!r}, model_type={model.model_type!r}: give one of them: the "
            "language model to load, or the type of the model to build."
        )
    if model.model_type is not None and (model.lora_rank is not None or not config.do_train):
        raise InfluenceError(
            f"model_type={model.model_type!r}: a model that is built from a config must be trained in full; give "
            "--do_train and no --lora_rank, or --model_name_or_path with the folder of a trained model."
        )
    if model.model_name_or_path is not None:
        check_model_path(model.model_name_or_path)
    if model.lora_rank is not None and model.lora_rank < 1:
        raise InfluenceError(f"lora_rank={model.lora_rank}: give at least 1.")


def _load_trainable(model: LanguageArguments) -> torch.nn.Module:
    """Load a language model of which only some parameters are trained: adapters, saved or new, or the last layers."""
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
    """Train a byte-level BPE tokenizer of at most `vocabulary_size` tokens on all columns of some texts."""
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
    """Add `input_ids`, `attention_mask` and `labels` of prompt, completion and end of text.

    Labels of the prompt are -100. Prompt and completion are concatenated without a separator. An example longer than
    `max_length` tokens loses the beginning of its prompt.
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
