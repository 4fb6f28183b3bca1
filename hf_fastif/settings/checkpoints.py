"""Declare the settings of the checkpoints that influence is summed over."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from os import PathLike
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from hf_fastif.errors import InfluenceError, did_you_mean
from hf_fastif.settings.fields import Names, Weights, as_positive, setting


CHECKPOINT_WORDS = ("auto", "final", "epochs")
WEIGHT_WORDS = ("uniform", "learning_rate")
CHECKPOINTS_FIX = (
    f"give one of {', '.join(CHECKPOINT_WORDS)}, a number of at least 1 such as 3 or early-3, or a list of paths of "
    "checkpoints and ids of models on the Hub"
)
WEIGHTS_FIX = f"give one of {', '.join(WEIGHT_WORDS)}, or a list of numbers above 0, one for each checkpoint"
NUMBER = re.compile(r"(early-)?[+-]?[\d.]+")


@dataclass
class CheckpointSettings(TrainingArguments):
    """Add the training checkpoints to use, and their weights, to `TrainingArguments`."""

    checkpoints: Names = setting(
        ["auto"],
        "Training checkpoints to use; influence is summed over them. 'final' is the current model. 'auto' is a sixth, "
        "a third and two thirds of training, as far as the run that produced the model saved them or others near "
        "them, else the current model. 'epochs' are the ends of all epochs. A number such as 3 is that many evenly "
        "spaced steps. 'early-3' is a quarter, a half and the end of training. `train()` saves only these, with "
        "trained parameters and buffers, at most `save_total_limit` of them. Folders `checkpoint-*` of the same run "
        "are used too. A list names files, folders, output folders of other runs (seeds), or models on the Hub "
        "('user/model@revision').",
    )
    checkpoint_weights: Weights = setting(
        ["uniform"], "Weights of the checkpoints in the sum: 'uniform', 'learning_rate', or one number per checkpoint."
    )

    def check(self) -> None:
        """Check checkpoints and weights, and turn them into lists of text.

        Raises:
            InfluenceError: Naming the setting, its value and what to give instead.
        """
        self.checkpoints = _texts("checkpoints", self.checkpoints, str | int | PathLike, CHECKPOINTS_FIX)
        check_checkpoints(self.checkpoints)
        weights = _texts("checkpoint_weights", self.checkpoint_weights, str | Real, WEIGHTS_FIX)
        self.checkpoint_weights = weights
        is_word = len(weights) == 1 and weights[0] in WEIGHT_WORDS
        if not is_word and any(as_positive(weight) is None for weight in weights):
            given, near = (weights[0], did_you_mean(weights[0], WEIGHT_WORDS)) if len(weights) == 1 else (weights, "")
            raise InfluenceError(f"checkpoint_weights={given!r}: {WEIGHTS_FIX}{near or '.'}")


def check_checkpoints(entries: Sequence[str]) -> None:
    """Refuse entries of `CheckpointSettings.checkpoints` that can name no checkpoint.

    Paths need not exist yet, since training may write them.

    Raises:
        InfluenceError: Naming the entry and what to give instead.
    """
    for entry in entries:
        path = Path(entry)
        if path.is_file() and path.suffix != ".safetensors":
            raise InfluenceError(
                f"checkpoints={entry!r} is a file of another kind; give its folder, or a file *.safetensors."
            )
        if entry.strip() and path.exists():
            continue
        if len(entries) > 1 and (entry in CHECKPOINT_WORDS or NUMBER.fullmatch(entry)):
            raise InfluenceError(
                f"checkpoints={entry!r} in a list of {len(entries)}: a word or a number stands alone; a list names "
                "checkpoints by their paths or by ids of models on the Hub."
            )
        is_count = re.fullmatch(r"(early-)?0*[1-9]\d*", entry)
        if not entry.strip() or not is_count and (NUMBER.fullmatch(entry) or entry.startswith("early-")):
            raise InfluenceError(f"checkpoints={entry!r}: {CHECKPOINTS_FIX}.")


def _texts(name: str, value: Any, kinds: Any, fix: str) -> list[str]:
    """Return the entries of a setting as text; a single one needs no list."""
    entries = [value] if isinstance(value, kinds) else value
    if not isinstance(entries, list | tuple) or not entries:
        raise InfluenceError(f"{name}={value!r}: {fix}.")
    for entry in entries:
        if isinstance(entry, bool) or not isinstance(entry, kinds):
            raise InfluenceError(f"{name}={entry!r}: {fix}.")
    return [str(entry) for entry in entries]
