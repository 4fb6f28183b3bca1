"""The page of a result: what it shows, in which order, and that it is self-contained."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from hub_tools import make_result

from hf_fastif.influence.predictions import Predictions
from hf_fastif.results.build import build_result
from hf_fastif.results.figures import plot_influences
from hf_fastif.results.report.page import NUM_LISTED, render_report
from hf_fastif.results.result import InfluenceResult
from hf_fastif.scoring.scores import QueryScores, sign_of


NAMES = ["entailment", "neutral", "contradiction"]
SETTINGS: dict[str, Any] = {
    "model": "some/model",
    "num_parameters": 1234567,
    "largest_eigenvalue": 20.0,
    "curvature": "gauss_newton",
    "solver": "LiSSA, J = 1,000 steps, B = 8 examples a step, T = 4 repeats",
    "num_neighbors": None,
}
QUALITY = {"residual": 0.125, "std_err": 0.03, "damping": 0.1, "scale": 7.5}


def pairs(name: str, count: int) -> Dataset:
    columns = {
        "premise": [f"the {name} premise number {i} <script>alert({i})</script> & so on" for i in range(count)],
        "hypothesis": [f"the {name} hypothesis number {i}" for i in range(count)],
        "label": [i % 3 for i in range(count)],
        "genre": [f"{name}-genre"] * count,
    }
    text = Value("string")
    features = Features({"premise": text, "hypothesis": text, "label": ClassLabel(names=NAMES), "genre": text})
    return Dataset.from_dict(columns, features=features)


def classification(scores: list[list[float]], num_examples: int | None = None, **changes: Any) -> InfluenceResult:
    """A result whose query i is predicted as label 0 with probability 0.8."""
    logits = np.log(np.tile([0.8, 0.15, 0.05], (len(scores), 1)))
    return build_result(
        pairs("query", len(scores)),
        pairs("training", len(scores[0])),
        Predictions(logits, np.full(len(scores), 0.7), np.zeros(len(scores))),
        np.full(len(scores), 0.7),
        [QueryScores(np.arange(len(row)), np.array(row, "float32"), QUALITY) for row in scores],
        num_examples,
        dict(enumerate(NAMES)),
        SETTINGS | changes,
    )


def regression() -> InfluenceResult:
    """A result without probabilities, standard errors and largest eigenvalue."""
    examples = Dataset.from_dict({"text": ["a text of some words", "word " * 300], "labels": [0.5, 1.25]})
    quality = QUALITY | {"std_err": float("nan")}
    return build_result(
        examples,
        examples,
        Predictions(np.array([[0.7], [1.5]]), np.array([0.04, 0.06]), np.full(2, np.nan)),
        np.array([0.04, 0.06]),
        [QueryScores(np.arange(2), np.array([-1.0, 2.0], "float32"), quality)] * 2,
        None,
        {},
        SETTINGS | {"largest_eigenvalue": None},
    )


@pytest.fixture
def result() -> InfluenceResult:
    return classification([[-0.5, 2.0, -1.25, 0.25, -0.001, -0.0001], [3.0, 1.0, 0.5, 0.2, 0.1, 4.0]])


def cards(page: str) -> list[str]:
    return re.findall(r"<article.*?</article>", page, re.DOTALL)


def column(card: str, direction: str) -> str:
    """One of the two columns of a card."""
    helpful, harmful = re.split(r'<div class="harmful">', card)
    return harmful if direction == "harmful" else helpful.split('<div class="helpful">')[1]


def test_texts_and_title_are_escaped(result: InfluenceResult) -> None:
    page = render_report(result, "Title <script>alert(99)</script>")
    assert "<script>alert(" not in page
    assert page.count("<title>Title &lt;script&gt;alert(99)&lt;/script&gt;</title>") == 1
    assert "number 0 &lt;script&gt;alert(0)&lt;/script&gt; &amp; so on" in cards(page)[0]


CONTRAST = "loss minus that of the alternative"


@pytest.mark.parametrize(
    ("measure", "shown", "helpful", "harmful"),
    [
        ("loss", "the loss", "lower", "raise"),
        ("Margin()", "Margin()", "raise", "lower"),
        ("g.<locals>.Loc()", "g.&lt;locals&gt;.Loc()", "raise", "lower"),
        ("lossiness()", "lossiness()", "raise", "lower"),
        (CONTRAST, f"the {CONTRAST}", "lower", "raise"),
    ],
)
def test_the_page_says_which_way_examples_change_what_is_measured(
    result: InfluenceResult, measure: str, shown: str, helpful: str, harmful: str
) -> None:
    sign = sign_of(measure)
    assert f"harmful: giving the training example more weight {harmful}s " in sign
    assert f"helpful: more weight {helpful}s " in sign
    result.summary = replace(result.summary, measure=measure, sign=sign)
    page = render_report(result, "Title")
    assert (
        f"(negative influence):</b> giving the training example more weight {helpful}s {shown} on the query." in page
    )
    assert (
        f"(positive influence):</b> giving the training example more weight {harmful}s {shown} on the query." in page
    )
    assert page.count(f"Most helpful <small>{helpful} {shown}</small>") == 2
    assert page.count(f"Most harmful <small>{harmful} {shown}</small>") == 2
    assert ("The loss is computed for the true label." in page) == (measure == "loss")
    assert (f"Influence is that on {shown}, not on the loss" in page) == (measure != "loss")
    anchors = make_result(as_one=True)
    anchors.summary = replace(anchors.summary, measure=measure)
    assert f"the mean {shown.removeprefix('the ')} of 2 anchors" in render_report(anchors, "Title")


@pytest.mark.parametrize(
    ("measure", "effect"),
    [("loss", "lowers the loss"), ("Margin()", "raises the measure"), (CONTRAST, "lowers the measure")],
)
def test_the_figure_says_which_way_helpful_examples_go(
    result: InfluenceResult, measure: str, effect: str, tmp_path: Path
) -> None:
    result.summary = replace(result.summary, measure=measure)
    plot_influences(result, tmp_path / "influences.svg")
    drawn = (tmp_path / "influences.svg").read_text("utf-8")
    assert f"<!-- influence (helpful: below 0, it {effect}) -->" in drawn
    result.summary = replace(result.summary, change="removed", num_train=6)
    plot_influences(result, tmp_path / "changes.svg")
    side = "below" if measure == "Margin()" else "above"
    what = "the loss" if measure == "loss" else "the measure"
    label = f"<!-- predicted change of {what} if removed (helpful: {side} 0) -->"
    assert label in (tmp_path / "changes.svg").read_text("utf-8")


REMOVED = {"change": "removed", "num_train": 6}


@pytest.mark.parametrize(
    ("change", "measure", "shown", "helpful", "harmful", "numbers"),
    [
        ("removed", "loss", "the loss", "raises", "lowers", ("+0.208", "−0.333")),
        ("added", "loss", "the loss", "lowers", "raises", ("−0.208", "+0.333")),
        ("removed", "Margin()", "Margin()", "lowers", "raises", ("−0.208", "+0.333")),
        ("removed", CONTRAST, f"the {CONTRAST}", "raises", "lowers", ("+0.208", "−0.333")),
    ],
)
def test_the_page_predicts_what_a_change_of_the_training_set_does(
    change: str, measure: str, shown: str, helpful: str, harmful: str, numbers: tuple[str, str]
) -> None:
    result = classification([[-0.5, 2.0, -1.25]], change=change, num_train=6, measure=measure)
    page, gerund = render_report(result, "Title"), {"removed": "removing", "added": "adding"}[change]
    for direction, verb, number in (("helpful", helpful, numbers[0]), ("harmful", harmful, numbers[1])):
        sign = number[0]
        assert f"{sign} {direction}:</b> {gerund} the training example {verb} {shown} on the query." in page
        own = column(cards(page)[0], direction)
        assert f"{sign} Most {direction} <small>{gerund} one {verb} {shown}</small>" in own
        influence = {"helpful": "−1.25", "harmful": "+2.00"}[direction]
        assert f'<b class="influence" title="influence {influence}">{number}</b>' in own
        assert f'<span class="influence">{sign} {direction}</span>' in page  # the switch of the graph
    assert f"A number is the predicted change of {shown} of the query if the example were {change} " in page
    assert "negative influence" not in page and "Compare bars within one query" in page
    assert (f"The change is that of {shown}, not of the loss" in page) == (measure != "loss")
    rows = dict(re.findall(r'<th scope="row">(.*?)</th><td>(.*?)</td>', page))
    what = "the loss" if measure == "loss" else "the measure"
    assert rows["Unit of scores"] == f"predicted change of {what} if {change}, of 6 training examples"


def test_every_example_says_what_follows_and_how_strong_it_is() -> None:
    result = classification([[-0.5, 2.0, -1.25, 0.25, -0.001, -0.0001]], **REMOVED)
    helpful, harmful = (column(cards(render_report(result, "Title"))[0], name) for name in ("helpful", "harmful"))
    lines = re.findall(r'<p class="consequences">(.*?)</p>', helpful)
    assert lines == [
        "without it: loss 0.700 → 0.908; stronger than 66.6 % of the training set",
        "without it: loss 0.700 → 0.783; stronger than 50.0 % of the training set",
        "without it: loss 0.7000 → 0.7002; stronger than 16.6 % of the training set",
        "stronger than 0.0 % of the training set",
    ]
    assert "without it: loss 0.700 → 0.367; stronger than 83.3 % of the training set" in harmful
    assert "+1.7e-05" in helpful  # never a long number
    few = classification([[1.0, -1.0]], **REMOVED)
    few.influences = few.influences.remove_columns("percentile").add_column("percentile", [None, None])
    assert "stronger than" not in render_report(few, "Title")


def test_the_loss_where_influence_was_taken_is_shown_if_it_is_another(result: InfluenceResult) -> None:
    page = render_report(result, "Title")
    assert "at attribution" not in page
    values = result.queries.to_dict() | {"loss_at_attribution": [0.9, 0.7]}
    result.queries = Dataset.from_dict(values, features=result.queries.features)
    page = render_report(result, "Title")
    assert page.count("<dt>loss at attribution</dt><dd>0.900</dd>") == 1
    assert "<dt>loss at attribution</dt>" not in cards(page)[1]
    assert "where queries have another “loss at attribution”" in page
    result.summary = replace(result.summary, measure="Margin()")
    assert render_report(result, "Title").count("<dt>Margin()</dt>") == 2


def test_every_query_has_a_card_with_its_texts_labels_and_tags(result: InfluenceResult) -> None:
    found = cards(render_report(result, "Title"))
    assert len(found) == 2
    for i, card in enumerate(found):
        head = card.split('<div class="columns">')[0]
        assert f'<h2 id="query-{i}">Query {i}</h2>' in head
        assert f"the query premise number {i} " in head
        assert f"<dd>the query hypothesis number {i}</dd>" in head
        assert f"<dt>true label</dt><dd>{NAMES[i]}</dd>" in head
        assert "<dt>predicted</dt><dd>entailment <span>(80.0%)</span></dd>" in head
        assert "<dt>loss</dt><dd>0.7</dd>" in head
        assert "<li>genre: query-genre</li>" in head
    assert "✓ right" in found[0] and "✗ wrong" not in found[0]
    assert "✗ wrong" in found[1] and "✓ right" not in found[1]


def test_examples_are_in_their_column_in_the_order_of_their_rank(result: InfluenceResult) -> None:
    card = cards(render_report(result, "Title"))[0]
    expected = {
        "helpful": [("−1.25", "2"), ("−0.500", "0"), ("−0.00100", "4"), ("−0.000100", "5")],
        "harmful": [("+2.00", "1"), ("+0.250", "3")],
    }
    for direction, examples in expected.items():
        own = column(card, direction)
        influences = re.findall(r'<b class="influence">(.*?)</b>', own)
        indices = re.findall(r'<span class="index">#(\d+)</span>', own)
        assert list(zip(influences, indices, strict=True)) == examples
        assert re.findall(r"the training hypothesis number (\d+)", own) == [index for _, index in examples]
    assert re.findall(r"width: ([\d.]+)%", card) == ["62.5", "25.0", "0.1", "0.0", "100.0", "12.5"]
    assert "label <b>contradiction</b>" in column(card, "helpful").split("</li>")[0]


def test_examples_after_the_third_are_folded(result: InfluenceResult) -> None:
    first, second = cards(render_report(result, "Title"))
    shown, folded = column(first, "helpful").split('<details class="rest">')
    assert (shown.count("#"), folded.count("#")) == (3, 1)
    assert "1 more helpful" in folded
    assert "<details" not in column(first, "harmful")
    assert "3 more harmful" in column(second, "harmful")


def test_a_direction_without_examples_says_so(result: InfluenceResult) -> None:
    first, second = cards(render_report(result, "Title"))
    assert "No helpful example" in column(second, "helpful")
    assert "No harmful example" not in second
    assert "No harmful example" not in first and "No helpful example" not in first
    assert "No harmful example" in column(cards(render_report(classification([[-1.0, -2.0]]), "Title"))[0], "harmful")


def test_a_result_of_every_candidate_gives_a_page_of_bounded_length() -> None:
    page = render_report(classification([[float(i) for i in range(1, NUM_LISTED + 8)]]), "Title")
    assert page.count('class="index"') == NUM_LISTED
    assert "7 weaker ones are in the result" in page


def test_unknown_numbers_are_left_out() -> None:
    page = render_report(regression(), "Title")
    assert "nan" not in page.lower()
    assert "None" not in page
    assert "<dt>predicted</dt><dd>0.7</dd>" in page
    assert 'class="verdict' not in page
    assert re.search(r"<th [^>]*>Damping λ</th><td>0.1</td>", page)
    assert "largest eigenvalue" not in page
    assert ">Standard error</th>" not in page


def test_a_long_text_is_folded_but_whole() -> None:
    card = cards(render_report(regression(), "Title"))[1]
    head = card.split('<div class="columns">')[0]
    summary, text = re.search(
        r'<details class="long"><summary>(.*?)</summary>(.*?)</details>', head, re.DOTALL
    ).groups()
    assert summary.count("word ") < 100
    assert text == "word " * 300


def test_settings(result: InfluenceResult) -> None:
    seconds = {"index": 12.0, "s_test": 3.25}
    result.summary = replace(result.summary, accuracy=0.8125, seconds=seconds, query_rows=[41, 57])
    page = render_report(result, "Title")
    rows = dict(re.findall(r'<th scope="row">(.*?)</th><td>(.*?)</td>', page))
    assert rows["Model"] == "some/model"
    assert rows["Parameters attributed"] == "1,234,567"
    assert rows["Damping λ"] == "0.1, 0.50% of the largest eigenvalue 20"
    assert rows["Solver"] == "LiSSA, J = 1,000 steps, B = 8 examples a step, T = 4 repeats, scale 7.5"
    assert rows["Candidates"] == "all 6 (full scan)"
    assert rows["Residual"] == "0.12"
    assert rows["Accuracy"] == "81.2%"
    assert rows["Seconds"] == "index 12.0, s_test 3.2"
    assert "torch" in rows["Versions"]
    assert "row 57" in cards(page)[1]


def test_settings_show_the_range_over_queries_and_the_neighbours(result: InfluenceResult) -> None:
    values = result.queries.to_dict() | {"residual": [0.5, 0.25]}
    result.queries = Dataset.from_dict(values, features=result.queries.features)
    result.summary.num_neighbors = 5
    page = render_report(result, "Title")
    assert "<td>0.25 to 0.5</td>" in page
    assert "<td>the 5 nearest to each query, of 6</td>" in page


def test_label_that_is_not_a_class_gets_no_verdict(result: InfluenceResult) -> None:
    values = result.queries.to_dict()
    plain = Features({**result.queries.features, "label": Value("int64")})
    result.queries = Dataset.from_dict(values, features=plain)
    assert 'class="verdict' not in render_report(result, "Title")


def test_page_fetches_nothing(result: InfluenceResult) -> None:
    page = render_report(result, "Title")
    for reference in ("http://", "https://", "src=", "href=", "@import", "url("):
        assert reference not in page


def test_equal_input_gives_an_equal_page(result: InfluenceResult) -> None:
    scores = [[-0.5, 2.0, -1.25, 0.25, -0.001, -0.0001], [3.0, 1.0, 0.5, 0.2, 0.1, 4.0]]
    assert render_report(result, "Title") == render_report(classification(scores), "Title")
    assert render_report(result, "Title") != render_report(classification(scores[:1]), "Title")


def test_a_saved_result_gives_the_same_page(result: InfluenceResult, tmp_path: Any) -> None:
    loaded = InfluenceResult.load_from_disk(result.save_to_disk(tmp_path))
    assert render_report(loaded, "Title") == render_report(result, "Title")
