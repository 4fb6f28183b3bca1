"""Queries half right and half wrong, settings for a while, and what is kept."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny_data, tiny_trainer

from hf_fastif.analysis.session_tools import changed, influence_manifest, open_analysis_results
from hf_fastif.experiments.sampling import balanced_queries


VALIDATION = tiny_data(150, seed=1)


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    return tiny_trainer(tmp_path_factory.mktemp("work"), train=tiny_data(12), damping=0.5)


def test_half_of_the_queries_are_predicted_wrong(trainer):
    rows, right = balanced_queries(trainer, VALIDATION, 7)
    wrong = set(trainer.find_misclassified(VALIDATION).tolist())
    assert [row not in wrong for row in rows] == right.tolist() == [False] * 3 + [True] * 4
    assert len(set(rows.tolist())) == 7
    assert balanced_queries(trainer, VALIDATION, 7)[0].tolist() == rows.tolist()
    assert balanced_queries(trainer, VALIDATION, 7, seed=1)[0].tolist() != rows.tolist()
    with pytest.raises(ValueError, match=r"count=12: .* 8 examples have only \d right predictions"):
        balanced_queries(trainer, VALIDATION.select(range(8)), 12)


def test_settings_are_changed_for_a_while(trainer):
    before = trainer.args
    with pytest.raises(KeyError), changed(trainer, damping="2", solver="cg"):
        assert (trainer.args.damping, trainer.args.solver, before.damping) == (2.0, "cg", 0.5)
        raise KeyError
    assert trainer.args is before and before.solver == "auto"
    with (
        pytest.raises(ValueError, match="learning_rate is not an influence setting"),
        changed(trainer, learning_rate=1),
    ):
        pass
    with pytest.raises(ValueError, match="damping=-1"), changed(trainer, damping=-1):
        pass


def test_parts_are_kept_for_what_they_are_about(trainer):
    computed = []

    def compute():
        computed.append(1)
        return {"values": torch.arange(3.0)}

    manifest = influence_manifest(trainer, queries=VALIDATION)
    for _ in range(2):
        values = open_analysis_results(trainer, "work", manifest).get("a", compute)["values"]
        assert values.tolist() == [0, 1, 2]
    assert len(computed) == 1
    with changed(trainer, damping=0.6):
        other = influence_manifest(trainer, queries=VALIDATION)
    with torch.no_grad():
        trainer.model.classifier.bias += 1
    moved = influence_manifest(trainer, queries=VALIDATION)
    fewer = influence_manifest(trainer, queries=VALIDATION.select(range(9)))
    assert len({str(sorted(one.items())) for one in (manifest, other, moved, fewer)}) == 4
    open_analysis_results(trainer, "work", other).get("a", compute)
    open_analysis_results(trainer, "work", manifest).get("a", compute)
    assert len(computed) == 2
