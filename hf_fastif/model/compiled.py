"""Calls of a model without `torch.compile`: compiled graphs have no forward mode."""

from __future__ import annotations

from torch import nn


def take_compiled_calls(model: nn.Module) -> list[tuple[nn.Module, object]]:
    """Takes off what `module.compile()` has put in place of calls of a model and its parts; returns it."""
    taken = [(m, m._compiled_call_impl) for m in model.modules() if m._compiled_call_impl is not None]
    for module, _ in taken:
        module._compiled_call_impl = None
    return taken
