"""How well scores find wrong labels: the suspects of the library, the loss, influence, and cleanlab.

    python benchmarks/wrong_labels.py --do_train --train_file reviews.jsonl --validation_file dev.jsonl \
        --text_columns text --output_dir out/wrong-labels --noises uniform-0.1 uniform-0.2 class-0.15

For each noise and seed the script gives a share of the training examples a wrong label, trains a classifier on them,
and scores them. It prints average precision, and the fraction of the wrong labels in the worst 10 % and 20 %. With
`--with_influence` it also builds an index, for the scores that come from one. cleanlab takes part where it is
installed (`pip install cleanlab`). Writes `NOISE-SEED.npz` and `wrong_labels.json`; finished runs are read back.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from datasets import Dataset, DatasetDict
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers import AutoModel, PreTrainedTokenizerBase

from hf_fastif import InfluenceConfig, InfluenceTrainer, QuerySet
from hf_fastif.config import with_settings
from hf_fastif.data import without_indexes
from hf_fastif.diagnosis import class_posterior
from hf_fastif.training import (
    DataArguments,
    ModelArguments,
    parse_arguments,
    plant_wrong_labels,
    trained,
)
from hf_fastif.training.corpora.encoder import default_encoder


NEIGHBORS = 30
FOLDS = 5
SHARES = (0.1, 0.2)

Arrays = dict[str, np.ndarray]


@dataclass
class BenchmarkArguments(ModelArguments):
    """What to measure."""

    noises: list[str] = field(
        default_factory=lambda: ["uniform-0.1", "uniform-0.2", "class-0.15"],
        metadata={"help": "Kinds and shares of wrong labels."},
    )
    num_seeds: int = field(default=1, metadata={"help": "Draws of wrong labels, each with a model of its own."})
    with_influence: bool = field(default=False, metadata={"help": "Build an index, for scores that come from one."})


def main(benchmark: BenchmarkArguments, data: DataArguments, config: InfluenceConfig) -> None:
    examples, rows = benchmark.read_examples(data, config), []
    for noise in benchmark.noises:
        for seed in range(config.seed, config.seed + benchmark.num_seeds):
            file = Path(config.output_dir) / f"{noise}-{seed}.npz"
            if not file.exists():
                run = with_settings(config, seed=seed, output_dir=str(file.with_suffix("")), checkpoints=["6"])
                np.savez(file, **measured(benchmark, data, run, examples, noise))
            arrays = dict(np.load(file))
            for method, scores in suspicions(arrays).items():
                rows.append({"noise": noise, "seed": seed, "method": method} | quality(scores, arrays["wrong"]))
    table = pd.DataFrame(rows)
    table.to_json(Path(config.output_dir) / "wrong_labels.json", orient="records", indent=2)
    print(table.drop(columns="seed").groupby(["noise", "method"], sort=False).mean().round(3).to_string())


def measured(
    benchmark: BenchmarkArguments, data: DataArguments, config: InfluenceConfig, examples: DatasetDict, noise: str
) -> Arrays:
    """Train a classifier on wrong labels, and return what the scores are made of."""
    kind, _, share = noise.partition("-")
    train, wrong = plant_wrong_labels(examples["train"], float(share), config.seed, kind)
    trainer, _ = trained(benchmark, data, config, DatasetDict(examples, train=train))
    with trainer.session() as session:
        logits = []
        for number in range(len(session.checkpoints)):
            with session.checkpoints.at(number):
                logits.append(session.predict(session.train).logits)
    arrays = {"labels": np.array(train["label"]), "wrong": wrong, "logits": np.stack(logits)}
    arrays["pooled"] = pooled_states(trainer, train)
    arrays["embeddings"] = sentence_embeddings(train, trainer.processing_class)
    return arrays | (influences(trainer, train) if benchmark.with_influence else {})


def pooled_states(trainer: InfluenceTrainer, train: Dataset) -> np.ndarray:
    """Return what the output layer of the trained model reads (N, d)."""
    trainer.args.checkpoints, trainer.args.index_features = ["final"], "pooled"
    index = trainer.build_index(without_indexes(train))
    trainer.args.index_features = "gradient_sketch"
    return index.faiss_index.reconstruct_n(0, len(index))


def sentence_embeddings(train: Dataset, tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """Return the mean states (N, d) of the packaged encoder as it was before training, scaled to length 1."""
    encoder, embeddings = AutoModel.from_pretrained(default_encoder()).eval(), []
    columns = train.select_columns(["input_ids", "attention_mask"])
    for rows in columns.iter(batch_size=32):
        batch = tokenizer.pad(rows, return_tensors="pt")
        with torch.no_grad():
            states = encoder(**batch).last_hidden_state
        inside = batch["attention_mask"][..., None]
        embeddings.append(torch.nn.functional.normalize((states * inside).sum(dim=1) / inside.sum(dim=1)))
    return torch.cat(embeddings).numpy()


def influences(trainer: InfluenceTrainer, train: Dataset) -> Arrays:
    """Return self-influence, and influence on the mean loss of each class, at the final model and by default."""
    arrays, labels = {}, np.array(train["label"])
    for name, checkpoints in (("final", ["final"]), ("default", ["auto"])):
        trainer.args.checkpoints = checkpoints
        arrays[f"self_{name}"] = trainer.self_influence()
        classes = [without_indexes(train).select(np.flatnonzero(labels == k)) for k in np.unique(labels)]
        scores = [trainer.compute_influence(QuerySet(members, reduce="mean"))[0] for members in classes]
        arrays[f"classes_{name}"] = np.stack(scores, axis=1)
    return arrays


def suspicions(arrays: Arrays) -> dict[str, np.ndarray]:
    """Return scores (N,) of the training examples by method, larger for labels that are more likely wrong."""
    labels, logs = arrays["labels"], log_softmax(arrays["logits"].astype(float), axis=2)
    rows = np.arange(len(labels))
    losses, probabilities = -logs[:, rows, labels], np.exp(logs)
    epochs, default = slice(1, None, 2), [0, 1, 3, 5]  # in sixths of three epochs
    scores = {
        "loss, final model": losses[-1],
        "loss, epoch 1": losses[1],
        "loss, mean over epochs": losses[epochs].mean(axis=0),
        "suspects, final model": wrongness(probabilities[-1], labels),
        "suspects, default moments": wrongness(probabilities[default].mean(axis=0), labels),
        "suspects, epoch 1 and final": wrongness(probabilities[[1, -1]].mean(axis=0), labels),
        "suspects, all epochs": wrongness(probabilities[epochs].mean(axis=0), labels),
        "margin, mean over epochs": margins(arrays["logits"][epochs], labels).mean(axis=0),
        f"labels of {NEIGHBORS} neighbours": neighbor_disagreement(arrays["pooled"], labels),
    }
    scores |= dict(by_cleanlab(probabilities[-1], arrays))
    for name, number in (("final", -1), ("default", 1)):
        if f"self_{name}" in arrays:
            influence, moment = arrays[f"self_{name}"], "final model" if name == "final" else "default moments"
            scores[f"self-influence, {moment}"] = influence
            scores[f"loss left out, {moment}"] = loss_left_out(arrays["logits"][number], labels, influence)
            scores[f"harm to the most harmed class, {moment}"] = arrays[f"classes_{name}"].max(axis=1)
    return scores


def wrongness(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the suspicion (N,) of `trainer.suspects()`."""
    return 1 - class_posterior(probabilities, labels)[np.arange(len(labels)), labels]


