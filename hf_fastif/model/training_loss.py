"""Determine on a few examples which loss training minimises, and refuse it if it is no mean over examples."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from datasets import ClassLabel, Value
from torch import nn
from transformers import Trainer

from hf_fastif.data import ExampleBatches, hexdigest
from hf_fastif.errors import InfluenceError
from hf_fastif.model.custom_loss import CustomComputeLoss, CustomLoss, Items, check_mean, close, weighted_mean
from hf_fastif.model.heads import Batch, SpanHead, TokenHead
from hf_fastif.model.objective import Objective
from hf_fastif.model.parameters import saved_buffers, without_adapters


PROBED = 8  # examples, from all over the dataset, since it may be sorted
LIBRARIES = ("trl", "transformers", "sentence_transformers", "setfit")
COMPARED = 256  # examples on which a loss overridden by one of these libraries must equal the head's
COMPARED_BATCH = 32
ALONE = 4  # number of probed examples on which an overridden loss is also computed one by one
MAX_LABELS = 64  # labels of which one example each is probed


@dataclass(frozen=True)
class LossFacts:
    """Properties of a loss that were determined on examples; they hold while the loss returns the same values.

    Attributes:
        items (`Items`): The units that the loss of a batch is averaged over.
        is_head (`bool`): Whether it is the loss of the model's head.
        probe (`Sequence[float]`): Its values for a few inputs.
    """

    items: Items
    is_head: bool
    probe: Sequence[float] = ()

    def hold(self, probe: Sequence[float]) -> bool:
        """Tell whether the loss still returns the values it returned then."""
        return len(probe) == len(self.probe) and np.allclose(probe, self.probe, rtol=1e-6, atol=0, equal_nan=True)


def resolve_training_loss(
    trainer: Trainer, objective: Objective, examples: ExampleBatches, known: dict[Hashable, LossFacts]
) -> CustomLoss | CustomComputeLoss | None:
    """Return the custom loss that computes the losses of single examples, or None if the model's head does.

    A `compute_loss_func` always counts as custom. An overridden `compute_loss`, such as those of trl, counts as the
    head's if it returns the same losses. A user's is compared on every example; a library's on many, including one of
    every label.

    Args:
        trainer (`Trainer`): With `compute_loss_func` or `compute_loss`.
        objective (`Objective`): The head's loss.
        examples (`ExampleBatches`): The training set.
        known (`dict`): The results of earlier calls, to which this one adds.

    Raises:
        InfluenceError: If the loss of a batch is not a mean of losses of its examples, if the model's own loss is not
            that of its head, or if the Gauss-Newton matrix is required and does not exist.
    """
    objective = copy.copy(objective)
    objective.bf16 = False  # formulas are compared, not digits
    head, overridden = objective.head, type(trainer).compute_loss is not Trainer.compute_loss
    items = Items(isinstance(head, TokenHead) and head.shift, isinstance(head, TokenHead) and head.reduction == "sum")
    key = (_class_digest(objective.model), trainer.args.label_smoothing_factor, head, type(trainer))
    if trainer.compute_loss_func is None and not overridden and key in known:  # checked before
        return None
    rows = _rows_of_every_label(examples, PROBED)
    # The loss of an example without any label is undefined or NaN.
    rows = rows[(items.count(examples.take(rows)[head.label_names[0]]) > 0).cpu().numpy()]
    if not len(rows):
        return None
    with torch.no_grad():
        if trainer.compute_loss_func is not None:
            return _resolve_loss_func(trainer, objective, items, examples, rows, known)
        batch = examples.take(rows)
        probe = [float(_batch_loss(trainer, objective, batch))] if overridden else []
        if key not in known or not _still_holds(known[key], objective, items, batch, probe):
            compare = _compare_overridden if overridden else _check_model_loss
            known[key] = replace(compare(trainer, objective, items, examples, rows), probe=probe)
    if known[key].is_head:
        return None
    _check_needs_no_outputs(trainer)
    return CustomComputeLoss(objective.model, trainer.compute_loss, known[key].items, probe)


def _still_holds(facts: LossFacts, objective: Objective, items: Items, batch: Batch, probe: Sequence[float]) -> bool:
    """Tell on a few examples whether an overridden loss still equals the head's, or else its earlier values."""
    if not (facts.is_head and probe):
        return facts.hold(probe)
    losses, labels = _mean_losses(objective, items, batch), batch[objective.head.label_names[0]]
    return _is_mean(losses.new_tensor(probe[0]), losses, items, labels)


