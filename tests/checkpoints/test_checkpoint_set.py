"""Influence summed over checkpoints: against separate models, refused, interrupted, and the model left alone."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from tiny import tiny_data, tiny_model, tiny_trainer

from hf_fastif import QuerySet
from hf_fastif.checkpoints import (
    Checkpoint,
    automatic_checkpoints,
    find_checkpoints,
    kept_checkpoints,
    read_parameters,
)
from hf_fastif.influence import attribution


TRAIN, QUERIES = tiny_data(24), tiny_data(3, seed=1)
TRAINING = {
    "num_train_epochs": 3,
    "per_device_train_batch_size": 8,
    "learning_rate": 1e-2,
    "save_strategy": "no",
    "logging_strategy": "no",
}
SOLVING = {"solver": "exact", "curvature_samples": 24}


def trained(folder, model=None, **settings):
    trainer = tiny_trainer(folder, model, TRAIN, **TRAINING | SOLVING | {"checkpoints": "epochs"} | settings)
    trainer.train()
    return trainer


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("run"))


@pytest.fixture(autouse=True)
def as_it_was(trainer):
    args, before = copy.copy(trainer.args), copy.deepcopy(trainer.model.state_dict())
    yield
    trainer.args = args
    assert all(torch.equal(before[name], values) for name, values in trainer.model.state_dict().items())


def single_process(tmp_path, trainer, path, call):
    """The answer of a trainer whose model is what one checkpoint holds."""
    model = copy.deepcopy(trainer.model)
    with torch.no_grad():
        for name, values in read_parameters(path, dict(model.named_parameters())).items():
            model.get_parameter(name).copy_(values)
    return call(tiny_trainer(tmp_path / str(path).replace("/", "-"), model, TRAIN, **SOLVING))


CALLS = {
    "scan": lambda trainer: trainer.compute_influence(QUERIES),
    "anchors": lambda trainer: trainer.compute_influence(QuerySet(QUERIES, reduce="mean")),
    "self_influence": lambda trainer: trainer.self_influence(),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("weights", ["uniform", "learning_rate", [1, 5, 2]])
def test_the_sum_over_checkpoints_is_the_sum_of_separate_models(tmp_path, trainer, call, weights):
    kept = kept_checkpoints(trainer.args.output_dir)
    assert [round(member.epoch, 6) for member in kept] == [1.0, 2.0, 3.0]
    if weights == "learning_rate":
        trainer.args.checkpoints = [str(member.path) for member in kept[:2]]  # the last step has a rate of 0
        kept = kept[:2]
    trainer.args.checkpoint_weights = [str(w) for w in weights] if isinstance(weights, list) else [weights]
    shares = {"uniform": [1, 1, 1], "learning_rate": [member.learning_rate for member in kept]}
    shares = np.array(weights if isinstance(weights, list) else shares[weights], dtype=float)
    single = [single_process(tmp_path, trainer, member.path, call) for member in kept]
    expected = sum(share * values for share, values in zip(shares / shares.sum(), single, strict=True))
    assert not np.allclose(single[0], single[1], rtol=0.1)
    np.testing.assert_allclose(call(trainer), expected, rtol=2e-3, atol=2e-4 * np.abs(expected).max())


def test_losses_at_attribution_are_those_of_the_checkpoints(tmp_path, trainer):
    kept = kept_checkpoints(trainer.args.output_dir)
    trainer.args.checkpoint_weights = ["1", "5", "2"]

    def losses(trainer):
        return np.array(trainer.find_influential(QUERIES, num_examples=1).queries["loss"])

    expected = np.average([single_process(tmp_path, trainer, c.path, losses) for c in kept], axis=0, weights=[1, 5, 2])
    queries = trainer.find_influential(QUERIES, num_examples=1).queries
    np.testing.assert_allclose(queries["loss_at_attribution"], expected, rtol=1e-4)
    assert not np.allclose(queries["loss_at_attribution"], queries["loss"], rtol=0.02)


def test_the_last_checkpoint_is_the_model(trainer):
    expected = None
    for setting in (["final"], [str(kept_checkpoints(trainer.args.output_dir)[-1].path)]):
        trainer.args.checkpoints = setting
        found = trainer.compute_influence(QUERIES)
        expected = found if expected is None else expected
    np.testing.assert_array_equal(found, expected)


def test_order_of_the_checkpoints_does_not_matter(trainer):
    forwards = trainer.compute_influence(QUERIES)
    trainer.args.checkpoints = [str(m.path) for m in kept_checkpoints(trainer.args.output_dir)][::-1]
    np.testing.assert_allclose(trainer.compute_influence(QUERIES), forwards, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["gradient_sketch", "pooled"])
def test_candidates_of_all_checkpoints(trainer, kind):
    trainer.args.index_features, trainer.args.index_size = kind, 3_000
    s_test = trainer.compute_s_test(QUERIES)
    scan = trainer.compute_influence(QUERIES, s_test=s_test)
    index = trainer.build_index()
    for k in (24, 5):
        result = trainer.find_influential(QUERIES, num_examples=None, num_neighbors=k, s_test=s_test).to_pandas()
        assert len(result) == 3 * k
        expected = scan[result["query_index"], result["train_index"]]
        np.testing.assert_allclose(result["influence"], expected, rtol=1e-3, atol=1e-5)
    assert trainer.load_index(index.folder).faiss_index.d == index.faiss_index.d
    trainer.args.checkpoints = ["final"]
    with pytest.raises(ValueError, match="built with the model"):
        trainer.load_index(index.folder)
    with pytest.raises(ValueError, match="the model was changed after its index was built"):
        trainer.find_influential(QUERIES, num_neighbors=5)


def test_result_names_the_checkpoints(trainer):
    summary = trainer.find_influential(QUERIES).summary
    assert [round(entry["epoch"]) for entry in summary.checkpoints] == [1, 2, 3]
    assert [entry["weight"] for entry in summary.checkpoints] == pytest.approx([1 / 3] * 3)


def test_checkpoints_of_trainer_serve_too(tmp_path, trainer):
    usual = trained(tmp_path, tiny_model(), checkpoints="final", save_strategy="epoch")
    assert [member.path.name.rpartition("-")[2] for member in kept_checkpoints(str(tmp_path))] == ["3", "6", "9"]
    usual.args.checkpoints = ["epochs"]
    found = usual.compute_influence(QUERIES)
    light = trained(tmp_path / "light", tiny_model())
    np.testing.assert_allclose(found, light.compute_influence(QUERIES), rtol=1e-4, atol=1e-6)


def test_runs_with_other_seeds_are_more_checkpoints(tmp_path, trainer):
    other = trained(tmp_path / "other", tiny_model(), seed=7)
    own = other.compute_influence(QUERIES)
    first = trainer.compute_influence(QUERIES)
    trainer.args.checkpoints = [trainer.args.output_dir, other.args.output_dir]
    np.testing.assert_allclose(trainer.compute_influence(QUERIES), (own + first) / 2, rtol=2e-3, atol=1e-4)


def test_numbers_of_checkpoints(tmp_path):
    trained(tmp_path, tiny_model(), checkpoints=4)
    assert [member.step for member in kept_checkpoints(str(tmp_path))] == [2, 4, 7, 9]
    assert [member.step for member in find_checkpoints(["2"], str(tmp_path), tiny_model())[0]] == [4, 9]
    trained(tmp_path, tiny_model(), checkpoints="early-3")  # the earlier run's are forgotten
    assert [member.step for member in find_checkpoints(["early-3"], str(tmp_path), tiny_model())[0]] == [2, 4, 9]
    with pytest.raises(ValueError, match="checkpoints='5': training left 3 checkpoints, of which 3 are near"):
        find_checkpoints(["5"], str(tmp_path), tiny_model())
    with pytest.raises(ValueError, match="checkpoints='epochs': .* holds no checkpoint from the end of an epoch"):
        find_checkpoints(["epochs"], str(tmp_path / "nowhere"), tiny_model())


def test_auto_is_the_early_moments_of_the_models_own_run(tmp_path, trainer):
    kept = kept_checkpoints(trainer.args.output_dir)
    trainer.args.checkpoints = [str(member.path) for member in kept[:2]]
    expected = trainer.compute_influence(QUERIES)
    trainer.args.checkpoints = ["auto"]
    np.testing.assert_array_equal(trainer.compute_influence(QUERIES), expected)

    assert find_checkpoints(["auto"], trainer.args.output_dir, trainer.model)[0] == kept[:2]
    assert find_checkpoints(["auto"], str(tmp_path), trainer.model)[0] == [Checkpoint()]
    assert find_checkpoints(["auto"], trainer.args.output_dir, tiny_model())[0] == [Checkpoint()]
    once = trained(tmp_path / "once", tiny_model(), checkpoints="auto", num_train_epochs=1)
    kept = kept_checkpoints(str(tmp_path / "once"))
    assert [member.step for member in kept] == [1, 2]
    assert find_checkpoints(["auto"], str(tmp_path / "once"), once.model)[0] == kept


@pytest.mark.parametrize(
    ("steps", "num_steps", "expected"),
    [
        ([2, 3, 6, 9], 9, [2, 3, 6]),
        ([1, 3, 8], 9, [3, 8]),  # the first is at a factor of just 1.5
        ([46, 100], 100, [46]),  # near a third and two thirds, but once
        ([2, 3], 10, [2, 3]),
        ([5, 6, 7], 12, [5, 7]),
        ([], 9, []),
    ],
)
def test_checkpoints_near_the_early_moments(steps, num_steps, expected):
    early = automatic_checkpoints([Checkpoint(step=step) for step in steps], num_steps)
    assert [member.step for member in early] == expected


def test_the_end_of_training_is_never_early():
    assert not any(automatic_checkpoints([Checkpoint(step=step)], step) for step in range(1, 1000))


def test_evenly_spaced_checkpoints_count_from_the_end_of_training(tmp_path):
    early = trained(tmp_path, tiny_model(), checkpoints="auto")
    with pytest.raises(ValueError, match="checkpoints='3': training left 3 checkpoints, of which 2 are near"):
        find_checkpoints(["3"], str(tmp_path), early.model)


def test_an_error_leaves_the_model_as_it_was(trainer, monkeypatch):
    monkeypatch.setattr(attribution, "influence_scores", lambda *_args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trainer.compute_influence(QUERIES)  # as_it_was looks at the model


def test_a_run_that_was_interrupted_between_checkpoints_goes_on(trainer, monkeypatch):
    expected = trainer.compute_influence(QUERIES)
    scored, scores = [], attribution.influence_scores

    def counted(*args):
        scored.append(args[-1])
        if len(scored) == 3:
            raise KeyboardInterrupt
        return scores(*args)

    monkeypatch.setattr(attribution, "influence_scores", counted)
    with pytest.raises(KeyboardInterrupt):
        trainer.compute_influence(QUERIES)
    solved = []
    monkeypatch.setattr(attribution, "sharded_gradients", lambda *args: solved.append(args))
    np.testing.assert_array_equal(trainer.compute_influence(QUERIES), expected)
    assert solved == []


@pytest.mark.parametrize("change", ["architecture", "frozen", "dataset", "nothing there"])
def test_checkpoints_of_something_else_are_refused(tmp_path, trainer, change):
    path = kept_checkpoints(trainer.args.output_dir)[0].path
    train, model, match = TRAIN, copy.deepcopy(trainer.model), None
    if change == "architecture":
        model, match = (
            tiny_model(intermediate_size=10),
            "another architecture than this BertForSequence.* is \\(12, 8\\)",
        )
    elif change == "frozen":
        model.save_pretrained(tmp_path / "whole")
        path, match = tmp_path / "whole", "has other values of bert.embeddings.*frozen"
        model = copy.deepcopy(trainer.model)
        with torch.no_grad():
            model.get_input_embeddings().weight.add_(1)
    elif change == "dataset":
        train, match = (
            tiny_data(24).select([1, 0, *range(2, 24)]),
            "was trained on rows with the digest [0-9a-f]+, but train_dataset has",
        )
    else:
        path, match = tmp_path, "holds no model.safetensors"
    other = tiny_trainer(tmp_path / "run", model, train, checkpoints=[str(path)], **SOLVING)
    with pytest.raises(ValueError, match=match):
        other.compute_influence(QUERIES)


@pytest.mark.parametrize(
    ("weights", "match"), [([1, 2], "there are 3 checkpoints"), (["learning_rate"], "it is unknown or 0 for")]
)
def test_weights_that_do_not_fit(trainer, weights, match):
    trainer.args.checkpoint_weights = weights
    with pytest.raises(ValueError, match=match):
        trainer.compute_influence(QUERIES)
