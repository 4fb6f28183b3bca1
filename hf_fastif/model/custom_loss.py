"""Losses that the user computes, for single examples: `compute_loss_func`, or a `compute_loss` that is overridden."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn
from torch.func import functional_call
from transformers.modeling_outputs import ModelOutput

from hf_fastif.errors import InfluenceError
from hf_fastif.model.heads import IGNORED, Batch
from hf_fastif.model.parameters import places_of


PROBED_CLASSES = 1000


@dataclass(frozen=True)
class Items:
    """What the loss of a batch is a mean over.

    Attributes:
        shift (`bool`): Whether the first token of an example is no item, as in causal language models.
        summed (`bool`): Whether the loss of an example is its mean over its items times their number.
    """

    shift: bool
    summed: bool = False

    def count(self, labels: torch.Tensor) -> torch.Tensor:
        """How many labelled places (B,) each example has."""
        labels = labels[:, 1:] if self.shift else labels
        return (labels != IGNORED).reshape(len(labels), -1).sum(dim=1)

    def scaled(self, means: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The losses (B,) of examples, given those that are means over their items."""
        return means * self.count(labels) if self.summed else means


@dataclass(frozen=True)
class CustomLoss:
    """`compute_loss_func`, for single examples, as a function of their outputs.

    The loss of an example is what the function gives for it alone, with `num_items_in_batch` its labelled places.

    Attributes:
        function (`Callable`): `compute_loss_func(outputs, labels, num_items_in_batch=...)`.
        items (`Items`): What it is a mean over.
        probe (`tuple[float, ...]`): What `probed` gave.
    """

    function: Callable[..., torch.Tensor]
    items: Items
    probe: tuple[float, ...] = ()

    @property
    def name(self) -> str:
        """What people call it."""
        return getattr(self.function, "__qualname__", type(self.function).__name__)

    def of_batch(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The loss of a batch, given its outputs (B, ..., C)."""
        count = self.items.count(labels).sum()
        return self.function(ModelOutput(logits=logits), labels, num_items_in_batch=count)

    def probed(self, logits: torch.Tensor, labels: torch.Tensor) -> list[float]:
        """What the function gives for made-up outputs of the same shape: it tells functions apart, and never models.

        Where labels are classes, each class is tried.
        """
        if labels.ndim == 1 and not labels.is_floating_point():
            labels = torch.arange(min(logits.shape[-1], PROBED_CLASSES), device=labels.device)
        shape = (len(labels), *logits.shape[1:])
        made_up = torch.from_numpy(np.random.default_rng(0).standard_normal(shape)).to(logits)
        with torch.no_grad():
            return self(made_up, labels).tolist()

    def __call__(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The loss (B,) of each example, given its outputs (B, ..., C)."""
        singles = zip(logits.split(1), labels.split(1), strict=True)
        means = torch.stack([self.of_batch(z, label).reshape(()) for z, label in singles])
        return self.items.scaled(means, labels)


class CustomComputeLoss(nn.Module):
    """A `compute_loss` that is overridden, for single examples, as a function of the parameters alone.

    What the loss makes of the model's outputs is not known, so there is no Gauss-Newton matrix.

    Args:
        model (`torch.nn.Module`): The model.
        compute_loss (`Callable`): The trainer's.
        items (`Items`): What its loss is a mean over.
        probe (`Sequence[float]`, *optional*): What it gives for a few examples, at the model as it is.
    """

    name = "compute_loss"

    def __init__(
        self,
        model: nn.Module,
        compute_loss: Callable[[nn.Module, Batch], torch.Tensor],
        items: Items,
        probe: Sequence[float] = (),
    ):
        super().__init__()
        self.model = model
        self.compute_loss = compute_loss
        self.items = items
        self.probe = tuple(probe)

    def forward(self, batch: Batch) -> torch.Tensor:
        """The loss of a batch."""
        return self.compute_loss(self.model, dict(batch))

    def losses(self, theta: Mapping[str, torch.Tensor], batch: Batch) -> torch.Tensor:
        """The loss (B,) of each example of a batch, which is computed alone."""
        trained = {name: p for name, p in self.model.named_parameters() if name in theta}
        placed = {f"model.{place}": theta[name] for place, name in places_of(self.model, trained).items()}
        size = len(next(iter(batch.values())))
        singles = [{name: values[i : i + 1] for name, values in batch.items()} for i in range(size)]
        losses = [functional_call(self, placed, (single,), tie_weights=False) for single in singles]
        means = torch.stack([loss.reshape(()) for loss in losses])
        return self.items.scaled(means, batch["labels"]) if self.items.summed else means


def check_mean(name: str, items: Items, whole: torch.Tensor, singles: torch.Tensor, labels: torch.Tensor) -> Items:
    """How the loss of a batch is a mean of those of its examples: over labelled tokens, or over examples.

    Args:
        name (`str`): Of the loss.
        items (`Items`): Counts labelled tokens; `summed` says whether an example's loss may be their sum.
        whole (`torch.Tensor`): The loss of a batch.
        singles (`torch.Tensor` of shape `(B,)`): The loss of each of its examples alone.
        labels (`torch.Tensor`): Their labels.

    Raises:
        ValueError: If it is neither.
    """
    if close(whole, weighted_mean(singles, items, labels)):
        return items
    if close(whole, singles.mean()):
        return replace(items, summed=False)
    raise InfluenceError(
        f"{name}: the loss of a batch of {len(singles)} is {float(whole):.6g}, and those of its examples alone are "
        f"{', '.join(f'{loss:.6g}' for loss in singles.tolist())}, whose mean is another. Influence needs the loss of "
        "single examples: sum over examples (or labelled tokens) and divide by their number, as in compute_loss_func="
        "lambda outputs, labels, num_items_in_batch: F.cross_entropy(outputs.logits, labels, weight=weights, "
        "reduction='sum') / num_items_in_batch."
    )


def weighted_mean(losses: torch.Tensor, items: Items, labels: torch.Tensor) -> torch.Tensor:
    """The mean of the losses (B,) of examples, each as often as it has labelled places."""
    counts = items.count(labels).to(losses.dtype)
    return (losses * counts).sum() / counts.sum()


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether losses are the same."""
    # Padding moves the last bits.
    rough = torch.finfo(expected.dtype).eps > 1e-3
    return torch.allclose(found, expected, rtol=5e-2 if rough else 1e-3, atol=1e-5, equal_nan=True)
