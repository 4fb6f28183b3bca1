"""Reading labelled texts from files: formats, label names, and what is refused."""

from __future__ import annotations

import json

import pytest
from datasets import Dataset
from tiny import tiny_tokenizer

from hf_fastif.training import DataArguments, read_splits, shuffled, tokenize
from hf_fastif.training.datasets import load_examples as load


ROWS = [
    {"id": "a", "premise": "w1 w2 w3 w4", "hypothesis": "w5 w6 w7", "gold": "neutral"},
    {"id": "b", "premise": "w2 w2 w3 w4", "hypothesis": "w5 w6 w8", "gold": "entailment"},
    {"id": "c", "premise": "w3 w2 w3 w4", "hypothesis": "w5 w6 w9", "gold": "contradiction"},
]
UNNAMED = {0: "LABEL_0", 1: "LABEL_1"}
TWO_LABELS = '{"neutral": "no", "contradiction": "no", "entailment": "yes"}'


def load_examples(args):
    return load(args, UNNAMED, new_head=True)


@pytest.fixture
def arguments(tmp_path):
    for name in ("train", "validation"):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in ROWS))
    return lambda **settings: DataArguments(
        **{
            "train_file": str(tmp_path / "train.jsonl"),
            "validation_file": str(tmp_path / "validation.jsonl"),
            "label_column": "gold",
        }
        | settings
    )


def test_labels_are_named_and_mapped(arguments):
    three = load_examples(arguments())
    assert three["train"].features["label"].names == ["contradiction", "entailment", "neutral"]
    assert three["validation"]["label"] == [2, 1, 0]
    two = load_examples(arguments(label_mapping=TWO_LABELS))
    assert two["train"].features["label"].names == ["no", "yes"]
    assert two["train"]["label"] == [0, 1, 0]
    assert two["train"].column_names == ["id", "premise", "hypothesis", "label"]


def test_labels_are_numbered_as_the_model_numbers_them(arguments, tmp_path):
    backwards = {0: "yes", 1: "no"}
    assert load(arguments(label_mapping=TWO_LABELS), backwards, new_head=False)["train"]["label"] == [1, 0, 1]
    assert load(arguments(label_mapping=TWO_LABELS), backwards, new_head=True)["train"]["label"] == [1, 0, 1]
    numbers = '{"neutral": "1", "contradiction": "1", "entailment": "0"}'
    by_number = load(arguments(label_mapping=numbers), backwards, new_head=False)["train"]
    assert (by_number["label"], by_number.features["label"].names) == ([1, 0, 1], ["yes", "no"])
    with pytest.raises(ValueError, match="labels contradiction, entailment, neutral, but the model predicts yes, no"):
        load(arguments(), backwards, new_head=False)


def test_numbers_are_ordered_by_size(arguments):
    numbers = '{"neutral": "10", "contradiction": "2", "entailment": "1"}'
    assert load_examples(arguments(label_mapping=numbers))["train"].features["label"].names == ["1", "2", "10"]


def test_text_columns_are_found_and_tokenized_as_a_pair(arguments):
    splits = tokenize(load_examples(arguments()), tiny_tokenizer(), arguments())
    pair = tiny_tokenizer()("w1 w2 w3 w4", "w5 w6 w7")["input_ids"]
    assert splits["train"][0]["input_ids"] == pair
    short = tokenize(
        load_examples(arguments()), tiny_tokenizer(), arguments(text_columns=["hypothesis"], max_length=2)
    )
    assert [len(ids) for ids in short["train"]["input_ids"]] == [2, 2, 2]


def test_unknown_columns(arguments):
    with pytest.raises(ValueError, match="column 'sentence' is not in the train examples, which have: id, premise"):
        load_examples(arguments(text_columns=["sentence"]))
    with pytest.raises(ValueError, match="column 'label' is not in"):
        load_examples(arguments(label_column="label"))


def test_labels_that_training_lacks(arguments, tmp_path):
    (tmp_path / "train.jsonl").write_text("\n".join(json.dumps(row) for row in ROWS[:2]))
    with pytest.raises(ValueError, match="labels contradiction, which the training examples"):
        load_examples(arguments())


def test_one_file_or_none_at_all(arguments):
    with pytest.raises(ValueError, match="validation_file=None: give both"):
        load_examples(arguments(validation_file=None))
    with pytest.raises(ValueError, match="there is no file 'nowhere.jsonl'"):
        load_examples(arguments(train_file="nowhere.jsonl"))


