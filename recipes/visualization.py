"""Draw which training examples influence the errors of a model, slice by slice (section 6.2 of the paper).

    python recipes/visualization.py --config recipes/configs/visualization-fastif.yaml
    python recipes/visualization.py --config recipes/configs/visualization-small.yaml \
        --train_file mnli_train.jsonl --validation_file mnli_dev.jsonl \
        --sliced_train_file hans_train.jsonl --sliced_validation_file hans_eval.jsonl

As in figure 5, one model is trained on one dataset (MultiNLI), and another on a second dataset whose examples have
slices (HANS, with its heuristics). Errors of both models are explained, on the first dataset and on every slice of the
second. Without a second dataset there is one model, and the slices are those of its validation examples. The recipe
writes the result into OUTPUT_DIR/NAME/influence, with the figure `graph.png`, `.svg` and `.pdf`, the tables `edges`
(table 5) and `correlations` (table 6) as CSV and parquet, and `report.html` with an interactive graph. It skips
finished work.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from datasets import Dataset

from hf_fastif import InfluenceConfig, InfluenceResult, InfluenceTrainer
from hf_fastif.config import with_settings
from hf_fastif.errors import InfluenceError
from hf_fastif.index import check_num_neighbors
from hf_fastif.results import FORMATS, SUMMARY, influence_graph, plot_graph, save_tables
from hf_fastif.training import (
    DataArguments,
    ModelArguments,
    SlicedArguments,
    fine_tune,
    load_examples,
    run_recipe,
    sliced_data,
    slices_of,
    tokenize,
    trained,
)


@dataclass
class RecipeArguments(ModelArguments, SlicedArguments):
    """Arguments of this recipe, in addition to those of data, training and influence."""

    name: str = field(default="MNLI", metadata={"help": "Name of the first dataset."})
    num_queries: int = field(default=100, metadata={"help": "Number of errors to explain per slice."})
    num_examples: int | None = field(
        default=None, metadata={"help": "Training examples to list for each direction; None lists all scored ones."}
    )


def main(recipe: RecipeArguments, data: DataArguments, config: InfluenceConfig) -> None:
    arguments = data_sets(recipe, data)
    training = with_settings(config, do_train=True)
    examples = {name: recipe.read_examples(arguments[name], training) for name in arguments}
    for splits in examples.values():
        check_num_neighbors(config.num_neighbors, len(splits["train"]))
    for name in arguments:
        run = with_settings(config, output_dir=str(Path(config.output_dir) / file_name(name)), do_train=False)
        accuracy = fine_tune(recipe, arguments[name], run, examples[name])
        trainer, _ = trained(replace(recipe, model_name_or_path=run.output_dir), arguments[name], run, examples[name])
        slices = {}
        for other in arguments:
            slices |= slices_of(other, validation_of(trainer, arguments[other]), recipe.slice_column)
        results = explain_slices(trainer, slices, recipe, data.text_columns)
        if trainer.is_world_process_zero():
            print(f"{name}: accuracy {accuracy:.1%} on the validation examples")
            write(results, trainer, recipe.slice_column, f"Trained on {name}")


def data_sets(recipe: RecipeArguments, data: DataArguments) -> dict[str, DataArguments]:
    """Return the data arguments by name: of the first dataset, and of the sliced one if it is given."""
    return {recipe.name: data} | ({recipe.sliced_name: sliced_data(recipe, data)} if recipe.is_given else {})


def validation_of(trainer: InfluenceTrainer, data: DataArguments) -> Dataset:
    examples = load_examples(data, trainer.model.config.id2label, new_head=False)
    return tokenize(examples, trainer.processing_class, data)["validation"]


def file_name(name: str) -> str:
    return re.sub(r"\W+", "-", name).strip("-").lower()


def explain_slices(
    trainer: InfluenceTrainer, slices: Mapping[str, Dataset], recipe: RecipeArguments, text_columns: list[str] | None
) -> dict[str, InfluenceResult]:
    """Explain errors in each slice that has any; read the results of slices that are finished."""
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
        chosen = np.sort(np.random.default_rng(trainer.args.seed).permutation(wrong)[: recipe.num_queries])
        results[name] = trainer.find_influential(examples.select(chosen), num_examples=recipe.num_examples)
        results[name].summary.query_rows = chosen.tolist()
        if text_columns is not None:
            results[name].summary.text_columns = text_columns
        if trainer.is_world_process_zero():
            results[name].save_to_disk(folder)
        trainer.accelerator.wait_for_everyone()
    if not results:
        raise InfluenceError("The model predicts every validation example right: there are no errors to explain.")
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
