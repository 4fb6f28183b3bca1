"""Linear datamodeling score: which method predicts best what retraining on half of the training set does?

Trains one run or several (`--num_seeds`) with a checkpoint at the end of each epoch, then `--num_subsets` models on
random halves of the training set, and compares what influence predicts with their losses. Everything that is finished
is kept in OUTPUT_DIR and not done again: runs in `seed-N`, models in `subsets`, scores in `lds.json`.

    python recipes/lds.py --config recipes/configs/lds-mnli-small.yaml
"""

from __future__ import annotations

import copy
import json
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from accelerate import PartialState
from datasets import Dataset
from transformers import set_seed

from hf_fastif import InfluenceConfig, InfluenceTrainer
from hf_fastif.analysis import Lds, lds, plot_lds, query_losses, retrain_on_subsets
from hf_fastif.checkpoints import kept_checkpoints
from hf_fastif.cli import check_processes, parse_arguments
from hf_fastif.data import DataArguments
from hf_fastif.files import write_whole
from hf_fastif.finetuning import ModelArguments, fine_tune, make_trainer, runs_of
from hf_fastif.processes import alone


METHODS = {
    "gradient product": {"solver": "identity"},
    "EK-FAC": {"solver": "ekfac"},
    "LiSSA": {"solver": "lissa"},
    "SDCA": {"solver": "sdca"},
    "exact": {"solver": "exact"},
}


@dataclass
class RecipeArguments(ModelArguments):
    """What this recipe needs beside the settings of data, training and influence."""

    num_seeds: int = field(default=2, metadata={"help": "Runs; the first is the one whose influence is asked for."})
    num_queries: int = field(default=100, metadata={"help": "Validation examples, drawn at random."})
    num_subsets: int = field(default=100, metadata={"help": "Models that are trained on half of the training set."})
    methods: list[str] = field(
        default_factory=lambda: ["gradient product", "EK-FAC"], metadata={"help": f"Of: {', '.join(METHODS)}."}
    )
    moments: list[str] | None = field(
        default=None, metadata={"help": "Only these, such as 'final', 'epoch 1', 'all epochs', 'epoch 1 of 2 seeds'."}
    )


def main(recipe: RecipeArguments, data: DataArguments, config: InfluenceConfig) -> None:
    check_processes(config.world_size)
    if unknown := set(recipe.methods) - set(METHODS):
        raise ValueError(f"methods: {', '.join(unknown)} is not one of {', '.join(METHODS)}.")
    folder = Path(config.output_dir)
    runs = runs_of(config, recipe.num_seeds)
    processes = PartialState()
    for run in runs[processes.process_index :: processes.num_processes]:
        with alone():  # as the models on subsets are trained
            print(f"{run.output_dir}: accuracy {fine_tune(recipe, data, run):.1%} on the validation examples")
    processes.wait_for_everyone()
    first = copy.copy(recipe)
    first.model_name_or_path = runs[0].output_dir
    trainer, examples = make_trainer(first, data, runs[0])
    queries = queries_of(examples["validation"], recipe, config)

    def train_on(subset: Dataset, number: int) -> np.ndarray:
        return losses_after_training(recipe, data, config, subset, queries, number)

    subsets = folder / "subsets"
    truth = retrain_on_subsets(
        train_on, trainer.train_dataset, subsets, recipe.num_subsets, overwrite=config.overwrite
    )
    path = folder / "lds.json"
    found = json.loads(path.read_text("utf-8")) if path.exists() and not config.overwrite else []
    for moment, checkpoints in moments_of([run.output_dir for run in runs]).items():
        for method in recipe.methods:
            known = any((row["moment"], row["method"]) == (moment, method) for row in found)
            if known or (recipe.moments is not None and moment not in recipe.moments):
                continue
            score, seconds = score_of(trainer, queries, truth, METHODS[method] | {"checkpoints": checkpoints})
            numbers = {"lds": score.mean, "low": score.low, "high": score.high, "seconds": round(seconds, 1)}
            found.append({"moment": moment, "method": method, "subsets": len(truth)} | numbers)
            if processes.is_main_process:
                print(f"{moment:24} {method:18} LDS {score}   {seconds:.0f} s", flush=True)
                text = json.dumps(found, indent=2)
                write_whole(path, lambda file, text=text: file.write_text(text, "utf-8"))
    if processes.is_main_process:
        plot_lds(found, folder / "lds.png")


def queries_of(validation: Dataset, recipe: RecipeArguments, config: InfluenceConfig) -> Dataset:
    rows = np.random.default_rng(config.seed).permutation(len(validation))
    return validation.select(rows[: recipe.num_queries])


def losses_after_training(
    recipe: RecipeArguments,
    data: DataArguments,
    config: InfluenceConfig,
    subset: Dataset,
    queries: Dataset,
    number: int,
) -> np.ndarray:
    """Trains on a subset as the runs were trained, with another seed."""
    config = copy.copy(config)
    config.seed, config.do_train, config.checkpoints = 1000 + config.seed + number, True, ["final"]
    config.disable_tqdm, config.logging_strategy = True, "no"
    set_seed(config.seed)
    with tempfile.TemporaryDirectory() as folder:
        config.output_dir, config.save_strategy = folder, "no"
        trainer, _ = make_trainer(recipe, data, config)
        trainer.train_dataset = subset
        trainer.train()
        return query_losses(trainer, queries)


def moments_of(runs: list[str]) -> dict[str, list[str]]:
    """The checkpoints behind each name in the table."""
    kept = [{f"{member.epoch:.4g}": str(member.path) for member in kept_checkpoints(run)} for run in runs]
    ends = [epoch for epoch in kept[0] if epoch.isdecimal()]
    moments = {"final": ["final"]} | {f"epoch {epoch}": [kept[0][epoch]] for epoch in list(kept[0])[:-1]}
    moments["all epochs"] = [kept[0][epoch] for epoch in ends]
    if len(runs) > 1:
        several = f"of {len(runs)} seeds"
        moments |= {f"epoch {epoch} {several}": [own[epoch] for own in kept] for epoch in ends}
        moments[f"all epochs {several}"] = [own[epoch] for own in kept for epoch in ends]
    return moments


def score_of(trainer: InfluenceTrainer, queries: Dataset, truth, settings: dict) -> tuple[Lds, float]:
    for name, value in settings.items():
        setattr(trainer.args, name, value)
    start = time.perf_counter()
    influence = trainer.compute_influence(queries)
    seconds = time.perf_counter() - start
    return lds(influence, truth), seconds


if __name__ == "__main__":
    main(*parse_arguments(RecipeArguments, DataArguments, InfluenceConfig))
