"""Check labels: each row must have labels that the model knows and can compute a loss from."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset
from torch import nn
from transformers import PretrainedConfig

from hf_fastif.data import ExampleBatches
from hf_fastif.errors import InfluenceError
from hf_fastif.influence.row_checks import (
    RowCheck,
    check_column,
    flat,
    is_list,
    is_seen,
    most_tokens,
    outside,
    rows_with,
    span_of,
    text_checks,
    token_counts,
    vocabulary_of,
)
from hf_fastif.model import IGNORED, Objective, TokenHead, without_adapters


LABELS = ("label", "labels", "label_ids")  # columns that collators turn into "labels"


def check_rows_of(name: str, examples: ExampleBatches, objective: Objective, custom_loss: bool = False) -> None:
    """Check the labels and lengths of all rows of a dataset.

    Args:
        name (`str`): The argument that the dataset was given as, for messages.
        examples (`ExampleBatches`): Its rows.
        objective (`Objective`): The loss.
        custom_loss (`bool`, *optional*, defaults to `False`): Whether the user computes the loss, from labels of any
            shape.

    Raises:
        InfluenceError: If the model cannot take a row; the message names column, row, value and fix.
    """
    dataset, model = examples.dataset, without_adapters(objective.model)
    checks = []
    if "input_ids" in dataset.column_names:
        checks += text_checks(name, model)
    columns = LABELS if objective.head.label_names == ("labels",) else objective.head.label_names
    for column in columns:
        if column in dataset.column_names:
            checks += _label_checks(name, column, examples, objective)
            checks += [] if custom_loss else _width_checks(name, column, objective)
    for column in dict.fromkeys(check.column for check in checks):
        check_column(examples, column, [check for check in checks if check.column == column])
    if isinstance(objective.head, TokenHead) and objective.head.prepare is None:
        _check_one_each(name, examples)


def _check_one_each(name: str, examples: ExampleBatches) -> None:
    """Check that each row has one label per token."""
    columns, start = ["input_ids", "labels"], 0
    if not set(columns) <= set(examples.dataset.column_names):
        return
    for table in examples.dataset.select_columns(columns).with_format("arrow").iter(batch_size=10_000):
        tokens, labels = (token_counts(table[column].combine_chunks(), np.maximum.reduceat, 0) for column in columns)
        for row in np.flatnonzero(tokens != labels)[:1].tolist():
            if is_seen(examples, start + row, _differ):
                raise InfluenceError(
                    f"{name}: column 'labels' holds {labels[row]} labels in row {start + row}, which has "
                    f"{tokens[row]} tokens; give one per token, -100 where there is no loss (special tokens, and all "
                    "but the first token of a word)."
                )
        start += len(table)


def _differ(batch: dict[str, Any]) -> bool:
    return batch["input_ids"].shape[-1] != batch["labels"].shape[-1]


def _label_checks(name: str, column: str, examples: ExampleBatches, objective: Objective) -> list[RowCheck]:
    checks = [
        RowCheck(
            column,
            lambda part: rows_with(part, _is_missing),
            lambda batch: not _is_number(batch.get("labels", batch.get(column))),
            lambda row, _: (
                f"{name}: column {column!r} holds None or nan in row {row}, and influence is defined by the loss; "
                f"remove such rows with {name}.filter, or fill in the label (the predicted one, if the true label of "
                "a query is unknown)."
            ),
        ),
        RowCheck(
            column,
            lambda part: rows_with(part, lambda values: np.full(len(values), _is_text(values.type))),
            lambda batch: not isinstance(batch.get("labels"), torch.Tensor),
            lambda row, value: _names_for_numbers(name, column, row, value, without_adapters(objective.model).config),
        ),
    ]
    known = _known_labels(objective, examples)
    if known is not None:
        ignored = isinstance(objective.head, TokenHead)
        setting = "vocab_size" if known == vocabulary_of(without_adapters(objective.model)) else "num_labels"
        checks.append(
            RowCheck(
                column,
                lambda part: rows_with(part, lambda values: outside(values, known, ignored)),
                lambda batch: _unknown_in(batch.get("labels"), known, ignored),
                lambda row, value: (
                    f"{name}: column {column!r} holds labels from {_ends(examples.dataset, column, ignored)}, but the "
                    f"model knows 0 to {known - 1} (config.{setting}={known}); row {row} is the first such, with "
                    f"{span_of(value)}. Filter or map the rows, or load the model with as many labels"
                    f"{'; -100 is for tokens without a loss' if ignored else ''}."
                ),
            )
        )
    if isinstance(objective.head, TokenHead) and objective.head.prepare is not None:
        checks += _answer_checks(name, column, without_adapters(objective.model))
    return checks


def _width_checks(name: str, column: str, objective: Objective) -> list[RowCheck]:
    """Return the check that a list of labels has one number per output of the model."""
    num_labels = getattr(without_adapters(objective.model).config, "num_labels", 1)
    if objective.head.has_token_outputs or objective.head.choices or num_labels == 1:
        return []
    return [
        RowCheck(
            column,
            lambda part: ~np.isin(token_counts(part, np.maximum.reduceat, 0), (1, num_labels)),
            lambda batch: not isinstance(batch.get("labels"), torch.Tensor) or batch["labels"].shape[-1] != num_labels,
            lambda row, value: (
                f"{name}: column {column!r} holds a list of {len(value)} in row {row}, and the model has {num_labels} "
                "labels (config.num_labels); give one float32 per label, 1.0 for those that the example has and 0.0 "
                "otherwise."
            ),
        )
    ]


def _answer_checks(name: str, column: str, model: nn.Module) -> list[RowCheck]:
    """Return the check that the decoder of a sequence-to-sequence model has positions for the labels it reads."""
    limit = most_tokens(model, "labels")
    if limit is None:
        return []
    return [
        RowCheck(
            column,
            lambda part: token_counts(part, np.maximum.reduceat, 0) > limit,
            lambda batch: "labels" in batch and batch["labels"].shape[-1] > limit,
            lambda row, value: (
                f"{name}: column {column!r} holds {len(value)} tokens in row {row}, and the decoder has positions for "
                f"{limit}; tokenize answers with truncation=True, max_length={limit}."
            ),
        )
    ]


def check_label_type(name: str, dataset: Dataset, labels: Any, row: int, objective: Objective) -> None:
    """Check that classes are whole numbers, and that several labels per row are one float per class.

    Args:
        name (`str`): The argument that the dataset was given as, for messages.
        dataset (`datasets.Dataset`): The dataset.
        labels (`torch.Tensor`): Labels of a few rows, as the model gets them.
        row (`int`): The first of these rows.
        objective (`Objective`): The loss.

    Raises:
        InfluenceError: If labels have the wrong type; the message says what to cast.
    """
    column = next((one for one in LABELS if one in dataset.column_names), "labels")
    whole = f"{name}.cast_column({column!r}, datasets.Value('int64'))"
    if not isinstance(labels, torch.Tensor):
        raise InfluenceError(f"data_collator: it returns labels as a {type(labels).__name__}; return a torch.Tensor.")
    kind, example = labels.dtype, f"{labels[0].tolist()} in row {row}"
    integral = not kind.is_floating_point and kind is not torch.bool
    if objective.head.has_token_outputs or objective.head.choices:
        if not integral:
            raise InfluenceError(
                f"{name}: column {column!r} gives {kind} labels ({example}), and the labels of a "
                f"{type(without_adapters(objective.model)).__name__} are whole numbers; map them to integers."
            )
        return
    problem, num_labels = objective.problem_type(labels), without_adapters(objective.model).config.num_labels
    if problem == "regression":
        return
    one_each = labels.ndim == 1 or labels.shape[1:] == (1,)
    if one_each and num_labels > 1 and not integral:
        raise InfluenceError(
            f"{name}: column {column!r} gives one {kind} per row ({example}), and classes are whole numbers; cast "
            f"them with {whole}."
        )
    several = problem == "multi_label_classification" or not one_each
    if several and num_labels > 1 and (labels.shape[1:] != (num_labels,) or not kind.is_floating_point):
        raise InfluenceError(
            f"{name}: column {column!r} gives labels of {kind} and shape {tuple(labels.shape[1:])} per row "
            f"({example}); for several labels per row the model (config.num_labels={num_labels}) takes "
            f"{num_labels} floats, 0 or 1: "
            f"{name}.cast_column({column!r}, datasets.List(datasets.Value('float32'))). For one label per row, give "
            "its number."
        )


def _known_labels(objective: Objective, examples: ExampleBatches) -> int | None:
    """Return the number of labels that the model knows; None if labels are not classes."""
    head, model = objective.head, without_adapters(objective.model)
    if head.label_names != ("labels",):
        return None
    if head.choices:
        return len(examples.dataset[0]["input_ids"]) if "input_ids" in examples.dataset.column_names else None
    if isinstance(head, TokenHead):
        return model.config.num_labels if model.get_output_embeddings() is None else vocabulary_of(model)
    problem = model.config.problem_type or ("regression" if model.config.num_labels == 1 else None)
    return model.config.num_labels if problem in (None, "single_label_classification") else None


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_missing(values: pa.Array) -> np.ndarray:
    missing = pc.is_null(values, nan_is_null=pa.types.is_floating(values.type))
    return missing.to_numpy(zero_copy_only=False)


def _unknown_in(labels: Any, size: int, ignored: bool) -> bool:
    if not isinstance(labels, torch.Tensor):
        return True
    return bool((((labels < 0) & ~(ignored & (labels == IGNORED))) | (labels >= size)).any())


def _is_number(labels: Any) -> bool:
    return isinstance(labels, torch.Tensor) and not bool(labels.isnan().any())


def _ends(dataset: Dataset, column: str, ignored: bool) -> str:
    """Return the smallest and the largest label of a column, as text."""
    low, high = [], []
    for table in dataset.select_columns(column).with_format("arrow").iter(batch_size=10_000):
        values = table[column].combine_chunks()
        while is_list(values.type):
            values = pc.list_flatten(values)
        ends = pc.min_max(values.filter(pc.not_equal(values, IGNORED)) if ignored else values).as_py()
        low, high = low + [ends["min"]], high + [ends["max"]]
    return f"{min(n for n in low if n is not None)} to {max(n for n in high if n is not None)}"


def _names_for_numbers(name: str, column: str, row: int, value: Any, config: PretrainedConfig) -> str:
    text, names = flat(value)[0], list(config.label2id)
    number = f"model.config.label2id[row[{column!r}]]"
    if isinstance(value, list):
        number = f"[model.config.label2id[one] for one in row[{column!r}]]"
    fix = f"{name}.map(lambda row: {{{column!r}: {number}}})"
    if re.fullmatch(r"[-+]?\d+(\.\d+)?", text):
        kind = "int64" if config.num_labels > 1 and text.isdecimal() else "float32"
        fix = f"{name}.cast_column({column!r}, datasets.Value({kind!r}))"
    elif text not in names and not isinstance(value, list):
        fix = f"{name}.class_encode_column({column!r}) (alphabetically), or with {name}.map and a dict"
    return (
        f"{name}: column {column!r} holds texts ({text!r} in row {row}), and the model takes numbers; map them with "
        f"{fix}. The names of the model's labels are {', '.join(map(str, names))}."
    )
