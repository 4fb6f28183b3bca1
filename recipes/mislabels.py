"""Measure how well influence scores find wrong labels, and whether dropping or fixing these improves the model.

    python recipes/mislabels.py --config recipes/configs/mislabels-mnli-small.yaml
    python recipes/mislabels.py --config recipes/configs/mislabels-mnli-small.yaml --flip_share 0.2
    python recipes/mislabels.py --config recipes/configs/mislabels-mnli-small.yaml --noise class
    python recipes/mislabels.py --do_train --output_dir out/mislabels --wrong_column planted --wrong_value wrong_label

The recipe gives a share of the training examples a wrong label (or uses the wrong labels that a column marks), trains
on them, and ranks the training examples by suspicion (`trainer.suspects()`), self-influence, squared gradient, harmful
influence on validation examples, loss, and at random. It then drops or fixes the worst share by each score and trains
again. It writes `mislabels.json`, `.png` and `.svg`, and skips finished work.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from datasets import Dataset, DatasetDict

from hf_fastif import InfluenceConfig
from hf_fastif.analysis import mislabels
from hf_fastif.config import with_settings
from hf_fastif.errors import InfluenceError
from hf_fastif.training import (
    DataArguments,
    ModelArguments,
    ResultArguments,
    check_training,
    plant_wrong_labels,
    report,
    run_recipe,
    train_again,
    trained,
    training_settings,
)


@dataclass
class RecipeArguments(ModelArguments, ResultArguments):
    """Arguments of this recipe, in addition to those of data, training and influence."""

    flip_share: float = field(default=0.1, metadata={"help": "Share of the training labels to make wrong."})
    noise: str = field(
        default="uniform",
        metadata={"help": "'uniform', or 'class': a class is mistaken for the next one only, the first class never."},
    )
    wrong_column: str | None = field(
        default=None, metadata={"help": "Column that marks wrong labels; with it, no label is changed."}
    )
    wrong_value: str = field(default="True", metadata={"help": "Value of that column where a label is wrong."})
    right_label_column: str | None = field(
        default=None,
        metadata={"help": "Column with the right labels, for fixing them. With two classes it is not needed."},
    )
    num_anchors: int = field(
        default=500, metadata={"help": "Validation examples whose harmful influences are summed."}
    )
    num_tested: int = field(default=2000, metadata={"help": "Further validation examples, to measure accuracy on."})
    shares: list[float] = field(
        default_factory=lambda: [0.1], metadata={"help": "Shares of the training set to drop or fix."}
    )
    num_retrainings: int = field(
        default=3, metadata={"help": "Models to train after each change, with different seeds; 0 trains none."}
    )


def main(recipe: RecipeArguments, data: DataArguments, config: InfluenceConfig) -> None:
    if recipe.wrong_column is None or recipe.num_retrainings:
        check_training(config)
    examples = recipe.read_examples(data, config)
    if not 0 < recipe.num_anchors < len(examples["validation"]):
        raise InfluenceError(
            f"num_anchors={recipe.num_anchors}: there are {len(examples['validation'])} validation examples; give "
            "fewer, so that some remain to test with."
        )
    train, wrong, labels = wrong_labels(recipe, examples["train"], config.seed)
    if recipe.wrong_column is None:
        kind = "flipped" if recipe.noise == "uniform" else f"flipped-by-{recipe.noise}"
        folder = Path(config.output_dir) / f"{kind}-{recipe.flip_share:g}-seed-{config.seed}"
        config = with_settings(config, output_dir=str(folder))
    trainer, _ = trained(recipe, data, config, DatasetDict(examples, train=train))
    order = np.random.default_rng(config.seed).permutation(len(examples["validation"]))
    anchors = examples["validation"].select(order[: recipe.num_anchors])
    tested = examples["validation"].select(order[recipe.num_anchors :][: recipe.num_tested])

    def train_on(subset: Dataset, repeat: int) -> float:
        retrained = train_again(recipe, DatasetDict(examples, train=subset), config, repeat)
        return 1 - len(retrained.find_misclassified(tested)) / len(tested)

    result = mislabels(
        trainer,
        anchors,
        wrong,
        labels=labels,
        train_on=train_on if recipe.num_retrainings else None,
        depends_on=training_settings(recipe, data, config)
        | {"tested": str(len(tested)), "anchors": str(len(anchors))},
        shares=recipe.shares,
        num_repeats=recipe.num_retrainings,
    )
    report(result, "mislabels", trainer, config, recipe)


def wrong_labels(recipe: RecipeArguments, train: Dataset, seed: int) -> tuple[Dataset, np.ndarray, np.ndarray | None]:
    """Return the training set (N rows), which of its labels are wrong, bool (N,), and the right ones if known (N,)."""
    given, feature = np.asarray(train["label"]), train.features["label"]
    if recipe.wrong_column is None:
        return *plant_wrong_labels(train, recipe.flip_share, seed, recipe.noise), given
    for column in (recipe.wrong_column, recipe.right_label_column or recipe.wrong_column):
        if column not in train.column_names:
            raise InfluenceError(f"wrong_column: {column!r} is not among the columns {', '.join(train.column_names)}.")
    wrong = np.array([str(value) == recipe.wrong_value for value in train[recipe.wrong_column]])
    if recipe.right_label_column is not None:
        return train, wrong, np.array([feature.str2int(str(value)) for value in train[recipe.right_label_column]])
    return train, wrong, np.where(wrong, 1 - given, given) if feature.num_classes == 2 else None


if __name__ == "__main__":
    run_recipe(main, RecipeArguments, DataArguments, InfluenceConfig)
