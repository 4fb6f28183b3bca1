"""Errors that name the argument, the value and the fix, before any long work starts."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Value
from transformers import Trainer, default_data_collator
from transformers.utils import logging

from hf_fastif.data import ExampleBatches
from hf_fastif.errors import InfluenceError
from hf_fastif.influence.label_checks import check_label_type, check_rows_of
from hf_fastif.influence.row_checks import lengths_of, shortest_and_longest
from hf_fastif.model import (
    Objective,
    TokenHead,
    without_adapters,
)


logger = logging.get_logger(__name__)
PACKED = ("seq_lengths", "seq_idx", "cu_seqlens", "cu_seq_lens_q", "cu_seq_lens_k")


def check_inputs(
    name: str, dataset: Dataset, examples: ExampleBatches, trainer: Trainer, objective: Objective
) -> None:
    """Check that the rows of a dataset have what the model reads, and labels that it knows.

    Args:
        name (`str`): The argument.
        dataset (`Dataset`): It, with all columns.
        examples (`ExampleBatches`): Its examples, without the columns that the trainer drops.
        trainer (`Trainer`): Whose model, collator and settings they are for.
        objective (`Objective`): The loss.

    Raises:
        InfluenceError: Naming argument, column, row and fix.
    """
    columns, used = _columns_of(dataset), examples.dataset.column_names
    # A collator that is given all columns may tokenize by itself.
    if trainer.args.remove_unused_columns and trainer.model.main_input_name not in used:
        fix = (
            f"tokenize it first, as in {name}.map(lambda rows: tokenizer(rows['text'], truncation=True), batched=True)"
        )
        if dataset.format["type"] == "custom":
            fix = "its transform needs columns that the trainer drops before; give remove_unused_columns=False"
        raise InfluenceError(f"{name} has no column {trainer.model.main_input_name!r} {columns}; {fix}.")
    _check_rows(name, examples.dataset, objective)
    custom_loss = trainer.compute_loss_func is not None or type(trainer).compute_loss is not Trainer.compute_loss
    check_rows_of(name, examples, objective, custom_loss)
    rows = shortest_and_longest(examples.dataset)
    batch = _collated(name, examples, rows, objective)
    missing = [label for label in objective.head.label_names if label not in batch]
    if missing:
        raise InfluenceError(
            f"{name} has no {', '.join(missing)} {columns}, and influence is about the loss; add or rename a column, "
            f"as in {name}.rename_column('sentiment', 'label'): 'label' with the class numbers; for language models "
            "'labels' with token ids, -100 where there is no loss, or else the trainer needs "
            "data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False); for question answering "
            "'start_positions' and 'end_positions'. For a prediction whose true label is not known, put the predicted "
            "one."
        )
    again = _collated(name, examples, rows, objective)
    if any(isinstance(values, torch.Tensor) and not torch.equal(values, again[key]) for key, values in batch.items()):
        raise InfluenceError(
            "data_collator: it gives another batch of the same rows each time (as masking for language models does), "
            "and influence needs examples that stay as they are; mask once, with dataset.map."
        )
    if any(isinstance(values, torch.Tensor) and values.ndim and len(values) != len(rows) for values in batch.values()):
        raise InfluenceError(_packed(name, "batches are flat"))
    if objective.head.label_names == ("labels",) and not custom_loss:
        check_label_type(name, examples.dataset, batch["labels"], rows[0], objective)


def _columns_of(dataset: Dataset) -> str:
    """List the columns, and those that a format hides."""
    hidden = [name for name in dataset.column_names if name not in dataset.format["columns"]]
    hides = f"; its format hides {', '.join(hidden)}" if hidden else ""
    return f"(columns: {', '.join(dataset.column_names)}{hides})"


def _collated(name: str, examples: ExampleBatches, rows: list[int], objective: Objective) -> dict[str, Any]:
    """Collate some rows; say why, where that fails."""
    try:
        return examples.collate(examples.dataset.__getitems__(rows))
    except Exception as error:  # whatever a collator or a transform raises
        columns = examples.dataset.column_names
        if len(set(lengths_of(examples.dataset.select(rows)))) > 1 and examples.collate is default_data_collator:
            raise InfluenceError(
                f"data_collator: rows {rows} of {name} differ in length, and nothing pads them: make the trainer with "
                "processing_class=tokenizer, or data_collator=DataCollatorWithPadding(tokenizer)."
            ) from error
        fix = "Give a data_collator for these columns, or remove_unused_columns=True to drop what it does not know."
        if isinstance(objective.head, TokenHead) and "labels" in columns:
            fix = (
                "Give a data_collator that pads labels as well: DataCollatorForTokenClassification(tokenizer), for "
                "sequence to sequence DataCollatorForSeq2Seq(tokenizer)."
            )
        raise InfluenceError(
            f"data_collator: it makes no batch of the rows {rows} of {name} {_columns_of(examples.dataset)}: "
            f"{type(error).__name__}: {error}. {fix}"
        ) from error


def _check_rows(name: str, dataset: Dataset, objective: Objective) -> None:
    """Token models take a label a token, and a row must be one example: losses of several cannot be told apart."""
    packed = [column for column in PACKED if column in dataset.column_names]
    if packed:
        raise InfluenceError(_packed(name, f"it has {', '.join(packed)}"))
    if "position_ids" in dataset.column_names:
        positions = np.asarray(dataset[0]["position_ids"])
        if ((positions[1:] == 0) & (positions[:-1] != 0)).any():
            raise InfluenceError(_packed(name, "position_ids restart"))
    feature = dataset.features.get("labels")
    if isinstance(objective.head, TokenHead) and isinstance(feature, Value | ClassLabel):
        raise InfluenceError(
            f"{name}: column 'labels' holds one {feature.dtype} a row, and a "
            f"{type(without_adapters(objective.model)).__name__} has a label for each token; give lists, -100 where "
            "there is no loss."
        )


def _packed(name: str, why: str) -> str:
    return (
        f"{name} holds several examples in a row ({why}), and influence is that of single examples; keep one in a "
        "row: SFTConfig(packing=False, padding_free=False) in trl, a collator that pads instead of "
        "DataCollatorWithFlattening in transformers."
    )
