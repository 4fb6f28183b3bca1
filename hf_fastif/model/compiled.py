"""Models without `torch.compile`: compiled graphs have no forward mode, and hide what a model takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from transformers import Trainer


@contextmanager
def uncompiled(trainer: Trainer, plain: nn.Module) -> Iterator[None]:
    """Gives a trainer of `torch.compile(model)` the model itself, and takes it back.

    Args:
        trainer (`Trainer`): Its model may be compiled.
        plain (`torch.nn.Module`): The model itself.
    """
    given = trainer.model
    if not hasattr(given, "_orig_mod"):
        yield
        return
    trainer.model, trainer._signature_columns = plain, None  # the columns that the model takes
    try:
        yield
    finally:
        trainer.model = given


def take_compiled_calls(model: nn.Module) -> list[tuple[nn.Module, object]]:
    """Takes off what `module.compile()` has put in place of calls of a model and its parts; returns it."""
    taken = [(m, m._compiled_call_impl) for m in model.modules() if m._compiled_call_impl is not None]
    for module, _ in taken:
        module._compiled_call_impl = None
    return taken
