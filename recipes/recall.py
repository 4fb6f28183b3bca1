"""Recall of the candidates that an index proposes, for every kind of features (section 5.2 of the paper, figure 8).

Of examples of which half are predicted wrong, every training example is scored; how many of the most influential ones
are among the k nearest? Writes `recall.json`, `.png` and `.svg` into OUTPUT_DIR. What is finished is not done again.

    python recipes/recall.py --config recipes/configs/recall-mnli-small.yaml
    accelerate launch recipes/recall.py --config recipes/configs/recall-mnli.yaml --num_queries 20
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
    """What this recipe needs beside the settings of data, training and influence."""

    num_queries: int = field(default=100, metadata={"help": "Validation examples, half of them predicted wrong."})
    features: list[str] = field(
        default_factory=lambda: list(get_args(FeatureName)), metadata={"help": "Kinds of features to index."}
    )
    top: list[int] = field(
        default_factory=lambda: [10, 100, 1000], metadata={"help": "The m of 'm most influential examples'."}
    )
    ks: list[int] | None = field(
        default=None, metadata={"help": "Numbers of neighbours; from 0.1 %% of the training set to half unless given."}
    )


def main(recipe: RecipeArguments, data: DataArguments, config: InfluenceConfig) -> None:
    trainer, examples = trained(recipe, data, config)
    rows, right = balanced_queries(trainer, examples["validation"], recipe.num_queries, config.seed)
    groups = {"predicted wrong": ~right, "predicted right": right}
    queries = examples["validation"].select(rows)
    found = recall_of_features(trainer, queries, groups, recipe.features, recipe.top, recipe.ks)
    report(found, "recall", trainer, config, recipe)


if __name__ == "__main__":
    run_recipe(main, RecipeArguments, DataArguments, InfluenceConfig)
