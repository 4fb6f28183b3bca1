"""Use pooled states as features: the representation of an example that the classifier sees."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from hf_fastif.data import ExampleBatches
from hf_fastif.errors import InfluenceError
from hf_fastif.execution import DatasetSweep
from hf_fastif.model import IGNORED, Batch, Objective, TokenHead, without_adapters


class PooledFeatures:
    """Extractor of the input of the model's output layer (section 3.2, footnote 4 of the paper), compared by L2.

    For BERT this is the output of the pooler, as in the authors' code; other encoders have other poolers. For heads
    that score every token it is the state of the last token, where a language model has read the whole text, or the
    mean of all states. For sequence-to-sequence models it is taken from the decoder, at the labels.

    Args:
        objective (`Objective`): The model.
        mean (`bool`, *optional*, defaults to `False`): Whether to average the states of all tokens.

    Raises:
        InfluenceError: If the model has no linear output layer for its labels.
    """

    inner_product = False

    def __init__(self, objective: Objective, mean: bool = False):
        self.objective = objective
        self.mean = mean
        self.head = output_layer(objective)
        self.size = self.head.in_features

    def of_batch(self, batch: Batch) -> torch.Tensor:
        """Compute the features (B, size) of a batch, with one forward pass."""
        seen: list[torch.Tensor] = []
        hook = self.head.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
        try:
            with torch.no_grad():  # not inference_mode, whose tensors cannot enter a later derivative
                self.objective.run(self.objective.theta, batch)  # at all places, not only at labels
        finally:
            hook.remove()
        states = seen[-1].to(torch.promote_types(seen[-1].dtype, torch.float32))
        if self.objective.head.choices:
            return states.unflatten(0, (len(batch["labels"]), -1)).mean(dim=1)
        if states.ndim == 2:
            return states
        mask = self._inside(states, batch)
        states = states[:, -mask.shape[1] :]  # prompt-tuning adapters put virtual tokens before the text
        if self.mean:
            return (states * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True).clamp_min(1)
        last = mask.shape[1] - 1 - mask.flip(1).long().argmax(dim=1)  # the last token that is not padding
        return states[torch.arange(len(states), device=states.device), last]

    def _inside(self, states: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return a mask (B, T) of the states (B, T, size) that belong to tokens and not to padding."""
        head = self.objective.head
        if isinstance(head, TokenHead) and head.prepare is not None:
            return batch["labels"] != IGNORED
        whole = torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
        return batch.get("attention_mask", whole).bool()

    def of_queries(self, queries: ExampleBatches, sweep: DatasetSweep) -> np.ndarray:
        """Compute the features (Q, size) of all queries."""
        return sweep.over(queries, np.arange(len(queries)), self.size, self.of_batch, "Features")


def output_layer(objective: Objective) -> nn.Linear:
    """Return the output layer: over the vocabulary for language models, otherwise the last with one output per label.

    Raises:
        InfluenceError: If there is no such linear layer outside the encoder.
    """
    model = without_adapters(objective.model)
    if isinstance(objective.head, TokenHead) and isinstance(model.get_output_embeddings(), nn.Linear):
        return model.get_output_embeddings()
    count = 1 if objective.head.choices else model.config.num_labels
    encoder = {id(module) for module in model.base_model.modules()} if model.base_model is not model else set()
    for _, module in reversed(list(model.named_modules())):
        if isinstance(module, nn.Linear) and module.out_features == count and id(module) not in encoder:
            return module
    raise InfluenceError(
        f"model: {type(model).__name__} has no linear layer with {count} outputs (config.num_labels) after its "
        "encoder; give index_features='gradient_sketch'."
    )
