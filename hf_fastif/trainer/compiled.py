"""A trainer of a compiled model, with the model itself in its place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from transformers import Trainer


@contextmanager
def uncompiled(trainer: Trainer, plain: nn.Module) -> Iterator[None]:
    """Give a trainer of `torch.compile(model)` the model itself for a while: compiled graphs hide what a model takes.

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
