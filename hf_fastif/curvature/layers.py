"""Layers whose inputs and output gradients determine the gradients of single examples."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_fastif.model import Batch, Objective


@dataclass(frozen=True)
class Layer:
    """A layer without sublayers, and the full names of its trained parameters.

    Attributes:
        module (`str`): Name of the layer.
        names (`tuple[str, ...]`): Names of its trained parameters; for a linear layer the weight, then the bias.
        kind (`str`): `"linear"` (`torch.nn.Linear` or GPT-2's `Conv1D`), `"embedding"`, `"tied"` (an embedding whose
            table is the weight of a linear layer as well), or `"other"`, such as a norm.
        transposed (`bool`): Whether the weight is stored as (inputs, outputs), as in `Conv1D`.
        common (`bool`): Whether all examples of a batch share one input of the layer, such as relative position
            embeddings.
        output (`str`): The name of the linear layer that shares the table of a tied embedding.
    """

    module: str
    names: tuple[str, ...]
    kind: Literal["linear", "embedding", "tied", "other"]
    transposed: bool = False
    common: bool = False
    output: str = ""

    @property
    def has_table(self) -> bool:
        """Whether the parameters are the table of an embedding."""
        return self.kind in ("embedding", "tied")

    @property
    def uses(self) -> tuple[Layer, ...]:
        """The layers that use the parameters: this one, or the embedding and the linear layer of a tied table."""
        if self.kind != "tied":
            return (self,)
        return Layer(self.module, self.names, "embedding"), Layer(self.output, self.names, "linear")

    def to_matrix(self, partials: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return all parameters of the layer as one matrix.

        The weight and the bias of a linear layer become one matrix over [input; 1], (..., outputs, inputs). The table
        of an embedding is the weight of a linear layer whose inputs are one-hot. Vectors of equal length, such as
        those of norms, become a single row, (..., 1, total length).
        """
        if self.has_table:
            return partials[self.names[0]].mT
        if self.kind == "other":
            return torch.cat([partials[name] for name in self.names], dim=-1).unsqueeze(-2)
        weight = partials[self.names[0]].mT if self.transposed else partials[self.names[0]]
        return weight if len(self.names) == 1 else torch.cat([weight, partials[self.names[1]][..., None]], dim=-1)

    def from_matrix(self, matrix: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the parameters that `to_matrix` joined, by name."""
        if self.has_table:
            return {self.names[0]: matrix.mT}
        if self.kind == "other":
            return dict(zip(self.names, matrix.squeeze(-2).chunk(len(self.names), dim=-1), strict=True))
        bias = {}
        if len(self.names) == 2:
            matrix, bias[self.names[1]] = matrix[..., :-1], matrix[..., -1]
        return {self.names[0]: matrix.mT if self.transposed else matrix} | bias


def layers_to_json(layers: Iterable[Layer]) -> str:
    """Return layers as JSON text, for the metadata of a file."""
    return json.dumps([asdict(layer) for layer in layers])


def layers_from_json(text: str) -> list[Layer]:
    """Return the layers that `layers_to_json` wrote."""
    return [Layer(**layer | {"names": tuple(layer["names"])}) for layer in json.loads(text)]


@dataclass(frozen=True)
class Call:
    """The input and the output of one call of a layer, one entry per row of a batch.

    Attributes:
        inputs (`torch.Tensor` of shape `(B, ...)`): The only argument; None if there were several.
        outputs (`torch.Tensor` of shape `(B, ...)`): The returned tensor.
        version (`int`): Version of the outputs when the layer returned them; in-place changes raise it.
    """

    inputs: torch.Tensor | None
    outputs: torch.Tensor
    version: int

    def fits(self, layer: Layer, size: int) -> bool:
        """Tell whether input and output have one entry for each of `size` rows, and the output was not overwritten."""
        tensors = isinstance(self.inputs, torch.Tensor) and isinstance(self.outputs, torch.Tensor)
        if not tensors or not len(self.inputs) == len(self.outputs) == size or self.outputs._version > self.version:
            return False
        if layer.kind == "embedding":
            return self.inputs.ndim == 2
        return self.inputs.is_floating_point() and (layer.kind == "other" or self.inputs.ndim in (2, 3))


def captured_layers(
    objective: Objective, batch: Batch, embeddings: bool = False, tied: bool = False, common: bool = False
) -> list[Layer]:
    """Return the layers with trained parameters for which a capture determines the gradients of single examples.

    Parameters are left out if no layer that is called on a batch of examples holds them. So are those that several
    layers share, unless `tied` is set. The layers are called on batches of two sizes: with a single size, a layer that
    takes (tokens, examples) might happen to have as many tokens as examples.

    Args:
        objective (`Objective`): The model.
        batch (`dict`): Some examples.
        embeddings (`bool`, *optional*, defaults to `False`): Whether embeddings count. Their captures yield products
            with vectors but no rows, since a row would be as long as the vocabulary.
        tied (`bool`, *optional*, defaults to `False`): Whether to include parameters that several layers share, if all
            of these layers can be captured. Each layer then yields its part of their gradients. Products of the parts
            with vectors add up, squares do not.
        common (`bool`, *optional*, defaults to `False`): Whether to include linear layers of which all examples of a
            batch share one input.
    """
    if objective.custom_compute_loss is not None:  # its losses are not functions of a batch's outputs
        return []
    candidates = _candidates(objective, embeddings, tied)
    for probe in (batch, {name: torch.cat([values, values[:1]]) for name, values in batch.items()}):
        rows = objective.head.rows(probe)
        calls = _calls(objective, candidates, probe)
        candidates = [fitted for layer in candidates if (fitted := _fitting(layer, calls[layer], rows, common))]
    num_layers_holding = Counter(name for layer in candidates for name in layer.names)
    holders = _holders(objective.model)
    whole = {name for name, p in objective.theta.items() if num_layers_holding[name] == holders[id(p)]}
    return [layer for layer in candidates if whole.issuperset(layer.names)]


def with_tied_tables(layers: list[Layer]) -> list[Layer]:
    """Join each embedding and the one linear layer that shares its table, and leave out all others that share.

    Args:
        layers (`list[Layer]`): The return value of `captured_layers(..., embeddings=True, tied=True)`.
    """
    holding: dict[str, list[Layer]] = {}
    for layer in layers:
        for name in layer.names:
            holding.setdefault(name, []).append(layer)
    joined = []
    for layer in layers:
        same = holding[layer.names[0]]
        if all(len(holding[name]) == 1 for name in layer.names):
            joined.append(layer)
        elif layer.kind == "embedding" and [each.kind for each in same if each != layer] == ["linear"]:
            (other,) = (each for each in same if each != layer)
            if other.names == layer.names and not other.transposed:
                joined.append(replace(layer, kind="tied", output=other.module))
    return joined


@torch.no_grad()
def _calls(objective: Objective, layers: list[Layer], batch: Batch) -> dict[Layer, list[Call]]:
    """Return the calls of layers; those of embeddings are empty if the model cannot use one view per example."""
    rows = objective.head.rows(batch)
    try:
        with recorded(objective.model, layers, rows) as calls:
            objective.logits(objective.theta, batch)
    except RuntimeError:  # the model copies one lookup to all examples, as adapters do with prompts
        no_embeddings = [layer for layer in layers if layer.kind != "embedding"]
        if len(no_embeddings) == len(layers):
            raise
        return dict.fromkeys(layers, []) | _calls(objective, no_embeddings, batch)
    return calls


def _fitting(layer: Layer, calls: list[Call], rows: int, common: bool) -> Layer | None:
    """Return the layer if its calls distinguish the rows of a batch, or may be shared by all rows; else None."""
    if calls and all(call.fits(layer, rows) for call in calls):
        return layer
    if common and layer.kind == "linear" and calls and all(c.fits(layer, rows) or c.fits(layer, 1) for c in calls):
        return replace(layer, common=True)
    return None


def covered_names(layers: list[Layer]) -> set[str]:
    """Return the names of all parameters that some layers hold."""
    return {name for layer in layers for name in layer.names}


def share_of(layers: list[Layer], objective: Objective) -> float:
    """Return the share of the trained parameters that some layers hold, from 0 to 1."""
    return sum(objective.theta[name].numel() for name in covered_names(layers)) / objective.space.size


@contextmanager
def recorded(model: nn.Module, layers: list[Layer], size: int) -> Iterator[dict[Layer, list[Call]]]:
    """Record the calls of some layers while a batch of `size` rows runs through a model.

    Position embeddings are looked up once for all examples. Each example gets a separate view of them, so that the
    gradients of the examples stay separate.
    """
    calls: dict[Layer, list[Call]] = {layer: [] for layer in layers}

    def hook(layer: Layer, _module, args: tuple, kwargs: dict, output: torch.Tensor) -> torch.Tensor:
        single = args[0] if len(args) == 1 and not kwargs else None
        if layer.kind == "embedding" and single is not None and single.ndim == 2 and len(single) == 1:
            single, output = single.expand(size, -1), output.expand(size, -1, -1)
        calls[layer].append(Call(single, output, getattr(output, "_version", 0)))
        return output

    handles = [
        model.get_submodule(layer.module).register_forward_hook(partial(hook, layer), with_kwargs=True)
        for layer in layers
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _holders(model: nn.Module) -> Counter[int]:
    """Count the modules that hold each parameter, by the `id` of the parameter."""
    return Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))


def _candidates(objective: Objective, embeddings: bool, tied: bool) -> list[Layer]:
    model, holders = objective.model, _holders(objective.model)
    names = {id(p): name for name, p in objective.theta.items()}  # a tied parameter goes by its first name
    layers = []
    for name, module in model.named_modules():
        parameters = {short: p for short, p in module.named_parameters(recurse=False) if id(p) in names}
        trained, kind = tuple(names[id(p)] for p in parameters.values()), _kind(module)
        shared = any(holders[id(p)] > 1 for p in parameters.values())
        if not trained or any(module.children()) or (shared and (not tied or kind == "other")):
            continue
        if kind == "linear" and "weight" not in parameters:  # only the bias is trained
            continue
        if kind != "embedding" or (embeddings and module.max_norm is None and not module.scale_grad_by_freq):
            layers.append(Layer(name, trained, kind, isinstance(module, Conv1D)))
    return layers


def _kind(module: nn.Module) -> Literal["linear", "embedding", "other"]:
    # A class that overrides forward computes another function, as embeddings do that scale their output.
    forward = type(module).forward
    if forward in (nn.Linear.forward, Conv1D.forward):
        return "linear"
    return "embedding" if forward is nn.Embedding.forward else "other"
