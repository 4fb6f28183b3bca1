"""Rows that the model cannot take end the call at once, with column, row and fix."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import Dataset, List, Value
from tiny import tiny_config, tiny_data, tiny_model, tiny_tokenizer, tiny_trainer
from tiny_heads import BART, CASES
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    default_data_collator,
)

from hf_fastif import InfluenceConfig, InfluenceTrainer
from hf_fastif.errors.classes import InfluenceError
from hf_fastif.influence.row_checks import most_tokens


TRAIN, QUERIES = tiny_data(40), tiny_data(3, seed=1)


def with_labels(labels, data: Dataset = TRAIN) -> Dataset:
    return data.remove_columns("label").add_column("label", labels)


def with_row(row: int, data: Dataset = TRAIN, **values) -> Dataset:
    rows = data.to_list()
    rows[row] |= values
    return Dataset.from_list(rows)


def refused(trainer, queries=QUERIES) -> str:
    with pytest.raises(InfluenceError) as caught:
        trainer.find_misclassified(queries)
    return str(caught.value)


def labels_refused(tmp_path, labels, model=None) -> str:
    return refused(tiny_trainer(tmp_path, model, with_labels(labels)))


@pytest.mark.parametrize("row", [0, 1, 33])
def test_a_label_that_is_missing(tmp_path, row):
    labels = [0] * 40
    labels[row] = None
    said = labels_refused(tmp_path, labels)
    assert f"train_dataset: column 'label' holds None or nan in row {row}," in said


def test_labels_of_pandas_with_nan(tmp_path):
    said = labels_refused(tmp_path, [1.0] * 20 + [float("nan")] + [0.0] * 19)
    assert "column 'label' holds None or nan in row 20," in said


def test_labels_that_are_texts(tmp_path):
    said = labels_refused(tmp_path, ["neg", "pos"] * 20)
    assert "column 'label' holds texts ('neg' in row 0)" in said
    assert "train_dataset.class_encode_column('label')" in said
    model = tiny_model(label2id={"neg": 0, "neu": 1, "pos": 2}, id2label={0: "neg", 1: "neu", 2: "pos"})
    said = labels_refused(tmp_path, ["pos", "neg"] * 20, model)
    assert "train_dataset.map(lambda row: {'label': model.config.label2id[row['label']]})" in said


@pytest.mark.parametrize(("text", "num_labels", "kind"), [("1", 3, "int64"), ("-0.5", 1, "float32")])
def test_numbers_that_are_texts(tmp_path, text, num_labels, kind):
    said = labels_refused(tmp_path, [text] * 40, tiny_model(num_labels=num_labels))
    assert f"train_dataset.cast_column('label', datasets.Value('{kind}'))" in said
    cast = with_labels([text] * 40).cast_column("label", Value(kind))
    scan = tiny_trainer(tmp_path, tiny_model(num_labels=num_labels), cast, solver="identity", checkpoints="final")
    assert scan.compute_influence(cast.select([0])).shape == (1, 40)


@pytest.mark.parametrize(("labels", "kind"), [([1.0, 0.0] * 20, "float32"), ([True, False] * 20, "bool")])
def test_class_labels_that_are_no_whole_numbers(tmp_path, labels, kind):
    said = labels_refused(tmp_path, labels)
    assert f"column 'label' gives one torch.{kind} per row ({labels[1]} in row 1)" in said
    assert "train_dataset.cast_column('label', datasets.Value('int64'))" in said
    cast = with_labels(labels).cast_column("label", Value("int64"))
    assert len(tiny_trainer(tmp_path, train=cast).find_misclassified(QUERIES)) <= 3  # the fix that is named works


def test_the_first_of_the_labels_out_of_range_is_named(tmp_path):
    labels = [0] * 40
    labels[31], labels[37] = 3, -1
    said = labels_refused(tmp_path, labels)
    assert "holds labels from -1 to 3, but the model knows 0 to 2 (config.num_labels=3)" in said
    assert "row 31 is the first such, with 3." in said


def test_queries_are_looked_at_as_training_examples_are(tmp_path):
    said = refused(tiny_trainer(tmp_path, train=TRAIN), with_labels([0, None, 1], QUERIES))
    assert "examples: column 'label' holds None or nan in row 1," in said


def test_a_collator_may_number_texts_and_fill_in_labels(tmp_path):
    numbers, pad = {"neg": 0, "pos": 1, None: 2}, DataCollatorWithPadding(tiny_tokenizer())

    def number(rows):
        return pad([{**row, "label": numbers[row["label"]]} for row in rows])

    trainer = tiny_trainer(tmp_path, train=with_labels(["neg", "pos", None, "pos"] * 10))
    trainer.data_collator = number
    wrong = trainer.find_misclassified(trainer.train_dataset)
    plain = tiny_trainer(tmp_path, train=with_labels([0, 1, 2, 1] * 10))
    np.testing.assert_array_equal(wrong, plain.find_misclassified(plain.train_dataset))


def test_several_labels_at_once_are_floats(tmp_path):
    model = tiny_model(problem_type="multi_label_classification")
    data = with_labels([[0, 1, 1]] * 40)
    said = refused(tiny_trainer(tmp_path, model, data), data)
    assert "column 'label' gives labels of torch.int64 and shape (3,) per row ([0, 1, 1] in row 1)" in said
    assert "examples.cast_column('label', datasets.List(datasets.Value('float32')))" in said
    cast = data.cast_column("label", List(Value("float32")))
    settings = {"solver": "identity", "checkpoints": "final"}
    scan = tiny_trainer(tmp_path, model, cast, **settings).compute_influence(cast.select([0]))
    assert scan.shape == (1, 40)
    said = refused(tiny_trainer(tmp_path, model, TRAIN), QUERIES)
    assert f"gives labels of torch.int64 and shape () per row ({QUERIES['label'][0]} in row 0)" in said
    said = refused(tiny_trainer(tmp_path, model, with_labels([[0.0, 1.0, 1.0]] * 39 + [[0.0, 2.0]])), cast)
    assert "column 'label' holds a list of 2 in row 39, and the model has 3 labels" in said


def test_labels_of_tokens_out_of_range(tmp_path):
    case = CASES["token"]
    data = case.data(30)
    bad = with_row(17, data, labels=[3] + data[17]["labels"][1:])
    said = refused(case.trainer(tmp_path, bad), data)
    assert "column 'labels' holds labels from 0 to 3, but the model knows 0 to 2" in said
    assert "row 17 is the first such" in said
    assert "-100 is for tokens without a loss" in said
    assert len(case.trainer(tmp_path, data).find_misclassified(data)) <= 30


def test_labels_of_tokens_that_are_texts(tmp_path):
    case = CASES["token"]
    data = case.data(30)
    named = data.map(lambda row: {"labels": [f"TAG{label}" for label in row["labels"]]})
    said = refused(case.trainer(tmp_path, named), data)
    assert "column 'labels' holds texts ('TAG-100' in row 0)" in said
    assert "{'labels': [model.config.label2id[one] for one in row['labels']]}" in said


def test_a_collator_that_does_not_pad_labels(tmp_path):
    case = CASES["token"]
    trainer = case.trainer(tmp_path, case.data(30))
    trainer.data_collator = DataCollatorWithPadding(tiny_tokenizer())
    said = refused(trainer, case.data(30))
    assert "Give a data_collator that pads labels too: DataCollatorForTokenClassification(tokenizer)" in said


def test_labels_that_a_format_hides(tmp_path):
    said = refused(tiny_trainer(tmp_path), QUERIES.with_format("torch", columns=["input_ids", "attention_mask"]))
    assert "examples has no labels" in said
    assert "its format hides text, label)" in said


def test_labels_of_tokens_must_fit_the_tokens(tmp_path):
    case = CASES["token"]
    data = case.data(30)
    said = refused(case.trainer(tmp_path, with_row(9, data, labels=data[9]["labels"] + [1])), data)
    assert f"holds {len(data[9]['labels']) + 1} labels in row 9, which has {len(data[9]['labels'])} tokens" in said


def test_tokens_that_the_model_does_not_know(tmp_path):
    case = CASES["causal-gpt2"]
    data = case.data(30)
    said = refused(case.trainer(tmp_path, with_row(4, data, labels=[-100, 12, 3])), data)
    assert "but the model knows 0 to 11 (config.vocab_size=12); row 4 is the first such" in said
    said = refused(tiny_trainer(tmp_path, train=with_row(8, input_ids=[5, 60], attention_mask=[1, 1])))
    assert "column 'input_ids' holds the tokens 5 to 60 in row 8, but the model knows 0 to 59" in said


@pytest.mark.parametrize("tokens", [[], None])
def test_a_row_of_no_token(tmp_path, tokens):
    said = refused(tiny_trainer(tmp_path, train=with_row(7, input_ids=tokens, attention_mask=tokens)))
    assert "column 'input_ids' holds no token in row 7" in said


@pytest.mark.parametrize(("architecture", "most"), [("bert", 40), ("roberta", 39), ("distilbert", 40), ("gpt2", 40)])
def test_rows_longer_than_the_positions_of_the_model(tmp_path, architecture, most):
    def of(length):
        return with_row(11, input_ids=[5] * length, attention_mask=[1] * length)

    said = refused(tiny_trainer(tmp_path, tiny_model(architecture), of(most + 1)))
    assert f"column 'input_ids' holds {most + 1} tokens in row 11, and the model has positions for {most}" in said
    assert f"truncation=True, max_length={most}" in said
    trainer = tiny_trainer(tmp_path, tiny_model(architecture), of(most))
    assert set(trainer.find_misclassified(trainer.train_dataset)) <= set(range(40))


@pytest.mark.parametrize("architecture", ["llama", "modernbert", "deberta"])
def test_positions_without_a_table_have_no_end(architecture):
    changes = {"position_biased_input": False} if architecture == "deberta" else {}
    model = AutoModelForSequenceClassification.from_config(tiny_config(architecture, **changes))
    assert most_tokens(model, "input_ids") is None


def test_positions_of_encoder_and_decoder(tmp_path):
    model = AutoModelForSeq2SeqLM.from_config(BART)
    assert (most_tokens(model, "input_ids"), most_tokens(model, "labels")) == (12, 12)
    case = CASES["seq2seq-bart"]
    data = case.data(30)
    said = refused(case.trainer(tmp_path, with_row(2, data, labels=[3] * 13)), data)
    assert "column 'labels' holds 13 tokens in row 2, and the decoder has positions for 12" in said


def test_choices_of_no_token_and_of_too_many(tmp_path):
    case = CASES["multiple-choice"]
    data = case.data(30)
    texts = data[6]["input_ids"][:2]
    for last, words in (([], "no token in row 6"), ([3] * 41, "41 tokens in row 6")):
        ids = [*texts, last]
        bad = with_row(6, data, input_ids=ids, attention_mask=[[1] * len(one) for one in ids])
        assert words in refused(case.trainer(tmp_path, bad), data)
    assert "model knows 0 to 2" in refused(case.trainer(tmp_path, with_row(6, data, label=3)), data)


def test_a_collator_may_cut_what_is_too_long(tmp_path):
    pad = DataCollatorWithPadding(tiny_tokenizer())

    def cut(rows):
        return {name: values[:, :40] if values.ndim == 2 else values for name, values in pad(rows).items()}

    data = with_row(11, input_ids=[5] * 50, attention_mask=[1] * 50)
    trainer = tiny_trainer(tmp_path, train=data)
    trainer.data_collator = cut
    assert set(trainer.find_misclassified(data)) <= set(range(40))


def test_no_processing_class(tmp_path):
    trainer = InfluenceTrainer(
        tiny_model(), InfluenceConfig(str(tmp_path), use_cpu=True, report_to="none"), train_dataset=TRAIN
    )
    assert trainer.data_collator is default_data_collator
    said = refused(trainer)
    assert "examples differ in length" in said
    assert "processing_class=tokenizer, or data_collator=DataCollatorWithPadding(tokenizer)" in said


def test_a_collator_that_fails(tmp_path):
    trainer = tiny_trainer(tmp_path)
    trainer.data_collator = lambda rows: {"labels": torch.tensor([row["sentiment"] for row in rows])}
    said = refused(trainer)
    assert "data_collator: it cannot collate the rows" in said
    assert "KeyError: 'sentiment'" in said


def test_all_columns_are_listed_where_there_is_no_label(tmp_path):
    said = refused(tiny_trainer(tmp_path), QUERIES.rename_column("label", "sentiment"))
    assert "examples has no labels (columns: text, " in said
    assert "sentiment" in said.split("(columns: ")[1].split(")")[0]
    assert "examples.rename_column('sentiment', 'label')" in said


def test_rows_are_looked_at_once_for_each_collator(tmp_path, monkeypatch):
    looked = []
    monkeypatch.setattr("hf_fastif.influence.checks.check_rows_of", lambda name, *_: looked.append(name))
    trainer = tiny_trainer(tmp_path, train=TRAIN)
    trainer.find_misclassified(QUERIES)
    trainer.find_misclassified(QUERIES)
    assert looked == ["examples", "train_dataset"]
    trainer.data_collator = DataCollatorWithPadding(tiny_tokenizer())
    trainer.find_misclassified(QUERIES)
    assert looked == ["examples", "train_dataset"] * 2
