"""The per-example loss of a sequence classifier, as a function of its trainable parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel
from transformers.utils import logging

from hf_fastif.parameters import ParameterSpace


logger = logging.get_logger(__name__)

Batch = dict[str, torch.Tensor]
STATES = "frozen_states"  # the entry of a batch (B, T, hidden) that a model goes on from


@dataclass(frozen=True)
class FrozenLayers:
    """The first layers of an encoder, none of which is trained.

    Attributes:
        layers (`Sequence[torch.nn.Module]`): The layers.
        rest (`tuple`, *optional*): What they return behind the states; None if they return the states alone.
    """

    layers: Sequence[nn.Module]
    rest: tuple | None

    @contextmanager
    def skipped(self, states: torch.Tensor) -> Iterator[None]:
        """Lets the model go on from the states (B, T, hidden) of a batch, as if its frozen layers had made them."""
        answer = states if self.rest is None else (states, *self.rest)
        before = [layer.__dict__.get("forward") for layer in self.layers]
        for layer in self.layers:
            layer.forward = lambda *_args, **_kwargs: answer
        try:
            yield
        finally:
            for layer, forward in zip(self.layers, before, strict=True):
                del layer.forward
                if forward is not None:
                    layer.forward = forward


class Objective:
    """The loss L(z, theta) of single examples z, and the outputs it is a function of.

    It is the loss that `Trainer` averages over a batch: cross entropy (with the label smoothing of training), mean
    squared error for regression, binary cross entropy for multi-label heads. Weight decay stays out of it unless
    asked for.

    Args:
        model (`PreTrainedModel`): A model with a sequence-classification head, unwrapped.
        label_smoothing (`float`, *optional*, defaults to 0): `TrainingArguments.label_smoothing_factor`.
        weight_decay (`float`, *optional*, defaults to 0): w of a term w ||theta||^2 in every loss, as the authors of
            FastIF have it; it gives all influences one common offset.
        decayed (`Sequence[str]`, *optional*): Names of the parameters in that term.
        bf16 (`bool`, *optional*, defaults to `False`): Runs the model in bfloat16 autocast.
    """

    def __init__(
        self,
        model: nn.Module,
        label_smoothing: float = 0.0,
        weight_decay: float = 0.0,
        decayed: Sequence[str] = (),
        bf16: bool = False,
    ):
        self.model = model
        self.space = ParameterSpace(model)
        self.theta = self.space.parameters
        self.label_smoothing = label_smoothing
        self.weight_decay = weight_decay
        self.decayed = [name for name in decayed if name in self.theta]
        self.bf16 = bf16
        self.frozen: FrozenLayers | None = None  # what batches with states of their own skip

    def logits(self, theta: Mapping[str, torch.Tensor], batch: Batch) -> torch.Tensor:
        """The outputs (B, C) of the model with the parameters `theta`."""
        inputs = {name: value for name, value in batch.items() if name not in ("labels", STATES)}
        with ExitStack() as stack:
            if self.bf16:
                stack.enter_context(torch.autocast(next(iter(theta.values())).device.type, torch.bfloat16))
            if STATES in batch:
                stack.enter_context(self.frozen.skipped(batch[STATES]))
            logits = functional_call(self.model, theta, (), inputs).logits
        logits = logits.float() if self.bf16 else logits
        if logits.ndim != 2:
            raise ValueError(
                f"model: {type(self.model).__name__} returned logits of shape {tuple(logits.shape)}; influence needs "
                "a sequence-classification head, whose logits have the shape (batch, labels)."
            )
        return logits

    def losses_of_logits(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The loss (B,) of each example, given its outputs (B, C)."""
        if self._problem_type(labels) == "single_label_classification":
            return F.cross_entropy(logits, labels.view(-1), reduction="none", label_smoothing=self.label_smoothing)
        labels = labels.to(logits.dtype).view_as(logits)
        if self._problem_type(labels) == "regression":
            return F.mse_loss(logits, labels, reduction="none").mean(-1)
        return F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(-1)

    def losses(self, theta: Mapping[str, torch.Tensor], batch: Batch) -> torch.Tensor:
        """The loss (B,) of each example of a batch."""
        losses = self.losses_of_logits(self.logits(theta, batch), batch["labels"])
        if self.weight_decay:
            losses = losses + self.weight_decay * sum(theta[name].square().sum() for name in self.decayed)
        return losses

    def gradient(self, batch: Batch) -> torch.Tensor:
        """The gradient (P,) of the mean loss of a batch."""
        loss = self.losses(self.theta, batch).mean()
        return self.space.join(torch.autograd.grad(loss, list(self.theta.values()), allow_unused=True))

    def output_rank(self, labels: torch.Tensor) -> int:
        """The rank of d2 L / d f^2 of one example: of C outputs the cross entropy sees C - 1 differences."""
        return self.model.config.num_labels - (self._problem_type(labels) == "single_label_classification")

    def _problem_type(self, labels: torch.Tensor) -> str:
        # The same inference as in transformers' own classification loss, without writing to the config.
        config = self.model.config
        if config.problem_type is not None:
            return config.problem_type
        if config.num_labels == 1:
            return "regression"
        return "multi_label_classification" if labels.is_floating_point() else "single_label_classification"


@contextmanager
def differentiable(model: nn.Module) -> Iterator[None]:
    """Puts a model into the state that exact derivatives need, and gives it back as it was.

    Dropout off; attention eager, since fused kernels have neither a forward-mode nor a second derivative; and the
    autocast that Accelerate wraps around `forward` when it trains in bf16 or fp16 taken off.

    Raises:
        ValueError: If the model's attention is fused and cannot be switched.
    """
    training = [module for module in model.modules() if module.training]
    patched_forward = model.__dict__.pop("forward", None)
    attention = _switch_to_eager(model)
    model.eval()
    try:
        with sdpa_kernel(SDPBackend.MATH):  # for modules that call torch's attention by themselves
            yield
    finally:
        for module in training:
            module.training = True
        if attention is not None:
            model.set_attn_implementation(attention)
        if patched_forward is not None:
            model.forward = patched_forward


def _switch_to_eager(model: nn.Module) -> str | None:
    """Sets eager attention; returns the name of the one that was set before, or None if there is nothing to undo."""
    if not isinstance(model, PreTrainedModel) or model.config._attn_implementation in (None, "eager"):
        return None
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    # torch's own attention needs no switch: the math kernel stands in for it.
    if model.config._attn_implementation != "eager" and before != "sdpa":
        raise ValueError(
            f"model: the attention of {type(model).__name__} is {before!r}, which has no second derivative, and it "
            "cannot be switched; load the model with attn_implementation='eager'."
        )
    logger.warning_once(
        f"Attention is switched from {before!r} to 'eager' while influence is computed, and back afterwards: fused "
        "kernels have no forward-mode derivative."
    )
    return before
