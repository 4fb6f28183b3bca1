"""Tokens of training examples: their influence in results, what they read, and how a page shows them."""

from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import pytest
from datasets import Dataset
from small_results import make
from tiny import tiny_tokenizer
from tiny_heads import CASES

from hf_fastif import InfluenceResult, QuerySet
from hf_fastif.results.report.page import render_report
from hf_fastif.results.report.rows import token_row
from hf_fastif.results.words import MINUS, ScoreWords
from hf_fastif.scoring.token_influence import texts_of_tokens
from hf_fastif.training.language_model import train_tokenizer


CASE = CASES["causal-gpt2"]
TRAIN, QUERIES = CASE.data(9), CASE.data(3, seed=1)


@pytest.fixture
def trainer(tmp_path):
    return CASE.trainer(tmp_path, TRAIN, solver="identity", influence_batch_size=4, query_batch_size=2)


@pytest.mark.parametrize(
    ("name", "side"), [("causal-gpt2", "left"), ("causal-gpt2", "right"), ("seq2seq-t5", "right"), ("token", "right")]
)
def test_a_batch_gives_what_one_example_at_a_time_gives(name, side, tmp_path):
    case = CASES[name]
    data, queries = case.data(7), case.data(2, seed=1)
    alone, together = (
        case.trainer(tmp_path / str(size), data, padding_side=side, solver="identity", influence_batch_size=size)
        for size in (1, 5)
    )
    s_test = alone.compute_s_test(queries)
    rows = [6, 0, 3, 3, 5]
    one, other = (trainer.token_influence(queries, rows, s_test=s_test) for trainer in (alone, together))
    for query in range(2):
        for row, a, b in zip(rows, one[query], other[query], strict=True):
            assert len(a) == len(data[row]["labels"])
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reduce", [None, "mean"])
def test_results_carry_the_tokens_of_what_they_list(reduce, trainer):
    trainer.processing_class = tiny_tokenizer()
    result = trainer.find_influential(QuerySet(QUERIES, reduce), num_examples=2)
    s_test = trainer.compute_s_test(QuerySet(QUERIES, reduce))
    for row in result.influences:
        ids = TRAIN[row["train_index"]]["input_ids"]
        assert [text.strip() for text in row["tokens"]] == tiny_tokenizer().convert_ids_to_tokens(ids)
        assert sum(row["token_influence"]) == pytest.approx(row["influence"], rel=1e-3, abs=1e-4)
        if reduce is None:
            direct = trainer.token_influence(QUERIES, [row["train_index"]], s_test=s_test)
            np.testing.assert_allclose(row["token_influence"], direct[row["query_index"]][0], rtol=1e-4, atol=1e-5)
    assert result.helpful(0)[0]["tokens"] == result.influences[0]["tokens"]
    assert "tokens" not in trainer.find_influential(QUERIES, num_examples=None).influences.column_names
    assert "tokens" not in result.without_text().influences.column_names


def test_of_neighbours_too_and_without_a_tokenizer(trainer):
    trainer.args.index_features = "pooled"
    trainer.build_index()
    result = trainer.find_influential(QUERIES, num_examples=2, num_neighbors=3)
    for row in result.influences:
        assert sum(row["token_influence"]) == pytest.approx(row["influence"], rel=1e-3, abs=1e-4)
        assert row["tokens"] == [str(i) for i in TRAIN[row["train_index"]]["input_ids"]]


def test_work_that_was_interrupted_goes_on_with_its_tokens(trainer, monkeypatch):
    from hf_fastif.influence.attribution import Attribution

    expected = trainer.find_influential(QUERIES, num_examples=2).influences.to_list()
    solve = Attribution._solution

    def stopped(self, queries, i):
        if i == 1:
            raise KeyboardInterrupt
        return solve(self, queries, i)

    monkeypatch.setattr(Attribution, "_solution", stopped)
    with pytest.raises(KeyboardInterrupt):
        trainer.find_influential(QUERIES, num_examples=2)
    monkeypatch.setattr(Attribution, "_solution", lambda self, queries, i: solve(self, queries, max(i, 1)))
    assert trainer.find_influential(QUERIES, num_examples=2).influences.to_list() == expected


def test_tokens_of_several_checkpoints(trainer, tmp_path):
    trainer.model.save_pretrained(tmp_path / "same")
    trainer.args.checkpoints = ["final"]
    single = trainer.find_influential(QUERIES, num_examples=2).influences
    trainer.args.checkpoints = [str(tmp_path / "same")] * 2
    double = trainer.find_influential(QUERIES, num_examples=2).influences
    for a, b in zip(single, double, strict=True):
        np.testing.assert_allclose(a["token_influence"], b["token_influence"], rtol=1e-3, atol=1e-4)


