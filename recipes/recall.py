"""Measure how many of the most influential examples the index finds (section 5.2 of the paper, figures 3a and 8).

    python recipes/recall.py --config recipes/configs/recall-mnli-small.yaml
    accelerate launch recipes/recall.py --config recipes/configs/recall-mnli.yaml --num_queries 20

The recipe scores every training example for queries of which half are predicted wrong. For each kind of features it
reports the share of the most influential examples among the k nearest neighbours. It writes `recall.json`, `.png` and
`.svg` into OUTPUT_DIR. It skips finished work.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import get_args

from hf_fastif import InfluenceConfig
from hf_fastif.analysis import recall_of_features
from hf_fastif.experiments import balanced_queries
from hf_fastif.settings import FeatureName
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
        default=100, metadata={"help": "Number of validation examples, half of which are predicted wrong."}
    )
    features: list[str] = field(
        default_factory=lambda: list(get_args(FeatureName)), metadata={"help": "Kinds of features to index."}
    )
    top: list[int] = field(
        default_factory=lambda: [10, 100, 1000], metadata={"help": "Values of m in 'm most influential examples'."}
    )
    ks: list[int] | None = field(
        default=None, metadata={"help": "Numbers of neighbours; None uses 0.1 %% to half of the training set."}
    )


def main(recipe: RecipeArguments, data: DataArguments, config: InfluenceConfig) -> None:
    trainer, examples = trained(recipe, data, config)
    rows, right = balanced_queries(trainer, examples["validation"], recipe.num_queries, config.seed)
    groups = {"predicted wrong": ~right, "predicted right": right}
    queries = examples["validation"].select(rows)
    result = recall_of_features(trainer, queries, groups, recipe.features, recipe.top, recipe.ks)
    report(result, "recall", trainer, config, recipe)


if __name__ == "__main__":
    run_recipe(main, RecipeArguments, DataArguments, InfluenceConfig)
