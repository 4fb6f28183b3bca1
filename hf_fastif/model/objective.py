"""The per-example loss of a model, as a function of its trainable parameters."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from hf_fastif.artifacts import loss_identity
from hf_fastif.errors import InfluenceError
from hf_fastif.model.compiled import take_compiled_calls
from hf_fastif.model.custom_loss import CustomComputeLoss, CustomLoss
from hf_fastif.model.heads import Batch, TokenHead, head_of, takes_positions
from hf_fastif.model.measures import LOSS, Measure, measured_loss, probe
from hf_fastif.model.output_layer import selecting_places, vocabulary_layer
from hf_fastif.model.parameters import (
    ParameterSpace,
    load_parameters_,
    model_fingerprint,
    trained_state,
    without_adapters,
)
from hf_fastif.settings import Reduction


logger = logging.get_logger(__name__)

GRADIENT_HOOK = "make_inputs_require_grad"
STATES = "frozen_states"  # the entry of a batch (B, T, hidden) that a model resumes from


@dataclass(frozen=True)
class FrozenLayers:
    """The first layers of an encoder, none of which is trained.

    Attributes:
        layers (`Sequence[torch.nn.Module]`): The layers.
        rest (`tuple`, *optional*): What they return after the states; None if they return only the states.
    """

    layers: Sequence[nn.Module]
    rest: tuple | None

    @contextmanager
    def skipped(self, states: torch.Tensor) -> Iterator[None]:
        """Let the model resume from the states (B, T, hidden) of a batch instead of running its frozen layers."""
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
    """The loss L(z, theta) of single examples z, and the outputs that it depends on.

    It is the loss that `Trainer` minimises: cross entropy (with the label smoothing of training), mean squared error
    for regression, binary cross entropy for multi-label heads, or a custom loss. `Trainer` gives every labelled token
    of a batch the same weight, regardless of its example. The loss of an example with several tokens is therefore
    their sum, unless `reduction="mean"`. Weight decay is excluded by default.

    Args:
        model (`PreTrainedModel` or `PeftModel`): The unwrapped model.
        label_smoothing (`float`, *optional*, defaults to 0): `TrainingArguments.label_smoothing_factor`.
        weight_decay (`float`, *optional*, defaults to 0): w of a term w ||theta||^2 in every loss, as in the FastIF
            authors' code; it shifts all influences by a common offset.
        decayed (`Sequence[str]`, *optional*): Names of the parameters in that term.
        bf16 (`bool`, *optional*, defaults to `False`): Runs the model in bfloat16 autocast.
        reduction (`"sum"` or `"mean"`, *optional*, defaults to `"sum"`): How the losses of an example's tokens are
            combined.
    """

    def __init__(
        self,
        model: nn.Module,
        label_smoothing: float = 0.0,
        weight_decay: float = 0.0,
        decayed: Sequence[str] = (),
        bf16: bool = False,
        reduction: Reduction = "sum",
    ):
        self.model = model
        self.space = ParameterSpace(model)
        self.theta = self.space.parameters
        self.head = head_of(model, reduction)
        # Trainer smooths only losses whose labels are called "labels".
        self.label_smoothing = label_smoothing if self.head.label_names == ("labels",) else 0.0
        self.weight_decay = weight_decay
        self.decayed = [name for name in decayed if name in self.theta]
        self.bf16 = bf16
        self.frozen: FrozenLayers | None = None  # skipped for batches with cached states
        self.custom_loss: CustomLoss | None = None  # replaces the head's loss
        self.custom_compute_loss: CustomComputeLoss | None = None  # replaces outputs and loss
        self.measure: Measure | None = None  # replaces any loss
        self.measure_digest = ""  # of its values on fixed outputs
        self.measured = LOSS  # name of the differentiated function, for messages and manifests
        self._fingerprint: str | None = None  # cached, since only `holding` changes weights meanwhile
        self.forward_mode = True  # until an operation proves to have none
        self.selects_early = True  # until the model proves to use its output layer in another way

    def use_loss(self, loss: CustomLoss | CustomComputeLoss | None) -> None:
        """Replace the head's loss by a custom one."""
        if isinstance(loss, CustomComputeLoss):
            self.custom_compute_loss = loss
            return
        self.custom_loss = loss
        if loss is not None and isinstance(self.head, TokenHead):
            self.head = replace(self.head, whole=True)

    def measuring(self, measure: Measure, batch: Batch, tokenizer: PreTrainedTokenizerBase | None = None) -> Objective:
        """Return this objective with a measure in place of its loss.

        Args:
            measure (`Measure`): The measure.
            batch (`Batch`): Any examples, which tell how many outputs there are.
            tokenizer (`PreTrainedTokenizerBase`, *optional*): Knows the ids of tokens that the measure names.

        Raises:
            InfluenceError: If the measure does not suit the model.
        """
        if not isinstance(measure, Measure):
            raise InfluenceError(f"measure={measure!r}: give a Measure, such as Margin() or Logit('entailment').")
        measured = copy.copy(self)
        measured.custom_compute_loss = measured.custom_loss = None
        if isinstance(self.head, TokenHead):
            measured.head = replace(self.head, whole=False)  # as before `use_loss`: only labelled places, shifted
        with torch.no_grad():
            size = measured.logits(measured.theta, batch).shape[-1]
        measured.measure = measure.bound_to(self.model, measured.head, size, tokenizer)
        measured.measured, measured.weight_decay = repr(measure), 0.0
        measured.measure_digest = probe(measured.measure, measured.head, size)
        return measured

    @property
    def loss_identity(self) -> str:
        """Return a digest of the loss for manifests: its settings, and the probe of a custom loss, if there is one."""
        settings = {
            "label_smoothing": self.label_smoothing,
            "weight_decay": self.weight_decay,
            "reduction": getattr(self.head, "reduction", None),
            "bf16": self.bf16,
        }
        custom = self.custom_compute_loss or self.custom_loss
        return loss_identity(custom.name if custom else "", custom.probe if custom else (), **settings)

    @property
    def training_loss_identity(self) -> str:
        """Return a digest of the training loss for checkpoints, made of what stays the same throughout training."""
        name = (
            self.custom_compute_loss.name
            if self.custom_compute_loss
            else self.custom_loss.name
            if self.custom_loss
            else ""
        )
        probe = self.custom_loss.probe if self.custom_loss else ()
        return loss_identity(
            name, probe, label_smoothing=self.label_smoothing, overridden=self.custom_compute_loss is not None
        )

    @property
    def fingerprint(self) -> str:
        """Return a digest of the model's current weights, and of which of them are trained."""
        if self._fingerprint is None:
            self._fingerprint = model_fingerprint(self.model)
        return self._fingerprint

    @contextmanager
    def holding(self, values: Mapping[str, torch.Tensor]) -> Iterator[None]:
        """Put other parameters and buffers, by name, into the model, and restore the original ones afterwards."""
        tensors = {name: tensor for name, tensor in trained_state(self.model).items() if name in values}
        before = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        fingerprint, self._fingerprint = self._fingerprint, None
        try:
            load_parameters_(tensors, values)
            yield
        finally:
            load_parameters_(tensors, before)
            self._fingerprint = fingerprint

    @property
    def rounds(self) -> bool:
        """Tell whether the model runs in half precision, in which outputs have two or three digits."""
        return self.bf16 or any(p.dtype in (torch.bfloat16, torch.float16) for p in self.model.parameters())

    @property
    def takes_positions(self) -> bool:
        """Tell whether the model accepts position numbers."""
        return takes_positions(self.model)

    def labels(self, batch: Batch) -> torch.Tensor:
        """Return the labels (B, ...) of a batch, one for each place at which its examples have outputs."""
        return self.head.labels(batch)

    def logits(self, theta: Mapping[str, torch.Tensor], batch: Batch) -> torch.Tensor:
        """Return the outputs (B, ..., C) of the model with the parameters `theta`, at the places with labels.

        Raises:
            InfluenceError: If the outputs do not have the shape of a known head.
        """
        logits = self._outputs(theta, batch)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if logits.ndim != 2 + self.head.has_token_outputs:
            raise InfluenceError(
                f"model: {type(self.model).__name__} returned logits of shape {tuple(logits.shape)}, which match no "
                "supported head; give a transformers model for classification (of sequences, images, choices or "
                "tokens), language modelling, sequence to sequence or question answering."
            )
        return logits

    def run(self, theta: Mapping[str, torch.Tensor], batch: Batch) -> Any:
        """Return what the model with the parameters `theta` returns for a batch, with outputs at all places."""
        inputs = {name: value for name, value in batch.items() if name not in (*self.head.label_names, STATES)}
        inputs = self.head.inputs(inputs, batch)
        with ExitStack() as stack:
            if self.bf16:
                stack.enter_context(torch.autocast(next(iter(theta.values())).device.type, torch.bfloat16))
            if STATES in batch:
                stack.enter_context(self.frozen.skipped(batch[STATES]))
            if theta is self.theta:
                return self.model(**inputs)
            placed = {place: theta[name] for place, name in self.space.places.items()}
            return functional_call(self.model, placed, (), inputs, tie_weights=False)

    def _outputs(self, theta: Mapping[str, torch.Tensor], batch: Batch) -> torch.Tensor:
        """Return the outputs that the head selects; a large output layer computes no others if the model permits."""
        layer = vocabulary_layer(self.model, self.head) if self.selects_early else None
        if layer is not None:
            with selecting_places(layer, self.head, batch) as calls:
                output = self.run(theta, batch)
            if calls == [output.logits.shape[:-1]]:
                return output.logits
            self.selects_early = False
        return self.head.outputs(self.run(theta, batch), batch)

    def losses_of_logits(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the loss (B,) of each example, given its outputs (B, ..., C)."""
        if self.measure is not None:
            return measured_loss(self.measure, logits, labels)
        if self.custom_loss is not None:
            return self.custom_loss(logits, labels)
        kind = self.problem_type(labels)
        if kind == "single_label_classification":
            losses = self.losses_of_places(logits, labels)
            return losses.sum(dim=1) if self.head.has_token_outputs else losses
        labels = labels.to(logits.dtype).view_as(logits)
        if kind == "regression":
            return F.mse_loss(logits, labels, reduction="none").mean(-1)
        return F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(-1)

    def losses_of_places(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the cross entropy (B, ...) at each place, times its weight in the loss of its example."""
        outputs, targets = logits.flatten(0, -2), labels.flatten()
        losses = F.cross_entropy(outputs, targets, reduction="none", label_smoothing=self.label_smoothing)
        losses = losses.view(logits.shape[:-1])
        return losses * self.head.weights(labels, losses.dtype) if self.head.has_token_outputs else losses

    def losses(self, theta: Mapping[str, torch.Tensor], batch: Batch) -> torch.Tensor:
        """Return the loss (B,) of each example of a batch."""
        if self.custom_compute_loss is not None:
            losses = self.custom_compute_loss.losses(theta, batch)
        else:
            losses = self.losses_of_logits(self.logits(theta, batch), self.labels(batch))
        if self.weight_decay:
            losses = losses + self.weight_decay * sum(theta[name].to(losses).square().sum() for name in self.decayed)
        return losses

    def gradient(self, batch: Batch) -> torch.Tensor:
        """Return the gradient (P,) of the mean loss of a batch."""
        loss = self.losses(self.theta, batch).mean()
        return self.space.join(torch.autograd.grad(loss, list(self.theta.values()), allow_unused=True))

    def output_rank(self, batch: Batch) -> float:
        """Return the rank of d2 L / d f^2 of one example; infinite if it is too large to form rows of Jacobians.

        The cross entropy of C outputs depends on C - 1 differences. A custom loss may depend on all outputs.
        """
        if self.head.has_token_outputs:
            return math.inf
        config = without_adapters(self.model).config
        count = batch["input_ids"].shape[1] if self.head.choices else config.num_labels
        labels = self.labels(batch)
        return count - (self.custom_loss is None and self.problem_type(labels) == "single_label_classification")

    def problem_type(self, labels: torch.Tensor) -> str:
        """Return the kind of loss, in the terms of `config.problem_type`."""
        # The same inference as in transformers' own classification loss, without writing to the config.
        config = without_adapters(self.model).config
        if self.head.has_token_outputs or self.head.choices:
            return "single_label_classification"
        if config.problem_type is not None:
            return config.problem_type
        if config.num_labels == 1:
            return "regression"
        return "multi_label_classification" if labels.is_floating_point() else "single_label_classification"


@contextmanager
def differentiable(model: nn.Module) -> Iterator[None]:
    """Put a model into the state that exact derivatives require, and restore its previous state afterwards.

    Dropout is off. Attention and experts run eagerly, since fused kernels have neither a forward-mode nor a second
    derivative. The autocast that Accelerate wraps around `forward` for training in bf16 or fp16 is removed. So are
    compiled calls, and the hooks that make embeddings require gradients, which gradient checkpointing of adapters sets
    and forward mode does not support.

    Raises:
        InfluenceError: If the model's attention is fused and cannot be switched.
    """
    training = [module for module in model.modules() if module.training]
    plain, patched_forward = without_adapters(model), model.__dict__.get("forward")
    attention, experts, hooks = _switch_to_eager(plain), _eager_experts(plain), _without_gradient_hooks(model)
    compiled = take_compiled_calls(model)
    if "_original_forward" in model.__dict__:  # the method that Accelerate wrapped
        model.forward = model._original_forward
    model.eval()
    try:
        with sdpa_kernel(SDPBackend.MATH):  # for modules that call torch's attention directly
            yield
    finally:
        for module in training:
            module.training = True
        if attention is not None:
            plain.set_attn_implementation(attention)
        if experts is not None:
            plain.set_experts_implementation(experts)
        if patched_forward is not None:
            model.forward = patched_forward
        for module, call in compiled:
            module._compiled_call_impl = call
        for module, removed in hooks:
            module._forward_hooks.update(removed)


def _without_gradient_hooks(model: nn.Module) -> list[tuple[nn.Module, dict[int, Callable]]]:
    """Remove and return the hooks of transformers and PEFT that make the outputs of embeddings require gradients."""
    removed = []
    for module in model.modules():
        gradient_hooks = {
            i: hook
            for i, hook in module._forward_hooks.items()
            if getattr(hook, "__name__", "").startswith(GRADIENT_HOOK)
        }
        for i in gradient_hooks:
            del module._forward_hooks[i]
        if gradient_hooks:
            removed.append((module, gradient_hooks))
    return removed


def _switch_to_eager(model: nn.Module) -> str | None:
    """Switch to eager attention and return the name of the previous one, or None if there is nothing to undo."""
    if not isinstance(model, PreTrainedModel) or model.config._attn_implementation in (None, "eager"):
        return None
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    # torch's attention needs no switch, since `differentiable` selects its math kernel.
    if model.config._attn_implementation != "eager" and before != "sdpa":
        raise InfluenceError(
            f"model: the attention of {type(model).__name__} is {before!r}, which has no second derivative and cannot "
            "be switched; load the model with attn_implementation='eager'."
        )
    logger.warning_once(
        f"Attention is switched from {before!r} to 'eager' while influence is computed, since fused kernels have no "
        "forward-mode derivative."
    )
    return before


def _eager_experts(model: nn.Module) -> dict[str, str | None] | None:
    """Compute mixtures of experts one expert at a time; return the previous setting, or None without experts."""
    parts = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    if not isinstance(model, PreTrainedModel) or not any(part._can_set_experts_implementation() for part in parts):
        return None
    before = model.get_experts_implementation()
    model.set_experts_implementation("eager")
    return before
