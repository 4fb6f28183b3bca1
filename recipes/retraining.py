"""Does the loss change as influence says, when a model is trained again without the examples (figures 3c and 10)?

Removes the m most helpful or harmful training examples of each query, or m random ones of each label, and trains
again. With `--num_neighbors K` examples are also found the fast way, among the K nearest neighbours. Writes
`retraining.json`, `.png` and `.svg` into OUTPUT_DIR. Of every model that was trained the losses are kept in
OUTPUT_DIR/retrained, and it is not trained again.

    python recipes/retraining.py --config recipes/configs/retraining-mnli-small.yaml
    accelerate launch recipes/retraining.py --config recipes/configs/retraining-mnli.yaml
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from datasets import Dataset

from hf_fastif import InfluenceConfig
from hf_fastif.analysis import query_losses
from hf_fastif.experiments import balanced_queries, retraining
from hf_fastif.training import (
    DataArguments,
    ModelArguments,
    ResultArguments,
    check_training,
    report,
    run_recipe,
    train_again,
    trained,
    training_settings,
)


@dataclass
class RecipeArguments(ModelArguments, ResultArguments):
    """What this recipe needs beside the settings of data, training and influence."""

    num_queries: int = field(default=10, metadata={"help": "Validation examples, half of them predicted wrong."})
    num_removed: list[int] = field(
        default_factory=lambda: [1, 5, 25, 50, 100], metadata={"help": "How many examples to remove."}
    )
    num_retrainings: int = field(default=3, metadata={"help": "Models for each removal, which differ in their seed."})


def main(recipe: RecipeArguments, data: DataArguments, config: InfluenceConfig) -> None:
    check_training(config)
    trainer, examples = trained(recipe, data, config)
    rows, right = balanced_queries(trainer, examples["validation"], recipe.num_queries, config.seed)
    queries = examples["validation"].select(rows)

    def train_on(subset: Dataset, repeat: int) -> np.ndarray:
        return query_losses(train_again(recipe, data, config, subset, repeat), queries)

    systems = {"full": None}
    if config.num_neighbors is not None:
        systems[f"k = {config.num_neighbors}"] = config.num_neighbors
    found = retraining(
        trainer,
        queries,
        right,
        train_on=train_on,
        about=training_settings(recipe, data, config),
        systems=systems,
        num_removed=recipe.num_removed,
        num_repeats=recipe.num_retrainings,
    )
    report(found, "retraining", trainer, config, recipe)


if __name__ == "__main__":
    run_recipe(main, RecipeArguments, DataArguments, InfluenceConfig)
