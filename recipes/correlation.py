"""Compare fast influence scores with full ones at several lambdas (section 5.4 of the paper, tables 2 and 4).

    python recipes/correlation.py --config recipes/configs/correlation-mnli-small.yaml
    accelerate launch recipes/correlation.py --config recipes/configs/correlation-mnli.yaml

Fast scores use the configured solver and k candidates from the index. Full scores use a converged solver and a full
scan. By default lambda is 50, which the authors' settings amount to, and 0.3 % of the largest eigenvalue, the default.
The recipe writes `correlation.json`, `.png` and `.svg` into OUTPUT_DIR. It skips finished work.
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
    """Arguments of this recipe, in addition to those of data, training and influence."""

    num_queries: int = field(
        default=20, metadata={"help": "Number of validation examples, half of which are predicted wrong."}
    )
    ks: list[int] | None = field(
        default=None, metadata={"help": "Numbers of candidates; None uses 1 %% and 5 %% of the training set."}
    )
    dampings: list[str] = field(
        default_factory=lambda: ["50", "auto"],
        metadata={"help": "Values of lambda; the authors used 50 for MultiNLI."},
    )
    full: str = field(
        default='{"solver": "exact"}',
        metadata={"help": "Settings of the converged solver, as JSON; they override the others."},
    )


def main(recipe: RecipeArguments, data: DataArguments, config: InfluenceConfig) -> None:
    trainer, examples = trained(recipe, data, config)
    rows, _ = balanced_queries(trainer, examples["validation"], recipe.num_queries, config.seed)
    queries = examples["validation"].select(rows)
    ks = recipe.ks or [max(2, len(examples["train"]) * percent // 100) for percent in (1, 5)]
    result = correlation(trainer, queries, ks, json.loads(recipe.full), recipe.dampings)
    report(result, "correlation", trainer, config, recipe)


if __name__ == "__main__":
    run_recipe(main, RecipeArguments, DataArguments, InfluenceConfig)
