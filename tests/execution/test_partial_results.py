"""What a killed run has finished is not done again, and what does not fit is not used."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import accelerator, tiny_data, tiny_trainer

from hf_fastif.execution import partial_results as pieces_module
from hf_fastif.execution import sweeps as passes
from hf_fastif.execution.partial_results import PartialResults
from hf_fastif.influence import attribution
from hf_fastif.scoring import Scoring


SCORES = Scoring.batch_scores
QUERIES = tiny_data(3, seed=1)


def number(value):
    return {"number": torch.tensor([value])}


def test_a_piece_is_computed_once_and_given_back_to_the_bit(tmp_path):
    value = {"a": torch.randn(3, 4), "b": torch.tensor([1.5], dtype=torch.float64)}
    first = PartialResults(tmp_path / "work", {"model": "one"}, accelerator()).get("piece", lambda: value)
    again = PartialResults(tmp_path / "work", {"model": "one"}, accelerator()).get(
        "piece", lambda: pytest.fail("computed")
    )
    for name in value:
        assert torch.equal(first[name], value[name]) and torch.equal(again[name], value[name])
    assert not list(tmp_path.rglob("*.tmp"))


def test_another_model_starts_afresh_and_says_why(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr("hf_fastif.execution.partial_results.logger.warning", said.append)
    PartialResults(tmp_path / "work", {"model": "one", "seed": "1"}, accelerator()).get("piece", lambda: number(1))
    partials = PartialResults(tmp_path / "work", {"model": "two", "seed": "1"}, accelerator())
    assert partials.get("piece", lambda: number(2))["number"] == 2
    assert "work: model changed" in said[0]
    assert (
        PartialResults(tmp_path / "work", {"model": "two", "seed": "1"}, accelerator()).get("piece", dict)["number"]
        == 2
    )


def test_a_whole_takes_the_place_of_its_parts(tmp_path):
    partials = PartialResults(tmp_path / "work", {}, accelerator())
    partials.get("whole", lambda: number(partials.get("whole.part", lambda: number(1))["number"].item() + 1))
    partials.get("wholesale.part", lambda: number(5))
    assert {file.name for file in partials.folder.glob("*.safetensors")} == {
        "whole.safetensors",
        "wholesale.part.safetensors",
    }
    partials.delete()
    assert not partials.folder.exists()


def test_what_is_finished_is_not_computed_again_in_the_same_process(tmp_path):
    partials, computed = PartialResults(tmp_path / "work", {"model": "one"}, accelerator()), []
    for _ in range(2):
        assert partials.get("piece", lambda: computed.append(1) or number(len(computed)))["number"] == 1


def test_two_runs_go_on_with_one_interrupted_work(tmp_path):
    def opened():
        return PartialResults(tmp_path / "work", {"model": "one"}, accelerator())

    opened().get("a", lambda: number(1))
    first, second = opened(), opened()
    first.get("b", lambda: number(2))
    first.delete()  # done, while the second still needs what it saw
    assert second.get("a", lambda: number(10))["number"] == 10
    assert second.get("b", lambda: number(20))["number"] == 20
    third = opened()
    assert third.get("a", lambda: pytest.fail("computed"))["number"] == 10
    second.delete()
    second.delete()
    assert third.get("c", lambda: number(3))["number"] == 3
    third.delete()
    assert not (tmp_path / "work").exists()


def test_a_folder_that_goes_while_a_piece_is_written(tmp_path, monkeypatch):
    partials, saved = PartialResults(tmp_path / "work", {"model": "one"}, accelerator()), pieces_module.save_file
    partials.get("a", lambda: number(1))

    def deleted_meanwhile(*args):
        monkeypatch.setattr(pieces_module, "save_file", saved)
        partials.delete()
        return saved(*args)

    monkeypatch.setattr(pieces_module, "save_file", deleted_meanwhile)
    partials.get("b", lambda: number(2))
    again = PartialResults(tmp_path / "work", {"model": "one"}, accelerator())
    assert again.get("b", lambda: pytest.fail("computed"))["number"] == 2


def test_a_piece_of_other_work_in_the_folder_is_not_taken(tmp_path):
    PartialResults(tmp_path / "work", {"model": "one"}, accelerator()).get("a", lambda: number(1))
    (tmp_path / "work" / "manifest.json").unlink()
    other = PartialResults(tmp_path / "work", {"model": "two"}, accelerator())
    other.get("b", lambda: number(2))
    again = PartialResults(tmp_path / "work", {"model": "two"}, accelerator())
    assert again.get("a", lambda: number(5))["number"] == 5


def failing_after(monkeypatch, batches):
    """Makes scoring fail after some batches, and counts the batches that are scored."""
    scored = []

    def batch_scores(self, objective, batch, s_test):
        if len(scored) == batches:
            raise KeyboardInterrupt
        scored.append(len(batch["labels"]))
        return SCORES(self, objective, batch, s_test)

    monkeypatch.setattr(Scoring, "batch_scores", batch_scores)
    return scored


@pytest.mark.parametrize("num_neighbors", [None, 30])
def test_an_interrupted_call_goes_on_where_it_stopped(tmp_path, monkeypatch, num_neighbors):
    monkeypatch.setattr(passes, "PIECE", 2)
    settings = {"solver": "lissa", "lissa_depth": 4, "damping": 1.0, "influence_batch_size": 4, "query_batch_size": 2}

    def call():
        trainer = tiny_trainer(tmp_path, **settings)
        trainer.build_index()
        return trainer.find_influential(QUERIES, num_examples=None, num_neighbors=num_neighbors).influences.to_pandas()

    scored = failing_after(monkeypatch, None)
    expected = call()
    whole = len(scored)
    unfinished = tmp_path / "influence" / "unfinished"
    assert not any(unfinished.rglob("*.safetensors"))

    stop = 2 * whole // 3
    failing_after(monkeypatch, stop)
    with pytest.raises(KeyboardInterrupt):
        call()
    assert any(unfinished.rglob("*.safetensors"))

    scored = failing_after(monkeypatch, None)
    found = call()
    assert whole - stop <= len(scored) < whole - stop + 2  # at most one piece of two batches is done again
    assert found.equals(expected)


def test_changed_weights_are_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(passes, "PIECE", 1)
    settings = {"solver": "identity", "influence_batch_size": 4}
    failing_after(monkeypatch, 5)
    trainer = tiny_trainer(tmp_path, **settings)
    with pytest.raises(KeyboardInterrupt):
        trainer.compute_influence(QUERIES)
    with torch.no_grad():
        trainer.model.classifier.weight.mul_(2)
    scored = failing_after(monkeypatch, None)
    found = trainer.compute_influence(QUERIES)
    assert len(scored) == 10
    fresh = tiny_trainer(tmp_path / "fresh", trainer.model, **settings).compute_influence(QUERIES)
    np.testing.assert_array_equal(found, fresh)


def test_shared_candidates_are_scored_together_or_alone(tmp_path, monkeypatch):
    answers = []
    for cost in (0.0, 1e9):
        monkeypatch.setattr(attribution, "SHARED_COST", cost)
        trainer = tiny_trainer(tmp_path, solver="identity")
        trainer.build_index()
        found = trainer.find_influential(QUERIES, num_examples=None, num_neighbors=15).influences.to_pandas()
        answers.append(found.sort_values(["query_index", "train_index"]))
    assert answers[0]["train_index"].tolist() == answers[1]["train_index"].tolist()
    np.testing.assert_allclose(answers[0]["influence"], answers[1]["influence"], rtol=1e-3, atol=1e-4)


def test_overwrite_forgets_unfinished_work_and_factors_once(tmp_path, monkeypatch):
    monkeypatch.setattr(passes, "PIECE", 1)
    settings = {"solver": "ekfac", "damping": 1.0, "influence_batch_size": 4, "ekfac_samples": 8}
    factors = tmp_path / "influence" / "ekfac.safetensors"
    failing_after(monkeypatch, 5)
    with pytest.raises(KeyboardInterrupt):
        tiny_trainer(tmp_path, **settings).compute_influence(QUERIES)
    fitted = factors.stat().st_mtime_ns

    scored = failing_after(monkeypatch, 7)
    trainer = tiny_trainer(tmp_path, overwrite=True, **settings)
    with pytest.raises(KeyboardInterrupt):
        trainer.compute_influence(QUERIES)
    assert len(scored) == 7 and factors.stat().st_mtime_ns != fitted

    for again in (trainer, tiny_trainer(tmp_path, **settings)):  # not again, and the flag is no other setting
        fitted, scored = factors.stat().st_mtime_ns, failing_after(monkeypatch, None)
        again.compute_influence(QUERIES)
        assert len(scored) == (3 if again is trainer else 10) and factors.stat().st_mtime_ns == fitted


def test_damaged_files_are_made_again(tmp_path, monkeypatch):
    said = []
    for module in ("execution.partial_results", "solvers.setup"):
        monkeypatch.setattr(f"hf_fastif.{module}.logger.warning", said.append)
    folder = tmp_path / "work"
    PartialResults(folder, {"model": "one"}, accelerator()).get("piece", lambda: number(1))
    (folder / "piece.safetensors").write_bytes(b"\0\0")
    partials = PartialResults(folder, {"model": "one"}, accelerator())
    assert partials.get("piece", lambda: number(2))["number"] == 2
    assert "piece.safetensors is damaged" in said[-1]
    (folder / "manifest.json").write_text('{"model"')
    assert PartialResults(folder, {"model": "one"}, accelerator()).get("piece", lambda: number(3))["number"] == 3
    assert "work: manifest, model changed" in said[-1]

    settings = {"solver": "ekfac", "damping": 1.0, "ekfac_samples": 8}
    expected = tiny_trainer(tmp_path, **settings).compute_influence(QUERIES)
    factors = tmp_path / "influence" / "ekfac.safetensors"
    whole = factors.read_bytes()
    factors.write_bytes(whole[: len(whole) // 2])
    np.testing.assert_array_equal(tiny_trainer(tmp_path, **settings).compute_influence(QUERIES), expected)
    assert "ekfac.safetensors cannot be read" in said[-1] and len(factors.read_bytes()) == len(whole)


def test_an_index_that_is_built_again_is_the_same_one(tmp_path):
    identities = {tiny_trainer(tmp_path / str(n)).build_index().identity for n in range(4)}
    assert len(identities) == 1  # the header of a safetensors file has no fixed order
