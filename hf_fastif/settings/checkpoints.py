"""Declare the settings of the checkpoints that influence is summed over."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import TrainingArguments

from hf_fastif.errors import InfluenceError
from hf_fastif.settings.fields import Names, Weights, positive_or_auto, setting


@dataclass
class CheckpointSettings(TrainingArguments):
    """Add the training checkpoints to use, and their weights, to `TrainingArguments`."""

    checkpoints: Names = setting(
        ["auto"],
        "Training checkpoints to use; influence is summed over them. 'final' is the current model. 'auto' is the end "
        "of the first epoch if the run that produced the model saved it, else the current model. 'epochs' are the "
        "ends of all epochs. A number such as 3 is that many evenly spaced steps. 'early-3' is a quarter, a half and "
        "the end of training. `train()` saves only these, with trained parameters and buffers, at most "
        "`save_total_limit` of them. Folders `checkpoint-*` of the same run are used too. A list names files, "
        "folders, output folders of other runs (seeds), or models on the Hub ('user/model@revision').",
    )
    checkpoint_weights: Weights = setting(
        ["uniform"], "Weights of the checkpoints in the sum: 'uniform', 'learning_rate', or one number per checkpoint."
    )

    def check(self) -> None:
        """Check checkpoints and weights, and turn them into lists of text.

        Raises:
            InfluenceError: Naming the setting, its value and what to give instead.
        """
        for name in ("checkpoints", "checkpoint_weights"):
            value = getattr(self, name)
            value = [value] if isinstance(value, str | int) else value
            if not value:
                raise InfluenceError(f"{name}={value}: give at least one.")
            setattr(self, name, [str(entry) for entry in value])
        if self.checkpoints[0].removeprefix("early-") == "0":
            raise InfluenceError(f"checkpoints={self.checkpoints[0]!r}: give a number of at least 1.")
        if self.checkpoint_weights not in (["uniform"], ["learning_rate"]):
            for weight in self.checkpoint_weights:
                positive_or_auto("checkpoint_weights", weight)
