"""Labelled texts for a recipe: from the Hub, from local files, or the embedded default; tokenized."""

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
    """Which examples a recipe reads; without a name or a file it generates the embedded data set."""

    dataset_name: str | None = field(
        default=None,
        metadata={"help": "A data set on the Hub, or a local folder of one, such as that of Amazon-WILDS."},
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Its configuration."})
    dataset_train_split: str = field(default="train", metadata={"help": "Split of the training examples."})
    dataset_test_split: str = field(default="validation", metadata={"help": "Split that queries are taken from."})
    train_file: str | None = field(
        default=None, metadata={"help": "Local training examples: json(l), csv, tsv, txt or parquet."}
    )
    validation_file: str | None = field(default=None, metadata={"help": "Local examples that queries are taken from."})
    train_where: list[str] | None = field(
        default=None, metadata={"help": "Only training examples with these values, such as domain=books split=train."}
    )
    validation_where: list[str] | None = field(
        default=None, metadata={"help": "Only queries with these values, such as domain=books split=test."}
    )
    text_columns: list[str] | None = field(
        default=None, metadata={"help": "One or two text columns; unless given, the first two that hold running text."}
    )
    label_column: str = field(default="label", metadata={"help": "Column of the labels: numbers or names."})
    label_mapping: str | None = field(
        default=None,
        metadata={
            "help": 'Renames labels, as JSON: {"neutral": "non-entailment", "contradiction": "non-entailment"}.'
        },
    )
    max_train_examples: int | None = field(default=None, metadata={"help": "Train on the first ones only."})
    max_length: int = field(default=128, metadata={"help": "Tokens that a text is cut to."})


def load_examples(args: DataArguments, model_labels: dict[int, str], new_head: bool) -> DatasetDict:
    """Reads the splits `train` and `validation`, with labels as one `ClassLabel` column `label`.

    Args:
        args ([`DataArguments`]): What to read.
        model_labels (`dict`): The model's `config.id2label`; labels are numbered as it numbers them.
        new_head (`bool`): Whether the model will be trained on these labels, so that it need not know them yet.

    Raises:
        ValueError: If only one file is given, a column does not exist, or the labels of the splits or of the model
            differ.
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
        kept = split.remove_columns(list({args.label_column, "label"} & set(split.column_names)))
        labels = [numbers[value] for value in values[name]]
        splits[name] = kept.add_column("label", labels).cast_column("label", ClassLabel(names=names))
    return splits


def read_splits(
    args: DataArguments, columns: Sequence[str], flags: str, embedded: Callable[[], DatasetDict]
) -> DatasetDict:
    """Reads the splits `train` and `validation`: the rows that are wanted of them, as they are.

    Args:
        args ([`DataArguments`]): What to read.
        columns (`Sequence[str]`): Columns that both must have.
        flags (`str`): The flags that name them, for errors.
        embedded (`Callable`): Makes the data set that is read where none is named.

    Raises:
        ValueError: If only one file is given, or a column does not exist.
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
    """The rows that have certain values.

    Args:
        dataset (`datasets.Dataset`): The rows.
        conditions (`Sequence[str]`): Columns and values, "COLUMN=VALUE"; all must hold.
        name (`str`): Of the argument, for errors.

    Raises:
        ValueError: If a condition is not one, names no column, or no row meets all.
    """
    kept = np.ones(len(dataset), dtype=bool)
    for condition in conditions:
        column, equals, value = condition.partition("=")
        if not equals or column not in dataset.column_names:
            raise InfluenceError(
                f"{name}: {condition!r} is not COLUMN=VALUE with one of the columns {', '.join(dataset.column_names)}."
            )
        kept &= np.array([str(own) == value for own in dataset[column]])
    if not kept.any():
        raise InfluenceError(f"{name}: no row has {' and '.join(conditions)}; look at the values of these columns.")
    return dataset.select(np.flatnonzero(kept)) if conditions else dataset


def shuffled(examples: Dataset, seed: int, count: int | None = None) -> Dataset:
    """The rows in a random order, or the first `count` of them (all if there are fewer)."""
    return examples.select(np.random.default_rng(seed).permutation(len(examples))[:count])


def _read(args: DataArguments, embedded: Callable[[], DatasetDict]) -> DatasetDict:
    if (args.train_file is None) != (args.validation_file is None):
        raise InfluenceError(
            f"train_file={args.train_file!r}, validation_file={args.validation_file!r}: give both, or neither for a "
            "data set from the Hub (--dataset_name) or the embedded one."
        )
    if args.train_file is not None:
        files = {"train": args.train_file, "validation": args.validation_file}
        return DatasetDict({name: _read_file(str(path)) for name, path in files.items()})
    if args.dataset_name is not None and is_wilds_amazon(args.dataset_name):
        made = load_wilds_amazon(args.dataset_name, args.dataset_train_split, args.dataset_test_split)
        return DatasetDict(train=made[0], validation=made[1])
    if args.dataset_name is not None:
        return DatasetDict({name: _read_split(args, name) for name in ("train", "validation")})
    made = embedded()
    if args.dataset_test_split not in made:
        raise InfluenceError(
            f"dataset_test_split={args.dataset_test_split!r}: the embedded data has {', '.join(made)}."
        )
    return DatasetDict({"train": made["train"], "validation": made[args.dataset_test_split]})


def _read_split(args: DataArguments, name: str) -> Dataset:
    """Read the split `train` or `validation` of a named data set, whatever it is called there."""
    flag = {"train": "dataset_train_split", "validation": "dataset_test_split"}[name]
    wanted = getattr(args, flag)
    try:
        return load_dataset(args.dataset_name, args.dataset_config, split=wanted)
    except ValueError as error:
        if "Unknown split" not in str(error):
            raise
        there = list(load_dataset(args.dataset_name, args.dataset_config))
        raise InfluenceError(
            f"{flag}={wanted!r}: {args.dataset_name} has the splits {', '.join(there)}; give one of them with "
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
    """The names of the labels in the model's order; in their own (numbers by size) for a head yet to be trained."""
    found = set(values)
    numbered = found <= {str(number) for number in range(len(model_names))}
    if found == set(model_names) or (numbered and not new_head):
        return model_names
    if not new_head:
        raise InfluenceError(
            f"label_mapping: the training examples have the labels {', '.join(sorted(found))}, but the model predicts "
            f"{', '.join(model_names)}; map them with --label_mapping, or train a new head with --do_train."
        )
    return sorted(found, key=lambda name: (len(name), name)) if all(map(str.isdigit, found)) else sorted(found)


def tokenize(splits: DatasetDict, tokenizer: PreTrainedTokenizerBase, args: DataArguments) -> DatasetDict:
    """Adds the token columns; texts and labels stay, so that results can show them."""
    columns: Sequence[str] = args.text_columns or text_columns(splits["train"])[:2]
    if not 1 <= len(columns) <= 2:
        raise InfluenceError(f"text_columns={list(columns)}: give one or two columns of text with --text_columns.")
    return splits.map(
        lambda rows: tokenizer(*(rows[column] for column in columns), truncation=True, max_length=args.max_length),
        batched=True,
        desc="Tokenizing",
    )
