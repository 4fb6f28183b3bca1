"""Costs are estimated from sizes and a few timed passes; long builds are announced, and what an index leaves out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tiny import batches, tiny_data, tiny_model, tiny_trainer
from tiny_heads import CASES, gradients_and_curvature

from hf_fastif.checkpoints.checkpoint import Checkpoint, save_checkpoint
from hf_fastif.curvature import share_of_curvature
from hf_fastif.errors import InfluenceError
from hf_fastif.influence import estimate, indexes, timing
from hf_fastif.influence.timing import Passes


QUERIES = tiny_data(3, seed=1)
SMALL = {"sketch_size": 16, "index_size": 8, "ekfac_samples": 10, "checkpoints": "final"}
IMAGES = CASES["image"]
LEFT_OUT = ["embeddings.cls_token", "embeddings.position_embeddings", "patch_embeddings.projection"]


@pytest.fixture
def timed(monkeypatch):
    """Passes and products that take the same time everywhere."""
    monkeypatch.setattr(estimate, "time_passes", lambda *_args: Passes(0.01, 0.03, can_capture=True))
    monkeypatch.setattr(estimate, "time_product", lambda _device: 1e6)


def costs_for(folder, count, num_queries=1, **settings):
    return tiny_trainer(folder, tiny_model(frozen=2), tiny_data(count), **SMALL | settings).estimate(num_queries)


# ------------------------------------------------------------------------------------------- costs


@pytest.mark.parametrize("work", ["index", "1 query by the index", "scan with exact gradients"])
def test_costs_grow_linearly_with_the_training_set(work, timed, tmp_path):
    one, two, three = (costs_for(tmp_path / str(n), 20 * n)[work] for n in (1, 2, 3))
    assert two.seconds - one.seconds == pytest.approx(three.seconds - two.seconds)
    assert two.seconds - one.seconds > 0
    assert two.gigabytes - one.gigabytes == pytest.approx(three.gigabytes - two.gigabytes)


def test_costs_of_queries_grow_linearly_with_their_number(timed, tmp_path):
    one, four = (costs_for(tmp_path, 20, num_queries) for num_queries in (1, 4))
    assert four["4 queries by the index"].seconds == pytest.approx(4 * one["1 query by the index"].seconds)
    assert four["s_test by lissa"].seconds == pytest.approx(4 * one["s_test by lissa"].seconds)
    assert four["index"] == one["index"] and four["s_test by exact"] == one["s_test by exact"]


def test_the_index_of_each_checkpoint_is_counted(timed, tmp_path):
    theta = {name: p.detach() for name, p in tiny_model(frozen=2).named_parameters() if p.requires_grad}
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, theta, Checkpoint(step=step))
    paths = [str(path) for path in sorted(tmp_path.glob("*.safetensors"))]
    one, three = (costs_for(tmp_path / str(n), 20, checkpoints=paths[:n]) for n in (1, 3))
    for work in (cost.work for cost in one.costs):
        assert three[work].seconds == pytest.approx(3 * one[work].seconds)
    assert three["index"].note == one["index"].note + "; 3 checkpoints"


def exact_line(costs):
    (line,) = [line for line in str(costs).splitlines() if "s_test by exact" in line]
    return line


def test_the_exact_inverse_is_not_possible_for_language_models(timed, tmp_path, monkeypatch):
    monkeypatch.setattr(estimate, "MAX_PRIMAL", 10)
    case = CASES["causal-gpt2"]
    costs = case.trainer(tmp_path, case.data(11)).estimate()
    assert math.isnan(costs["s_test by exact"].seconds)
    assert "not possible" in exact_line(costs) and exact_line(costs).endswith("an example has too many outputs")
    assert "nan" not in str(costs) and "sdca" not in str(costs)


def test_the_exact_inverse_takes_the_smaller_matrix(timed, tmp_path, monkeypatch):
    size = costs_for(tmp_path, 20).num_parameters
    assert costs_for(tmp_path, 20)["s_test by exact"].gigabytes == 16 * size**2 / 2**30
    monkeypatch.setattr(estimate, "MAX_PRIMAL", 10)
    assert costs_for(tmp_path, 20)["s_test by exact"].gigabytes == 16 * 40**2 / 2**30  # two rows an example
    monkeypatch.setattr(estimate, "MAX_DUAL", 39)
    assert exact_line(costs_for(tmp_path, 20)).endswith("40 rows of Jacobians")
    assert "not possible" in exact_line(costs_for(tmp_path, 20))
    hessian = costs_for(tmp_path, 20, curvature="hessian")
    assert exact_line(hessian).endswith("the Hessian of more than 10 parameters")


@pytest.mark.parametrize(
    ("settings", "has_sdca"), [({"curvature": "hessian"}, False), ({"loss_weight_decay": 0.1}, True)]
)
def test_without_an_index_other_solvers_remain(settings, has_sdca, tmp_path):
    costs = costs_for(tmp_path, 20, **settings)
    for work in ("index", "1 query by the index"):
        assert math.isnan(costs[work].seconds)
    assert ("s_test by sdca" in str(costs)) == has_sdca
    assert all(cost.seconds > 0 for cost in costs.costs[2:])


def test_the_table_lists_sizes_and_work(timed, tmp_path):
    costs = costs_for(tmp_path, 40, num_queries=2)
    first, *lines = str(costs).splitlines()
    assert first.startswith(f"40 training examples, {costs.num_parameters:,} trained parameters, cpu; ")
    works = ["index", "2 queries by the index", "scan with exact gradients"]
    assert [cost.work for cost in costs.costs] == [*works, "s_test by sdca", "s_test by lissa", "s_test by exact"]
    assert len(lines) == 6
    assert not (tmp_path / "influence" / "indexes").exists()  # nothing is built


def test_at_least_one_query_is_estimated(tmp_path):
    with pytest.raises(InfluenceError, match="num_queries=0: give at least 1"):
        costs_for(tmp_path, 20, num_queries=0)


# ------------------------------------------------------------------------------------------ clock


@pytest.fixture
def ticking(monkeypatch):
    """A clock that moves on by a second whenever it is read."""
    ticks = iter(range(10**6))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: float(next(ticks)))


def test_passes_are_timed_for_one_example(ticking, tmp_path):
    with tiny_trainer(tmp_path, checkpoints="final").session() as session:
        assert timing.time_passes(session.setup()) == Passes(1 / 8, 1 / 8, can_capture=True)
    assert timing.time_product(torch.device("cpu")) == 3 * 2 * timing.PRODUCT**3


def test_short_passes_are_timed_again(tmp_path, monkeypatch):
    with tiny_trainer(tmp_path, checkpoints="final").session() as session:
        setup = session.setup()
        readings = iter([0.0, 0.5, 1.0, 1.25, 2.0, 6.0])  # two forward passes, and a long one that captures
        monkeypatch.setattr(timing.time, "perf_counter", lambda: next(readings))
        assert timing.time_passes(setup) == Passes(0.25 / 8, 4 / 8, can_capture=True)


def test_passes_that_cannot_be_captured_are_not_timed(tmp_path):
    with tiny_trainer(tmp_path, checkpoints="final", curvature="hessian").session() as session:
        passes = timing.time_passes(session.setup())
    assert not passes.can_capture and math.isnan(passes.captured) and passes.forward > 0


def test_typical_rows_have_the_median_length():
    examples = batches(tiny_data(40))
    lengths = np.array([len(row) for row in tiny_data(40)["input_ids"]])
    rows = timing.typical_rows(examples, 8)
    assert len(rows) == 8
    assert abs(lengths[rows].mean() - np.median(lengths)) < 1.5


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.0121, "12 ms"), (1.4, "1 s"), (119, "119 s"), (120, "2 min"), (7199, "120 min"), (7200, "2.0 h")],
)
def test_durations_in_words(seconds, words):
    assert timing.in_words(seconds) == words


# ---------------------------------------------------------------------------------- announcements


def messages(caplog, part):
    return [record.message for record in caplog.records if part in record.message]


def test_a_long_build_is_announced_once(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(indexes, "BRIEF", 0)
    monkeypatch.setattr(indexes, "time_passes", lambda _setup: Passes(60.0, 90.0, can_capture=True))
    trainer = tiny_trainer(tmp_path, tiny_model(frozen=2), **SMALL)
    for _ in range(2):
        trainer.compute_influence(QUERIES)
    (line,) = messages(caplog, "Building the index")
    assert line.startswith("Building the index of 40 training examples, once: about 2.")
    assert line.endswith(f" h. Later calls read it from {tmp_path / 'influence' / 'indexes'}.")
    tiny_trainer(tmp_path, tiny_model(frozen=2), **SMALL).compute_influence(QUERIES)
    assert len(messages(caplog, "Building the index")) == 1
    assert not messages(caplog, "leaves out")  # every trained parameter has a block


def test_a_brief_build_is_not_announced(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(indexes, "time_passes", lambda _setup: Passes(1e-6, 1e-6, can_capture=True))
    tiny_trainer(tmp_path, tiny_model(frozen=2), **SMALL).compute_influence(QUERIES)
    assert not messages(caplog, "Building the index")


# --------------------------------------------------------------------------- parameters left out


def true_share(trainer, data, rows):
    """The share of the parameters without a block in the trace of the curvature of some images, by plain autograd."""
    _, matrix = gradients_and_curvature(IMAGES, trainer, data.select(rows))
    trace = dict(zip(names(), matrix.diagonal().split(sizes()), strict=True))
    left_out = sum(float(part.sum()) for name, part in trace.items() if any(each in name for each in LEFT_OUT))
    return left_out / float(matrix.trace())


def names():
    return [name for name, p in IMAGES.model.named_parameters() if p.requires_grad]


def sizes():
    return [p.numel() for p in IMAGES.model.parameters() if p.requires_grad]


@pytest.fixture
def images(tmp_path, monkeypatch):
    """A trainer of a model with a convolution and parameters outside of layers, all trained."""
    before = [p.requires_grad for p in IMAGES.model.parameters()]
    IMAGES.model.requires_grad_(True)
    yield IMAGES.trainer(tmp_path, IMAGES.data(12), **SMALL)
    for parameter, trained in zip(IMAGES.model.parameters(), before, strict=True):
        parameter.requires_grad_(trained)


def test_the_share_of_some_parameters_in_the_curvature(images):
    left_out = [name for name in names() if any(each in name for each in LEFT_OUT)]
    data = images.train_dataset
    with images.session() as session:
        setup, examples = session.setup(), session.train
        for row in range(3):  # one alone is exact: there is nothing that random signs would mix
            share = share_of_curvature(setup.curvature, examples.take([row]), [row], 0, left_out)
            assert share == pytest.approx(true_share(images, data, [row]), rel=1e-9)
        rows = list(range(12))
        shares = [share_of_curvature(setup.curvature, examples.take(rows), rows, s, left_out) for s in range(100)]
        assert share_of_curvature(setup.curvature, examples.take(rows), rows, 0, names()) == pytest.approx(1)
    assert np.mean(shares) == pytest.approx(true_share(images, data, rows), rel=0.1)


def test_a_build_names_the_parameters_that_it_leaves_out(images, caplog, monkeypatch):
    monkeypatch.setattr(timing, "TIMED", 1)
    with images.session() as session:
        rows = timing.typical_rows(session.train, 1)
    images.compute_influence(IMAGES.data(2, seed=1))
    (line,) = messages(caplog, "leaves out")
    assert line == (
        "The index leaves out 4 trained parameters, whose gradients of single examples cannot be captured: "
        "vit.embeddings.cls_token, vit.embeddings.position_embeddings, "
        "vit.embeddings.patch_embeddings.projection.weight, .... Their share of the curvature "
        f"is about {true_share(images, images.train_dataset, rows):.0%}."
    )


def test_tied_embeddings_are_in_the_index(tmp_path, caplog):
    case = CASES["causal-gpt2"]
    trainer = case.trainer(tmp_path, case.data(11))
    trainer.compute_influence(case.data(2, seed=1))
    assert not messages(caplog, "leaves out")
    with trainer.session() as session:
        assert {layer.kind for layer in session.setup().sketch().entries.layers} >= {"tied", "linear"}