def _class_digest(model: nn.Module) -> str:
    """Return a digest of all that the formula of a model's own loss may depend on.

    These are its class, configuration, attributes and buffers.
    """
    plain = without_adapters(model)
    config = plain.config.to_dict() if hasattr(plain, "config") else {}
    config.pop("problem_type", None)  # the model sets it when it first receives labels
    attributes = [
        f"{name}={value}"
        for name, value in sorted(vars(plain).items())
        if name not in ("training", "forward") and (isinstance(value, int | float | str) or callable(value))
    ]
    buffers = (part for pair in saved_buffers(plain).items() for part in pair)
    return hexdigest([str(type(plain)), str(config), *attributes, *buffers])


def _resolve_loss_func(
    trainer: Trainer,
    objective: Objective,
    items: Items,
    examples: ExampleBatches,
    rows: np.ndarray,
    known: dict[Hashable, LossFacts],
) -> CustomLoss:
    """Return the `compute_loss_func` of a trainer as the loss of single examples, after checking that it is a mean."""
    if objective.head.label_names != ("labels",):
        raise InfluenceError(
            "compute_loss_func: Trainer passes it no labels for this head, so that it cannot compute the loss; leave "
            "it out."
        )
    loss, raw = CustomLoss(trainer.compute_loss_func, replace(items, summed=False)), copy.copy(objective)
    raw.weight_decay = 0.0
    raw.use_loss(loss)
    batch = examples.take(rows)
    logits, labels = raw.logits(raw.theta, batch), raw.labels(batch)
    probe, key = loss.probed(logits, labels), (raw.head, items)
    if key not in known or not known[key].hold(probe):
        losses = torch.cat([raw.losses(raw.theta, examples.take([row])) for row in rows])
        whole = loss.of_batch(logits, labels)
        known[key] = LossFacts(check_mean("compute_loss_func", items, whole, losses, batch["labels"]), False, probe)
    return replace(loss, items=known[key].items, probe=tuple(probe))


def _check_model_loss(
    trainer: Trainer, objective: Objective, items: Items, examples: ExampleBatches, rows: np.ndarray
) -> LossFacts:
    """Refuse a model whose own loss is not that of its head."""
    losses, expected = _losses_alone(trainer, objective, items, examples, rows)
    if not close(losses, expected):
        raise InfluenceError(
            f"model: for single examples {type(trainer.model).__name__} gives the losses {losses.tolist()}, but its "
            f"head should give {expected.tolist()}; influence functions do not support this loss. Give it as "
            "compute_loss_func(outputs, labels, num_items_in_batch), or disable the terms that the model adds to it "
            "(in a mixture of experts with config.output_router_logits=False)."
        )
    if isinstance(objective.head, SpanHead):  # its batch loss is no mean, since it leaves out truncated answers
        return LossFacts(items, is_head=True)
    batch = examples.take(rows)
    whole, labels = _batch_loss(trainer, objective, batch), batch[objective.head.label_names[0]]
    if not _is_mean(whole, expected, items, labels):
        raise InfluenceError(
            f"model: for a batch {type(trainer.model).__name__} gives the loss {float(whole):.6g}, which is not a "
            f"mean of the losses of its examples ({expected.tolist()}), for example because of class weights; "
            "influence functions do not support this loss. Give it as compute_loss_func(outputs, labels, "
            "num_items_in_batch)."
        )
    return LossFacts(items, is_head=True)


