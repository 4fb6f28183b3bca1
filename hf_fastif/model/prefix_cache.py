"""What the frozen first layers of a model make of batches of a dataset: computed once, as far as memory goes."""

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


TOLERANCE = {
    False: 1e-3,
    True: 3e-2,
}  # of the outputs, relative, of full and of half precision: padding moves the last bits


class _Done(Exception):
    """The last frozen layer has answered, and the rest of the model is not wanted."""


@dataclass
class FrozenStates:
    """The hidden states of batches behind the frozen layers, without padding, on the CPU, until memory is full.

    Batches that found no room are computed each time. Either way the model goes on from the states
    (`Objective.logits`), so that no frozen layer runs twice on a batch that is kept. What is kept belongs to the batch
    and not to its examples: the padding and the company of an example move the last bits of its states, and a result
    must not depend on what was asked before.

    Attributes:
        objective (`Objective`): The model.
        frozen ([`FrozenLayers`]): Its frozen layers.
        memory (`int`): Bytes for states.
        used (`int`): Bytes of those that are kept.
    """

    objective: Objective
    frozen: FrozenLayers
    memory: int
    used: int = 0
    _kept: dict[bytes, torch.Tensor] = field(default_factory=dict)

    def add_to(self, batch: Batch, rows: Sequence[int] | np.ndarray) -> Batch:
        """The batch of some rows of the dataset, with their states, which are 0 at padding."""
        key, inside = np.asarray(rows, dtype=np.int64).tobytes(), batch["attention_mask"].bool()
        tokens = self._kept.get(key)
        if tokens is None:
            computed = self._compute(batch)
            if computed.shape[:2] != inside.shape:  # the model pads this batch on its own
                return batch
            tokens = computed[inside]
            self._keep(key, tokens)
        states = tokens.new_zeros(*inside.shape, tokens.shape[-1], device=inside.device)
        states[inside] = tokens.to(inside.device)
        return batch | {STATES: states}

    def _compute(self, batch: Batch) -> torch.Tensor:
        with torch.no_grad():
            output = output_of_last(self.objective, self.frozen.layers, batch)
        return output if self.frozen.rest is None else output[0]

    def _keep(self, key: bytes, tokens: torch.Tensor) -> None:
        if self.used + tokens.nbytes <= self.memory:
            self._kept[key] = tokens.cpu()
            self.used += tokens.nbytes


def find_frozen_states(objective: Objective, examples: ExampleBatches, memory: int) -> FrozenStates | None:
    """An empty store for the states of a dataset; None where the model cannot go on from states.

    That is so if no first layer is frozen or called, if something that is trained stands before them (or is read by
    them, as relative position embeddings are), or if the outputs differ when some examples go on from their states.
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
    states, *rest = output if isinstance(output, tuple) else (output,)
    if states.requires_grad or states.shape[:2] != mask.shape or any(part is not None for part in rest):
        return None
    found = FrozenStates(objective, FrozenLayers(layers, tuple(rest) if isinstance(output, tuple) else None), memory)
    return found if _agree(found, rows, batch) else None


def output_of_last(objective: Objective, layers: Sequence[nn.Module], batch: Batch) -> torch.Tensor | tuple | None:
    """What the last of some first layers returns, None if it is never called; the layers behind it do not run."""
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
    """The layers of the stack before the first one with a trained parameter."""
    _, stack = layer_stack(model)
    trained = [any(p.requires_grad for p in layer.parameters()) for layer in stack]
    return list(stack[: trained.index(True) if True in trained else len(stack)])


def _agree(found: FrozenStates, rows: range, batch: Batch) -> bool:
    """Whether going on from the states changes nothing but rounding."""
    objective, trial = found.objective, replace(found, memory=0)
    with torch.no_grad():
        expected = objective.losses(objective.theta, batch)
        objective.frozen = found.frozen
        resumed = objective.losses(objective.theta, trial.add_to(batch, rows))
    return bool((resumed - expected).abs().max() <= TOLERANCE[objective.rounds] * expected.abs().max())
