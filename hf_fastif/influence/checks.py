"""Check datasets before any long computation; errors name the argument, its value and the fix."""

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
    """Check that a dataset has the columns that the model reads, and labels that it knows.

    Args:
        name (`str`): The argument that the dataset was given as, for messages.
        dataset (`datasets.Dataset`): The dataset with all columns.
        examples (`ExampleBatches`): Its examples, without the columns that the trainer drops.
        trainer (`Trainer`): The trainer whose model, collator and settings are used.
        objective (`Objective`): The loss.

    Raises:
        InfluenceError: If the model cannot take a row; the message names argument, column, row and fix.
    """
    columns, used = _columns_of(dataset), examples.dataset.column_names
    # A collator that gets all columns may tokenize by itself.
    if trainer.args.remove_unused_columns and trainer.model.main_input_name not in used:
        fix = (
            f"tokenize it first, as in {name}.map(lambda rows: tokenizer(rows['text'], truncation=True), batched=True)"
        )
        if dataset.format["type"] == "custom":
            fix = "its transform needs columns that the trainer drops first; give remove_unused_columns=False"
        raise InfluenceError(f"{name} has no column {trainer.model.main_input_name!r} {columns}; {fix}.")
    _check_rows(name, examples.dataset, objective)
    custom_loss = trainer.compute_loss_func is not None or type(trainer).compute_loss is not Trainer.compute_loss
    check_rows_of(name, examples, objective, custom_loss)
    rows = shortest_and_longest(examples.dataset)
    batch = _collated(name, examples, rows, objective)
    missing = [label for label in objective.head.label_names if label not in batch]
    if missing:
        raise InfluenceError(
            f"{name} has no {', '.join(missing)} {columns}, and influence is defined by the loss; add or rename a "
            f"column, as in {name}.rename_column('sentiment', 'label'): 'label' with the class numbers; for language "
            "models 'labels' with token ids, -100 where there is no loss, or give the trainer "
            "data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False); for question answering "
            "'start_positions' and 'end_positions'. If the true label of a query is unknown, use the predicted one."
        )
    again = _collated(name, examples, rows, objective)
    if any(isinstance(values, torch.Tensor) and not torch.equal(values, again[key]) for key, values in batch.items()):
        raise InfluenceError(
            "data_collator: it returns a different batch of the same rows each time (as masking for language models "
            "does), and influence needs fixed examples; mask once, with dataset.map."
        )
    if any(isinstance(values, torch.Tensor) and values.ndim and len(values) != len(rows) for values in batch.values()):
        raise InfluenceError(_packed(name, "batches are flat"))
    if objective.head.label_names == ("labels",) and not custom_loss:
        check_label_type(name, examples.dataset, batch["labels"], rows[0], objective)


def _columns_of(dataset: Dataset) -> str:
    """List the columns of a dataset, and those that its format hides."""
    hidden = [name for name in dataset.column_names if name not in dataset.format["columns"]]
    hides = f"; its format hides {', '.join(hidden)}" if hidden else ""
    return f"(columns: {', '.join(dataset.column_names)}{hides})"


def _collated(name: str, examples: ExampleBatches, rows: list[int], objective: Objective) -> dict[str, Any]:
    """Collate some rows; if that fails, raise an error that explains why."""
    try:
        return examples.collate(examples.dataset.__getitems__(rows))
    except Exception as error:  # whatever a collator or a transform raises
        columns = examples.dataset.column_names
        if len(set(lengths_of(examples.dataset.select(rows)))) > 1 and examples.collate is default_data_collator:
            raise InfluenceError(
                f"data_collator: rows {rows} of {name} differ in length and are not padded; create the trainer with "
                "processing_class=tokenizer, or data_collator=DataCollatorWithPadding(tokenizer)."
            ) from error
        fix = "Give a data_collator for these columns, or remove_unused_columns=True to drop those the model ignores."
        if isinstance(objective.head, TokenHead) and "labels" in columns:
            fix = (
                "Give a data_collator that pads labels too: DataCollatorForTokenClassification(tokenizer), or "
                "DataCollatorForSeq2Seq(tokenizer) for sequence to sequence."
            )
        raise InfluenceError(
            f"data_collator: it cannot collate the rows {rows} of {name} {_columns_of(examples.dataset)}: "
            f"{type(error).__name__}: {error}. {fix}"
        ) from error


def _check_rows(name: str, dataset: Dataset, objective: Objective) -> None:
    """Refuse several examples packed into one row, whose losses cannot be separated, and one label for many tokens."""
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
            f"{name}: column 'labels' holds one {feature.dtype} per row, and a "
            f"{type(without_adapters(objective.model)).__name__} needs one label per token; give lists, with -100 "
            "where there is no loss."
        )


def _packed(name: str, why: str) -> str:
    return (
        f"{name} holds several examples per row ({why}), and influence needs one example per row: give "
        "SFTConfig(packing=False, padding_free=False) in trl, or a collator that pads instead of "
        "DataCollatorWithFlattening in transformers."
    )
