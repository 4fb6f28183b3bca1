"""Explain predictions of a model by the training examples behind them.

    python recipes/find_influential.py --config recipes/configs/find_influential-demo.yaml
    python recipes/find_influential.py --config recipes/configs/find_influential-facts.yaml
    accelerate launch recipes/find_influential.py --config recipes/configs/find_influential-mnli.yaml --num_queries 20

The model is a classifier or, with `--completion_column`, a causal language model, and is trained (`--do_train`) or
loaded. The recipe builds the index and explains some validation examples: misclassified ones for classifiers, random
ones for language models, or `--query_indices`. With `--check_by_retraining N` it trains the model again without
the N training examples that are most harmful to these, and for comparison without N random ones. It writes
`influences.parquet`, `queries.parquet`, `summary.json` and `report.html` into `OUTPUT_DIR/influence`, with
`--diagnose` also `diagnosis.txt` and `diagnosis.png`, and with `--fact_column` also `retrieval.json` and its figure.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
from datasets import Dataset, DatasetDict
from transformers import set_seed

from hf_fastif import InfluenceConfig, InfluenceResult
from hf_fastif.artifacts import atomic_write
from hf_fastif.artifacts.plots import try_to_draw
from hf_fastif.data import check_rows
from hf_fastif.diagnosis import Diagnosis
from hf_fastif.errors import InfluenceError
from hf_fastif.experiments import Retrieval, predicted_right, removal_check, retrieval
from hf_fastif.index import check_num_neighbors
from hf_fastif.results import TrainedWithout, check_text
from hf_fastif.trainer import InfluenceTrainer
from hf_fastif.training import (
    DataArguments,
    LanguageArguments,
    check_training,
    make_trainer,
    run_recipe,
    train_again,
    training_settings,
)


@dataclass
class RecipeArguments(LanguageArguments):
    """Arguments of this recipe, in addition to those of data, training and influence."""

    num_queries: int = field(
        default=10,
        metadata={"help": "Number of validation examples to explain (misclassified ones for classifiers)."},
    )
    query_indices: list[int] | None = field(
        default=None, metadata={"help": "Rows of the validation examples to explain instead."}
    )
    num_examples: int = field(default=10, metadata={"help": "Training examples to show for each direction."})
    check_by_retraining: int | None = field(
        default=None,
        metadata={
            "help": "Number of training examples to remove, those that are most harmful to the explained predictions "
            "together. Trains the model again without them, and without as many others."
        },
    )
    check_against: list[str] = field(
        default_factory=lambda: ["random"],
        metadata={"help": "Other examples to remove: 'random', or the 'nearest' to the explained ones."},
    )
    wrong_column: str | None = field(
        default=None, metadata={"help": "Column that marks known wrong labels, to count those among the removed."}
    )
    wrong_value: str = field(default="True", metadata={"help": "Value of that column where a label is wrong."})
    diagnose: bool = field(
        default=False,
        metadata={"help": "Also diagnose curvature, damping and solver, and write diagnosis.txt and .png."},
    )


def main(recipe: RecipeArguments, data: DataArguments, config: InfluenceConfig) -> None:
    set_seed(config.seed)
    is_language_model = recipe.completion_column is not None
    trainer, examples = make_trainer(recipe, data, config)
    check_num_neighbors(config.num_neighbors, len(examples["train"]))
    check_rows("query_indices", recipe.query_indices or [], len(examples["validation"]))
    if recipe.check_by_retraining is not None:
        check_training(config)
        check_wrong_column(recipe, examples["train"])
    seconds: dict[str, float] = {}

    if config.do_train:
        with timed(seconds, "train"):
            trainer.train()
        trainer.save_model()
    with timed(seconds, "predict"):
        wrong = trainer.find_misclassified(examples["validation"])
    accuracy = 1 - len(wrong) / len(examples["validation"])
    chosen = choose(recipe, wrong if not is_language_model else np.arange(len(examples["validation"])), config.seed)
    queries = examples["validation"].select(chosen)

    with timed(seconds, "build_index"):
        trainer.build_index()
    s_test, fact_column = None, recipe.fact_column
    with trainer.session() as session:
        is_iterative = session.setup().name != "sketch"
    if is_iterative and (recipe.diagnose or fact_column):
        # Solved once for all uses; otherwise solved group by group with the scores, and resumable.
        with timed(seconds, "compute_s_test"):
            s_test = trainer.compute_s_test(queries)
    with timed(seconds, "find_influential"):
        result = trainer.find_influential(queries, num_examples=recipe.num_examples, s_test=s_test)
    result.summary = replace(result.summary, accuracy=accuracy, seconds=seconds, query_rows=chosen.tolist())
    if recipe.columns or data.text_columns:
        result.summary.text_columns = recipe.columns or data.text_columns
    facts_retrieved = None
    if fact_column:
        with timed(seconds, "retrieval"):
            settings = {"k": min(10, recipe.num_examples), "column": fact_column}
            facts_retrieved = retrieval(trainer, queries, recipe.columns, result=result, s_test=s_test, **settings)
        result.summary.retrieval = facts_retrieved.table
    if recipe.check_by_retraining is not None:
        with timed(seconds, "check_by_retraining"):
            models = check_by_retraining(recipe, data, config, trainer, examples, chosen)
        result.summary.trained_without = [asdict(model) for model in models]
    diagnosis = trainer.diagnose(queries, s_test) if recipe.diagnose else None
    if trainer.is_world_process_zero():
        write(result, diagnosis, facts_retrieved, Path(config.output_dir) / "influence")


def choose(recipe: RecipeArguments, rows: np.ndarray, seed: int) -> np.ndarray:
    """Return the rows to explain: `query_indices` if they are given, else `num_queries` of these, at random."""
    if recipe.query_indices is not None:
        return np.asarray(recipe.query_indices)
    if not len(rows):
        raise InfluenceError(
            "The model predicts every validation example right; choose examples with --query_indices."
        )
    return np.sort(np.random.default_rng(seed).permutation(rows)[: recipe.num_queries])


def check_wrong_column(recipe: RecipeArguments, train: Dataset) -> None:
    """Check that there is the column of wrong labels, if one is given.

    Raises:
        InfluenceError: If there is not.
    """
    if recipe.wrong_column is not None and recipe.wrong_column not in train.column_names:
        raise InfluenceError(
            f"wrong_column: {recipe.wrong_column!r} is not among the columns {', '.join(train.column_names)}."
        )


def check_by_retraining(
    recipe: RecipeArguments,
    data: DataArguments,
    config: InfluenceConfig,
    trainer: InfluenceTrainer,
    examples: DatasetDict,
    explained: np.ndarray,
) -> list[TrainedWithout]:
    """Return what is predicted by the model, and by models that are trained without some examples."""
    start = recipe.retrained_like(config.output_dir)

    def train_on(subset: Dataset, repeat: int) -> np.ndarray:
        retrained = train_again(start, DatasetDict(examples, train=subset), config, repeat)
        return predicted_right(retrained, examples["validation"])

    return removal_check(
        trainer,
        examples["validation"],
        explained,
        recipe.check_by_retraining,
        train_on=train_on,
        depends_on=training_settings(recipe, data, config),
        wrong_labels=known_wrong_labels(recipe, trainer.train_dataset),
        baselines=recipe.check_against,
    )


def known_wrong_labels(recipe: RecipeArguments, train: Dataset) -> np.ndarray | None:
    """Return which of the N training labels are known to be wrong, bool (N,); None if nothing is known."""
    if recipe.wrong_column is None:
        return None
    return np.array([str(value) == recipe.wrong_value for value in train[recipe.wrong_column]])


@contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[stage] = round(time.perf_counter() - start, 1)


def write(
    result: InfluenceResult,
    diagnosis: Diagnosis | None,
    facts_retrieved: Retrieval | None,
    folder: Path,
) -> None:
    result.save_to_disk(folder)
    report = result.to_html(folder / "report.html", diagnosis=diagnosis)
    print(result)
    if diagnosis is not None:
        print(diagnosis)
        atomic_write(folder / "diagnosis.txt", lambda file: file.write_text(f"{diagnosis}\n", "utf-8"))
        try_to_draw(lambda: diagnosis.plot(folder / "diagnosis.png"))
    is_language_model = "tokens" in result.influences.column_names
    measured = (
        "Validation examples of which every token is predicted"
        if is_language_model
        else "Accuracy on the validation examples"
    )
    print(f"{measured}: {result.summary.accuracy:.1%}")
    print("Seconds: " + ", ".join(f"{stage} {time:.0f}" for stage, time in result.summary.seconds.items()))
    if result.summary.trained_without:
        print(check_text(result.summary.models_without))
    if facts_retrieved is not None:
        print(facts_retrieved)
        facts_retrieved.write(folder, "retrieval")
    print(f"Report: {report}")


if __name__ == "__main__":
    run_recipe(main, RecipeArguments, DataArguments, InfluenceConfig)
