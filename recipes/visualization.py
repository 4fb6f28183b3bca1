"""Draws which training examples influence the errors of a model, slice by slice (section 6.2 of the paper).

Two sides, as in figure 5: a model that is trained on one data set (MultiNLI), and one that is trained on another whose
examples have slices (HANS, with its heuristics). Each is asked about its errors on the first data set and on every
slice of the second. What is finished is kept and not done again. OUTPUT_DIR/NAME/influence gets the result, the figure
`graph.png`, `.svg` and `.pdf`, the tables `edges` (table 5) and `correlations` (table 6) as CSV and parquet, and
`report.html`, where the graph can be explored.

    python recipes/visualization.py --config recipes/configs/visualization-fastif.yaml
    python recipes/visualization.py --config recipes/configs/visualization-small.yaml \
        --train_file mnli_train.jsonl --validation_file mnli_dev.jsonl \
        --sliced_train_file hans_train.jsonl --sliced_validation_file hans_eval.jsonl

Without a second data set there is one side, whose slices are those of the validation examples.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from datasets import Dataset

from hf_fastif import InfluenceConfig, InfluenceResult, InfluenceTrainer
from hf_fastif.errors import InfluenceError
from hf_fastif.index import check_num_neighbors
from hf_fastif.results import FORMATS, SUMMARY, influence_graph, plot_graph, save_tables
from hf_fastif.training import (
    DataArguments,
    ModelArguments,
    SlicedArguments,
    fine_tune,
    load_examples,
    make_trainer,
    run_recipe,
    sliced_data,
    slices_of,
    tokenize,
)


@dataclass
class RecipeArguments(ModelArguments, SlicedArguments):
    """What this recipe needs beside the settings of data, training and influence."""

    name: str = field(default="MNLI", metadata={"help": "What the first data set is called."})
    num_queries: int = field(default=100, metadata={"help": "How many errors of each slice to ask about."})
    num_examples: int | None = field(
        default=None, metadata={"help": "Examples to keep of each direction; all that were scored unless given."}
    )


def main(recipe: RecipeArguments, data: DataArguments, config: InfluenceConfig) -> None:
    sets = data_sets(recipe, data)
    for own in sets.values():
        check_num_neighbors(config.num_neighbors, len(load_examples(own, {}, new_head=True)["train"]))
    for name, own in sets.items():
        run, trained = copy.copy(config), copy.copy(recipe)
        run.output_dir = trained.model_name_or_path = str(Path(config.output_dir) / file_name(name))
        run.do_train = False
        accuracy = fine_tune(recipe, own, run)
        trainer, _ = make_trainer(trained, own, run)
        slices = {}
        for other, arguments in sets.items():
            slices |= slices_of(other, validation_of(trainer, arguments), recipe.slice_column)
        results = ask(trainer, slices, recipe, data.text_columns)
        if trainer.is_world_process_zero():
            print(f"{name}: accuracy {accuracy:.1%} on the validation examples")
            write(results, trainer, recipe.slice_column, f"Trained on {name}")


def data_sets(recipe: RecipeArguments, data: DataArguments) -> dict[str, DataArguments]:
    """The data sets by their names: the first one, and the one with slices if there is one."""
    return {recipe.name: data} | ({recipe.sliced_name: sliced_data(recipe, data)} if recipe.is_given else {})


def validation_of(trainer: InfluenceTrainer, data: DataArguments) -> Dataset:
    examples = load_examples(data, trainer.model.config.id2label, new_head=False)
    return tokenize(examples, trainer.processing_class, data)["validation"]


def file_name(name: str) -> str:
    return re.sub(r"\W+", "-", name).strip("-").lower()


def ask(
    trainer: InfluenceTrainer, slices: Mapping[str, Dataset], recipe: RecipeArguments, text_columns: list[str] | None
) -> dict[str, InfluenceResult]:
    """The result of each slice that the model makes errors on; those that are finished are read."""
    results = {}
    for name, examples in slices.items():
        folder = Path(trainer.args.output_dir) / "slices" / file_name(name)
        if (folder / SUMMARY).exists():
            results[name] = InfluenceResult.load_from_disk(folder)
            continue
        wrong = trainer.find_misclassified(examples)
        print(f"{name}: {len(wrong):,} of {len(examples):,} are wrong")
        if not len(wrong):
            continue
        if trainer.args.num_neighbors is not None and not trainer.train_dataset.list_indexes():
            trainer.build_index()
        chosen = np.sort(np.random.default_rng(trainer.args.seed).permutation(wrong)[: recipe.num_queries])
        results[name] = trainer.find_influential(examples.select(chosen), num_examples=recipe.num_examples)
        results[name].summary.query_rows = chosen.tolist()
        if text_columns is not None:
            results[name].summary.text_columns = text_columns
        if trainer.is_world_process_zero():
            results[name].save_to_disk(folder)
        trainer.accelerator.wait_for_everyone()
    if not results:
        raise InfluenceError("The model predicts every validation example right: there are no errors to ask about.")
    return results


def write(results: dict[str, InfluenceResult], trainer: InfluenceTrainer, slice_column: str, title: str) -> None:
    subsets = slice_column if slice_column in trainer.train_dataset.column_names else None
    joined = InfluenceResult.join(results)
    folder = joined.save_to_disk(Path(trainer.args.output_dir) / "influence")
    graph = influence_graph(joined, subset_column=subsets)
    paths = [*save_tables(graph, folder), joined.to_html(folder / "report.html", title, subset_column=subsets)]
    paths += plot_graph(graph, *(folder / f"graph.{end}" for end in FORMATS))
    print(*paths, sep="\n")


if __name__ == "__main__":
    run_recipe(main, RecipeArguments, DataArguments, InfluenceConfig)
