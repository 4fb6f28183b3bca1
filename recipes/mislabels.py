"""Do influence scores find wrong labels, and is the model better without them or with the right ones?

Gives a share of the training examples a wrong label (or takes those that a column calls wrong), trains on them, and
looks for them with self-influence, with the squared gradient, with the harmful influence on validation examples, with
the loss, and at random. Then it drops or fixes the worst share by each score and trains again. Writes
`mislabels.json`, `.png` and `.svg`; what is finished is kept beside them and not done again.

    python recipes/mislabels.py --config recipes/configs/mislabels-mnli-small.yaml
    python recipes/mislabels.py --config recipes/configs/mislabels-mnli-small.yaml --flip_share 0.2
    python recipes/mislabels.py --do_train --output_dir out/mislabels --wrong_column planted --wrong_value wrong_label
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from datasets import Dataset

from hf_fastif import InfluenceConfig
from hf_fastif.analysis import mislabels
from hf_fastif.errors import InfluenceError
from hf_fastif.training import (
    DataArguments,
    ModelArguments,
    ResultArguments,
    check_training,
    make_trainer,
    plant_wrong_labels,
    report,
    run_recipe,
    train_again,
    trained,
    training_settings,
)


@dataclass
class RecipeArguments(ModelArguments, ResultArguments):
    """What this recipe needs beside the settings of data, training and influence."""

    flip_share: float = field(default=0.1, metadata={"help": "Of the training labels, to make wrong."})
    wrong_column: str | None = field(
        default=None, metadata={"help": "A column that says which labels are wrong; none is made wrong then."}
    )
    wrong_value: str = field(default="True", metadata={"help": "What that column holds where a label is wrong."})
    right_label_column: str | None = field(
        default=None,
        metadata={"help": "A column with the right labels, for fixing; of two labels the other is right."},
    )
    num_anchors: int = field(default=500, metadata={"help": "Validation examples for the harmful influence."})
    num_tested: int = field(default=2000, metadata={"help": "Other validation examples, for the accuracy."})
    shares: list[float] = field(
        default_factory=lambda: [0.1], metadata={"help": "Shares of the training set that are dropped or fixed."}
    )
    num_retrainings: int = field(
        default=3, metadata={"help": "Models after each of these, which differ in their seed; 0 trains none again."}
    )


def main(recipe: RecipeArguments, data: DataArguments, config: InfluenceConfig) -> None:
    if recipe.wrong_column is None or recipe.num_retrainings:
        check_training(config)
    _, examples = make_trainer(recipe, data, config)
    if not 0 < recipe.num_anchors < len(examples["validation"]):
        raise InfluenceError(
            f"num_anchors={recipe.num_anchors}: there are {len(examples['validation'])} validation examples, and some "
            "must be left to test with."
        )
    train, wrong, labels = wrong_labels(recipe, examples["train"], config.seed)
    if recipe.wrong_column is None:
        config.output_dir = str(Path(config.output_dir) / f"flipped-{recipe.flip_share:g}-seed-{config.seed}")
    trainer, examples = trained(recipe, data, config, train)
    order = np.random.default_rng(config.seed).permutation(len(examples["validation"]))
    anchors = examples["validation"].select(order[: recipe.num_anchors])
    tested = examples["validation"].select(order[recipe.num_anchors :][: recipe.num_tested])

    def train_on(subset: Dataset, repeat: int) -> float:
        again = train_again(recipe, data, config, subset, repeat)
        return 1 - len(again.find_misclassified(tested)) / len(tested)

    found = mislabels(
        trainer,
        anchors,
        wrong,
        labels=labels,
        train_on=train_on if recipe.num_retrainings else None,
        about=training_settings(recipe, data, config) | {"tested": str(len(tested)), "anchors": str(len(anchors))},
        shares=recipe.shares,
        num_repeats=recipe.num_retrainings,
    )
    report(found, "mislabels", trainer, config, recipe)


def wrong_labels(recipe: RecipeArguments, train: Dataset, seed: int) -> tuple[Dataset, np.ndarray, np.ndarray | None]:
    """The training set, which of its labels are wrong, and the right ones if they are known."""
    given, feature = np.asarray(train["label"]), train.features["label"]
    if recipe.wrong_column is None:
        return *plant_wrong_labels(train, recipe.flip_share, seed), given
    for column in (recipe.wrong_column, recipe.right_label_column or recipe.wrong_column):
        if column not in train.column_names:
            raise InfluenceError(f"wrong_column: {column!r} is not among the columns {', '.join(train.column_names)}.")
    wrong = np.array([str(value) == recipe.wrong_value for value in train[recipe.wrong_column]])
    if recipe.right_label_column is not None:
        return train, wrong, np.array([feature.str2int(str(value)) for value in train[recipe.right_label_column]])
    return train, wrong, np.where(wrong, 1 - given, given) if feature.num_classes == 2 else None


if __name__ == "__main__":
    run_recipe(main, RecipeArguments, DataArguments, InfluenceConfig)
