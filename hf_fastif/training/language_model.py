"""Read the examples of a causal language model, and load or build it: tokenizer, model, adapters, completions."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

from datasets import Dataset, DatasetDict
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollator,
    DataCollatorForSeq2Seq,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.utils import find_adapter_config_file

from hf_fastif.config import InfluenceConfig
from hf_fastif.errors import InfluenceError
from hf_fastif.model import IGNORED, freeze
from hf_fastif.training.classifier import ModelArguments, check_model_path
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
    tokenizer_name: str | None = field(
        default=None,
        metadata={
            "help": "Tokenizer on the Hub, or its folder; None uses the model's, or trains one for a new model."
        },
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

    def read_examples(self, data: DataArguments, config: InfluenceConfig) -> DatasetDict:
        """Read and tokenize the splits `train` and `validation`; unless `data` names texts, generate invented facts.

        Args:
            data ([`DataArguments`]): What to read.
            config ([`InfluenceConfig`]): A model that is built must be trained (`do_train`).

        Raises:
            InfluenceError: If the choice of model is ambiguous, an untrained model is not to be trained, only one file
                is given, or a column does not exist.
        """
        if self.completion_column is None:
            return super().read_examples(data, config)
        self._check(config)
        columns = [*self.columns, *([] if self.fact_column is None else [self.fact_column])]
        flags = "--prompt_column, --completion_column and --fact_column"
        texts = read_splits(data, columns, flags, generate_facts)
        with config.main_process_first(desc="tokenizing"):
            return tokenize_completions(texts, self._tokenizer(texts["train"]), self, data.max_length)

    def load(self, examples: DatasetDict) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Load the model and its tokenizer, or build both.

        A model that is built is trained in full. A loaded model has its first `num_frozen_layers` layers frozen, or
        gets adapters.
        """
        if self.completion_column is None:
            return super().load(examples)
        tokenizer = self._tokenizer(examples["train"])
        return (_load_trainable(self) if self.model_type is None else _build(self, tokenizer)), tokenizer

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> DataCollator | None:
        """Return what makes batches of the examples; None leaves the choice to `Trainer`."""
        return None if self.completion_column is None else DataCollatorForSeq2Seq(tokenizer)

    def trained_in(self, folder: str) -> Self:
        """Return the arguments of the model that was trained from this one and saved in a folder."""
        if self.model_type is None:
            return super().trained_in(folder)
        return replace(self, model_name_or_path=folder, model_type=None, num_frozen_layers=-1)

    def retrained_like(self, folder: str) -> Self:
        """Return the arguments to train on other examples, tokenized as for the model in a folder."""
        return self if self.model_type is None else replace(self, tokenizer_name=folder)

    def settings(self) -> dict[str, Any]:
        """Return the arguments that determine the model that training starts from."""
        if self.completion_column is None:
            return super().settings()
        return {one.name: getattr(self, one.name) for one in fields(LanguageArguments)}

    def _tokenizer(self, train: Dataset) -> PreTrainedTokenizerBase:
        """Load the tokenizer; a model that is built has a new one for its training texts unless it is named."""
        path = self.tokenizer_name or self.model_name_or_path
        if path is None:
            return train_tokenizer(train.select_columns(self.columns), _config_of(self).vocab_size)
        tokenizer = AutoTokenizer.from_pretrained(path)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer

    def _check(self, config: InfluenceConfig) -> None:
        if (self.model_name_or_path is None) == (self.model_type is None):
            raise InfluenceError(
                f"model_name_or_path={self.model_name_or_path!r}, model_type={self.model_type!r}: give one of them: "
                "the language model to load, or the type of the model to build."
            )
        if self.model_type is not None and (self.lora_rank is not None or not config.do_train):
            raise InfluenceError(
                f"model_type={self.model_type!r}: a model that is built from a config must be trained in full; give "
                "--do_train and no --lora_rank, or --model_name_or_path with the folder of a trained model."
            )
        if self.model_name_or_path is not None:
            check_model_path(self.model_name_or_path)
        if self.lora_rank is not None and self.lora_rank < 1:
            raise InfluenceError(f"lora_rank={self.lora_rank}: give at least 1.")


def _config_of(model: LanguageArguments) -> PretrainedConfig:
    config = AutoConfig.for_model(model.model_type, vocab_size=VOCABULARY)
    if model.config_overrides:
        config.update_from_string(model.config_overrides)
    return config


def _build(model: LanguageArguments, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    config = _config_of(model)
    config.bos_token_id = config.eos_token_id = tokenizer.eos_token_id
    config.pad_token_id = tokenizer.pad_token_id
    return AutoModelForCausalLM.from_config(config)


def _load_trainable(model: LanguageArguments) -> PreTrainedModel:
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
