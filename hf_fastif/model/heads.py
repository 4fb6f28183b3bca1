"""Heads: the outputs of a model that an example's loss depends on, and the labels of these outputs."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES,
    MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
)

from hf_fastif.model.parameters import without_adapters
from hf_fastif.settings import Reduction


Batch = dict[str, torch.Tensor]
IGNORED = -100  # the label of a place that is not predicted
NEVER = -1e4  # the output at a place outside an example


def with_positions(inputs: Batch) -> Batch:
    """Add position numbers that start at an example's first token, since padding on the left would shift them."""
    mask = inputs.get("attention_mask")
    if mask is None or "position_ids" in inputs or mask[..., 0].all():
        return inputs
    return inputs | {"position_ids": (mask.long().cumsum(dim=-1) - 1).clamp_min(0)}


@dataclass(frozen=True)
class ExampleHead:
    """One prediction per example: classification of a text, an image or choices, regression, or multiple labels.

    Outputs have the shape (B, C). Labels have the shape (B,), or (B, C) if each output has a separate label.

    Attributes:
        choices (`bool`): Whether the outputs are scores of several texts, with `input_ids` of shape (B, choices, T).
        positions (`bool`): Whether position numbers are counted from the attention mask.
    """

    choices: bool = False
    positions: bool = False

    label_names = ("labels",)
    has_token_outputs = False  # whether an example has several places, each with a prediction

    def inputs(self, inputs: Batch, _batch: Batch) -> Batch:
        """Return the inputs of the model, given a batch without its labels."""
        return with_positions(inputs) if self.positions else inputs

    def outputs(self, output: Any, _batch: Batch) -> torch.Tensor:
        """Return the outputs (B, C), given the model's return value."""
        return output.logits

    def labels(self, batch: Batch) -> torch.Tensor:
        """Return the labels of a batch, (B,) or (B, C)."""
        return batch["labels"]

    def rows(self, batch: Batch) -> int:
        """Return the number of rows that layers receive for a batch: one per choice of each example."""
        return len(batch["labels"]) * (batch["input_ids"].shape[1] if self.choices else 1)


def without_targets_of_padding(batch: Batch) -> Batch:
    """Hide the label of a token directly after padding: alone, an example's first token has no context either."""
    mask, labels = batch.get("attention_mask"), batch.get("labels")
    if mask is None or labels is None or mask.shape != labels.shape:
        return batch
    behind = (mask[:, 1:] != 0) & (mask[:, :-1] == 0)
    if not behind.any():
        return batch
    return batch | {"labels": torch.cat([labels[:, :1], labels[:, 1:].masked_fill(behind, IGNORED)], dim=1)}


