"""Trained parameters: freezing, vectors over the remaining ones, and digests of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from itertools import pairwise

import torch
from torch import nn

from hf_fastif.data import hexdigest
from hf_fastif.errors import InfluenceError


def freeze(model: nn.Module, num_layers: int) -> None:
    """Freeze the embeddings and the first `num_layers` layers of an encoder, in place.

    Everything before the layer stack of `model.base_model` (token, position and type embeddings, embedding
    projections) is frozen too, and so are relative position embeddings after it. Influence is computed over the
    parameters with `requires_grad`, so freezing before training makes both cheaper. The paper (section 4) freezes the
    embeddings and 9 of BERT's 12 layers.

    Args:
        model (`PreTrainedModel`): Any model whose `base_model` has its layers in a `torch.nn.ModuleList`. Layers in
            blocks are counted individually. In an encoder-decoder model, the layers of the encoder are counted.
        num_layers (`int`): Number of layers to freeze, from 0 (only the embeddings) to all.

    Raises:
        InfluenceError: If the model has no layer stack, or fewer than `num_layers` layers.

    Example:

    ```python
    from transformers import AutoModelForSequenceClassification
    from hf_fastif import freeze

    model = AutoModelForSequenceClassification.from_pretrained("bert-base-uncased")
    freeze(model, num_layers=9)
    ```
    """
    base, (stack_name, layers) = _base(model), layer_stack(model)
    if not len(layers):
        raise InfluenceError(
            f"model: {type(model).__name__} has no torch.nn.ModuleList of layers; set requires_grad on its parameters "
            "yourself instead of calling freeze()."
        )
    if not 0 <= num_layers <= len(layers):
        raise InfluenceError(
            f"num_layers={num_layers}: must be between 0 and {len(layers)}, the number of layers of "
            f"{type(model).__name__}."
        )
    for name, parameter in base.named_parameters():
        if name.startswith(f"{stack_name}."):
            break
        parameter.requires_grad_(False)
    for module in [*_embeddings_behind(base, stack_name), *layers[:num_layers]]:
        module.requires_grad_(False)


def _embeddings_behind(base: nn.Module, stack_name: str) -> list[nn.Module]:
    """Return relative position embeddings beside a layer stack, and the norms directly after them, as in DeBERTa."""
    holder = base.get_submodule(stack_name.rpartition(".")[0])
    siblings = list(holder.children())
    behind = siblings[siblings.index(base.get_submodule(stack_name)) :]
    embeddings = [module for module in behind if isinstance(module, nn.Embedding)]
    norms = [
        module
        for before, module in pairwise(behind)
        if isinstance(before, nn.Embedding) and "Norm" in type(module).__name__
    ]
    return embeddings + norms


def without_adapters(model: nn.Module) -> nn.Module:
    """Return the model that PEFT has inserted adapters into, which still contains them; any other model unchanged."""
    return model.get_base_model() if hasattr(model, "peft_config") and hasattr(model, "get_base_model") else model


def layer_stack(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Return the name of the `ModuleList` of an encoder in `model.base_model`, and its layers; empty if there is none.

    It is the longest list that is not part of another one. Convolutions before an encoder do not count as its layers.
    Blocks that are lists themselves are joined.
    """
    lists = [(name, module) for name, module in _base(model).named_modules() if isinstance(module, nn.ModuleList)]
    inner = {id(part) for _, stack in lists for part in stack.modules() if part is not stack}
    stacks = [(name, _joined(stack)) for name, stack in lists if id(stack) not in inner]

    def rank(stack: tuple[str, nn.ModuleList]) -> tuple[bool, int]:
        return any(p.ndim == 2 for p in stack[1].parameters()), len(stack[1])

    return max(stacks, key=rank, default=("", nn.ModuleList()))


def _base(model: nn.Module) -> nn.Module:
    plain = without_adapters(model)
    return getattr(plain, "base_model", plain)


def _joined(stack: nn.ModuleList) -> nn.ModuleList:
    """Return the same list or, if its entries are lists, the layers of all of these."""
    if not any(isinstance(block, nn.ModuleList) for block in stack):
        return stack
    return nn.ModuleList(layer for block in stack for layer in _joined(block))


