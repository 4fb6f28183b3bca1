"""What the index compares: the representation of an example that the classifier sees."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from hf_fastif.batches import ExampleBatches
from hf_fastif.objective import Batch, Objective
from hf_fastif.passes import Passes


class PooledFeatures:
    """The model's pooled final state: what its output layer is applied to (section 3.2, footnote 4), compared by L2.

    For BERT that is the pooler's output, as in the authors' code; other encoders have other poolers. Heads that
    score every token (decoders) are read at the last token, where the model reads them too.

    Raises:
        ValueError: If the model has no linear output layer for its labels.
    """

    inner_product = False

    def __init__(self, objective: Objective):
        self.objective = objective
        self.head = output_layer(objective.model)
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
        states = seen[-1]
        if states.ndim == 2:
            return states
        mask = batch["attention_mask"]
        last = mask.shape[1] - 1 - mask.flip(1).argmax(dim=1)  # the rightmost token that is not padding
        return states[torch.arange(len(states), device=states.device), last]

    def of_queries(self, queries: ExampleBatches, passes: Passes) -> np.ndarray:
        """The features (Q, size) of all examples of a dataset."""
        return passes.over(queries, np.arange(len(queries)), self.size, self.of_batch, "Features")


def output_layer(model: nn.Module) -> nn.Linear:
    """The last linear layer that has one output for each label, outside of the encoder."""
    encoder = {id(module) for module in model.base_model.modules()} if model.base_model is not model else set()
    for _, module in reversed(list(model.named_modules())):
        if (
            isinstance(module, nn.Linear)
            and module.out_features == model.config.num_labels
            and id(module) not in encoder
        ):
            return module
    raise ValueError(
        f"model: found no linear layer with {model.config.num_labels} outputs (config.num_labels) behind the encoder "
        f"of {type(model).__name__}; the index needs a sequence-classification head."
    )
