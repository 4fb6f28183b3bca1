"""What the frozen first layers of a model make of the examples of a dataset: computed once, as far as memory goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from hf_fastif.batches import ExampleBatches
from hf_fastif.objective import STATES, Batch, FrozenLayers, Objective
from hf_fastif.parameters import layer_stack


TOLERANCE = {False: 1e-3, True: 3e-2}  # of the outputs, relative: padding moves the last bits, of bfloat16 or not


class _Done(Exception):
    """The last frozen layer has answered, and the rest of the model is not wanted."""


@dataclass
class FrozenStates:
    """The hidden states of examples behind the frozen layers, without padding, on the CPU, until memory is full.

    Examples that found no room are computed each time. Either way the model goes on from the states
    (`Objective.logits`), so that no frozen layer runs twice on an example that is kept.

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
    _kept: dict[int, torch.Tensor] = field(default_factory=dict)

    def add_to(self, batch: Batch, rows: Sequence[int] | np.ndarray) -> Batch:
        """The batch of some rows of the dataset, with their states."""
        inside = batch["attention_mask"].bool()
        missing = [place for place, row in enumerate(rows) if int(row) not in self._kept]
        kept = [self._kept[int(row)] for row in rows if int(row) in self._kept]
        if not kept:
            states = self._compute(batch)
        else:
            states = kept[0].new_zeros(*inside.shape, kept[0].shape[-1], device=inside.device)
            known = inside.clone()
            known[missing] = False
            states[known] = torch.cat(kept).to(inside.device)
            if missing:
                states[missing] = self._compute({name: values[missing] for name, values in batch.items()})
        for place in missing:
            self._keep(int(rows[place]), states[place, inside[place]])
        return batch | {STATES: states}

    def _compute(self, batch: Batch) -> torch.Tensor:
        with torch.no_grad():
            output = output_of_last(self.objective, self.frozen.layers, batch)
        return output if self.frozen.rest is None else output[0]

    def _keep(self, row: int, tokens: torch.Tensor) -> None:
        if self.used + tokens.nbytes <= self.memory:
            self._kept[row] = tokens.cpu()
            self.used += tokens.nbytes


def find_frozen_states(objective: Objective, examples: ExampleBatches, memory: int) -> FrozenStates | None:
    """An empty store for the states of a dataset; None where the model cannot go on from states.

    That is so if no first layer is frozen, if something that is trained stands before them (or is read by them, as
    relative position embeddings are), or if the outputs differ when some examples go on from their states.
    """
    layers = _first_layers(objective.model)
    rows = range(min(4, len(examples)))
    batch = examples.take(rows)
    mask = batch.get("attention_mask")
    if not layers or mask is None or mask.ndim != 2:
        return None
    with torch.enable_grad():
        output = output_of_last(objective, layers, batch)
    states, *rest = output if isinstance(output, tuple) else (output,)
    if states.requires_grad or states.shape[:2] != mask.shape or any(part is not None for part in rest):
        return None
    found = FrozenStates(objective, FrozenLayers(layers, tuple(rest) if isinstance(output, tuple) else None), memory)
    return found if _agree(found, examples, rows, batch) else None


def output_of_last(objective: Objective, layers: Sequence[nn.Module], batch: Batch) -> torch.Tensor | tuple:
    """What the last of some first layers returns; the layers behind it do not run."""
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
    return outputs[0]


def _first_layers(model: nn.Module) -> list[nn.Module]:
    """The layers of the stack before the first one with a trained parameter."""
    _, stack = layer_stack(model)
    trained = [any(p.requires_grad for p in layer.parameters()) for layer in stack]
    return list(stack[: trained.index(True) if True in trained else len(stack)])


def _agree(found: FrozenStates, examples: ExampleBatches, rows: range, batch: Batch) -> bool:
    """Whether going on from states that were computed one by one changes nothing but rounding."""
    objective, trial = found.objective, FrozenStates(found.objective, found.frozen, memory=1 << 40)
    for row in rows:
        trial.add_to(examples.take([row]), [row])
    with torch.no_grad():
        expected = objective.losses(objective.theta, batch)  # in which padding plays no part
        objective.frozen = found.frozen
        resumed = objective.losses(objective.theta, trial.add_to(batch, rows))
    return bool((resumed - expected).abs().max() <= TOLERANCE[objective.bf16] * expected.abs().max())