def places_of(model: nn.Module, parameters: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Return where a model holds some of its parameters, as a mapping from places to the names of the parameters.

    A parameter that several modules share has a place in each. A module that the model contains more than once counts
    once, since `torch.func.functional_call` would not restore the original tensor at the second place.
    """
    names = {id(p): name for name, p in parameters.items()}
    return {
        f"{module_name}.{short}" if module_name else short: names[id(p)]
        for module_name, module in model.named_modules()
        for short, p in module.named_parameters(recurse=False, remove_duplicate=False)
        if id(p) in names
    }


class ParameterSpace:
    """The trainable parameters of a model, and vectors over them.

    A vector is a flat tensor of P numbers, in the order of `named_parameters()`; a stack of Q vectors has shape (Q,
    P). Tied parameters count once. Vectors over parameters in half precision are float32.

    Args:
        model (`torch.nn.Module`): The model, whose parameters with `requires_grad` are included.

    Raises:
        InfluenceError: If no parameter is trainable.
    """

    def __init__(self, model: nn.Module):
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not self.parameters:
            raise InfluenceError(
                "model: no parameter has requires_grad=True, so no training example can have influenced it; unfreeze "
                "the layers that were trained (hf_fastif.freeze(model, num_layers) with fewer layers, or "
                "PeftModel.from_pretrained(..., is_trainable=True))."
            )
        self.places = places_of(model, self.parameters)
        self.sizes = [p.numel() for p in self.parameters.values()]
        self.size = sum(self.sizes)
        dtypes = {p.dtype for p in self.parameters.values()}
        self.dtype = reduce(torch.promote_types, dtypes, torch.float32)
        self.half = dtypes != {self.dtype}

    @property
    def device(self) -> torch.device:
        """Return the device of the parameters."""
        return next(iter(self.parameters.values())).device

    def zeros(self, *shape: int) -> torch.Tensor:
        """Return zeros of the given shape, in the dtype of vectors."""
        return torch.zeros(shape, dtype=self.dtype, device=self.device)

    def split(self, vectors: torch.Tensor) -> dict[str, torch.Tensor]:
        """View a (..., P) tensor as one tensor (..., *shape) per parameter."""
        pieces = vectors.split(self.sizes, dim=-1)
        return {
            name: piece.unflatten(-1, parameter.shape) if parameter.ndim else piece.squeeze(-1)
            for (name, parameter), piece in zip(self.parameters.items(), pieces, strict=True)
        }

    def empty(self, count: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return an uninitialised stack (count, P) and its `split` views, so that it can be filled without a copy."""
        vectors = torch.empty(count, self.size, dtype=self.dtype, device=self.device)
        return vectors, self.split(vectors)

    def join(self, pieces: Sequence[torch.Tensor | None], lead: tuple[int, ...] = ()) -> torch.Tensor:
        """Join gradients of shape (*lead, *shape), the inverse of `split`; None (an unused parameter) becomes zero."""
        flat = [
            self.zeros(*lead, size) if piece is None else piece.reshape(*lead, size).to(self.dtype)
            for piece, size in zip(pieces, self.sizes, strict=True)
        ]
        return torch.cat(flat, dim=-1)

    def tangents(self, vectors: torch.Tensor) -> dict[str, torch.Tensor]:
        """Split vectors as `split` does, in the precision of each parameter."""
        return {name: piece.to(self.parameters[name].dtype) for name, piece in self.split(vectors).items()}

    def in_range(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return values (Q, ...) scaled to fit the model's precision, and the factors (Q,) that undo the scaling."""
        if not self.half:
            return values, values.new_ones(len(values))
        factors = values.flatten(1).abs().amax(dim=1).clamp_min(torch.finfo(values.dtype).tiny)
        return values / factors.view(-1, *[1] * (values.ndim - 1)), factors


@torch.no_grad()
def load_parameters_(parameters: Mapping[str, torch.Tensor], values: Mapping[str, torch.Tensor]) -> None:
    """Overwrite parameters with other values, in place, bit for bit."""
    for name, parameter in parameters.items():
        parameter.copy_(values[name])


def saved_buffers(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the buffers that belong to a saved model, such as the running statistics of a BatchNorm, by name."""
    saved = set(model.state_dict(keep_vars=True))
    return {name: buffer for name, buffer in model.named_buffers() if name in saved}


def trained_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return what differs between moments of training, by name: trained parameters and saved buffers."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad} | saved_buffers(model)


def weights_digest(model: nn.Module) -> str:
    """Return a digest of the bytes of a model's parameters and buffers, by name.

    It is the same on any number of threads, processes and devices. Rotary frequencies are left out, since the model
    computes them from its configuration and rewrites them for longer inputs.

    Args:
        model (`torch.nn.Module`): The model; this process must hold all of it.
    """
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers())
    named = sorted((name, tensor) for name, tensor in tensors.items() if not name.endswith("inv_freq"))
    return hexdigest(part for pair in named for part in pair)


def frozen_digest(model: nn.Module) -> str:
    """Return a digest of the bytes of the frozen parameters, by name."""
    named = sorted((name, p) for name, p in model.named_parameters() if not p.requires_grad)
    return hexdigest(part for pair in named for part in pair)


def model_fingerprint(model: nn.Module) -> str:
    """Return a digest that identifies a model: its weights, the scaling of its adapters, and its trained parameters.

    Raises:
        InfluenceError: If a parameter contains NaN or infinite numbers.
    """
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and not _is_finite(parameter.detach()):
            raise InfluenceError(
                f"model: parameter {name} contains NaN or infinite numbers; load an intact checkpoint."
            )
    adapted = [(name, module.scaling) for name, module in model.named_modules() if hasattr(module, "scaling")]
    scalings = [f"{name} {scaling}" for name, scaling in adapted if isinstance(scaling, dict)]
    return hexdigest([weights_digest(model), trained_part(model), *scalings])


def trained_part(model: nn.Module) -> str:
    """Return how many parameters of a model are trained, and a digest of their names."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    count, total = sum(p.numel() for _, p in trained), sum(p.numel() for p in model.parameters())
    return f"{count:,} of {total:,} parameters trained, {hexdigest(name for name, _ in trained)[:8]}"


def _is_finite(values: torch.Tensor) -> bool:
    # A sum allocates nothing; only if it overflows is every entry checked.
    return bool(torch.isfinite(values.sum(dtype=torch.float32))) or bool(torch.isfinite(values).all())
