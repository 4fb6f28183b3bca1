"""Which parameters are trained and attributed: freezing, and vectors over the parameters that are left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from itertools import pairwise

import torch
from torch import nn

from hf_fastif.data import hexdigest
from hf_fastif.errors import InfluenceError


def freeze(model: nn.Module, num_layers: int) -> None:
    """Freezes the embeddings and the first `num_layers` layers of an encoder, in place.

    Everything that stands before the layer stack of `model.base_model` (token, position and type embeddings,
    embedding projections) is frozen with it, and so are relative position embeddings that stand behind it. Influence
    is taken over what still has `requires_grad`, so freezing before training makes both cheaper. The paper (section 4)
    freezes the embeddings and 9 of BERT's 12 layers.

    Args:
        model (`PreTrainedModel`): Any model whose `base_model` holds its layers in a `torch.nn.ModuleList`. Layers in
            blocks are counted one by one; of an encoder and a decoder the encoder's are counted.
        num_layers (`int`): How many layers to freeze, from 0 (the embeddings alone) to all of them.

    Raises:
        ValueError: If the model has no layer stack, or fewer than `num_layers` layers.
    """
    base, (stack_name, layers) = _base(model), layer_stack(model)
    if not len(layers):
        raise InfluenceError(
            f"model: {type(model).__name__} has no torch.nn.ModuleList of layers to count; "
            "set requires_grad on its parameters yourself instead of calling freeze()."
        )
    if not 0 <= num_layers <= len(layers):
        raise InfluenceError(
            f"num_layers={num_layers}: {type(model).__name__} has {len(layers)} layers; give 0 to that."
        )
    for name, parameter in base.named_parameters():
        if name.startswith(f"{stack_name}."):
            break
        parameter.requires_grad_(False)
    for module in [*_embeddings_behind(base, stack_name), *layers[:num_layers]]:
        module.requires_grad_(False)


def _embeddings_behind(base: nn.Module, stack_name: str) -> list[nn.Module]:
    """Relative position embeddings beside a layer stack and the norms that directly follow them, as in DeBERTa."""
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
    """The model that PEFT has put its adapters into, which still holds them; any other model as it is."""
    return model.get_base_model() if hasattr(model, "peft_config") and hasattr(model, "get_base_model") else model


def layer_stack(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The layers of an encoder and the name of their `ModuleList` in `model.base_model`; empty if there is none.

    It is the longest list that is in no other one. Convolutions before an encoder are not counted as its layers, and
    blocks that are lists themselves are joined.
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
    """The same list, or where its entries are lists the layers of all of these."""
    if not any(isinstance(block, nn.ModuleList) for block in stack):
        return stack
    return nn.ModuleList(layer for block in stack for layer in _joined(block))


def places_of(model: nn.Module, parameters: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Where a model holds some of its parameters: the name of each place, once, and that of the parameter.

    A parameter that several modules share has a place in each. A module that stands at several places of the model
    counts once, since `torch.func.functional_call` would not give back what it found at the second.
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

    A vector is one flat tensor of P numbers, in the order of `named_parameters()`; a stack of Q vectors has shape
    (Q, P). Tied parameters count once. Vectors over parameters in half precision are float32.

    Args:
        model (`torch.nn.Module`): The model; parameters with `requires_grad` are taken.

    Raises:
        ValueError: If nothing is trainable.
    """

    def __init__(self, model: nn.Module):
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not self.parameters:
            raise InfluenceError(
                "model: no parameter has requires_grad=True, so there is nothing that a training example could have "
                "influenced; unfreeze the layers that were trained (hf_fastif.freeze(model, num_layers) leaves some; "
                "PeftModel.from_pretrained takes is_trainable=True)."
            )
        self.places = places_of(model, self.parameters)
        self.sizes = [p.numel() for p in self.parameters.values()]
        self.size = sum(self.sizes)
        dtypes = {p.dtype for p in self.parameters.values()}
        self.dtype = reduce(torch.promote_types, dtypes, torch.float32)
        self.half = dtypes != {self.dtype}

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(iter(self.parameters.values())).device

    def zeros(self, *shape: int) -> torch.Tensor:
        """Zeros of the dtype of vectors."""
        return torch.zeros(shape, dtype=self.dtype, device=self.device)

    def split(self, vectors: torch.Tensor) -> dict[str, torch.Tensor]:
        """Views a (..., P) tensor as one tensor (..., *shape) for each parameter."""
        pieces = vectors.split(self.sizes, dim=-1)
        return {
            name: piece.unflatten(-1, parameter.shape) if parameter.ndim else piece.squeeze(-1)
            for (name, parameter), piece in zip(self.parameters.items(), pieces, strict=True)
        }

    def empty(self, count: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """A stack (count, P) to be filled, and what `split` makes of it: so that no second one is in memory."""
        vectors = torch.empty(count, self.size, dtype=self.dtype, device=self.device)
        return vectors, self.split(vectors)

    def join(self, pieces: Sequence[torch.Tensor | None], lead: tuple[int, ...] = ()) -> torch.Tensor:
        """The inverse of `split` for gradients of shape (*lead, *shape); `None` (parameter not used) becomes zero."""
        flat = [
            self.zeros(*lead, size) if piece is None else piece.reshape(*lead, size).to(self.dtype)
            for piece, size in zip(pieces, self.sizes, strict=True)
        ]
        return torch.cat(flat, dim=-1)

    def tangents(self, vectors: torch.Tensor) -> dict[str, torch.Tensor]:
        """`split` in the precision of each parameter."""
        return {name: piece.to(self.parameters[name].dtype) for name, piece in self.split(vectors).items()}

    def in_range(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Values (Q, ...) that fit into the model's precision, and the factors (Q,) that were taken out of them."""
        if not self.half:
            return values, values.new_ones(len(values))
        factors = values.flatten(1).abs().amax(dim=1).clamp_min(torch.finfo(values.dtype).tiny)
        return values / factors.view(-1, *[1] * (values.ndim - 1)), factors


@torch.no_grad()
def load_parameters_(parameters: Mapping[str, torch.Tensor], values: Mapping[str, torch.Tensor]) -> None:
    """Gives parameters other values, in place, bit for bit."""
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
        model (`torch.nn.Module`): The model, held whole by this process."""
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers())
    named = sorted((name, tensor) for name, tensor in tensors.items() if not name.endswith("inv_freq"))
    return hexdigest(part for pair in named for part in pair)


def frozen_digest(model: nn.Module) -> str:
    """Return a digest of the bytes of the parameters that are not trained, by name."""
    named = sorted((name, p) for name, p in model.named_parameters() if not p.requires_grad)
    return hexdigest(part for pair in named for part in pair)


def model_fingerprint(model: nn.Module) -> str:
    """Return what stands for a model: a digest of weights, scaling of adapters, and which parameters are trained.

    Raises:
        InfluenceError: If a parameter holds NaN or infinite numbers.
    """
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and not _is_finite(parameter.detach()):
            raise InfluenceError(
                f"model: parameter {name} holds NaN or infinite numbers; load a checkpoint that is whole."
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
    # A sum allocates nothing; only where it overflows every entry is looked at.
    return bool(torch.isfinite(values.sum(dtype=torch.float32))) or bool(torch.isfinite(values).all())
