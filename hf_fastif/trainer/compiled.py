"""Replace the compiled model of a trainer by the original model, temporarily."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from transformers import Trainer


@contextmanager
def uncompiled(trainer: Trainer, plain: nn.Module) -> Iterator[None]:
    """Replace the result of `torch.compile(model)` by the model within a context; other models stay.

    A compiled model hides the arguments of `forward`, from which the trainer derives the columns to keep.

    Args:
        trainer (`Trainer`): The trainer, whose model may be compiled.
        plain (`torch.nn.Module`): The original model.
    """
    given = trainer.model
    if not hasattr(given, "_orig_mod"):
        yield
        return
    trainer.model, trainer._signature_columns = plain, None  # derived again from the original model
    try:
        yield
    finally:
        trainer.model = given
