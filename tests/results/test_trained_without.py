"""Table and sentence of a check by training again, and where they are shown and saved."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
from hub_tools import make_result

from hf_fastif import InfluenceResult
from hf_fastif.results import TrainedWithout, check_text
from hf_fastif.results.trained_without import check_sentence, check_table


FULL = TrainedWithout("nothing", [], 2000, 0, 20, 0.925, 380)
MODELS = [
    FULL,
    replace(FULL, removed="most harmful", rows=[*range(150)], right=18, accuracy=0.98),
    replace(FULL, removed="random", rows=[*range(150)], right=1, accuracy=0.92),
]
COUNTED = [
    replace(one, num_wrong_labels=n, num_all_wrong_labels=100) for one, n in zip(MODELS, (0, 88, 7), strict=True)
]


def test_the_sentence_compares_with_the_full_training_set_and_with_random_examples():
    assert check_sentence(MODELS) == (
        "Trained again without the 150 of 2,000 training examples most harmful to the 20 errors, the model predicts "
        "18 of these right, and 98.0% of the other 380 validation examples (before: 92.5%). Without 150 random ones "
        "instead: 1, and 92.0%."
    )


def test_the_table_counts_wrong_labels_that_are_known():
    assert check_table(MODELS) == [
        ["training examples removed", "errors now right", "accuracy on the other 380"],
        ["nothing", "0 of 20", "92.5%"],
        ["150 most harmful to the errors", "18 of 20", "98.0%"],
        ["150 random", "1 of 20", "92.0%"],
    ]
    assert [row[3] for row in check_table(COUNTED)] == ["of 100 wrong labels removed", "0", "88", "7"]


def test_explained_predictions_that_are_right_are_not_called_errors():
    models = [replace(one, right=one.right + 1) for one in MODELS]
    assert "to the 20 predictions, the model predicts 19 of these right" in check_sentence(models)


def test_the_lines_of_the_text_are_aligned():
    sentence, *lines = check_text(COUNTED).splitlines()
    assert sentence == check_sentence(COUNTED)
    assert [line.index(cell) for line, cell in zip(lines, ("errors now", "0 of", "18 of", "1 of"), strict=True)] == [
        lines[0].index("errors now")
    ] * 4


def test_a_result_keeps_its_check_and_shows_it_first(tmp_path):
    result = make_result(trained_without=[asdict(one) for one in COUNTED])

    loaded = InfluenceResult.load_from_disk(result.save_to_disk(tmp_path / "result"))
    page = loaded.to_html(tmp_path / "report.html").read_text("utf-8")

    assert loaded.summary.models_without == COUNTED
    assert page.index(check_sentence(COUNTED)) < page.index("<td>18 of 20</td>") < page.index("How to read it")
    assert "training again" not in make_result().to_html(tmp_path / "plain.html").read_text("utf-8")


@pytest.mark.parametrize("change", [{"right": "<b>"}, {"accuracy": float("nan")}, {"more": 1}])
def test_a_check_of_other_entries_is_refused(change):
    result = make_result(trained_without=[asdict(FULL) | change])
    with pytest.raises(ValueError, match="summary: trained_without="):
        result.summary.to_json()


def test_joined_results_have_no_check_of_one_of_them():
    result = make_result(trained_without=[asdict(one) for one in MODELS])
    assert InfluenceResult.join({"one": result, "two": result}).summary.trained_without is None