def _compare_overridden(
    trainer: Trainer, objective: Objective, items: Items, examples: ExampleBatches, rows: np.ndarray
) -> LossFacts:
    """Compare an overridden `compute_loss` with the loss of the head: on a few rows alone, on many in batches."""
    rows = rows[:: -(-len(rows) // ALONE)]
    losses, expected = _losses_alone(trainer, objective, items, examples, rows)
    is_head = close(losses, expected) and _is_head_loss(trainer, objective, items, examples)
    if not is_head:
        _check_needs_no_outputs(trainer)
    batch, name = examples.take(rows), f"{type(trainer).__name__}.compute_loss"
    whole = _batch_loss(trainer, objective, batch)
    return LossFacts(check_mean(name, items, whole, losses, batch[objective.head.label_names[0]]), is_head)


def _losses_alone(
    trainer: Trainer, objective: Objective, items: Items, examples: ExampleBatches, rows: np.ndarray
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the losses (n,) of single examples according to `compute_loss`, and according to the head."""
    singles = [examples.take([row]) for row in rows]
    losses = torch.stack([_batch_loss(trainer, objective, one) for one in singles])
    return losses, torch.cat([_mean_losses(objective, items, one) for one in singles]).to(losses)


def _is_head_loss(trainer: Trainer, objective: Objective, items: Items, examples: ExampleBatches) -> bool:
    """Tell whether an overridden loss is the head's: a user's on every row, a library's on many."""
    rows = np.arange(len(examples))
    if _overrider(trainer).__module__.partition(".")[0] in LIBRARIES:
        rows = _rows_of_every_label(examples, COMPARED)
    for start in range(0, len(rows), COMPARED_BATCH):
        batch = examples.take(rows[start : start + COMPARED_BATCH])
        labels = batch[objective.head.label_names[0]]
        labelled = items.count(labels) > 0
        if not labelled.any():
            continue
        batch = {name: values[labelled] for name, values in batch.items()}
        labels, whole = labels[labelled], _batch_loss(trainer, objective, batch)
        if not _is_mean(whole, _mean_losses(objective, items, batch), items, labels):
            return False
    return True


def _overrider(trainer: Trainer) -> type:
    """Return the class that defines a trainer's `compute_loss`."""
    return next(kind for kind in type(trainer).__mro__ if "compute_loss" in vars(kind))


def _is_mean(whole: torch.Tensor, losses: torch.Tensor, items: Items, labels: torch.Tensor) -> bool:
    """Tell whether a batch's loss is the mean over its examples, or over their labelled places."""
    return close(whole, weighted_mean(losses, items, labels).to(whole)) or close(whole, losses.mean().to(whole))


def _rows_of_every_label(examples: ExampleBatches, count: int) -> np.ndarray:
    """Choose rows from all over a dataset, and one of each label, so that special treatment of rare labels shows."""
    chosen = set(np.linspace(0, len(examples) - 1, count).astype(int).tolist())
    for column in ("label", "labels"):
        feature = examples.dataset.features.get(column)
        if isinstance(feature, Value | ClassLabel) and feature.dtype.startswith("int"):
            labels = examples.dataset.with_format("arrow")[:][column].to_numpy()
            chosen |= set(np.unique(labels, return_index=True)[1][:MAX_LABELS].tolist())
    return np.array(sorted(chosen))


def _batch_loss(trainer: Trainer, objective: Objective, batch: Batch) -> torch.Tensor:
    """Return the loss of a batch according to `compute_loss`, for the same model inputs as in influence."""
    inputs = {name: values for name, values in batch.items() if name not in objective.head.label_names}
    return trainer.compute_loss(objective.model, batch | objective.head.inputs(inputs, batch))


def _check_needs_no_outputs(trainer: Trainer) -> None:
    """Refuse the Gauss-Newton matrix for a loss that is not known as a function of outputs."""
    if trainer.args.curvature == "gauss_newton" and trainer.args.solver != "identity":
        raise InfluenceError(
            f"{type(trainer).__name__}.compute_loss is overridden and differs from the loss of the model's head. The "
            "Gauss-Newton matrix requires a loss that is a function of outputs: give it as compute_loss_func(outputs, "
            "labels, num_items_in_batch) instead of overriding, or set curvature='hessian' or solver='identity'."
        )


def _mean_losses(objective: Objective, items: Items, batch: Batch) -> torch.Tensor:
    """Return the loss (B,) of each example, averaged over its items, as `Trainer` does for a batch of one."""
    losses = objective.losses_of_logits(objective.logits(objective.theta, batch), objective.labels(batch))
    return losses / items.count(batch["labels"]).clamp_min(1) if items.summed else losses
