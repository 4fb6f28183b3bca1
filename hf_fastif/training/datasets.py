"""Read and tokenize labelled texts: from the Hub, from local files, or the generated default."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, load_dataset

from hf_fastif.data import text_columns
from hf_fastif.errors import InfluenceError, NotFoundError, did_you_mean
from hf_fastif.training.corpora.nli import generate_nli
from hf_fastif.training.corpora.wilds import is_wilds_amazon, load_wilds_amazon


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


READERS = {  # by the suffix of a file
    "jsonl": ("json", {}),
    "json": ("json", {}),
    "csv": ("csv", {}),
    "tsv": ("csv", {"delimiter": "\t"}),
    "txt": ("text", {}),
    "parquet": ("parquet", {}),
    "arrow": ("arrow", {}),
}


@dataclass
class DataArguments:
    """Examples that a recipe reads; without a name or a file it generates a small dataset."""

    dataset_name: str | None = field(
        default=None,
        metadata={"help": "Dataset on the Hub, or a local folder of one, such as that of Amazon-WILDS."},
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of the dataset."})
    dataset_train_split: str = field(default="train", metadata={"help": "Split of the training examples."})
    dataset_test_split: str = field(default="validation", metadata={"help": "Split of the queries."})
    train_file: str | None = field(
        default=None, metadata={"help": "File of training examples: json(l), csv, tsv, txt or parquet."}
    )
    validation_file: str | None = field(default=None, metadata={"help": "File of the queries."})
    train_where: list[str] | None = field(
        default=None,
        metadata={"help": "Keep only training examples with these values, such as domain=books split=train."},
    )
    validation_where: list[str] | None = field(
        default=None, metadata={"help": "Keep only queries with these values, such as domain=books split=test."}
    )
    text_columns: list[str] | None = field(
        default=None, metadata={"help": "One or two text columns; None uses the first two that hold running text."}
    )
    label_column: str = field(default="label", metadata={"help": "Column of the labels, which are numbers or names."})
    label_mapping: str | None = field(
        default=None,
        metadata={
            "help": 'New names of labels, as JSON: {"neutral": "non-entailment", "contradiction": "non-entailment"}.'
        },
    )
    max_train_examples: int | None = field(
        default=None,
        metadata={"help": "Number of training examples to use, from the start of the split; None uses all."},
    )
    max_length: int = field(default=128, metadata={"help": "Maximum number of tokens of an example."})


def load_examples(args: DataArguments, model_labels: dict[int, str], new_head: bool) -> DatasetDict:
    """Read the splits `train` and `validation`, with the labels in a `ClassLabel` column `label`.

    Args:
        args ([`DataArguments`]): What to read.
        model_labels (`dict`): The model's `config.id2label`, which determines the numbers of the labels.
        new_head (`bool`): Whether the model will be trained on these labels, so that it need not know them yet.

    Raises:
        InfluenceError: If only one file is given, a column does not exist, or the labels of the splits or of the
            model differ.
    """
    columns = [args.label_column, *(args.text_columns or [])]
    splits = read_splits(args, columns, "--label_column and --text_columns", generate_nli)
    mapping = json.loads(args.label_mapping or "{}")
    values = {name: _label_values(split, args.label_column, mapping) for name, split in splits.items()}
    names = _label_order(values["train"], [model_labels[label] for label in sorted(model_labels)], new_head)
    if unknown := sorted(set(values["validation"]) - set(values["train"])):
        raise InfluenceError(
            f"label_mapping: the validation examples have the labels {', '.join(unknown)}, which the training "
            f"examples ({', '.join(sorted(set(values['train'])))}) do not; map them with --label_mapping."
        )
    # A file may hold class numbers where the model has names.
    numbers = {str(number): number for number in range(len(names))} | {n: number for number, n in enumerate(names)}
    for name, split in splits.items():
        unlabelled = split.remove_columns(list({args.label_column, "label"} & set(split.column_names)))
        labels = [numbers[value] for value in values[name]]
        splits[name] = unlabelled.add_column("label", labels).cast_column("label", ClassLabel(names=names))
    return splits


def read_splits(
    args: DataArguments, columns: Sequence[str], flags: str, embedded: Callable[[], DatasetDict]
) -> DatasetDict:
    """Read the splits `train` and `validation`, and select the rows that `args` asks for.

    Args:
        args ([`DataArguments`]): What to read.
        columns (`Sequence[str]`): Columns that both splits must have.
        flags (`str`): The flags that set these columns, for errors.
        embedded (`Callable`): Generates the dataset that is used if `args` names none.

    Raises:
        InfluenceError: If only one file is given, a column does not exist, or a condition selects no row.

    Example:

    ```python
    data = DataArguments(train_file="train.jsonl", validation_file="dev.jsonl")
    splits = read_splits(data, ["label"], "--label_column", generate_nli)
    ```
    """
    splits = _read(args, embedded)
    for name, conditions in (("train", args.train_where), ("validation", args.validation_where)):
        splits[name] = rows_where(splits[name], conditions or [], f"{name}_where")
    if args.max_train_examples is not None:
        splits["train"] = splits["train"].select(range(min(args.max_train_examples, len(splits["train"]))))
    for name, split in splits.items():
        for column in columns:
            if column not in split.column_names:
                raise InfluenceError(
                    f"column {column!r} is not in the {name} examples, which have: {', '.join(split.column_names)}; "
                    f"set {flags}."
                )
    return splits


def rows_where(dataset: Dataset, conditions: Sequence[str], name: str) -> Dataset:
    """Select the rows that meet all conditions.

    Args:
        dataset (`datasets.Dataset`): The rows.
        conditions (`Sequence[str]`): Columns and values, "COLUMN=VALUE".
        name (`str`): The name of the argument, for errors.

    Raises:
        InfluenceError: If a condition has another form or names no column, or if no row meets all conditions.
    """
    selected = np.ones(len(dataset), dtype=bool)
    for condition in conditions:
        column, equals, value = condition.partition("=")
        if not equals or column not in dataset.column_names:
            raise InfluenceError(
                f"{name}: {condition!r} is not COLUMN=VALUE with one of the columns {', '.join(dataset.column_names)}."
            )
        selected &= np.array([str(entry) == value for entry in dataset[column]])
    if not selected.any():
        raise InfluenceError(f"{name}: no row has {' and '.join(conditions)}; look at the values of these columns.")
    return dataset.select(np.flatnonzero(selected)) if conditions else dataset


def shuffled(examples: Dataset, seed: int, count: int | None = None) -> Dataset:
    """Return the rows in random order, or the first `count` of these (all if there are fewer)."""
    return examples.select(np.random.default_rng(seed).permutation(len(examples))[:count])


def _read(args: DataArguments, embedded: Callable[[], DatasetDict]) -> DatasetDict:
    if (args.train_file is None) != (args.validation_file is None):
        raise InfluenceError(
            f"train_file={args.train_file!r}, validation_file={args.validation_file!r}: give both, or neither for a "
            "dataset from the Hub (--dataset_name) or the embedded one."
        )
    if args.train_file is not None:
        files = {"train": args.train_file, "validation": args.validation_file}
        return DatasetDict({name: _read_file(str(path)) for name, path in files.items()})
    if args.dataset_name is not None and is_wilds_amazon(args.dataset_name):
        train, validation = load_wilds_amazon(args.dataset_name, args.dataset_train_split, args.dataset_test_split)
        return DatasetDict(train=train, validation=validation)
    if args.dataset_name is not None:
        return DatasetDict({name: _read_split(args, name) for name in ("train", "validation")})
    generated = embedded()
    if args.dataset_test_split not in generated:
        raise InfluenceError(
            f"dataset_test_split={args.dataset_test_split!r}: the embedded data has {', '.join(generated)}."
        )
    return DatasetDict(train=generated["train"], validation=generated[args.dataset_test_split])


def _read_split(args: DataArguments, name: str) -> Dataset:
    """Read the split that serves as `train` or `validation` of a named dataset."""
    flag = {"train": "dataset_train_split", "validation": "dataset_test_split"}[name]
    wanted = getattr(args, flag)
    try:
        return load_dataset(args.dataset_name, args.dataset_config, split=wanted)
    except ValueError as error:
        if "Unknown split" not in str(error):
            raise
        available = list(load_dataset(args.dataset_name, args.dataset_config))
        raise InfluenceError(
            f"{flag}={wanted!r}: {args.dataset_name} has the splits {', '.join(available)}; give one of them with "
            f"--{flag}."
        ) from error


def _read_file(path: str) -> Dataset:
    supported = f"{', '.join(f'.{suffix}' for suffix in READERS)} (or one of them .gz)"
    if not Path(path).is_file():
        folder = Path(path).parent
        near = did_you_mean(Path(path).name, os.listdir(folder) if folder.is_dir() else ())
        raise NotFoundError(f"there is no file {path!r}{near}; the files that can be read are {supported}.")
    suffix = Path(path.removesuffix(".gz")).suffix.lstrip(".").lower()
    if suffix not in READERS:
        raise InfluenceError(f"{path!r} is of no known format; the files that can be read are {supported}.")
    reader, options = READERS[suffix]
    return load_dataset(reader, data_files=path, split="train", **options)


def _label_values(split: Dataset, column: str, mapping: dict[str, str]) -> list[str]:
    feature = split.features[column]
    name = feature.int2str if isinstance(feature, ClassLabel) else str
    return [mapping.get(name(value), name(value)) for value in split[column]]


def _label_order(values: list[str], model_names: list[str], new_head: bool) -> list[str]:
    """Return the names of the labels in the model's order, or sorted (numbers by size) for a new head."""
    names = set(values)
    numbered = names <= {str(number) for number in range(len(model_names))}
    if names == set(model_names) or (numbered and not new_head):
        return model_names
    if not new_head:
        raise InfluenceError(
            f"label_mapping: the training examples have the labels {', '.join(sorted(names))}, but the model predicts "
            f"{', '.join(model_names)}; map them with --label_mapping, or train a new head with --do_train."
        )
    return sorted(names, key=lambda name: (len(name), name)) if all(map(str.isdigit, names)) else sorted(names)


def tokenize(splits: DatasetDict, tokenizer: PreTrainedTokenizerBase, args: DataArguments) -> DatasetDict:
    """Add the token columns, and keep texts and labels, which results show.

    Raises:
        InfluenceError: If there are not one or two columns of text.
    """
    columns: Sequence[str] = args.text_columns or text_columns(splits["train"])[:2]
    if not 1 <= len(columns) <= 2:
        raise InfluenceError(f"text_columns={list(columns)}: give one or two columns of text with --text_columns.")
    return splits.map(
        lambda rows: tokenizer(*(rows[column] for column in columns), truncation=True, max_length=args.max_length),
        batched=True,
        desc="Tokenizing",
    )
