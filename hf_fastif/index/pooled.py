"""What the index compares: the representation of an example that the classifier sees."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from hf_fastif.data import ExampleBatches
from hf_fastif.errors import InfluenceError
from hf_fastif.execution import DatasetSweep
from hf_fastif.model import IGNORED, Batch, Objective, TokenHead, without_adapters


class PooledFeatures:
    """The model's pooled final state: what its output layer is applied to (section 3.2, footnote 4), compared by L2.

    For BERT that is the pooler's output, as in the authors' code; other encoders have other poolers. Heads that
    score every token are read at the last token, where a language model knows most of the text, or their states are
    averaged; of a sequence-to-sequence model these are the decoder's, at the labels.

    Args:
        objective (`Objective`): The model.
        mean (`bool`, *optional*, defaults to `False`): Whether the states of all tokens are averaged.

    Raises:
        ValueError: If the model has no linear output layer for its labels.
    """

    inner_product = False

    def __init__(self, objective: Objective, mean: bool = False):
        self.objective = objective
        self.mean = mean
        self.head = output_layer(objective)
        self.size = self.head.in_features

    def of_batch(self, batch: Batch) -> torch.Tensor:
        """The features (B, size) of a batch, from one forward pass."""
        seen: list[torch.Tensor] = []
        hook = self.head.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
        try:
            with torch.no_grad():  # not inference_mode: its tensors cannot enter a later derivative
                self.objective.logits(self.objective.theta, batch)
        finally:
            hook.remove()
        states = seen[-1].to(torch.promote_types(seen[-1].dtype, torch.float32))
        if self.objective.head.choices:
            return states.unflatten(0, (len(batch["labels"]), -1)).mean(dim=1)
        if states.ndim == 2:
            return states
        mask = self._inside(states, batch)
        states = states[:, -mask.shape[1] :]  # prompts of adapters stand before the text
        if self.mean:
            return (states * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True).clamp_min(1)
        last = mask.shape[1] - 1 - mask.flip(1).long().argmax(dim=1)  # the rightmost one
        return states[torch.arange(len(states), device=states.device), last]

    def _inside(self, states: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Which of the states (B, T, size) are those of tokens (B, T), and not of padding."""
        head = self.objective.head
        if isinstance(head, TokenHead) and head.prepare is not None:
            return batch["labels"] != IGNORED
        whole = torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
        return batch.get("attention_mask", whole).bool()

    def of_queries(self, queries: ExampleBatches, sweep: DatasetSweep) -> np.ndarray:
        """The features (Q, size) of all examples of a dataset."""
        return sweep.over(queries, np.arange(len(queries)), self.size, self.of_batch, "Features")


def output_layer(objective: Objective) -> nn.Linear:
    """The last linear layer: of a language model over its vocabulary, else with one output for each label.

    Raises:
        ValueError: If there is none outside of the encoder.
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
        f"model: found no linear layer with {count} outputs (config.num_labels) behind the encoder of "
        f"{type(model).__name__}; give index_features='gradient_sketch'."
    )
