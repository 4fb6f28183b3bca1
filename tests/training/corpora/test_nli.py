"""Tests of the generated inference data: what the `planted` column says has to be true of the sentences."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from itertools import chain

import pytest
from datasets import Dataset, DatasetDict

from hf_fastif.training import WRONG_LABEL_CONSTRUCTIONS, generate_nli
from hf_fastif.training.corpora import nli


PRINT_DIGEST = """
import hashlib, json
from hf_fastif.training import generate_nli
splits = generate_nli(200, 40, 30, seed=3)
print(hashlib.sha256(json.dumps({name: split.to_dict() for name, split in splits.items()}).encode()).hexdigest())
"""


@pytest.fixture(scope="module")
def splits() -> DatasetDict:
    return generate_nli()


def words(sentence: str) -> list[str]:
    return sentence.lower().replace(",", "").removesuffix(".").split()


def is_overlap(row: dict) -> bool:
    return set(words(row["hypothesis"])) <= set(words(row["premise"]))


def pairs(split: Dataset) -> list[tuple[str, str]]:
    return list(zip(split["premise"], split["hypothesis"], strict=True))


def share_entailed(split: Dataset) -> float:
    return split["label"][:].count(0) / len(split)


def test_columns_and_label_names(splits):
    assert list(splits) == ["train", "validation", "challenge"]
    for split in splits.values():
        assert split.column_names == ["premise", "hypothesis", "label", "clean_label", "construction", "planted"]
        for column in ("label", "clean_label"):
            assert split.features[column].names == ["entailment", "non-entailment"]


def test_same_seed_same_rows_in_another_process():
    # Another hash seed would change the data if its order came from a set or from hash().
    rows = {name: split.to_dict() for name, split in generate_nli(200, 40, 30, seed=3).items()}
    digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    environment = {**os.environ, "PYTHONHASHSEED": "12345", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    printed = subprocess.run(
        [sys.executable, "-c", PRINT_DIGEST], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert printed.strip() == digest


def test_another_seed_gives_other_pairs():
    zero, one = (set(pairs(generate_nli(seed=seed)["train"])) for seed in (0, 1))
    assert len(zero & one) < 20


def test_train_does_not_depend_on_the_other_sizes(splits):
    assert pairs(generate_nli(num_validation=10, num_challenge=10)["train"]) == pairs(splits["train"])


@pytest.mark.parametrize("sizes", [(50, 10, 10), (51, 11, 11), (333, 77, 41), (20_000, 400, 300)])
def test_row_counts_labels_and_no_pair_twice(sizes):
    splits = generate_nli(*sizes)
    assert tuple(len(split) for split in splits.values()) == sizes
    for split in splits.values():
        assert 0.45 <= share_entailed(split) <= 0.55
    every_pair = list(chain.from_iterable(pairs(split) for split in splits.values()))
    assert len(set(every_pair)) == sum(sizes)


def test_planted_counts_of_default_train(splits):
    assert Counter(splits["train"]["planted"]) == {
        "heuristic": 720,
        "counterexample": 40,
        "wrong_label": 100,
        "none": 1140,
    }


def test_planted_says_the_truth(splits):
    for row in splits["train"]:
        assert (row["label"] != row["clean_label"]) == (row["planted"] == "wrong_label"), row
        assert is_overlap(row) == (row["planted"] in ("heuristic", "counterexample")), row
        if row["planted"] == "heuristic":
            assert row["label"] == 0, row
        if row["planted"] == "counterexample":
            assert row["label"] == 1, row


def test_labels_outside_train_are_right(splits):
    assert set(splits["validation"]["planted"]) == {"none", "heuristic"}
    assert set(splits["challenge"]["planted"]) == {"none"}
    for name in ("validation", "challenge"):
        assert splits[name]["label"][:] == splits[name]["clean_label"][:]
    for row in splits["validation"]:
        assert is_overlap(row) == (row["planted"] == "heuristic"), row


def test_wrong_labels_fill_their_constructions(splits):
    rows = [row for row in splits["train"] if row["construction"] in WRONG_LABEL_CONSTRUCTIONS]
    for construction in WRONG_LABEL_CONSTRUCTIONS:
        flipped = [row["planted"] == "wrong_label" for row in rows if row["construction"] == construction]
        assert len(flipped) == 57
        assert sum(flipped) == 50
    assert sum(row["planted"] == "wrong_label" for row in rows) == splits["train"]["planted"][:].count("wrong_label")

    in_validation = Counter(splits["validation"]["construction"])
    assert [in_validation[construction] for construction in WRONG_LABEL_CONSTRUCTIONS] == [24, 24]


def test_wrong_label_examples_vary(splits):
    premises = [row["premise"] for row in splits["train"] if row["planted"] == "wrong_label"]
    distinct_words = set(chain.from_iterable(words(premise) for premise in premises))
    assert len(set(premises)) == 100
    assert len(distinct_words) > 100


def test_challenge_is_balanced_overlap(splits):
    challenge = splits["challenge"]
    assert share_entailed(challenge) == 0.5
    assert all(is_overlap(row) for row in challenge)
    not_entailed = Counter(row["construction"] for row in challenge if row["label"] == 1)
    assert not_entailed == {construction.__name__: 30 for construction in nli.COUNTEREXAMPLES}


def test_sentences_are_well_formed(splits):
    for split in splits.values():
        for sentence in chain(split["premise"], split["hypothesis"]):
            assert 6 <= len(words(sentence)) <= 16, sentence
            assert sentence[0].isupper() and sentence.endswith(".") and "  " not in sentence
            for article, noun in zip(words(sentence), words(sentence)[1:], strict=False):
                if article in ("a", "an"):
                    assert (article == "an") == (noun[0] in "aeiou"), sentence


def test_rows_of_train_are_shuffled(splits):
    # Blocks of one kind would put no or all planted rows among the first quarter.
    first_quarter = Counter(splits["train"]["planted"][:500])
    assert 130 < first_quarter["heuristic"] < 240
    assert 10 < first_quarter["wrong_label"] < 45


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_train": 49}, "num_train is 49.*at least 50"),
        ({"num_validation": 9}, "num_validation is 9.*at least 10"),
        ({"num_challenge": 0}, "num_challenge is 0.*at least 10"),
        ({"seed": -1}, "seed is -1.*0 or a positive"),
    ],
)
def test_bad_arguments_raise(arguments, message):
    with pytest.raises(ValueError, match=message):
        generate_nli(**arguments)


def test_too_many_rows_for_the_grammar_raise(monkeypatch):
    monkeypatch.setattr(nli, "PEOPLE", ["baker", "pilot"])
    monkeypatch.setattr(nli, "THINGS", ["canoe"])
    monkeypatch.setattr(nli, "PLACES", ["cave"])
    with pytest.raises(ValueError, match="num_train is 5000.*ask for a smaller num_train"):
        generate_nli(num_train=5000)