@dataclass(frozen=True)
class TokenHead:
    """One prediction per token: language models, sequence to sequence, token classification.

    Only places with a label other than -100 are included, moved to the front. Outputs are (B, L, C) and labels (B, L),
    L being the largest number of labelled places of an example in the batch.

    Attributes:
        shift (`bool`): Whether a place predicts the next token, as in causal language models.
        reduction (`"sum"` or `"mean"`): Whether the loss of an example is the sum or the mean over its labelled
            tokens.
        prepare (`Callable`, *optional*): Makes the inputs of a decoder from labels, if the collator does not.
        positions (`bool`): Whether position numbers are counted from the attention mask.
        whole (`bool`): Whether all places are included, for a custom loss that selects among them.
    """

    shift: bool
    reduction: Reduction
    prepare: Callable[..., torch.Tensor] | None = None
    positions: bool = False
    whole: bool = False

    label_names = ("labels",)
    has_token_outputs = True
    choices = False

    def inputs(self, inputs: Batch, batch: Batch) -> Batch:
        """Return the inputs of the model and of its decoder, given a batch without its labels."""
        if self.prepare is not None and "decoder_input_ids" not in inputs:
            inputs = inputs | {"decoder_input_ids": self.prepare(labels=batch["labels"])}
        return with_positions(inputs) if self.positions else inputs

    def outputs(self, output: Any, batch: Batch) -> torch.Tensor:
        """Return the outputs (B, L, C) at the labelled places, or (B, T, C) at all of them."""
        return output.logits[:, -batch["labels"].shape[1] :] if self.whole else self.at_labels(output.logits, batch)

    def at_labels(self, values: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Select the labelled places (B, L, ...) of values (B, T', ...) at all places."""
        start = values.shape[1] - batch["labels"].shape[1]  # prompts of adapters precede the text
        places = (start + self._places(batch)).to(values.device)
        return values[torch.arange(len(values), device=values.device)[:, None], places]

    def labels(self, batch: Batch) -> torch.Tensor:
        """Return the labels (B, L), which are -100 at the end of examples with fewer than L labels."""
        return batch["labels"] if self.whole else self._shifted(batch).gather(1, self._places(batch))

    def weights(self, labels: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return the weight (B, L) of each place in the loss of its example."""
        labelled = (labels != IGNORED).to(dtype)
        return labelled if self.reduction == "sum" else labelled / labelled.sum(dim=1, keepdim=True).clamp_min(1)

    def rows(self, batch: Batch) -> int:
        """Return the number of rows that layers receive for a batch: one per example."""
        return len(batch["labels"])

    def predicted(self, batch: Batch) -> torch.Tensor:
        """Return the position (B, L) of the token that each place predicts; T at places without a label."""
        places = self._places(batch)
        labelled = self._shifted(batch).gather(1, places) != IGNORED
        return (places + self.shift).masked_fill(~labelled, batch["labels"].shape[1])

    def _shifted(self, batch: Batch) -> torch.Tensor:
        labels = batch["labels"]
        return nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED) if self.shift else labels

    def _places(self, batch: Batch) -> torch.Tensor:
        ignored = self._shifted(batch) == IGNORED
        most = int((~ignored).sum(dim=1).max())
        return ignored.long().argsort(dim=1, stable=True)[:, : max(1, most)]


@dataclass(frozen=True)
class SpanHead:
    """Question answering: the mean of two cross entropies over the tokens, for the start and the end of the answer.

    Outputs are (B, 2, T) and labels (B, 2). Padding (`attention_mask` 0) cannot contain an answer, so that an example
    has the same loss alone as in a batch. A position outside the text has no loss.

    Attributes:
        positions (`bool`): Whether position numbers are counted from the attention mask.
    """

    positions: bool = False

    label_names = ("start_positions", "end_positions")
    has_token_outputs = True
    choices = False

    def inputs(self, inputs: Batch, _batch: Batch) -> Batch:
        """Return the inputs of the model, given a batch without its labels."""
        return with_positions(inputs) if self.positions else inputs

    def outputs(self, output: Any, batch: Batch) -> torch.Tensor:
        """Return the outputs (B, 2, T)."""
        logits, mask = torch.stack([output.start_logits, output.end_logits], dim=1), batch.get("attention_mask")
        return logits if mask is None else logits.masked_fill(mask[:, None] == 0, NEVER)

    def labels(self, batch: Batch) -> torch.Tensor:
        """Return the first and the last token (B, 2) of the answer."""
        size = batch["input_ids"].shape[1]
        labels = torch.stack([batch[name].view(-1) for name in self.label_names], dim=1).clamp(0, size)
        return labels.masked_fill(labels == size, IGNORED)

    def rows(self, batch: Batch) -> int:
        """Return the number of rows that layers receive for a batch: one per example."""
        return len(batch["input_ids"])

    def weights(self, labels: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return the weight (B, 2) of each place in the loss of its example."""
        return (labels != IGNORED).to(dtype) / 2


Head = ExampleHead | TokenHead | SpanHead


def takes_positions(model: nn.Module) -> bool:
    """Tell whether a model accepts position numbers."""
    return "position_ids" in inspect.signature(without_adapters(model).forward).parameters


def head_of(model: nn.Module, reduction: Reduction) -> Head:
    """Return the head of a model, determined by its class in transformers."""
    plain = without_adapters(model)
    name = type(plain).__name__
    if name in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES.values():
        return TokenHead(False, reduction, prepare=plain.prepare_decoder_input_ids_from_labels)
    if name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
        return TokenHead(True, reduction, positions=takes_positions(plain))
    if name in {*MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES.values(), *MODEL_FOR_MASKED_LM_MAPPING_NAMES.values()}:
        return TokenHead(False, reduction)
    if name in MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES.values():
        return SpanHead()
    return ExampleHead(name in MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES.values())