@pytest.mark.parametrize(("suffix", "delimiter"), [("csv", ","), ("tsv", "\t"), ("TSV", "\t")])
def test_tables_as_text(arguments, tmp_path, suffix, delimiter):
    path = tmp_path / f"rows.{suffix}"
    lines = [ROWS[0].keys(), *(row.values() for row in ROWS)]
    path.write_text("\n".join(delimiter.join(line) for line in lines))
    splits = load_examples(arguments(train_file=str(path)))
    assert splits["train"].to_list() == splits["validation"].to_list()
    assert splits["train"]["premise"] == [row["premise"] for row in ROWS]


def test_lines_of_text(tmp_path):
    path = tmp_path / "lines.txt"
    path.write_text("one line\nanother one\n")
    args = DataArguments(train_file=str(path), validation_file=str(path))
    assert read_splits(args, ["text"], "", dict)["train"]["text"] == ["one line", "another one"]
    with pytest.raises(ValueError, match="column 'label' is not in the train examples, which have: text"):
        load_examples(args)


def test_files_that_cannot_be_read(arguments, tmp_path):
    (tmp_path / "train.xlsx").write_text("")
    with pytest.raises(ValueError, match=r"train.xlsx' is of no known format.*\.jsonl, \.json, \.csv, \.tsv, \.txt"):
        load_examples(arguments(train_file=str(tmp_path / "train.xlsx")))
    with pytest.raises(FileNotFoundError, match=r"trian.jsonl'; did you mean 'train.jsonl'\?"):
        load_examples(arguments(train_file=str(tmp_path / "trian.jsonl")))


def test_a_split_that_is_not_there(tmp_path):
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in ROWS))
    args = DataArguments(dataset_name=str(tmp_path), label_column="gold")
    with pytest.raises(
        ValueError, match=r"dataset_test_split='validation': .* has the splits train, test; .*with --da"
    ):
        load_examples(args)
    args.dataset_test_split = "test[:2]"
    assert len(load_examples(args)["validation"]) == 2


def test_embedded_default_and_its_splits():
    assert len(load_examples(DataArguments())["train"]) == 2000
    assert load_examples(DataArguments(max_train_examples=50))["train"].num_rows == 50
    assert len(load_examples(DataArguments(dataset_test_split="challenge"))["validation"]) == 300
    with pytest.raises(ValueError, match="dataset_test_split='test': the embedded data has train, validation"):
        load_examples(DataArguments(dataset_test_split="test"))


def test_only_rows_with_certain_values(arguments):
    found = load_examples(
        arguments(
            train_where=["premise=w3 w2 w3 w4", "gold=contradiction"],
            label_mapping='{"neutral": "contradiction", "entailment": "contradiction"}',
        )
    )
    assert found["train"]["id"] == ["c"] and found["validation"]["id"] == ["a", "b", "c"]
    with pytest.raises(ValueError, match=r"train_where: 'genre=x' is not COLUMN=VALUE with one of the columns id, "):
        load_examples(arguments(train_where=["genre=x"]))
    with pytest.raises(ValueError, match="validation_where: no row has id=a and id=b"):
        load_examples(arguments(validation_where=["id=a", "id=b"]))


def test_amazon_wilds_is_read_from_its_folder(tmp_path):
    (tmp_path / "splits").mkdir()
    rows = [(f"r{i}", 1.0 + i % 5, f"text, {i}", "Books" if i % 2 else "null") for i in range(12)]
    lines = ['"reviewerID","overall","reviewText","category"', *(f'"{r}",{o},"{t}","{c}"' for r, o, t, c in rows)]
    (tmp_path / "reviews.csv").write_text("\n".join(lines))
    numbers = [0] * 5 + [-1] + [1] * 5 + [3]
    (tmp_path / "splits" / "user.csv").write_text("\n".join(["split,clean", *(f"{n},1" for n in numbers)]))
    found = load_examples(DataArguments(dataset_name=str(tmp_path)))
    assert found["train"]["text"] == [f"text, {i}" for i in range(5)]
    assert found["validation"]["reviewer"] == [f"r{i}" for i in range(6, 11)]
    assert found["train"]["label"] == [0, 1, 2, 3, 4] and found["train"]["category"][:2] == ["null", "Books"]
    with pytest.raises(ValueError, match="split: Amazon-WILDS has train, .* and not dev"):
        load_examples(DataArguments(dataset_name=str(tmp_path), dataset_test_split="dev"))


def test_shuffled_rows():
    rows = Dataset.from_dict({"x": list(range(10))})
    order = shuffled(rows, seed=1)["x"]
    assert sorted(order) == list(range(10)) and order != list(range(10)) and order != shuffled(rows, seed=2)["x"]
    assert shuffled(rows, seed=1, count=4)["x"] == order[:4] and len(shuffled(rows, seed=1, count=40)) == 10
