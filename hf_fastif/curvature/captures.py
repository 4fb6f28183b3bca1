"""What layers receive and get back in one pass of a batch: the two halves of the gradients of single examples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.func import functional_call, vjp, vmap
from transformers.pytorch_utils import Conv1D

from hf_fastif.objective import Batch, Objective


Directions = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Layer:
    """A layer without sublayers, and the full names of those of its parameters that are trained.

    Attributes:
        module (`str`): Name of the layer.
        names (`tuple[str, ...]`): Names of its trained parameters; of a linear layer the weight, then the bias.
        linear (`bool`): Whether it is a `torch.nn.Linear` or GPT-2's `Conv1D`.
        transposed (`bool`): Whether the weight is stored as (inputs, outputs), as in `Conv1D`.
    """

    module: str
    names: tuple[str, ...]
    linear: bool
    transposed: bool = False

    def to_matrix(self, pieces: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Weight and bias of a linear layer as one matrix over [input; 1]: (..., outputs, inputs)."""
        weight = pieces[self.names[0]].mT if self.transposed else pieces[self.names[0]]
        return weight if len(self.names) == 1 else torch.cat([weight, pieces[self.names[1]][..., None]], dim=-1)

    def from_matrix(self, matrix: torch.Tensor) -> dict[str, torch.Tensor]:
        """The inverse of `to_matrix`."""
        bias = {}
        if len(self.names) == 2:
            matrix, bias[self.names[1]] = matrix[..., :-1], matrix[..., -1]
        return {self.names[0]: matrix.mT if self.transposed else matrix} | bias


