"""Errors that name the argument, the value and the fix, before any long work starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from datasets import ClassLabel, Dataset, Value
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor
from transformers.utils import logging

from hf_fastif.batches import ExampleBatches
from hf_fastif.errors import InfluenceError
from hf_fastif.identity import differences
from hf_fastif.index import InfluenceIndex
from hf_fastif.objective import Objective, TokenHead
from hf_fastif.parameters import without_adapters
from hf_fastif.solvers import Origin, Solution


logger = logging.get_logger(__name__)
PACKED = ("seq_lengths", "seq_idx", "cu_seqlens", "cu_seq_lens_q", "cu_seq_lens_k")


def check_dataset(name: str, dataset: Any) -> None:
    """The argument `name` must be a map-style `datasets.Dataset` with rows."""
    if not isinstance(dataset, Dataset):
        raise InfluenceError(
            f"{name} is a {type(dataset).__name__}; influence needs a datasets.Dataset, whose rows have positions "
            "(datasets.Dataset.from_list and from_generator make one)."
        )
    if len(dataset) == 0:
        raise InfluenceError(f"{name} has no rows; give at least one example.")


def check_inputs(name: str, examples: ExampleBatches, model_input: str | None, objective: Objective) -> None:
    """The rows must hold the column that the model reads (None: the collator makes it) and labels that it knows."""
    columns = examples.dataset.column_names
    if model_input is not None and model_input not in columns:
        raise InfluenceError(
            f"{name} has no column {model_input!r} (of its columns the model can use: {', '.join(columns)}); "
            "tokenize it "
            f"first, as in {name}.map(lambda rows: tokenizer(rows['text'], truncation=True), batched=True)."
        )
    _check_rows(name, examples.dataset, objective)
    rows = list(range(min(2, len(examples))))
    batch = examples.collate(examples.dataset.__getitems__(rows))
    missing = [label for label in objective.head.label_names if label not in batch]
    if missing:
        raise InfluenceError(
            f"{name} has no {', '.join(missing)} (columns: {', '.join(columns)}), and influence is about the loss; "
            "add a column 'label' with the class numbers (for language models 'labels' with token ids, -100 where "
            "there is no loss; for question answering 'start_positions' and 'end_positions'). For a prediction whose "
            "true label is not known, put the predicted one."
        )
    again = examples.collate(examples.dataset.__getitems__(rows))
    if any(isinstance(values, torch.Tensor) and not torch.equal(values, again[key]) for key, values in batch.items()):
        raise InfluenceError(
            "data_collator: it gives another batch of the same rows each time (as masking for language models does), "
            "and influence needs examples that stay as they are; mask once, with dataset.map."
        )
    if any(isinstance(values, torch.Tensor) and values.ndim and len(values) != len(rows) for values in batch.values()):
        raise InfluenceError(_packed(name, "batches are flat"))
    num_labels = without_adapters(objective.model).config.num_labels
    for column in () if objective.head.several or objective.head.choices else ("label", "labels"):
        feature = examples.dataset.features.get(column)
        if isinstance(feature, Value | ClassLabel) and num_labels > 1 and feature.dtype.startswith("int"):
            _check_label_range(name, examples.dataset, column, num_labels)


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


def _check_label_range(name: str, dataset: Dataset, column: str, num_labels: int) -> None:
    for chunk in dataset.select_columns(column).with_format("arrow").iter(batch_size=100_000):
        ends = pc.min_max(chunk[column]).as_py()
        if ends["min"] is None or ends["min"] < 0 or ends["max"] >= num_labels:
            raise InfluenceError(
                f"{name}: column {column!r} holds labels from {ends['min']} to {ends['max']}, but the model knows 0 "
                "to "
                f"{num_labels - 1} (config.num_labels={num_labels}); filter or map the rows, or load the model with "
                "as many labels."
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
