"""Suspects: wrong labels of a generated training set, found by the trainer."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from datasets import ClassLabel, Dataset
from scipy.special import softmax
from sklearn.metrics import average_precision_score
from tiny import VOCABULARY, tiny_config, tiny_data, tiny_model, tiny_tokenizer, tiny_trainer
from transformers import DataCollatorForLanguageModeling, GPT2LMHeadModel

from hf_fastif import InfluenceConfig, InfluenceTrainer
from hf_fastif.analysis import query_losses
from hf_fastif.errors import InfluenceError
from hf_fastif.influence import predict_classes_at_moments
from hf_fastif.training import plant_wrong_labels


NAMES = ["ant", "bee", "cat"]
TRAINING = {"max_steps": 300, "learning_rate": 3e-3, "per_device_train_batch_size": 16, "save_strategy": "no"}


def texts_of_classes(size: int) -> Dataset:
    """Sentences in which half of the words tell the class."""
    random, words = np.random.default_rng(0), np.array(VOCABULARY[2:])
    labels = random.integers(0, 3, size)
    told = [np.concatenate([random.choice(words[12 * k : 12 * k + 12], 4), random.choice(words, 4)]) for k in labels]
    data = Dataset.from_dict({"text": [" ".join(random.permutation(row)) for row in told], "label": labels.tolist()})
    data = data.cast_column("label", ClassLabel(names=NAMES))
    tokenizer = tiny_tokenizer()
    return data.map(lambda rows: tokenizer(rows["text"], return_token_type_ids=False), batched=True)


CLEAN = texts_of_classes(240)
TRAIN, WRONG = plant_wrong_labels(CLEAN, 0.15, seed=0, noise="class")


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("suspects")
    model = tiny_model(frozen=None, initializer_range=0.2, hidden_size=16, intermediate_size=32)
    trainer = tiny_trainer(folder, model, TRAIN, checkpoints=["epochs"], **TRAINING)
    trainer.train()
    return trainer


def test_table(trainer):
    table = trainer.suspects().to_pandas()
    assert table.columns.tolist() == ["train_index", "suspicion", "label", "suggested", "loss", "text"]
    assert sorted(table["train_index"]) == list(range(240))
    assert table["suspicion"].between(0, 1).all() and table["suspicion"].is_monotonic_decreasing
    rows = table["train_index"].tolist()
    assert table["text"].tolist() == TRAIN.select(rows)["text"]
    assert table["label"].tolist() == [NAMES[label] for label in TRAIN.select(rows)["label"]]
    np.testing.assert_allclose(table["loss"], query_losses(trainer, TRAIN)[rows], rtol=1e-4)
    assert ((table["suspicion"] > 0.5) <= (table["suggested"] != table["label"])).all()
    assert (table["suggested"] == table["label"]).tail(100).all()


def test_first_rows_and_print(trainer):
    first, table = trainer.suspects(k=7), trainer.suspects().to_pandas()
    pd.testing.assert_frame_equal(first.to_pandas(), table.head(7))
    head, *lines = str(first).splitlines()
    assert head == "The 7 most suspicious of 240 training labels" and len(first) == len(lines) == 7
    for line, row in zip(lines, table.to_dict("records"), strict=False):
        assert f"{row['suspicion']:.0%}  row {row['train_index']} " in line and line.endswith(row["text"])
        assert f" {row['label']}, rather {row['suggested']}:" in line or f" {row['label']}:" in line


def test_wrong_labels_are_found_better_than_by_the_loss(trainer):
    table = trainer.suspects().to_pandas().sort_values("train_index")
    found = average_precision_score(WRONG, table["suspicion"])
    by_loss = average_precision_score(WRONG, table["loss"])
    assert found > 1.2 * by_loss and found > 0.7


def test_the_final_model_is_enough(tmp_path, trainer):
    table = tiny_trainer(tmp_path, trainer.model, TRAIN).suspects().to_pandas().sort_values("train_index")
    assert average_precision_score(WRONG, table["suspicion"]) > average_precision_score(WRONG, table["loss"])


def test_moments_are_averaged_and_each_counts_once(trainer):
    probabilities = []
    with trainer.session() as session:
        assert len(session.checkpoints) == 20  # the last is the model as it is
        for number in range(20):
            with session.checkpoints.at(number):
                probabilities.append(softmax(session.predict(session.train).logits, axis=1))
        mean, predictions = predict_classes_at_moments(session)
    np.testing.assert_allclose(mean, np.mean(probabilities, axis=0), rtol=1e-5)
    np.testing.assert_allclose(softmax(predictions.logits, axis=1), probabilities[-1], rtol=1e-5)


def test_what_has_no_classes_is_refused(tmp_path):
    numbers = tiny_data(8).map(lambda row: {"label": float(row["label"])})
    with pytest.raises(InfluenceError, match="labels are not classes"):
        tiny_trainer(tmp_path, tiny_model(num_labels=1), numbers).suspects()
    collator = DataCollatorForLanguageModeling(tiny_tokenizer(), mlm=False)
    arguments = InfluenceConfig(str(tmp_path), use_cpu=True, report_to="none")
    model = GPT2LMHeadModel(tiny_config("gpt2"))
    language = InfluenceTrainer(model, arguments, collator, train_dataset=tiny_data(8).remove_columns("label"))
    with pytest.raises(InfluenceError, match="labels are not classes"):
        language.suspects()
    with pytest.raises(InfluenceError, match="label"):
        tiny_trainer(tmp_path, train=tiny_data(8).remove_columns("label")).suspects()
    with pytest.raises(InfluenceError, match="k=0: give at least 1"):
        tiny_trainer(tmp_path).suspects(k=0)
