"""Custom losses of single examples: a `compute_loss_func`, or an overridden `compute_loss`."""

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
    """The units that a batch loss is averaged over: examples or labelled tokens.

    Attributes:
        shift (`bool`): Whether to skip the first token, which a causal LM does not predict.
        summed (`bool`): Whether to multiply an example's mean by its number of units.
    """

    shift: bool
    summed: bool = False

    def count(self, labels: torch.Tensor) -> torch.Tensor:
        """Return the number (B,) of labelled places of each example."""
        labels = labels[:, 1:] if self.shift else labels
        return (labels != IGNORED).reshape(len(labels), -1).sum(dim=1)

    def scaled(self, means: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the losses (B,) of examples, given their means over the items of each."""
        return means * self.count(labels) if self.summed else means


@dataclass(frozen=True)
class CustomLoss:
    """A `compute_loss_func` as a function from the outputs of single examples to their losses.

    The loss of an example is the value of the function for that example alone, with `num_items_in_batch` set to its
    number of labelled places.

    Attributes:
        function (`Callable`): `compute_loss_func(outputs, labels, num_items_in_batch=...)`.
        items (`Items`): The units that the function averages over.
        probe (`tuple[float, ...]`): The values that `probed` returned.
    """

    function: Callable[..., torch.Tensor]
    items: Items
    probe: tuple[float, ...] = ()

    @property
    def name(self) -> str:
        """Return the name of the function, for manifests and messages."""
        return getattr(self.function, "__qualname__", type(self.function).__name__)

    def of_batch(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the loss of a batch, given its outputs (B, ..., C)."""
        count = self.items.count(labels).sum()
        return self.function(ModelOutput(logits=logits), labels, num_items_in_batch=count)

    def probed(self, logits: torch.Tensor, labels: torch.Tensor) -> list[float]:
        """Return the losses of random outputs of the same shape, which identify the function independently of a model.

        If the labels are classes, each class is tried.
        """
        if labels.ndim == 1 and not labels.is_floating_point():
            labels = torch.arange(min(logits.shape[-1], PROBED_CLASSES), device=labels.device)
        shape = (len(labels), *logits.shape[1:])
        made_up = torch.from_numpy(np.random.default_rng(0).standard_normal(shape)).to(logits)
        with torch.no_grad():
            return self(made_up, labels).tolist()

    def __call__(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the loss (B,) of each example, given its outputs (B, ..., C)."""
        singles = zip(logits.split(1), labels.split(1), strict=True)
        means = torch.stack([self.of_batch(z, label).reshape(()) for z, label in singles])
        return self.items.scaled(means, labels)


class CustomComputeLoss(nn.Module):
    """An overridden `compute_loss` as a function from the parameters alone to the losses of single examples.

    How the loss depends on the model's outputs is unknown, so it has no Gauss-Newton matrix.

    Args:
        model (`torch.nn.Module`): The model.
        compute_loss (`Callable`): The trainer's method.
        items (`Items`): The units that its loss is averaged over.
        probe (`Sequence[float]`, *optional*): Its values for a few examples, at the current weights.
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
        """Return the loss of a batch."""
        return self.compute_loss(self.model, dict(batch))

    def losses(self, theta: Mapping[str, torch.Tensor], batch: Batch) -> torch.Tensor:
        """Return the loss (B,) of each example of a batch, computing each alone."""
        trained = {name: p for name, p in self.model.named_parameters() if name in theta}
        placed = {f"model.{place}": theta[name] for place, name in places_of(self.model, trained).items()}
        size = len(next(iter(batch.values())))
        singles = [{name: values[i : i + 1] for name, values in batch.items()} for i in range(size)]
        losses = [functional_call(self, placed, (single,), tie_weights=False) for single in singles]
        means = torch.stack([loss.reshape(()) for loss in losses])
        return self.items.scaled(means, batch["labels"]) if self.items.summed else means


def check_mean(name: str, items: Items, whole: torch.Tensor, singles: torch.Tensor, labels: torch.Tensor) -> Items:
    """Return the units that the loss of a batch averages over: labelled tokens, or examples.

    Args:
        name (`str`): Name of the loss, for the message.
        items (`Items`): Counts labelled tokens; `summed` says whether an example's loss may be a sum over them.
        whole (`torch.Tensor`): The loss of a batch.
        singles (`torch.Tensor` of shape `(B,)`): The loss of each of its examples alone.
        labels (`torch.Tensor`): Their labels.

    Raises:
        InfluenceError: If the loss is neither mean.
    """
    if close(whole, weighted_mean(singles, items, labels)):
        return items
    if close(whole, singles.mean()):
        return replace(items, summed=False)
    raise InfluenceError(
        f"{name}: the loss of a batch of {len(singles)} is {float(whole):.6g}, which is not the mean of the losses of "
        f"its examples alone, {', '.join(f'{loss:.6g}' for loss in singles.tolist())}. Influence functions need the "
        "loss of single examples: sum over examples (or labelled tokens) and divide by their number, as in "
        "compute_loss_func=lambda outputs, labels, num_items_in_batch: F.cross_entropy(outputs.logits, labels, "
        "weight=weights, reduction='sum') / num_items_in_batch."
    )


def weighted_mean(losses: torch.Tensor, items: Items, labels: torch.Tensor) -> torch.Tensor:
    """Return the mean of the losses (B,) of examples, weighted by their numbers of labelled places."""
    counts = items.count(labels).to(losses.dtype)
    return (losses * counts).sum() / counts.sum()


def close(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    """Tell whether losses agree up to rounding."""
    # Padding changes the last bits.
    rough = torch.finfo(expected.dtype).eps > 1e-3
    return torch.allclose(actual, expected, rtol=5e-2 if rough else 1e-3, atol=1e-5, equal_nan=True)
