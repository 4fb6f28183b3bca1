"""Corrects a model on slices that it fails on, with the examples that help most with some anchors of them.

Section 6.3 of the paper, figures 6, 7, 12 and 13: trains a model (`--do_train`) on one data set and looks at another,
with slices, such as HANS with its heuristics. Of each slice some examples are anchors and others test. From the same
model it then takes a few gradient steps, again and again, on the most helpful or harmful examples, on random ones, or
on the anchors themselves: of the training set (`--candidates_from train`), of the training examples of the other data
set, never trained on (`sliced`), or of a part of its queries that is held out for it (`held_out`). Writes
`correction.json` and the figures `correction` and `correction-validation` as PNG and SVG into OUTPUT_DIR/SETTING. What
is finished is kept and not done again.

    python recipes/correction.py --config recipes/configs/correction-hans.yaml
    python recipes/correction.py --config recipes/configs/correction-hans-small.yaml \
        --train_file mnli_train.jsonl --validation_file mnli_dev.jsonl --sliced_validation_file hans_eval.jsonl
    python recipes/correction.py --config recipes/configs/correction-hans-augment-small.yaml \
        --train_file mnli_train.jsonl --validation_file mnli_dev.jsonl \
        --sliced_train_file hans_train.jsonl --sliced_validation_file hans_eval.jsonl
    python recipes/correction.py --do_train --sliced_test_split challenge --slice_column label --output_dir out/correct
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from datasets import Dataset, DatasetDict

from hf_fastif import InfluenceConfig, InfluenceTrainer
from hf_fastif.analysis import SYSTEMS
from hf_fastif.errors import InfluenceError
from hf_fastif.experiments import corrections
from hf_fastif.training import (
    DataArguments,
    ModelArguments,
    ResultArguments,
    SlicedArguments,
    load_examples,
    report,
    run_recipe,
    shuffled,
    sliced_data,
    slices_of,
    tokenize,
    trained,
)


@dataclass
class RecipeArguments(ModelArguments, SlicedArguments, ResultArguments):
    """What this recipe needs beside the settings of data, training and influence."""

    setting: str = field(default="corrected", metadata={"help": "Name of the folder for the results."})
    slices: list[str] | None = field(default=None, metadata={"help": "Values of slice_column; all unless given."})
    sliced_anchors_split: str | None = field(
        default=None, metadata={"help": "Split that anchors are drawn from; unless given a part of the queries."}
    )
    candidates_from: Literal["train", "sliced", "held_out"] = field(
        default="train", metadata={"help": "Where the examples are from that the model is trained on."}
    )
    num_pool: int | None = field(
        default=None, metadata={"help": "So many of them, drawn at random; all unless given."}
    )
    num_validation: int = field(default=100, metadata={"help": "Examples of each slice that anchors are drawn from."})
    num_tested: int = field(default=2000, metadata={"help": "Examples of each slice to test with, at most."})
    num_guard: int = field(default=1000, metadata={"help": "Validation examples of the first data set to watch."})
    systems: list[str] = field(
        default_factory=lambda: ["helpful", "balanced", "harmful", "random", "anchors"],
        metadata={"help": "What to train on; 'balanced': the most helpful of each label, equally many."},
    )
    num_corrections: int = field(default=3, metadata={"help": "Repeats, which differ in what is drawn."})
    steps: int = field(default=10, metadata={"help": "Gradient steps of a correction."})
    num_examples: int = field(default=10, metadata={"help": "Examples in a step."})
    correction_rate: float = field(default=1e-4, metadata={"help": "Learning rate of the steps."})
    max_guard_drop: float | None = field(
        default=None, metadata={"help": "Accuracy that the guard may lose (0.01 is a point); None lets it fall."}
    )
    num_anchors: int | None = field(default=10, metadata={"help": "Anchors drawn for a step; None takes all."})
    num_candidates: int | None = field(
        default=None, metadata={"help": "Candidates drawn for a step, to score; None takes all."}
    )


def main(recipe: RecipeArguments, data: DataArguments, config: InfluenceConfig) -> None:
    if unknown := set(recipe.systems) - set(SYSTEMS):
        raise InfluenceError(f"systems: {', '.join(unknown)} is not one of {', '.join(SYSTEMS)}.")
    trainer, examples = trained(recipe, data, config)
    queries, anchors, pool = sliced(recipe, data, trainer)
    found = corrections(
        trainer,
        anchors_and_tests(recipe, queries, anchors),
        shuffled(examples["validation"], config.seed, recipe.num_guard),
        candidates=pool,
        systems=recipe.systems,
        num_repeats=recipe.num_corrections,
        steps=recipe.steps,
        num_examples=recipe.num_examples,
        learning_rate=recipe.correction_rate,
        max_guard_drop=recipe.max_guard_drop,
        num_anchors=recipe.num_anchors,
        num_candidates=recipe.num_candidates,
    )
    config = copy.copy(config)
    config.output_dir = str(Path(config.output_dir) / recipe.setting)
    report(found, "correction", trainer, config, recipe)


def sliced(
    recipe: RecipeArguments, data: DataArguments, trainer: InfluenceTrainer
) -> tuple[Dataset, Dataset | None, Dataset | None]:
    """The queries, the examples that anchors are drawn from (None: some queries), and the candidates (None: the
    training set)."""
    own, seed = sliced_data(recipe, data), trainer.args.seed
    if own.train_file is None and recipe.candidates_from != "sliced":
        own = replace(own, train_file=own.validation_file)  # there are no training examples, and none are wanted
    examples, anchors = read(own, trainer), None
    queries, pool = shuffled(examples["validation"], seed), None
    if recipe.sliced_anchors_split is not None:
        anchors = read(replace(own, dataset_test_split=recipe.sliced_anchors_split), trainer)["validation"]
        anchors = shuffled(anchors, seed)
    if recipe.candidates_from == "held_out":
        if recipe.num_pool is None or not 0 < recipe.num_pool < len(queries):
            raise InfluenceError(
                f"num_pool={recipe.num_pool}: say how many of the {len(queries)} queries to hold out."
            )
        pool, queries = queries.select(range(recipe.num_pool)), queries.select(range(recipe.num_pool, len(queries)))
    elif recipe.candidates_from == "sliced" or recipe.num_pool is not None:
        pool = examples["train"] if recipe.candidates_from == "sliced" else trainer.train_dataset
        pool = shuffled(pool, seed, recipe.num_pool)
    return queries, anchors, pool


def anchors_and_tests(
    recipe: RecipeArguments, queries: Dataset, anchors: Dataset | None
) -> dict[str, tuple[Dataset, Dataset]]:
    """What anchors are drawn from, and what to test with, slice by slice."""
    found, sources = {}, {}
    if anchors is not None:
        sources = slices_of(recipe.sliced_name, anchors, recipe.slice_column, recipe.slices)
    for name, rows in slices_of(recipe.sliced_name, queries, recipe.slice_column, recipe.slices).items():
        own, first = (rows, recipe.num_validation) if anchors is None else (sources[name], 0)
        if len(rows) <= first or len(own) < recipe.num_validation:
            raise InfluenceError(
                f"num_validation={recipe.num_validation}: {name} has {len(rows)} examples; give fewer."
            )
        tested = rows.select(range(first, min(first + recipe.num_tested, len(rows))))
        found[name] = own.select(range(recipe.num_validation)), tested
    return found


def read(data: DataArguments, trainer: InfluenceTrainer) -> DatasetDict:
    examples = load_examples(data, trainer.model.config.id2label, new_head=False)
    return tokenize(examples, trainer.processing_class, data)


if __name__ == "__main__":
    run_recipe(main, RecipeArguments, DataArguments, InfluenceConfig)
