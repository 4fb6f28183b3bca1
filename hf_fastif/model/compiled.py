"""Calls of a model without `torch.compile`: compiled graphs have no forward mode."""

from __future__ import annotations

from torch import nn


def take_compiled_calls(model: nn.Module) -> list[tuple[nn.Module, object]]:
    """Remove the compiled calls that `module.compile()` set on a model and its parts, and return them."""
    calls = [(m, m._compiled_call_impl) for m in model.modules() if m._compiled_call_impl is not None]
    for module, _ in calls:
        module._compiled_call_impl = None
    return calls
