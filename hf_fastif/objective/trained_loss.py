"""The loss that training minimises, whoever computes it: found out on a few examples, and refused if it is none."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import torch
from transformers import Trainer

from hf_fastif.batches import ExampleBatches
from hf_fastif.errors import InfluenceError
from hf_fastif.objective.heads import Batch, TokenHead
from hf_fastif.objective.objective import Objective
from hf_fastif.objective.own_loss import Items, OwnLoss, OwnStep, check_mean, close


PROBED = 8  # examples, from all over the dataset, which may be sorted


def trained_loss(trainer: Trainer, objective: Objective, examples: ExampleBatches) -> OwnLoss | OwnStep | None:
    """What computes the loss of single examples: None if it is that of the model's head.

    A `compute_loss` that is overridden, as trl's are, counts as the head's if it gives the same losses.

    Args:
        trainer (`Trainer`): With `compute_loss_func` or `compute_loss`.
        objective (`Objective`): The head's loss.
        examples (`ExampleBatches`): Some examples.

    Raises:
        ValueError: If the loss of a batch is no mean of losses of its examples, or the Gauss-Newton matrix is asked
            for and there is none, or the model's own loss is not that of its head.
    """
    objective = copy.copy(objective)
    objective.bf16 = False  # what is compared is formulas, not digits
    head, overridden = objective.head, type(trainer).compute_loss is not Trainer.compute_loss
    shift = isinstance(head, TokenHead) and head.shift
    items = Items(shift, summed=isinstance(head, TokenHead) and head.reduction == "sum")
    tried = {int(row): examples.take([row]) for row in np.linspace(0, len(examples) - 1, PROBED).astype(int)}
    # An example without any label has no loss at all, or one that is not a number.
    tried = {row: one for row, one in tried.items() if items.count(one[head.label_names[0]]).all()}
    if not tried:
        return None
    rows, alone = list(tried), list(tried.values())
    with torch.no_grad():
        if trainer.compute_loss_func is not None:
            return _own_loss(trainer, objective, items, examples.take(rows), alone)
        losses = torch.stack([trainer.compute_loss(objective.model, dict(one)) for one in alone])
        expected = torch.cat([_mean_loss(objective, items, one) for one in alone])
        same = close(losses, expected.to(losses))
        if not same:
            _check_other_loss(trainer, overridden, losses, expected)
        if overridden:
            batch = examples.take(rows)
            whole = trainer.compute_loss(objective.model, dict(batch))
            name = f"{type(trainer).__name__}.compute_loss"
            items = check_mean(name, items, whole, losses, batch[head.label_names[0]])
    return None if same else OwnStep(objective.model, trainer.compute_loss, items)


def _check_other_loss(trainer: Trainer, overridden: bool, losses: torch.Tensor, expected: torch.Tensor) -> None:
    """A loss that is not the head's must be one that is overridden, and needs a curvature that asks for no outputs."""
    if not overridden:
        raise InfluenceError(
            f"model: for single examples {type(trainer.model).__name__} gives the losses {losses.tolist()}, and its "
            f"head should give {expected.tolist()}; influence does not know this loss. Give it as compute_loss_func("
            "outputs, labels, num_items_in_batch), or leave out what the model adds to it (in a mixture of experts by "
            "config.output_router_logits=False)."
        )
    if trainer.args.curvature == "gauss_newton" and trainer.args.solver != "identity":
        raise InfluenceError(
            f"{type(trainer).__name__}.compute_loss is overridden and gives another loss than the model's head. The "
            "Gauss-Newton matrix takes a loss that is a function of outputs: give it as compute_loss_func(outputs, "
            "labels, num_items_in_batch) instead of overriding, or ask for curvature='hessian' or solver='identity'."
        )


def _own_loss(
    trainer: Trainer, objective: Objective, items: Items, batch: Batch, alone: list[Batch]
) -> OwnLoss | None:
    if objective.head.label_names != ("labels",):
        raise InfluenceError(
            "compute_loss_func: Trainer gives it no labels for this head, so that it cannot say what the loss is; "
            "leave it out."
        )
    found = OwnLoss(trainer.compute_loss_func, replace(items, summed=False))
    raw = Objective(objective.model)
    raw.head = replace(raw.head, positions=objective.head.positions)
    raw.use_loss(found)
    losses = torch.cat([raw.losses(raw.theta, one) for one in alone])
    whole = found.of_batch(raw.logits(raw.theta, batch), raw.labels(batch))
    items = check_mean("compute_loss_func", items, whole, losses, batch["labels"])
    same = close(losses, torch.cat([_mean_loss(objective, items, one) for one in alone]))
    return None if same else replace(found, items=items)


def _mean_loss(objective: Objective, items: Items, one: Batch) -> torch.Tensor:
    """The loss (1,) of an example, the mean over its items, as `Trainer` gives it for a batch of one."""
    loss = objective.losses_of_logits(objective.logits(objective.theta, one), objective.labels(one))
    return loss / items.count(one["labels"]).clamp_min(1) if items.summed else loss
