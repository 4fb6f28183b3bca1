"""Models without `torch.compile`, whose graphs have no forward mode and hide a model's arguments."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from transformers import Trainer


@contextmanager
def uncompiled(trainer: Trainer, plain: nn.Module) -> Iterator[None]:
    """Replace the model of a trainer of `torch.compile(model)` by the plain model, and restore it afterwards.

    Args:
        trainer (`Trainer`): Its model may be compiled.
        plain (`torch.nn.Module`): The plain model.
    """
    model = trainer.model
    if not hasattr(model, "_orig_mod"):
        yield
        return
    trainer.model, trainer._signature_columns = plain, None  # else the trainer keeps the columns of the compiled one
    try:
        yield
    finally:
        trainer.model = model


def take_compiled_calls(model: nn.Module) -> list[tuple[nn.Module, object]]:
    """Remove the compiled calls that `module.compile()` set on a model and its parts, and return them."""
    calls = [(m, m._compiled_call_impl) for m in model.modules() if m._compiled_call_impl is not None]
    for module, _ in calls:
        module._compiled_call_impl = None
    return calls
