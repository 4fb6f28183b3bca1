"""Errors that name the argument, the value and the fix, before any long work starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow.compute as pc
from datasets import Dataset
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor
from transformers import Trainer

from hf_fastif.batches import ExampleBatches
from hf_fastif.index import InfluenceIndex
from hf_fastif.solvers import Solution


def check_dataset(name: str, dataset: Any) -> None:
    """The argument `name` must be a map-style `datasets.Dataset` with rows."""
    if not isinstance(dataset, Dataset):
        raise ValueError(
            f"{name} is a {type(dataset).__name__}; influence needs a datasets.Dataset, whose rows have positions "
            "(datasets.Dataset.from_list and from_generator make one)."
        )
    if len(dataset) == 0:
        raise ValueError(f"{name} has no rows; give at least one example.")


def check_inputs(name: str, examples: ExampleBatches, model_input: str | None, num_labels: int) -> None:
    """The rows must hold the column that the model reads (None: the collator makes it) and labels that it knows."""
    columns = examples.dataset.column_names
    if model_input is not None and model_input not in columns:
        raise ValueError(
            f"{name} has no column {model_input!r} (of its columns the model can use: {', '.join(columns)}); "
            "tokenize it "
            f"first, as in {name}.map(lambda rows: tokenizer(rows['text'], truncation=True), batched=True)."
        )
    if "labels" not in examples.collate(examples.dataset.__getitems__([0])):
        raise ValueError(
            f"{name} has no labels (columns: {', '.join(columns)}), and influence is about the loss; add a column "
            "'label' with the class numbers. For a prediction whose true label is not known, put the predicted one."
        )
    for column in ("label", "labels"):
        if column in columns and num_labels > 1 and examples.dataset.features[column].dtype.startswith("int"):
            _check_label_range(name, examples.dataset, column, num_labels)


def _check_label_range(name: str, dataset: Dataset, column: str, num_labels: int) -> None:
    for chunk in dataset.select_columns(column).with_format("arrow").iter(batch_size=100_000):
        ends = pc.min_max(chunk[column]).as_py()
        if ends["min"] is None or ends["min"] < 0 or ends["max"] >= num_labels:
            raise ValueError(
                f"{name}: column {column!r} holds labels from {ends['min']} to {ends['max']}, but the model knows 0 "
                "to "
                f"{num_labels - 1} (config.num_labels={num_labels}); filter or map the rows, or load the model with "
                "as many labels."
            )


def check_loss(trainer: Trainer) -> None:
    """The loss must be the model's own, since influence needs it for single examples."""
    if trainer.compute_loss_func is not None:
        raise ValueError(
            "compute_loss_func: it gives the loss of a batch, and influence needs that of single examples; leave "
            "it out. "
            "config.problem_type chooses among cross entropy, regression and multi-label losses."
        )
    if type(trainer).compute_loss is not Trainer.compute_loss:
        raise ValueError(
            f"{type(trainer).__name__}.compute_loss is overridden; influence would be that of another loss. Remove "
            "the "
            "override while you compute influence."
        )


def check_whole(model: nn.Module) -> None:
    """Every process must hold all parameters of the model: derivatives of single examples are taken by each alone."""
    sharded = None
    if any(isinstance(module, FullyShardedDataParallel) for module in model.modules()):
        sharded = "FSDP"
    for name, parameter in model.named_parameters():
        if isinstance(parameter, DTensor):
            sharded = f"FSDP2 or tensor parallelism ({name} is a DTensor)"
        elif hasattr(parameter, "ds_id"):  # the mark of DeepSpeed's ZeRO, stage 3
            sharded = "DeepSpeed ZeRO, stage 3"
    if sharded is not None:
        raise ValueError(
            f"model: its parameters are dealt to the processes by {sharded}, and influence needs all of them in each. "
            "Save the model in one piece (trainer.save_model(), with FULL_STATE_DICT for FSDP and "
            "stage3_gather_16bit_weights_on_model_save for DeepSpeed), and load it with from_pretrained in a run that "
            "is launched without sharding. hf_fastif.freeze makes that run smaller: only parameters with "
            "requires_grad have vectors."
        )


def check_num_neighbors(num_neighbors: int | None, num_candidates: int) -> None:
    """k must lie between 1 and the number of candidates."""
    if num_neighbors is not None and not 1 <= num_neighbors <= num_candidates:
        raise ValueError(
            f"num_neighbors={num_neighbors}: there are {num_candidates} candidates; give 1 to {num_candidates}, or "
            "None "
            "to score every candidate."
        )


def check_rows(name: str, rows: Sequence[int], size: int) -> None:
    """Row numbers must lie within the dataset that they are of."""
    outside = [row for row in rows if not 0 <= row < size]
    if outside:
        raise ValueError(f"{name}={outside}: there are {size} rows; give 0 to {size - 1}.")


def check_index(name: str, dataset: Dataset, indexes: Mapping[str, InfluenceIndex], model: str) -> InfluenceIndex:
    """The index of the dataset's present rows, which must have been made with the present model and checkpoints.

    `indexes` maps the fingerprints of datasets to their indexes, `model` is the fingerprint of the checkpoints.
    """
    rebuild = "trainer.build_index()" if name == "train_dataset" else f"trainer.build_index({name})"
    found = indexes.get(dataset._fingerprint)
    if found is None and (indexes or dataset.list_indexes()):
        raise ValueError(
            f"{name} is not the dataset that the index was built for (its fingerprint is {dataset._fingerprint}, "
            f"indexed are {', '.join(indexes) or 'none by this trainer'}): rows were changed or replaced since; call "
            f"{rebuild} again."
        )
    if found is None or found.name not in dataset.list_indexes():
        raise ValueError(f"{name} has no index to find num_neighbors in; call {rebuild} first.")
    if found.manifest["model"] != model:
        raise ValueError(
            f"{name}: the model was changed after its index was built (or other checkpoints chosen); call {rebuild} "
            "again."
        )
    return found


def check_s_test(s_test: Solution | None, num_queries: int, num_parameters: int) -> None:
    """A given s_test must be that of these queries and this model."""
    if s_test is not None and s_test.vectors.shape != (num_queries, num_parameters):
        raise ValueError(
            f"s_test holds {len(s_test)} vectors of {s_test.vectors.shape[1]:,} parameters, but there are "
            f"{num_queries} "
            f"examples and {num_parameters:,} trainable parameters; pass what compute_s_test(examples) returned for "
            "these "
            "examples and this model."
        )
