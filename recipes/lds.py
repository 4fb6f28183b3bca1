"""Linear datamodeling score: which method predicts best what retraining on half of the training set does?

Trains one run or several (`--num_seeds`) with a checkpoint at the end of each epoch, then `--num_subsets` models on
random halves of the training set, and compares what influence predicts with their losses. Writes `lds.json`, `.png`
and `.svg` into OUTPUT_DIR. What is finished is kept and not done again: runs in `seed-N`, influences in that of the
first one, and losses of the other models in `subsets`.

    python recipes/lds.py --config recipes/configs/lds-mnli-small.yaml
    accelerate launch recipes/lds.py --config recipes/configs/lds-mnli.yaml
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from accelerate import PartialState
from datasets import Dataset

from hf_fastif import InfluenceConfig
from hf_fastif.analysis import METHODS, check_methods, lds_of_methods, query_losses, retrain_on_subsets
from hf_fastif.checkpoints import kept_checkpoints
from hf_fastif.execution import single_process
from hf_fastif.training import (
    DataArguments,
    ModelArguments,
    ResultArguments,
    fine_tune,
    make_trainer,
    report,
    run_recipe,
    runs_of,
    shuffled,
    train_again,
)


@dataclass
class RecipeArguments(ModelArguments, ResultArguments):
    """What this recipe needs beside the settings of data, training and influence."""

    num_seeds: int = field(default=2, metadata={"help": "Runs; the first is the one whose influence is asked for."})
    num_queries: int = field(default=100, metadata={"help": "Validation examples, drawn at random."})
    num_subsets: int = field(
        default=100, metadata={"help": "Random halves of the training set that models are trained on."}
    )
    models_per_subset: int = field(default=1, metadata={"help": "With other seeds; their losses are averaged."})
    methods: list[str] = field(
        default_factory=lambda: ["gradient product", "EK-FAC"], metadata={"help": f"Of: {', '.join(METHODS)}."}
    )
    moments: list[str] | None = field(
        default=None, metadata={"help": "Only these, such as 'final', 'epoch 1', 'all epochs', 'epoch 1 of 2 seeds'."}
    )


def main(recipe: RecipeArguments, data: DataArguments, config: InfluenceConfig) -> None:
    check_methods(recipe.methods)
    if config.checkpoints == ["auto"]:
        config.checkpoints = ["epochs"]  # moments are compared, so training keeps them all
    runs = runs_of(config, recipe.num_seeds)
    processes = PartialState()
    for run in runs[processes.process_index :: processes.num_processes]:
        with single_process():  # as the models on subsets are trained
            print(f"{run.output_dir}: accuracy {fine_tune(recipe, data, run):.1%} on the validation examples")
    processes.wait_for_everyone()
    first = copy.copy(recipe)
    first.model_name_or_path = runs[0].output_dir
    trainer, examples = make_trainer(first, data, runs[0])
    queries = shuffled(examples["validation"], config.seed, recipe.num_queries)

    def train_on(subset: Dataset, number: int) -> np.ndarray:
        return query_losses(train_again(recipe, data, config, subset, number), queries)

    subsets = Path(config.output_dir) / "subsets"
    truth = retrain_on_subsets(
        train_on,
        trainer.train_dataset,
        subsets,
        num_subsets=recipe.num_subsets,
        overwrite=config.overwrite,
        repeats=recipe.models_per_subset,
    )
    moments = moments_of([run.output_dir for run in runs])
    chosen = {name: moments[name] for name in moments if recipe.moments is None or name in recipe.moments}
    found = lds_of_methods(trainer, queries, truth, recipe.methods, chosen)
    report(found, "lds", trainer, config, recipe)


def moments_of(runs: list[str]) -> dict[str, list[str]]:
    """The checkpoints behind each name in the table."""
    kept = [{f"{member.epoch:.4g}": str(member.path) for member in kept_checkpoints(run)} for run in runs]
    ends = [epoch for epoch in kept[0] if epoch.isdecimal()]
    last = list(kept[0].values())[-1:] or ["final"]  # the model as it is, as "all epochs" has it too
    moments = {"final": last} | {f"epoch {epoch}": [kept[0][epoch]] for epoch in list(kept[0])[:-1]}
    moments["all epochs"] = [kept[0][epoch] for epoch in ends]
    if len(runs) > 1:
        several = f"of {len(runs)} seeds"
        moments |= {f"epoch {epoch} {several}": [own[epoch] for own in kept] for epoch in ends}
        moments[f"all epochs {several}"] = [own[epoch] for own in kept for epoch in ends]
    return moments


if __name__ == "__main__":
    run_recipe(main, RecipeArguments, DataArguments, InfluenceConfig)
