"""Errors that name the argument, the value and the fix, before any long work starts."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset, DatasetDict, IterableDataset, IterableDatasetDict, Value
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor
from transformers import Trainer, default_data_collator
from transformers.utils import logging

from hf_fastif.batches import ExampleBatches
from hf_fastif.errors import InfluenceError
from hf_fastif.identity import differences
from hf_fastif.index import InfluenceIndex
from hf_fastif.label_checks import check_label_type, check_rows_of
from hf_fastif.objective import Objective, TokenHead
from hf_fastif.parameters import without_adapters
from hf_fastif.row_checks import lengths_of, shortest_and_longest
from hf_fastif.solvers import Origin, Solution


logger = logging.get_logger(__name__)
PACKED = ("seq_lengths", "seq_idx", "cu_seqlens", "cu_seq_lens_q", "cu_seq_lens_k")


INSTEAD = {  # of a dataset
    DatasetDict: "give one of its splits, as in dataset[{first!r}] (there are {splits})",
    IterableDatasetDict: "load the data set without streaming=True, and give one of its splits",
    IterableDataset: (
        "its rows have no positions; load the data set without streaming=True, or make one of it with "
        "datasets.Dataset.from_generator"
    ),
    Mapping: "for one row give dataset.select([0]) and not dataset[0], for several dataset.select(range(3))",
    str: "make one with datasets.Dataset.from_list([{{'text': ..., 'label': ...}}]), and tokenize it with map",
    list: "make one of rows with datasets.Dataset.from_list, and tokenize it with map",
    object: "datasets.Dataset.from_list, from_pandas and from_generator make one",
}


def check_dataset(name: str, dataset: Any) -> None:
    """The argument `name` must be a map-style `datasets.Dataset` with rows."""
    if not isinstance(dataset, Dataset):
        raise InfluenceError(
            f"{name} is a {type(dataset).__name__}; influence needs a datasets.Dataset, whose rows have positions: "
            f"{_instead(name, dataset)}."
        )
    if len(dataset) == 0:
        raise InfluenceError(f"{name} has no rows; give at least one example.")


def _instead(name: str, given: Any) -> str:
    """Say what to give instead of something that is not a data set."""
    if name == "train_dataset" and given is None:
        return "make the trainer with train_dataset=..., the data that the model was trained on"
    fix = next(fix for kind, fix in INSTEAD.items() if isinstance(given, kind))
    splits = list(given) if isinstance(given, DatasetDict) else [""]
    return fix.format(first=splits[0], splits=", ".join(splits))


def check_train_dataset(dataset: Any) -> None:
    """Refuse a training set whose rows have no positions, before anything is trained on it."""
    if isinstance(dataset, DatasetDict | IterableDatasetDict | IterableDataset | Mapping | str):
        check_dataset("train_dataset", dataset)


def check_model(model: Any) -> None:
    """Refuse the name of a model in place of the model."""
    if isinstance(model, str | os.PathLike):
        raise InfluenceError(
            f"model={str(model)!r} is a name; load the model, as in "
            f"AutoModelForSequenceClassification.from_pretrained({str(model)!r})."
        )


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
    own_loss = trainer.compute_loss_func is not None or type(trainer).compute_loss is not Trainer.compute_loss
    check_rows_of(name, examples, objective, own_loss)
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
    if objective.head.label_names == ("labels",) and not own_loss:
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


def check_whole(model: nn.Module) -> None:
    """Every process must hold all parameters of the model: derivatives of single examples are taken by each alone."""
    sharded = sharded_by(model)
    if sharded is not None:
        raise InfluenceError(
            f"model: its parameters are dealt to the processes by {sharded}, and influence needs all of them in each. "
            "Save the model in one piece (trainer.save_model(), with FULL_STATE_DICT for FSDP and "
            "stage3_gather_16bit_weights_on_model_save for DeepSpeed), and load it with from_pretrained in a run that "
            "is launched without sharding. hf_fastif.freeze makes that run smaller: only parameters with "
            "requires_grad have vectors."
        )


def sharded_by(model: nn.Module) -> str | None:
    """What deals the parameters of a model to processes; None if each holds all of them."""
    if any(isinstance(module, FullyShardedDataParallel) for module in model.modules()):
        return "FSDP"
    for name, parameter in model.named_parameters():
        if isinstance(parameter, DTensor):
            return f"FSDP2 or tensor parallelism ({name} is a DTensor)"
        if hasattr(parameter, "ds_id"):  # the mark of DeepSpeed's ZeRO, stage 3
            return "DeepSpeed ZeRO, stage 3"
    return None


def check_adapters(model: nn.Module) -> None:
    """Adapters of PEFT must not be merged into the weights: they are no longer used then, and have no gradient."""
    merged = [name for name, module in model.named_modules() if getattr(module, "merged", False)]
    if merged:
        raise InfluenceError(
            f"model: its adapters are merged into the weights ({merged[0]} and {len(merged) - 1} more), so that they "
            "take no part in the loss; call model.unmerge_adapter() first."
        )


def check_no_inference_tensors(model: nn.Module) -> None:
    """Refuse parameters that were made in `torch.inference_mode()`, which have no gradients anywhere."""
    for name, parameter in model.named_parameters():
        if parameter.is_inference():
            raise InfluenceError(
                f"model: {name} was made inside torch.inference_mode(), and such parameters have no gradients; load "
                "the model outside of it."
            )


def warn_of_half_precision(objective: Objective) -> None:
    """Gradients have the precision of the parameters they are of."""
    half = [name for name, p in objective.theta.items() if p.dtype in (torch.bfloat16, torch.float16)]
    if half:
        logger.warning_once(
            f"{half[0]} and {len(half) - 1} more parameters are {objective.theta[half[0]].dtype}, and so are their "
            "gradients and s_test, with two or three digits; load the model with dtype=torch.float32 for more "
            "(influence_bf16=True runs it in bfloat16 nevertheless)."
        )


def check_num_neighbors(num_neighbors: int | None, num_candidates: int) -> None:
    """k must lie between 1 and the number of candidates."""
    if num_neighbors is not None and not 1 <= num_neighbors <= num_candidates:
        raise InfluenceError(
            f"num_neighbors={num_neighbors}: there are {num_candidates} candidates; give 1 to {num_candidates}, or "
            "None "
            "to score every candidate."
        )


def check_rows(name: str, rows: Sequence[int], size: int) -> None:
    """Row numbers must lie within the dataset that they are of."""
    outside = [row for row in rows if not 0 <= row < size]
    if outside:
        raise InfluenceError(f"{name}={outside}: there are {size} rows; give 0 to {size - 1}.")


def check_index(
    name: str, dataset: Dataset, indexes: Mapping[str, InfluenceIndex], belongs: Mapping[str, str]
) -> InfluenceIndex:
    """The index of the dataset's present rows, which must have been made with the present model, loss and rows.

    `indexes` maps the fingerprints of datasets to their indexes, `belongs` is what the index must have been made with.
    """
    rebuild = "trainer.build_index()" if name == "train_dataset" else f"trainer.build_index({name})"
    index = indexes.get(dataset._fingerprint)
    if index is None and (indexes or dataset.list_indexes()):
        raise InfluenceError(
            f"{name} is not the dataset that the index was built for (its fingerprint is {dataset._fingerprint}, "
            f"indexed are {', '.join(indexes) or 'none by this trainer'}): rows were changed or replaced since; call "
            f"{rebuild} again."
        )
    if index is None or index.name not in dataset.list_indexes():
        raise InfluenceError(f"{name} has no index to find num_neighbors in; call {rebuild} first.")
    reasons = {
        "trained": "(what has requires_grad)",
        "model": "(or other checkpoints chosen)",
        "dataset": "(its rows, or what its transform or the data_collator makes of them)",
        "loss": "(compute_loss_func, or a setting of it)",
    }
    names = {"trained": "trained part of the model"}
    for what in differences(index.manifest, belongs):
        raise InfluenceError(
            f"{name}: the {names.get(what, what)} was changed after its index was built {reasons[what]}; it was "
            f"{index.manifest.get(what)}, and is {belongs[what]}. Call {rebuild} again."
        )
    return index


def check_s_test(s_test: Solution | None, origin: Origin, num_parameters: int) -> None:
    """A given s_test must be that of these queries, and of this model, training set and loss."""
    if s_test is None:
        return
    num_queries = len(origin.queries)
    if s_test.vectors.shape != (num_queries, num_parameters):
        raise InfluenceError(
            f"s_test holds {len(s_test)} vectors of {s_test.vectors.shape[1]:,} parameters, but there are "
            f"{num_queries} examples and {num_parameters:,} trainable parameters; pass what compute_s_test(examples) "
            "returned for these examples and this model."
        )
    if s_test.origin is None:  # the user's own vectors
        return
    if s_test.origin.queries != origin.queries:
        pairs = zip(s_test.origin.queries, origin.queries, strict=True)
        row = next(row for row, (there, here) in enumerate(pairs) if there != here)
        raise InfluenceError(
            f"s_test was computed for other examples: its query {row} has the digest {s_test.origin.queries[row]}, "
            f"and row {row} of examples is {origin.queries[row]}; pass what compute_s_test(examples) returned for "
            "these examples, in their order."
        )
    for what in differences(s_test.origin.belongs, origin.belongs):
        raise InfluenceError(
            f"s_test was computed with the {what} {s_test.origin.belongs[what]}, and this is "
            f"{origin.belongs[what]}; call compute_s_test(examples) again."
        )
