"""Do fast scores say what full ones do (section 5.4 of the paper, tables 2 and 4), and what is lambda's part in it?

The solver and lambda of the settings, and k candidates from the index, against a converged solver and a full scan; at
the lambda that the authors' settings amount to, and at 1 % of the largest eigenvalue. Writes `correlation.json`,
`.png` and `.svg` into OUTPUT_DIR. What is finished is not done again.

    python recipes/correlation.py --config recipes/configs/correlation-mnli-small.yaml
    accelerate launch recipes/correlation.py --config recipes/configs/correlation-mnli.yaml
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from hf_fastif import InfluenceConfig
from hf_fastif.experiments import balanced_queries, correlation
from hf_fastif.training import (
    DataArguments,
    ModelArguments,
    ResultArguments,
    report,
    run_recipe,
    trained,
)


@dataclass
class RecipeArguments(ModelArguments, ResultArguments):
    """What this recipe needs beside the settings of data, training and influence."""

    num_queries: int = field(default=20, metadata={"help": "Validation examples, half of them predicted wrong."})
    ks: list[int] | None = field(
        default=None, metadata={"help": "Numbers of candidates; 1 %% and 5 %% of the training set unless given."}
    )
    dampings: list[str] = field(
        default_factory=lambda: ["50", "auto"], metadata={"help": "Values of lambda; 50 is the authors' for MultiNLI."}
    )
    full: str = field(
        default='{"solver": "exact"}',
        metadata={"help": "Settings, as JSON, with which the solver converges; they go over the others."},
    )


def main(recipe: RecipeArguments, data: DataArguments, config: InfluenceConfig) -> None:
    trainer, examples = trained(recipe, data, config)
    rows, _ = balanced_queries(trainer, examples["validation"], recipe.num_queries, config.seed)
    queries = examples["validation"].select(rows)
    ks = recipe.ks or [max(2, len(examples["train"]) * percent // 100) for percent in (1, 5)]
    found = correlation(trainer, queries, ks, json.loads(recipe.full), recipe.dampings)
    report(found, "correlation", trainer, config, recipe)


if __name__ == "__main__":
    run_recipe(main, RecipeArguments, DataArguments, InfluenceConfig)
