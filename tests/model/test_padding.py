"""Outputs that are an example's own: padding on either side changes no score, or is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import tiny_data, tiny_model, tiny_tokenizer, tiny_trainer
from tiny_architectures import collate_sounds, funnel, row_gradients, sound_data, wav2vec2
from tiny_heads import CASES, gradients_and_curvature
from transformers import DataCollatorWithPadding

from hf_fastif.model import padding


DATA, QUERIES = tiny_data(9), tiny_data(2, seed=1)


def left_trainer(folder, model, **settings):
    trainer = tiny_trainer(folder, model, DATA, solver="identity", **settings)
    tokenizer = tiny_tokenizer()
    tokenizer.padding_side = "left"
    trainer.data_collator = DataCollatorWithPadding(tokenizer)
    return trainer


def counts_positions(trainer) -> bool:
    with trainer.session() as session:
        session.examples("train_dataset", trainer.train_dataset)
        return session.objective.head.positions


def test_positions_are_counted_for_a_label_a_token(tmp_path):
    case = CASES["token"]
    train, queries = case.data(6), case.data(2, seed=1)
    trainer = case.trainer(tmp_path, train, padding_side="left", solver="identity")
    gradients, expected = (gradients_and_curvature(case, trainer, data)[0].detach() for data in (train, queries))
    np.testing.assert_allclose(trainer.compute_influence(queries), -expected @ gradients.T, rtol=1e-5, atol=1e-6)
    assert counts_positions(trainer)


@pytest.mark.parametrize(
    ("model", "counts"),
    [
        (tiny_model("gpt2", frozen=None), True),
        (tiny_model("gpt2", frozen=1), True),
        (tiny_model("llama", frozen=0), False),  # relative positions
    ],
    ids=["gpt2", "gpt2, frozen", "llama"],
)
def test_positions_are_counted_where_a_classifier_needs_it(model, counts, tmp_path):
    trainer = left_trainer(tmp_path, model)
    collate = trainer.data_collator
    scores = trainer.compute_influence(QUERIES)
    rows, queries = ([collate([row]) for row in data.remove_columns("text")] for data in (DATA, QUERIES))
    expected = -(row_gradients(model, queries) @ row_gradients(model, rows).T).numpy()
    np.testing.assert_allclose(scores, expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max())
    assert counts_positions(trainer) == counts


def test_padding_on_the_right_needs_no_positions(tmp_path):
    assert not counts_positions(tiny_trainer(tmp_path, tiny_model("gpt2"), DATA, solver="identity"))


@pytest.mark.parametrize(
    "name", ["question-answering", "seq2seq-bart", "seq2seq-t5", "multiple-choice", "regression", "multi-label"]
)
def test_heads_that_padding_on_the_left_shifts_are_refused(name, tmp_path):
    """BERT reads a class at the first place, answers are counted from there, and decoders take no position numbers."""
    case = CASES[name]
    train = case.data(6)
    trainer = case.trainer(tmp_path, train, padding_side="left", solver="identity")
    with pytest.raises(ValueError, match=r"train_dataset: the outputs of row \d alone and in a batch") as error:
        trainer.compute_influence(case.data(1))
    assert f"outputs of {type(case.model).__name__} depend on padding" in str(error.value)
    assert "padding_side='right'" in str(error.value)


@pytest.mark.parametrize("architecture", ["roberta", "mpnet", "distilbert"])
def test_positions_do_not_help_a_classifier_that_reads_the_first_place(architecture, tmp_path):
    with pytest.raises(ValueError, match="depend on padding"):
        left_trainer(tmp_path, tiny_model(architecture)).compute_influence(QUERIES)
    with left_trainer(tmp_path, tiny_model(architecture)).session() as session:
        with pytest.raises(ValueError, match="depend on padding"):
            session.examples("train_dataset", DATA)
        assert not session.objective.head.positions


def test_a_model_that_depends_on_padding_on_either_side_takes_rows_of_one_length(tmp_path):
    torch.manual_seed(1)
    model = funnel()
    with pytest.raises(ValueError, match="FunnelForSequenceClassification depend on padding.*one length"):
        tiny_trainer(tmp_path, model, DATA, solver="identity").compute_influence(QUERIES)
    trainer = tiny_trainer(tmp_path, model, DATA, solver="identity")
    trainer.data_collator = DataCollatorWithPadding(tiny_tokenizer(), padding="max_length", max_length=12)
    one = trainer.compute_influence(QUERIES)
    trainer.args.influence_batch_size = 1
    np.testing.assert_allclose(trainer.compute_influence(QUERIES), one, rtol=1e-4, atol=1e-5)


def test_inputs_without_a_mask_are_compared_too(tmp_path):
    def padded(rows):
        sounds = [row["input_values"] for row in rows]
        longest = max(map(len, sounds))
        filled = [sound + [0.0] * (longest - len(sound)) for sound in sounds]
        return collate_sounds([row | {"input_values": sound} for row, sound in zip(rows, filled, strict=True)])

    sounds = sound_data(6)
    shorter = sounds.map(lambda row, i: {"input_values": row["input_values"][: 400 - 40 * i]}, with_indices=True)
    trainer = tiny_trainer(tmp_path, wav2vec2(), shorter, solver="identity")
    trainer.data_collator = padded
    with pytest.raises(ValueError, match="Wav2Vec2ForSequenceClassification depend on padding"):
        trainer.compute_influence(sounds.select([0]))


def test_a_dataset_is_compared_once_in_a_call(tmp_path, monkeypatch):
    compared = []
    difference = padding._difference
    monkeypatch.setattr(padding, "_difference", lambda *args: compared.append(args[1]) or difference(*args))
    trainer = tiny_trainer(tmp_path, train=DATA, solver="identity")
    trainer.compute_influence(QUERIES)
    assert len(compared) == 2  # the training set and the queries
