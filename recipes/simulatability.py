"""Do influential examples explain a model (section 6.1 and appendix C.1 of the paper, figures 4 and 11)?

Trains a model, and a simulator on the same examples with the labels that the model predicts. Then, for each query, a
copy of the simulator takes one gradient step on a training example that is helpful or harmful to the model's loss, or
on a random one of each label, with many learning rates: how much better does it predict what the model predicts?
Writes `simulatability.json`, `.png` and `.svg` into OUTPUT_DIR, and `simulatability-queries` with a panel for each
query. What is finished is kept beside them and not done again.

    python recipes/simulatability.py --config recipes/configs/simulatability-mnli-small.yaml
    accelerate launch recipes/simulatability.py --config recipes/configs/simulatability-mnli.yaml
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from datasets import Dataset, DatasetDict

from hf_fastif import InfluenceConfig, InfluenceTrainer
from hf_fastif.errors import InfluenceError
from hf_fastif.experiments import as_predicted, balanced_queries, simulatability
from hf_fastif.training import (
    DataArguments,
    ModelArguments,
    ResultArguments,
    make_trainer,
    report,
    run_recipe,
    trained,
)


@dataclass
class RecipeArguments(ModelArguments, ResultArguments):
    """What this recipe needs beside the settings of data, training and influence."""

    simulator_name_or_path: str | None = field(
        default=None, metadata={"help": "Pretrained encoder of the simulator; unless given, that of the model."}
    )
    simulator_num_frozen_layers: int | None = field(
        default=None, metadata={"help": "Its frozen layers; unless given, as many as those of the model."}
    )
    num_queries: int = field(default=20, metadata={"help": "Validation examples, half of them predicted wrong."})
    num_examples: int = field(default=10, metadata={"help": "Examples of each kind to take a step on."})
    num_learning_rates: int = field(default=50, metadata={"help": "Learning rates of the step, spaced evenly in log."})
    smallest_learning_rate: float = field(default=1e-5, metadata={"help": "The smallest of them."})
    largest_learning_rate: float = field(default=10**-2.5, metadata={"help": "The largest of them."})


def main(recipe: RecipeArguments, data: DataArguments, config: InfluenceConfig) -> None:
    if recipe.simulator_name_or_path is None and not config.do_train:
        raise InfluenceError(
            "simulator_name_or_path=None: the model in model_name_or_path is trained already (do_train=False), and a "
            "simulator must not start from it; give the encoder that it started from, or another one."
        )
    trainer, examples = trained(recipe, data, config)
    rows, _ = balanced_queries(trainer, examples["validation"], recipe.num_queries, config.seed)
    simulator, own = simulator_of(recipe, data, config, trainer, examples["train"])
    found = simulatability(
        trainer,
        simulator,
        examples["validation"].select(rows),
        simulated=own["validation"].select(rows),
        examples=own["train"],
        num_neighbors=config.num_neighbors,
        num_examples=recipe.num_examples,
        learning_rates=np.geomspace(
            recipe.smallest_learning_rate, recipe.largest_learning_rate, recipe.num_learning_rates
        ).tolist(),
    )
    report(found, "simulatability", trainer, config, recipe)


def simulator_of(
    recipe: RecipeArguments, data: DataArguments, config: InfluenceConfig, trainer: InfluenceTrainer, train: Dataset
) -> tuple[InfluenceTrainer, DatasetDict]:
    """A model that was trained from another seed on what the first predicts, and the examples as it takes them."""
    frozen = recipe.simulator_num_frozen_layers
    model = ModelArguments(
        recipe.simulator_name_or_path or recipe.model_name_or_path,
        recipe.num_frozen_layers if frozen is None else frozen,
    )
    run = copy.copy(config)
    run.output_dir, run.seed, run.do_train = str(Path(config.output_dir) / "simulator"), config.seed + 1, True
    run.checkpoints = ["final"]
    _, own = make_trainer(model, data, run)
    simulator, _ = trained(model, data, run, as_predicted(trainer, train, own["train"]))
    return simulator, own


if __name__ == "__main__":
    run_recipe(main, RecipeArguments, DataArguments, InfluenceConfig)
