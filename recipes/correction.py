"""Correct a model on slices that it fails on, with gradient steps on the training examples that help most.

    python recipes/correction.py --config recipes/configs/correction-hans.yaml
    python recipes/correction.py --config recipes/configs/correction-hans-small.yaml \
        --train_file mnli_train.jsonl --validation_file mnli_dev.jsonl --sliced_validation_file hans_eval.jsonl
    python recipes/correction.py --config recipes/configs/correction-hans-augment-small.yaml \
        --train_file mnli_train.jsonl --validation_file mnli_dev.jsonl \
        --sliced_train_file hans_train.jsonl --sliced_validation_file hans_eval.jsonl
    python recipes/correction.py --do_train --sliced_test_split challenge --slice_column label --output_dir out/correct

Reproduces section 6.3 of the paper (figures 6, 7, 12 and 13). It trains a model (`--do_train`) on one dataset and
corrects it on the slices of another, such as HANS with its heuristics. In each slice some examples are anchors and
others are for testing. Every correction starts from the same model and takes a few gradient steps on the most helpful
or harmful candidates, on random candidates, or on the anchors themselves. Candidates are the training set
(`--candidates_from train`), the training examples of the other dataset (`sliced`), or held-out queries of the other
dataset (`held_out`). The recipe writes `correction.json` and the figures `correction` and `correction-validation` as
PNG and SVG into OUTPUT_DIR/SETTING. It skips finished work.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from datasets import Dataset, DatasetDict

from hf_fastif import InfluenceConfig, InfluenceTrainer
from hf_fastif.analysis import SYSTEMS
from hf_fastif.config import with_settings
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
    """Arguments of this recipe, in addition to those of data, training and influence."""

    setting: str = field(default="corrected", metadata={"help": "Name of the folder of the results."})
    slices: list[str] | None = field(default=None, metadata={"help": "Values of slice_column to use; None uses all."})
    sliced_anchors_split: str | None = field(
        default=None, metadata={"help": "Split that anchors are drawn from; None uses part of the queries."}
    )
    candidates_from: Literal["train", "sliced", "held_out"] = field(
        default="train", metadata={"help": "Where the examples to train on come from."}
    )
    num_pool: int | None = field(
        default=None, metadata={"help": "Number of these candidates, drawn at random; None uses all."}
    )
    num_validation: int = field(default=100, metadata={"help": "Examples per slice that anchors are drawn from."})
    num_tested: int = field(default=2000, metadata={"help": "Maximum number of test examples per slice."})
    num_guard: int = field(default=1000, metadata={"help": "Validation examples of the first dataset in the guard."})
    systems: list[str] = field(
        default_factory=lambda: ["helpful", "balanced", "harmful", "random", "anchors"],
        metadata={"help": "What to train on. 'balanced': the same number of most helpful examples for each label."},
    )
    num_corrections: int = field(default=3, metadata={"help": "Repeats, which differ in their random draws."})
    steps: int = field(default=10, metadata={"help": "Gradient steps per correction."})
    num_examples: int = field(default=10, metadata={"help": "Examples per step."})
    correction_rate: float = field(default=1e-4, metadata={"help": "Learning rate of the steps."})
    max_guard_drop: float | None = field(
        default=None, metadata={"help": "Accuracy that the guard may lose (0.01 is one point); None sets no limit."}
    )
    num_anchors: int | None = field(default=10, metadata={"help": "Anchors drawn for each step; None uses all."})
    num_candidates: int | None = field(
        default=None, metadata={"help": "Candidates drawn and scored for each step; None uses all."}
    )


def main(recipe: RecipeArguments, data: DataArguments, config: InfluenceConfig) -> None:
    if unknown := set(recipe.systems) - set(SYSTEMS):
        raise InfluenceError(f"systems: {', '.join(unknown)} is not one of {', '.join(SYSTEMS)}.")
    trainer, examples = trained(recipe, data, config)
    queries, anchors, pool = sliced(recipe, data, trainer)
    result = corrections(
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
    folder = str(Path(config.output_dir) / recipe.setting)
    report(result, "correction", trainer, with_settings(config, output_dir=folder), recipe)


def sliced(
    recipe: RecipeArguments, data: DataArguments, trainer: InfluenceTrainer
) -> tuple[Dataset, Dataset | None, Dataset | None]:
    """Read the queries, the examples to draw anchors from, and the candidates.

    The second is None if anchors are drawn from the queries, the third if the candidates are the training set.
    """
    sliced_arguments, seed = sliced_data(recipe, data), trainer.args.seed
    if sliced_arguments.train_file is None and recipe.candidates_from != "sliced":  # its training set is not used
        sliced_arguments = replace(sliced_arguments, train_file=sliced_arguments.validation_file)
    examples, anchors = read(sliced_arguments, trainer), None
    queries, pool = shuffled(examples["validation"], seed), None
    if recipe.sliced_anchors_split is not None:
        anchor_arguments = replace(sliced_arguments, dataset_test_split=recipe.sliced_anchors_split)
        anchors = shuffled(read(anchor_arguments, trainer)["validation"], seed)
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
    """Return, for each slice, the examples to draw anchors from and the examples to test with."""
    parts, sources = {}, {}
    if anchors is not None:
        sources = slices_of(recipe.sliced_name, anchors, recipe.slice_column, recipe.slices)
    for name, rows in slices_of(recipe.sliced_name, queries, recipe.slice_column, recipe.slices).items():
        source, first = (rows, recipe.num_validation) if anchors is None else (sources[name], 0)
        if len(rows) <= first or len(source) < recipe.num_validation:
            raise InfluenceError(
                f"num_validation={recipe.num_validation}: {name} has {len(rows)} examples; give fewer."
            )
        tested = rows.select(range(first, min(first + recipe.num_tested, len(rows))))
        parts[name] = source.select(range(recipe.num_validation)), tested
    return parts


def read(data: DataArguments, trainer: InfluenceTrainer) -> DatasetDict:
    examples = load_examples(data, trainer.model.config.id2label, new_head=False)
    return tokenize(examples, trainer.processing_class, data)


if __name__ == "__main__":
    run_recipe(main, RecipeArguments, DataArguments, InfluenceConfig)
