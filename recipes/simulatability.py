"""Measure how well influential examples explain a model to a simulator (section 6.1 and appendix C.1 of the paper).

    python recipes/simulatability.py --config recipes/configs/simulatability-mnli-small.yaml
    accelerate launch recipes/simulatability.py --config recipes/configs/simulatability-mnli.yaml

The recipe trains a model, and a simulator on the same examples with the labels that the model predicts. For each
query, a copy of the simulator takes one gradient step on a training example: one that is helpful or harmful to the
model's loss, or a random one of each label. The result is how much closer the simulator comes to the model's
predictions, for many learning rates (figures 4 and 11). The recipe writes `simulatability.json`, `.png` and `.svg`
into OUTPUT_DIR, and `simulatability-queries` with a panel for each query. It skips finished work.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from datasets import Dataset, DatasetDict

from hf_fastif import InfluenceConfig, InfluenceTrainer
from hf_fastif.config import with_settings
from hf_fastif.errors import InfluenceError
from hf_fastif.experiments import as_predicted, balanced_queries, simulatability
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

    simulator_name_or_path: str | None = field(
        default=None, metadata={"help": "Pretrained encoder of the simulator; None uses that of the model."}
    )
    simulator_num_frozen_layers: int | None = field(
        default=None, metadata={"help": "Number of its frozen layers; None uses that of the model."}
    )
    num_queries: int = field(
        default=20, metadata={"help": "Number of validation examples, half of which are predicted wrong."}
    )
    num_examples: int = field(default=10, metadata={"help": "Examples of each kind to take a step on."})
    num_learning_rates: int = field(
        default=50, metadata={"help": "Number of learning rates, evenly spaced on a log scale."}
    )
    smallest_learning_rate: float = field(default=1e-5, metadata={"help": "Smallest learning rate."})
    largest_learning_rate: float = field(default=10**-2.5, metadata={"help": "Largest learning rate."})


def main(recipe: RecipeArguments, data: DataArguments, config: InfluenceConfig) -> None:
    if recipe.simulator_name_or_path is None and not config.do_train:
        raise InfluenceError(
            "simulator_name_or_path=None: the model in model_name_or_path is already trained (do_train=False), and a "
            "simulator must not start from it; give the encoder that the model started from, or a different encoder."
        )
    trainer, examples = trained(recipe, data, config)
    rows, _ = balanced_queries(trainer, examples["validation"], recipe.num_queries, config.seed)
    simulator, simulator_examples = train_simulator(recipe, data, config, trainer, examples["train"])
    result = simulatability(
        trainer,
        simulator,
        examples["validation"].select(rows),
        simulated=simulator_examples["validation"].select(rows),
        examples=simulator_examples["train"],
        num_neighbors=config.num_neighbors,
        num_examples=recipe.num_examples,
        learning_rates=np.geomspace(
            recipe.smallest_learning_rate, recipe.largest_learning_rate, recipe.num_learning_rates
        ).tolist(),
    )
    report(result, "simulatability", trainer, config, recipe)


def train_simulator(
    recipe: RecipeArguments, data: DataArguments, config: InfluenceConfig, trainer: InfluenceTrainer, train: Dataset
) -> tuple[InfluenceTrainer, DatasetDict]:
    """Train a simulator on the model's predictions, with another seed; return it and the examples in its tokens."""
    frozen = recipe.simulator_num_frozen_layers
    model = ModelArguments(
        recipe.simulator_name_or_path or recipe.model_name_or_path,
        recipe.num_frozen_layers if frozen is None else frozen,
    )
    folder = str(Path(config.output_dir) / "simulator")
    run = with_settings(config, output_dir=folder, seed=config.seed + 1, do_train=True, checkpoints=["final"])
    examples = model.read_examples(data, run)
    predicted = DatasetDict(examples, train=as_predicted(trainer, train, examples["train"]))
    simulator, _ = trained(model, data, run, predicted)
    return simulator, examples


if __name__ == "__main__":
    run_recipe(main, RecipeArguments, DataArguments, InfluenceConfig)