@dataclass(frozen=True)
class LinearCapture:
    """A linear layer: the gradient of its weight for one example is sum_t g_t x_t^T over the tokens t.

    Attributes:
        layer (`Layer`): The layer.
        inputs (`torch.Tensor` of shape `(B, T, inputs)`): x.
        gradients (`torch.Tensor` of shape `(r, B, T, outputs)`): g, for each of r directions of the model's outputs.
    """

    layer: Layer
    inputs: torch.Tensor
    gradients: torch.Tensor

    @property
    def nbytes(self) -> int:
        return self.inputs.nbytes + self.gradients.nbytes

    @property
    def num_inputs(self) -> int:
        return self.inputs.shape[-1]

    @property
    def num_outputs(self) -> int:
        return self.gradients.shape[-1]

    def rows(self, outputs: slice = slice(None)) -> dict[str, torch.Tensor]:
        """The gradients (r, B, *shape) of single examples, by parameter; of some outputs only if wanted."""
        g = self.gradients[..., outputs]
        weight = torch.einsum("bti,rbto->rbio" if self.layer.transposed else "rbto,bti->rboi", *self._ordered(g))
        return dict(zip(self.layer.names, (weight, g.sum(dim=2)), strict=False))

    def with_bias(self) -> LinearCapture:
        """The same with an input of 1 for the bias, if there is one."""
        if len(self.layer.names) == 1:
            return self
        ones = torch.ones_like(self.inputs[..., :1])
        return LinearCapture(self.layer, torch.cat([self.inputs, ones], dim=-1), self.gradients)

    def _ordered(self, g: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return (self.inputs, g) if self.layer.transposed else (g, self.inputs)


@dataclass(frozen=True)
class LeafCapture:
    """Any other layer, such as a norm, with the gradients (r, B, *shape) of single examples already taken."""

    layer: Layer
    gradients: dict[str, torch.Tensor]

    num_inputs = num_outputs = 1  # taken whole

    @property
    def nbytes(self) -> int:
        return sum(gradients.nbytes for gradients in self.gradients.values())

    def rows(self, _outputs: slice = slice(None)) -> dict[str, torch.Tensor]:
        """The gradients (r, B, *shape) of single examples, by parameter."""
        return self.gradients


Capture = LinearCapture | LeafCapture


def captured_layers(objective: Objective, batch: Batch) -> list[Layer]:
    """The layers with trained parameters whose gradients of single examples a capture can tell.

    Left out are parameters that are used in several places (tied), that belong to no layer that is called on a batch
    of examples (such as position embeddings, which serve all examples at once), and embeddings. The layers are called
    on two sizes of batch, since with one the tokens of a layer that takes (tokens, examples) may happen to be as many.
    """
    model, theta = objective.model, objective.theta
    uses = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    candidates = []
    for name, module in model.named_modules():
        own = dict(module.named_parameters(prefix=name, recurse=False))
        trained = tuple(full for full in own if full in theta)
        linear = isinstance(module, nn.Linear | Conv1D)
        fitting = not any(module.children()) and not isinstance(module, nn.Embedding)
        if trained and fitting and all(uses[id(own[full])] == 1 for full in trained):
            if not linear or trained[0] == f"{name}.weight":
                candidates.append(Layer(name, trained, linear, isinstance(module, Conv1D)))
    for probe in (batch, {name: torch.cat([values, values[:1]]) for name, values in batch.items()}):
        with torch.no_grad(), _recorded(model, candidates) as calls:
            objective.logits(theta, probe)
        size = len(probe["labels"])
        candidates = [layer for layer in candidates if calls[layer] and all(c.fits(layer, size) for c in calls[layer])]
    return candidates


def covered_names(layers: list[Layer]) -> set[str]:
    """The names of all parameters that some layers hold."""
    return {name for layer in layers for name in layer.names}


def captures(objective: Objective, batch: Batch, layers: list[Layer], directions: Directions) -> Iterator[Capture]:
    """Runs a batch forward, and back from r directions of its outputs; yields the capture of each layer.

    Args:
        objective (`Objective`): The model.
        batch (`dict`): B examples.
        layers (`list[Layer]`): What `captured_layers` found, or some of them.
        directions (`Callable`): From outputs (B, C) and labels to directions (r, B, C), such as
            `GaussNewton.output_roots`.
    """
    model = objective.model
    if not layers:
        return
    with torch.enable_grad(), _recorded(model, layers) as calls:
        logits = objective.logits(objective.theta, batch)
        outputs = [call.outputs for layer in layers for call in calls[layer]]
        cotangents = directions(logits.detach(), batch["labels"])
        found = torch.autograd.grad(logits, outputs, cotangents, is_grads_batched=True, allow_unused=True)
    gradients = (
        output.new_zeros(len(cotangents), *output.shape) if gradient is None else gradient
        for output, gradient in zip(outputs, found, strict=True)
    )
    for layer in layers:
        pairs = [(call.inputs.detach().to(logits), next(gradients).to(logits)) for call in calls[layer]]
        yield _linear_capture(layer, pairs) if layer.linear else _leaf_capture(model, layer, pairs)


def _linear_capture(layer: Layer, pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> LinearCapture:
    # A layer that is called several times is one that saw more tokens; without tokens it saw one.
    x = torch.cat([x if x.ndim == 3 else x.unsqueeze(1) for x, _ in pairs], dim=1)
    g = torch.cat([g if g.ndim == 4 else g.unsqueeze(2) for _, g in pairs], dim=2)
    # Padding gets no gradient, nor does all but the first token above the last attention of an encoder.
    alive = g.abs().amax(dim=(0, 1, 3)) != 0
    return LinearCapture(layer, x[:, alive], g[:, :, alive])


def _leaf_capture(model: nn.Module, layer: Layer, pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> LeafCapture:
    module = model.get_submodule(layer.module)
    parameters = {name.rpartition(".")[2]: model.get_parameter(name).detach() for name in layer.names}

    def of_example(x, g):
        back = vjp(lambda theta: functional_call(module, theta, (x[None],)), parameters)[1]
        return vmap(lambda direction: back(direction[None])[0])(g)

    found = [vmap(of_example, in_dims=(0, 1), out_dims=1)(x, g) for x, g in pairs]
    return LeafCapture(layer, {name: sum(part[name.rpartition(".")[2]] for part in found) for name in layer.names})


@dataclass(frozen=True)
class _Call:
    inputs: torch.Tensor
    outputs: torch.Tensor
    version: int  # of the outputs when the layer returned them

    def fits(self, layer: Layer, size: int) -> bool:
        """Whether input and output hold one entry for each of `size` examples, and the output was not overwritten."""
        tensors = isinstance(self.inputs, torch.Tensor) and isinstance(self.outputs, torch.Tensor)
        if not tensors or not len(self.inputs) == len(self.outputs) == size or self.outputs._version > self.version:
            return False
        return self.inputs.is_floating_point() and (not layer.linear or self.inputs.ndim in (2, 3))


@contextmanager
def _recorded(model: nn.Module, layers: list[Layer]) -> Iterator[dict[Layer, list[_Call]]]:
    calls: dict[Layer, list[_Call]] = {layer: [] for layer in layers}

    def hook(seen: list[_Call], _module, args: tuple, kwargs: dict, output: torch.Tensor) -> None:
        single = args[0] if len(args) == 1 and not kwargs else None
        seen.append(_Call(single, output, getattr(output, "_version", 0)))

    handles = [
        model.get_submodule(layer.module).register_forward_hook(partial(hook, seen), with_kwargs=True)
        for layer, seen in calls.items()
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()
