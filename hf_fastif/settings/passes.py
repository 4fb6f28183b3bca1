"""Declare the settings of passes over examples, for solving and scoring."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from transformers import TrainingArguments

from hf_fastif.errors import InfluenceError
from hf_fastif.settings.fields import check_at_least_one, check_choice, is_number, setting


ScoringName = Literal["auto", "forward_mode", "gradients"]


@dataclass
class PassSettings(TrainingArguments):
    """Add batch sizes, precision, memory and the scoring method to `TrainingArguments`."""

    influence_batch_size: int = setting(32, "Examples per pass, and per step of SDCA.")
    query_batch_size: int = setting(
        8, "Queries to solve for and score together. They share passes; each takes memory for its vectors."
    )
    scoring: ScoringName = setting(
        "auto",
        "Method to score candidates with; all methods are exact. 'forward_mode': one forward pass with a tangent for "
        "each query. 'gradients': one forward and one backward pass, and a matrix product for each query. 'auto' "
        "uses the first for one query, and the second for several queries if the model supports it.",
    )
    frozen_states_gb: float = setting(
        0.25,
        "Gigabytes of CPU memory for the hidden states behind frozen first layers, so that these layers run once per "
        "batch and not in every pass. The dataset in use has this much memory, and all others together as much again. "
        "0 stores none.",
    )
    influence_bf16: bool = setting(False, "Run the model in bfloat16 autocast for solving and scoring.")
    overwrite: bool = setting(
        False,
        "On the first call, delete partial results and fitted EK-FAC factors left in `output_dir/influence` by "
        "earlier runs. Recipes also repeat finished work, such as training.",
    )

    def check(self) -> None:
        """Check that the values are possible.

        Raises:
            InfluenceError: Naming the setting, its value and what to give instead.
        """
        check_choice("scoring", self.scoring, get_args(ScoringName))
        check_at_least_one(influence_batch_size=self.influence_batch_size, query_batch_size=self.query_batch_size)
        if not is_number(self.frozen_states_gb) or self.frozen_states_gb < 0:
            raise InfluenceError(
                f"frozen_states_gb={self.frozen_states_gb!r}: give a number of gigabytes, 0 for none."
            )
