"""Which parameters are trained and attributed: freezing, and vectors over the parameters that are left."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from hf_fastif.errors import InfluenceError


def freeze(model: nn.Module, num_layers: int) -> None:
    """Freezes the embeddings and the first `num_layers` layers of an encoder, in place.

    Everything that stands before the layer stack of `model.base_model` (token, position and type embeddings,
    embedding projections) is frozen with it. Influence is taken over what still has `requires_grad`, so freezing
    before training makes both cheaper. The paper (section 4) freezes the embeddings and 9 of BERT's 12 layers.

    Args:
        model (`PreTrainedModel`): Any model whose `base_model` holds its layers in one `torch.nn.ModuleList`.
        num_layers (`int`): How many layers to freeze, from 0 (the embeddings alone) to all of them.

    Raises:
        ValueError: If the model has no layer stack, or fewer than `num_layers` layers.
    """
    base = getattr(model, "base_model", model)
    stack_name, layers = layer_stack(model)
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
    for layer in layers[:num_layers]:
        layer.requires_grad_(False)


def without_adapters(model: nn.Module) -> nn.Module:
    """The model that PEFT has put its adapters into, which still holds them; any other model as it is."""
    return model.get_base_model() if hasattr(model, "peft_config") and hasattr(model, "get_base_model") else model


def layer_stack(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The layers of an encoder, the longest `ModuleList` of `model.base_model`, and its name there; empty if none."""
    base = getattr(without_adapters(model), "base_model", model)
    stacks = [(name, module) for name, module in base.named_modules() if isinstance(module, nn.ModuleList)]
    return max(stacks, key=lambda stack: len(stack[1]), default=("", nn.ModuleList()))


class ParameterSpace:
    """The trainable parameters of a model, and vectors over them.

    A vector is one flat tensor of P numbers, in the order of `named_parameters()`; a stack of Q vectors has shape
    (Q, P). Tied parameters count once.

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
        self.sizes = [p.numel() for p in self.parameters.values()]
        self.size = sum(self.sizes)

    def split(self, vectors: torch.Tensor) -> dict[str, torch.Tensor]:
        """Views a (..., P) tensor as one tensor (..., *shape) for each parameter."""
        pieces = vectors.split(self.sizes, dim=-1)
        return {
            name: piece.unflatten(-1, parameter.shape) if parameter.ndim else piece.squeeze(-1)
            for (name, parameter), piece in zip(self.parameters.items(), pieces, strict=True)
        }

    def empty(self, count: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """A stack (count, P) to be filled, and what `split` makes of it: so that no second one is in memory."""
        vectors = next(iter(self.parameters.values())).new_empty(count, self.size)
        return vectors, self.split(vectors)

    def join(self, pieces: Sequence[torch.Tensor | None], lead: tuple[int, ...] = ()) -> torch.Tensor:
        """The inverse of `split` for gradients of shape (*lead, *shape); `None` (parameter not used) becomes zero."""
        flat = [
            parameter.new_zeros(*lead, size) if piece is None else piece.reshape(*lead, size)
            for piece, parameter, size in zip(pieces, self.parameters.values(), self.sizes, strict=True)
        ]
        return torch.cat(flat, dim=-1)


@torch.no_grad()
def fill(parameters: Mapping[str, torch.Tensor], values: Mapping[str, torch.Tensor]) -> None:
    """Gives parameters other values, in place, bit for bit."""
    for name, parameter in parameters.items():
        parameter.copy_(values[name])


def model_fingerprint(model: nn.Module, frozen_only: bool = False) -> str:
    """A short digest of a model's weights, to notice that they changed: names, shapes, norms and sums.

    Args:
        model (`torch.nn.Module`): The model.
        frozen_only (`bool`, *optional*, defaults to `False`): Whether only what is not trained counts.
    """
    named = [(name, p) for name, p in model.named_parameters() if not (frozen_only and p.requires_grad)]
    if not named:
        return "nothing"
    numbers = torch.stack([torch.stack([p.detach().float().norm(), p.detach().float().sum()]) for _, p in named])
    digest = hashlib.blake2b(digest_size=8)
    for (name, parameter), (norm, total) in zip(named, numbers.tolist(), strict=True):
        if not (math.isfinite(norm) and math.isfinite(total)):
            raise InfluenceError(
                f"model: parameter {name} holds NaN or infinite numbers; load a checkpoint that is whole."
            )
        digest.update(f"{name}{tuple(parameter.shape)}{norm!r}{total!r}".encode())
    return digest.hexdigest()
