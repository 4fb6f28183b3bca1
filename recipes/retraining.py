"""Compare influence with the loss after retraining without the examples (figures 3c and 10 of the paper).

    python recipes/retraining.py --config recipes/configs/retraining-mnli-small.yaml
    accelerate launch recipes/retraining.py --config recipes/configs/retraining-mnli.yaml

The recipe removes the m most helpful or harmful training examples of each query, or m random examples of each label,
and trains again. With `--num_neighbors K` it also removes the examples that a search among the K nearest neighbours
gives. It prints how the measured changes of the loss, those of final models, compare with the predicted ones.
It writes `retraining.json`, `.png` and `.svg`, and the figure `retraining-calibration`, into OUTPUT_DIR. The losses of
every trained model are saved in OUTPUT_DIR/retrained, and the model is not trained again.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from datasets import Dataset, DatasetDict

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
    """Arguments of this recipe, in addition to those of data, training and influence."""

    num_queries: int = field(
        default=10, metadata={"help": "Number of validation examples, half of which are predicted wrong."}
    )
    num_removed: list[int] = field(
        default_factory=lambda: [1, 5, 25, 50, 100], metadata={"help": "Numbers of examples to remove."}
    )
    num_retrainings: int = field(
        default=3, metadata={"help": "Models to train for each removal, with different seeds."}
    )


def main(recipe: RecipeArguments, data: DataArguments, config: InfluenceConfig) -> None:
    check_training(config)
    trainer, examples = trained(recipe, data, config)
    rows, right = balanced_queries(trainer, examples["validation"], recipe.num_queries, config.seed)
    queries = examples["validation"].select(rows)

    def train_on(subset: Dataset, repeat: int) -> np.ndarray:
        return query_losses(train_again(recipe, DatasetDict(examples, train=subset), config, repeat), queries)

    systems = {"full": None}
    if config.num_neighbors is not None:
        systems[f"k = {config.num_neighbors}"] = config.num_neighbors
    result = retraining(
        trainer,
        queries,
        right,
        train_on=train_on,
        depends_on=training_settings(recipe, data, config),
        systems=systems,
        num_removed=recipe.num_removed,
        num_repeats=recipe.num_retrainings,
    )
    report(result, "retraining", trainer, config, recipe)


if __name__ == "__main__":
    run_recipe(main, RecipeArguments, DataArguments, InfluenceConfig)