def margins(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return by how much the best other logit exceeds that of the label, at each moment (M, N)."""
    recorded = np.eye(logits.shape[2], dtype=bool)[labels]
    return np.where(recorded, -np.inf, logits).max(axis=2) - logits[:, recorded]


def neighbor_disagreement(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the fraction (N,) of the nearest other examples with another label."""
    directions = features / np.linalg.norm(features, axis=1, keepdims=True)
    similarity = directions @ directions.T
    np.fill_diagonal(similarity, -np.inf)
    nearest = np.argpartition(-similarity, NEIGHBORS, axis=1)[:, :NEIGHBORS]
    return (labels[nearest] != labels[:, None]).mean(axis=1)


def loss_left_out(logits: np.ndarray, labels: np.ndarray, self_influence: np.ndarray) -> np.ndarray:
    """Estimate the loss (N,) of each example had it not been trained on, by a Newton step from its self-influence."""
    probabilities = np.exp(log_softmax(logits.astype(float), axis=1))
    residual = probabilities - np.eye(logits.shape[1])[labels]
    leverage = self_influence / np.maximum((residual**2).sum(axis=1), 1e-12) / len(labels)
    curvature = np.apply_along_axis(np.diag, 1, probabilities) - probabilities[:, :, None] * probabilities[:, None]
    system = np.eye(logits.shape[1]) - leverage[:, None, None] * curvature
    moved = logits + leverage[:, None] * np.linalg.solve(system, residual[..., None])[..., 0]
    return -log_softmax(moved, axis=1)[np.arange(len(labels)), labels]


def by_cleanlab(probabilities: np.ndarray, arrays: Arrays) -> Iterator[tuple[str, np.ndarray]]:
    """Yield scores (N,) of cleanlab on the model's probabilities, and on those of a classifier that is held out."""
    if find_spec("cleanlab") is None:
        return
    from cleanlab.rank import get_label_quality_scores

    for name, given in (
        ("the model's probabilities", probabilities),
        ("held-out probabilities, sentence embeddings", held_out(arrays["embeddings"], arrays["labels"])),
        ("held-out probabilities, pooled states", held_out(arrays["pooled"], arrays["labels"])),
    ):
        for method in ("self_confidence", "normalized_margin"):
            quality_of_labels = get_label_quality_scores(arrays["labels"], given, method=method)
            yield f"cleanlab, {name}, {method}", 1 - quality_of_labels


def held_out(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the probabilities (N, C) of logistic regressions that were fitted to the other folds."""
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    return cross_val_predict(classifier, features, labels, cv=folds, method="predict_proba")


def quality(scores: np.ndarray, wrong: np.ndarray) -> dict[str, float]:
    """Return the average precision of scores, and the fraction of the wrong labels among the worst examples."""
    order = np.argsort(-scores, kind="stable")
    worst = {f"worst {share:.0%}": wrong[order[: round(share * len(wrong))]].sum() / wrong.sum() for share in SHARES}
    return {"average precision": average_precision_score(wrong, scores)} | worst


if __name__ == "__main__":
    main(*parse_arguments(BenchmarkArguments, DataArguments, InfluenceConfig))
