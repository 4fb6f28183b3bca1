"""Measure which attribution method best predicts retraining on half of the training set (linear datamodeling score).

    python recipes/lds.py --config recipes/configs/lds-mnli-small.yaml
    accelerate launch recipes/lds.py --config recipes/configs/lds-mnli.yaml

The recipe trains one or more runs (`--num_seeds`) with a checkpoint at each sixth of training (unless `--checkpoints`
says otherwise), and then `--num_subsets` models on random halves of the training set. It compares the losses of these
models with the losses that influence predicts, and writes `lds.json`, `.png` and `.svg` into OUTPUT_DIR. It skips
finished work, which is saved there: the runs in `seed-N`, influences in the folder of the first run, and losses of the
other models in `subsets`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from accelerate import PartialState
from datasets import Dataset, DatasetDict

from hf_fastif import InfluenceConfig
from hf_fastif.analysis import METHODS, LossRises, check_methods, lds_of_methods, query_losses, retrain_on_subsets
from hf_fastif.checkpoints import automatic_checkpoints, kept_checkpoints
from hf_fastif.config import with_settings
from hf_fastif.execution import single_process
from hf_fastif.training import (
    DataArguments,
    LanguageArguments,
    ResultArguments,
    fine_tune,
    report,
    run_recipe,
    runs_of,
    shuffled,
    train_again,
    trained,
    training_settings,
)


@dataclass
class RecipeArguments(LanguageArguments, ResultArguments):
    """Arguments of this recipe, in addition to those of data, training and influence."""

    num_seeds: int = field(default=2, metadata={"help": "Number of runs; influence is computed for the first."})
    num_queries: int = field(default=100, metadata={"help": "Number of validation examples, drawn at random."})
    num_subsets: int = field(
        default=100, metadata={"help": "Number of random halves of the training set to train a model on."}
    )
    models_per_subset: int = field(
        default=2,
        metadata={"help": "Models per half, with different seeds, whose losses are averaged; 2 tell the ceiling."},
    )
    same_seed: bool = field(
        default=False,
        metadata={"help": "Predict models with the seed of the first run, so that only the data differ."},
    )
    num_removal_queries: int = field(
        default=0,
        metadata={"help": "Queries to train again for, without the 1 %% that each method calls most helpful."},
    )
    methods: list[str] = field(
        default_factory=lambda: ["gradient product", "EK-FAC"],
        metadata={"help": f"Methods to compare, from: {', '.join(METHODS)}."},
    )
    moments: list[str] | None = field(
        default=None,
        metadata={
            "help": "Rows of the table, such as 'default', 'final', 'epoch 1' or 'all epochs'; None computes all."
        },
    )


def main(recipe: RecipeArguments, data: DataArguments, config: InfluenceConfig) -> None:
    check_methods(recipe.methods)
    if config.checkpoints == ["auto"]:
        config = with_settings(config, checkpoints=["6"])  # among them are those that "auto" names
    runs = runs_of(config, recipe.num_seeds)
    examples = recipe.read_examples(data, with_settings(config, do_train=True))
    processes = PartialState()
    for run in runs[processes.process_index :: processes.num_processes]:
        with single_process():  # like the models on subsets
            print(
                f"{run.output_dir}: accuracy {fine_tune(recipe, data, run, examples):.1%} on the validation examples"
            )
    processes.wait_for_everyone()
    first, again = recipe.trained_in(runs[0].output_dir), recipe.retrained_like(runs[0].output_dir)
    trainer, _ = trained(first, data, with_settings(runs[0], do_train=False), examples)
    queries = shuffled(examples["validation"], config.seed, recipe.num_queries)

    def train_on(subset: Dataset, number: int) -> np.ndarray:
        return query_losses(
            train_again(again, DatasetDict(examples, train=subset), config, None if recipe.same_seed else number),
            queries,
        )

    subsets = Path(config.output_dir) / "subsets"
    options = {"overwrite": config.overwrite, "repeats": recipe.models_per_subset, "same_seed": recipe.same_seed}
    truth = retrain_on_subsets(train_on, trainer.train_dataset, subsets, num_subsets=recipe.num_subsets, **options)
    moments = moments_of([run.output_dir for run in runs])
    chosen = {name: moments[name] for name in moments if recipe.moments is None or name in recipe.moments}
    rises = None
    if recipe.num_removal_queries:
        settings = training_settings(recipe, data, config)
        counts = {"num_queries": recipe.num_removal_queries, "num_repeats": recipe.models_per_subset}
        rises = LossRises(trainer, queries, train_on, settings, **counts)
    result = lds_of_methods(trainer, queries, truth, recipe.methods, chosen, rises)
    report(result, "lds", trainer, config, recipe)


def moments_of(runs: list[str]) -> dict[str, list[str]]:
    """Return the checkpoints that each name in the table stands for; "default" are those of checkpoints="auto"."""
    members = [kept_checkpoints(run) for run in runs]
    checkpoints = [{f"{member.epoch:.4g}": str(member.path) for member in run} for run in members]
    ends = [epoch for epoch in checkpoints[0] if epoch.isdecimal()]
    last = list(checkpoints[0].values())[-1:] or ["final"]  # the last checkpoint is the final model
    moments = {"final": last} | {f"epoch {epoch}": [checkpoints[0][epoch]] for epoch in list(checkpoints[0])[:-1]}
    moments["all epochs"] = [checkpoints[0][epoch] for epoch in ends]
    default = automatic_checkpoints(members[0], members[0][-1].step) if members[0] else []
    if default:
        moments["default"] = [str(member.path) for member in default]
    if len(runs) > 1:
        several = f"of {len(runs)} seeds"
        moments |= {f"epoch {epoch} {several}": [run[epoch] for run in checkpoints] for epoch in ends}
        moments[f"all epochs {several}"] = [run[epoch] for run in checkpoints for epoch in ends]
    return moments


if __name__ == "__main__":
    run_recipe(main, RecipeArguments, DataArguments, InfluenceConfig)