def test_other_heads_have_none(tmp_path):
    case = CASES["image"]
    result = case.trainer(tmp_path, case.data(4), solver="identity").find_influential(case.data(1), num_examples=1)
    assert "tokens" not in result.influences.column_names
    assert 'class="tokens"' not in render_report(result, "Title") and "shaded" not in render_report(result, "Title")


def test_tokens_read_as_the_text_does():
    text = "Where is the book? In the café, 東京."
    tokenizer = train_tokenizer(Dataset.from_dict({"text": [text, "the book is in the café"]}), 300)
    ids = tokenizer(text)["input_ids"]
    pool = SimpleNamespace(take=lambda rows: {"input_ids": np.array([ids])})
    objective = SimpleNamespace(head=None)
    outcome = SimpleNamespace(tokens={4: np.zeros(len(ids))})
    texts = texts_of_tokens(objective, pool, [outcome], SimpleNamespace(tokenizer=tokenizer))[4]
    assert len(texts) == len(ids) and " the" in texts
    assert "".join(texts).startswith("Where is the book? In the caf")


# ----------------------------------------------------------------------------------------------------- the page


def test_runs_of_tokens():
    row = {
        "tokens": ["Who", " sat", " <b>", " in", " it", "?", " Me"],
        "token_influence": [0.0, 0.0, -2.0, 0.019, 0.0, 0.5, 0.25],
    }
    words = ScoreWords(make().summary, MINUS)
    found = token_row(row, words)
    assert [(run["text"], run["number"]) for run in found["runs"]] == [
        ("Who sat", None),
        (" <b>", "−2.00"),
        (" in it", None),  # less than a hundredth of the strongest
        ("?", "+0.500"),
        (" Me", "+0.250"),
    ]
    assert [run.get("share") for run in found["runs"]] == [None, 100, None, 25, 12]
    assert found["named"] == [("<b>", "−2.00"), ("?", "+0.500"), ("Me", "+0.250")]
    assert token_row({"tokens": ["a"], "token_influence": [0.0]}, words)["runs"] == [{"text": "a", "number": None}]
    assert token_row({"influence": 1.0}, words) is None
    predicted = ScoreWords(make(change="removed", num_train=4).summary, MINUS)
    assert token_row(row, predicted)["named"] == [("<b>", "+0.500"), ("?", "−0.125"), ("Me", "−0.0625")]


def test_a_page_shades_tokens_after_saving_and_loading(trainer, tmp_path):
    trainer.processing_class = tiny_tokenizer()
    result = trainer.find_influential(QUERIES, num_examples=2)
    page = render_report(InfluenceResult.load_from_disk(result.save_to_disk(tmp_path / "saved")), "Title")
    assert page == render_report(result, "Title")
    first, factor = result.influences[0], result.summary.change_per_influence or 1
    card = re.search(r"<article.*?</article>", page, re.DOTALL)[0]
    shown = re.search(r'<p class="tokens">(.*?)</p>', card, re.DOTALL)[1]
    assert re.sub(r"<.*?>", "", shown) == "".join(first["tokens"])
    strongest = int(np.argmax(np.abs(first["token_influence"])))
    marks = re.findall(r'class="token (\w+)" style="--share: (\d+)" title="(\S+), (\w+)">(.*?)</span>', shown)
    (direction, share, number, said, text) = next(mark for mark in marks if mark[1] == "100")
    assert text == first["tokens"][strongest]
    assert float(number.replace("−", "-")) == pytest.approx(factor * first["token_influence"][strongest], rel=0.01)
    assert direction == said == ("helpful" if first["token_influence"][strongest] < 0 else "harmful")
    assert f"“{text.strip()}” {number}" in card
    assert "Tokens of a training example are shaded" in page


def test_texts_that_the_tokens_repeat_are_not_shown_twice(trainer):
    trainer.processing_class = tiny_tokenizer()
    texts = [tiny_tokenizer().decode(row["input_ids"]) for row in TRAIN]
    trainer.train_dataset = TRAIN.add_column("text", texts).add_column("note", ["some other words here"] * len(TRAIN))
    trainer.args.remove_unused_columns = True
    result = trainer.find_influential(QUERIES, num_examples=1)
    assert result.summary.text_columns == ["text", "note"]
    examples = re.findall(r'<ol class="examples".*?</ol>', render_report(result, "Title"), re.DOTALL)
    assert examples and all("<dt>note</dt>" in own and "<dt>text</dt>" not in own for own in examples)
