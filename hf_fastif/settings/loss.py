"""Declare the settings of the loss whose influence is computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from transformers import TrainingArguments

from hf_fastif.errors import InfluenceError
from hf_fastif.settings.fields import check_choice, is_number, setting


Reduction = Literal["sum", "mean"]


@dataclass
class LossSettings(TrainingArguments):
    """Add the definition of the loss of an example to `TrainingArguments`."""

    loss_reduction: Reduction = setting(
        "sum",
        "Reduction over the labelled tokens of an example (language models, sequence to sequence, token "
        "classification). 'sum' gives every token the same weight, as `Trainer` does within a batch. 'mean' gives "
        "every example the same weight, however long.",
    )
    loss_weight_decay: float = setting(
        0.0,
        "Factor w of a term w ||theta||^2 that is added to every loss, as in the code of the FastIF authors (0.005). "
        "It adds a common offset to all influences, and is meant for reproducing their numbers. The Gauss-Newton "
        "matrix does not include it.",
    )

    def check(self) -> None:
        """Check that the values are possible.

        Raises:
            InfluenceError: Naming the setting, its value and what to give instead.
        """
        check_choice("loss_reduction", self.loss_reduction, get_args(Reduction))
        if not is_number(self.loss_weight_decay) or self.loss_weight_decay < 0:
            raise InfluenceError(f"loss_weight_decay={self.loss_weight_decay!r}: give a number of at least 0.")
