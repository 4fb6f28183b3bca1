"""Cache of the states that a model's frozen first layers compute for batches of a dataset, within a memory limit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import nn

from hf_fastif.data import ExampleBatches
from hf_fastif.model.heads import Batch
from hf_fastif.model.objective import STATES, FrozenLayers, Objective
from hf_fastif.model.parameters import layer_stack


# Relative error of the losses in full and in half precision; padding changes their last bits.
TOLERANCE = {False: 1e-3, True: 3e-2}


class _Done(Exception):
    """The last frozen layer has returned; the rest of the model need not run."""


@dataclass
class FrozenStates:
    """The hidden states of batches after the frozen layers, without padding, on the CPU, until memory is full.

    States of batches that do not fit are recomputed each time. In both cases the model resumes from the states
    (`Objective.logits`), so that no frozen layer runs twice on a cached batch. States are cached per batch and not per
    example: padding and the other examples of a batch change the last bits of an example's states, and a result must
    not depend on earlier calls.

    Attributes:
        objective (`Objective`): The model.
        frozen ([`FrozenLayers`]): Its frozen layers.
        memory (`int`): Bytes available for states.
        used (`int`): Bytes that cached states take.
    """

    objective: Objective
    frozen: FrozenLayers
    memory: int
    used: int = 0
    _cached: dict[bytes, torch.Tensor] = field(default_factory=dict)

    def add_to(self, batch: Batch, rows: Sequence[int] | np.ndarray) -> Batch:
        """Return the batch of some rows of the dataset together with their states, which are 0 at padding."""
        key, inside = np.asarray(rows, dtype=np.int64).tobytes(), batch["attention_mask"].bool()
        tokens = self._cached.get(key)
        if tokens is None:
            computed = self._compute(batch)
            if computed.shape[:2] != inside.shape:  # the model pads this batch itself
                return batch
            tokens = computed[inside]
            self._cache(key, tokens)
        states = tokens.new_zeros(*inside.shape, tokens.shape[-1], device=inside.device)
        states[inside] = tokens.to(inside.device)
        return batch | {STATES: states}

    def _compute(self, batch: Batch) -> torch.Tensor:
        with torch.no_grad():
            output = output_of_last(self.objective, self.frozen.layers, batch)
        return output if self.frozen.rest is None else output[0]

    def _cache(self, key: bytes, tokens: torch.Tensor) -> None:
        if self.used + tokens.nbytes <= self.memory:
            self._cached[key] = tokens.cpu()
            self.used += tokens.nbytes


def find_frozen_states(objective: Objective, examples: ExampleBatches, memory: int) -> FrozenStates | None:
    """Return an empty cache for the states of a dataset; None if the model cannot resume from states.

    It cannot if no first layer is frozen or called. Nor can it if a trained part precedes these layers or is read by
    them, as relative position embeddings are, or if the losses of some examples change when the model resumes from
    their states.
    """
    layers = _first_layers(objective.model)
    rows = range(min(4, len(examples)))
    batch = examples.take(rows)
    mask = batch.get("attention_mask")
    if not layers or mask is None or mask.ndim != 2:
        return None
    if any(buffer.is_floating_point() for layer in layers for buffer in layer.buffers()):
        return None  # running statistics, which may differ between checkpoints
    with torch.enable_grad():
        output = output_of_last(objective, layers, batch)
    if output is None:
        return None
    hidden, *rest = output if isinstance(output, tuple) else (output,)
    if hidden.requires_grad or hidden.shape[:2] != mask.shape or any(part is not None for part in rest):
        return None
    states = FrozenStates(objective, FrozenLayers(layers, tuple(rest) if isinstance(output, tuple) else None), memory)
    return states if _agree(states, rows, batch) else None


def output_of_last(objective: Objective, layers: Sequence[nn.Module], batch: Batch) -> torch.Tensor | tuple | None:
    """Return the output of the last of some first layers without running later layers; None if it is never called."""
    outputs = []

    def stop(_module, _args, output):
        outputs.append(output)
        raise _Done

    handle = layers[-1].register_forward_hook(stop)
    try:
        objective.logits(objective.theta, batch)
    except _Done:
        pass
    finally:
        handle.remove()
    return outputs[0] if outputs else None


def _first_layers(model: nn.Module) -> list[nn.Module]:
    """Return the layers of the stack before the first one with a trained parameter."""
    _, stack = layer_stack(model)
    trained = [any(p.requires_grad for p in layer.parameters()) for layer in stack]
    return list(stack[: trained.index(True) if True in trained else len(stack)])


def _agree(states: FrozenStates, rows: range, batch: Batch) -> bool:
    """Tell whether resuming from the states changes the losses by rounding only."""
    objective, trial = states.objective, replace(states, memory=0)
    with torch.no_grad():
        expected = objective.losses(objective.theta, batch)
        objective.frozen = states.frozen
        resumed = objective.losses(objective.theta, trial.add_to(batch, rows))
    return bool((resumed - expected).abs().max() <= TOLERANCE[objective.rounds] * expected.abs().max())
