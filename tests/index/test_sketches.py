"""The sketch of a training set against explicit matrices; a fit that is interrupted; indexes that hold sketches."""

from __future__ import annotations

import shutil
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import numpy as np
import oracles
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import accelerator, batches, tiny_data, tiny_model, tiny_trainer

from hf_fastif.artifacts import describe_files
from hf_fastif.curvature import Entries, KroneckerFit
from hf_fastif.execution import DatasetSweep, PartialResults
from hf_fastif.index import InfluenceIndex, SketchFeatures, SketchFit, sketches, store


TRAIN, QUERIES = tiny_data(24), tiny_data(4, seed=1)
DAMPING = 0.3


@contextmanager
def fit_of(folder, model=None, train=TRAIN, name="gradients-0", batch_size=4, **settings):
    trainer = tiny_trainer(folder, model if model is not None else tiny_model(frozen=2), train, **settings)
    with trainer.session() as session:
        partials = PartialResults(folder / "parts", {"model": "abc"}, accelerator())
        yield SketchFit(session.setup(), DatasetSweep(batch_size, accelerator()), partials, name)


def scores_by(fit: SketchFit, loaded=nullcontext) -> tuple[np.ndarray, torch.Tensor]:
    """The scores of the training set on itself in the sketch, and its eigenvalues."""
    sketch = fit.fit()
    features = torch.from_numpy(np.concatenate(list(fit.features(sketch, loaded))))
    coordinates = features * sketch.eigenvalues.sqrt()
    return (-sketch.solve(coordinates, DAMPING) @ coordinates.T).numpy(), sketch.eigenvalues


def truth(model, train=TRAIN, damping=DAMPING):
    matrix, gradients = oracles.gauss_newton(model, batches(train)), oracles.loss_gradients(model, batches(train))
    system = matrix + damping * torch.eye(len(matrix), dtype=matrix.dtype)
    return (-torch.linalg.solve(system, gradients.T).T @ gradients.T).numpy(), torch.linalg.eigvalsh(matrix).flip(0)


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize(("num_labels", "frozen"), [(2, 2), (3, 2), (3, 1)])
def test_a_whole_sketch_has_the_exact_scores(num_labels, frozen, double, tmp_path):
    train = tiny_data(24, labels=num_labels)
    model = tiny_model(frozen=frozen, double=double, num_labels=num_labels)
    with fit_of(tmp_path, model, train) as fit:
        scores, eigenvalues = scores_by(fit)
    expected, exact = truth(tiny_model(frozen=frozen, double=True, num_labels=num_labels), train)

    np.testing.assert_allclose(scores, expected, rtol=0.01, atol=2e-3 * np.abs(expected).max())
    np.testing.assert_allclose(eigenvalues[:10], exact[:10], rtol=2e-3)


def test_embeddings_are_in_the_sketch(tmp_path):
    with fit_of(tmp_path, tiny_model(frozen=None)) as fit:
        scores, _ = scores_by(fit)
        kinds = {layer.kind for layer in fit._entries.layers}
    expected, _ = truth(tiny_model(frozen=None, double=True))
    assert kinds == {"linear", "embedding", "other"}
    np.testing.assert_allclose(scores, expected, rtol=0.01, atol=5e-3 * np.abs(expected).max())


def test_batches_do_not_matter(tmp_path):
    found = []
    for size in (1, 5, 24):
        with fit_of(tmp_path / str(size), tiny_model(num_labels=8), tiny_data(24, labels=8), batch_size=size) as fit:
            found.append(scores_by(fit)[0])
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], rtol=1e-2, atol=2e-3 * np.abs(found[0]).max())


@pytest.mark.parametrize(
    ("size", "settings"), [(1, {}), (2, {"index_size": 3}), (24, {"index_size": 1}), (24, {"sketch_size": 1})]
)
def test_few_examples_directions_or_entries(size, settings, tmp_path):
    with fit_of(tmp_path, train=tiny_data(size), **settings) as fit:
        sketch = fit.fit()
        features = np.concatenate(list(fit.features(sketch, nullcontext)))
    assert sketch.size == min(settings.get("index_size", 2 * size), settings.get("sketch_size", 2 * size), 2 * size)
    assert features.shape == (size, sketch.size) and np.isfinite(features).all()


def count_batches(monkeypatch, stop_after: int | None = None) -> list[list[int]]:
    """The rows of every batch from now on; an error after so many."""
    seen, compute = [], Entries.of_losses_and_curvature

    def counted(self, curvature, batch, rows, seed):
        if len(seen) == stop_after:
            raise KeyboardInterrupt
        seen.append(list(rows))
        return compute(self, curvature, batch, rows, seed)

    monkeypatch.setattr(Entries, "of_losses_and_curvature", counted)
    return seen


@pytest.fixture
def small_blocks(monkeypatch):
    """Eight rows: two directions of 50 entries, in half precision."""
    monkeypatch.setattr(sketches, "BLOCK", 2 * 2 * 50 * 8)
    return {"sketch_size": 50}


def test_an_interrupted_fit_goes_on_to_the_same_bits(tmp_path, small_blocks, monkeypatch):
    with fit_of(tmp_path / "whole", **small_blocks) as fit:
        expected = scores_by(fit)
    with monkeypatch.context() as patch, fit_of(tmp_path / "again", **small_blocks) as fit:
        first = count_batches(patch, stop_after=3)
        with pytest.raises(KeyboardInterrupt):
            fit.fit()
    with fit_of(tmp_path / "again", **small_blocks) as fit:
        second = count_batches(monkeypatch)
        monkeypatch.setattr(KroneckerFit, "bases", lambda _: pytest.fail("fitted again"))
        found = scores_by(fit)

    finished = {row for rows in first[:2] for row in rows}  # a block holds two batches
    assert len(second) == 4 and finished == set(range(8))
    assert sorted(row for rows in second for row in rows) == list(range(8, 24))
    assert np.array_equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


def test_a_block_that_another_run_deleted_is_computed_again_at_its_checkpoint(tmp_path, small_blocks, monkeypatch):
    with fit_of(tmp_path, **small_blocks) as fit:
        sketch, events = fit.fit(), []
        expected = np.concatenate(list(fit.features(sketch, nullcontext)))
        (tmp_path / "parts" / "gradients-0-1.safetensors").unlink()
        seen = count_batches(monkeypatch)

        @contextmanager
        def loaded():
            events.append("loaded")
            yield
            events.append(len(seen))

        found = np.concatenate(list(fit.features(sketch, loaded)))
    assert events == ["loaded", 2]
    assert np.array_equal(found, expected)


def test_a_confident_mistake_does_not_exceed_half_precision(tmp_path):
    with fit_of(tmp_path) as fit:
        sketch = fit.fit()
        small = replace(sketch, eigenvalues=sketch.eigenvalues * 1e-16)
        features = np.concatenate(list(fit.features(small, nullcontext)))
        one = SketchFeatures(fit.setup.objective, small).of_batch(fit.setup.examples.take([0]))
    assert np.abs(features).max() == np.abs(one.numpy()).max() == torch.finfo(torch.float16).max


# ------------------------------------------------------------------------------------------ indexes


FACTORIES = ["Flat", "SQfp16", "IVF4,Flat", "IVF4,SQfp16", "HNSW8"]


def built(folder, factory="Flat", **settings):
    trainer = tiny_trainer(folder, tiny_model(frozen=2), TRAIN, index_factory=factory, **settings)
    return trainer, trainer.build_index()


@pytest.fixture(scope="module")
def flat(tmp_path_factory):
    """The vectors of the training set, in one shard of plain numbers."""
    _, index = built(tmp_path_factory.mktemp("flat"))
    return index.faiss_index.reconstruct_n(0, 24)


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("shard_size", [7, 1000])
@pytest.mark.parametrize("factory", FACTORIES)
def test_an_index_scores_all_rows_in_their_order(factory, shard_size, on_disk, flat, tmp_path, monkeypatch):
    _, index = built(tmp_path, factory, index_shard_size=shard_size)
    index = InfluenceIndex.load(index.folder, on_disk)
    monkeypatch.setattr(store, "BLOCK", 4 * flat.shape[1] * 5)  # five rows at once
    queries = np.random.default_rng(0).standard_normal((3, flat.shape[1])).astype(np.float32)
    weights = torch.rand(flat.shape[1])

    blocks = list(store.vector_blocks(index.faiss_index))
    assert [len(block) for block in blocks] == ([5, 2, 5, 2, 5, 2, 3] if shard_size == 7 else [5] * 4 + [4])
    size = 1e-3 * np.abs(flat).max()
    np.testing.assert_allclose(torch.cat(blocks), flat, rtol=2e-3, atol=size)
    np.testing.assert_allclose(index.scores(queries), -queries @ flat.T, rtol=5e-3, atol=20 * size)
    np.testing.assert_allclose(index.squares(weights), (flat**2) @ weights.numpy(), rtol=5e-3)


def assert_same_sketches(one: InfluenceIndex, other: InfluenceIndex):
    assert len(one.sketches) == len(other.sketches) > 0
    for sketch, same in zip(one.sketches, other.sketches, strict=True):
        assert torch.equal(sketch.basis, same.basis) and torch.equal(sketch.eigenvalues, same.eigenvalues)
        assert sketch.entries.layers == same.entries.layers
        tensors = same.entries.to_tensors()
        assert all(torch.equal(values, tensors[name]) for name, values in sketch.entries.to_tensors().items())


def test_sketches_are_read_as_they_were_written(tmp_path):
    trainer, index = built(tmp_path)
    again = InfluenceIndex.load(index.folder)
    assert_same_sketches(index, again)
    batch = batches(TRAIN).take([3, 1, 20])
    with trainer.session() as session:
        features = SketchFeatures(session.objective, again.sketches[0]).of_batch(batch)
    written = again.faiss_index.reconstruct_n(0, 24)[[3, 1, 20]]
    # The weakest directions are those of which rounding takes most.
    np.testing.assert_allclose(features[:, :30], written[:, :30], rtol=2e-2, atol=1e-2)
    assert again.identity == index.identity


def test_sketches_come_back_from_the_hub(hub, tmp_path):
    _, index = built(tmp_path)
    index.push_to_hub("me/sketches")
    assert "indexes/sketches.safetensors" in hub.files("me/sketches")
    again = InfluenceIndex.from_pretrained("me/sketches")
    assert_same_sketches(index, again)
    queries = np.ones((2, again.faiss_index.d), np.float32)
    assert np.array_equal(again.scores(queries), index.scores(queries))


def test_a_damaged_file_of_sketches_is_named(tmp_path):
    _, index = built(tmp_path / "out")
    cut = shutil.copytree(index.folder, tmp_path / "cut")
    path = cut / "sketches.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match="sketches.safetensors"):
        InfluenceIndex.load(cut)


@pytest.mark.parametrize("change", ["counts", "missing", "layers"])
def test_a_file_of_sketches_that_was_made_by_something_else_is_named(change, tmp_path):
    _, index = built(tmp_path / "out")
    path = index.folder / "sketches.safetensors"
    tensors = load_file(path)
    metadata = {"layers": "[]", "counts": "[1]"} if change == "counts" else {"layers": "[]", "counts": "[0]"}
    if change == "missing":
        tensors.pop("0/basis")
    save_file(tensors, path, None if change == "layers" else metadata)
    text = (index.folder / "manifest.json").read_text()
    new = describe_files(index.folder, ["sketches.safetensors"])["sketches.safetensors"]
    old = index.manifest["files"]["sketches.safetensors"]
    text = text.replace(old["sha256"], new["sha256"]).replace(f'"size": {old["size"]}', f'"size": {new["size"]}')
    (index.folder / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match="sketches.safetensors cannot be read"):
        InfluenceIndex.load(index.folder)


def test_checkpoints_with_different_entries_share_an_index(tmp_path, monkeypatch):
    """As if fewer entries had curvature at the first."""
    monkeypatch.setattr(sketches, "BLOCK", 2 * 2 * 600 * 5)
    settings = {
        "num_train_epochs": 2,
        "per_device_train_batch_size": 8,
        "checkpoints": "epochs",
        "learning_rate": 1e-2,
    }
    trainer = tiny_trainer(tmp_path, tiny_model(frozen=2), TRAIN, save_strategy="no", **settings)
    leading = sketches.leading_entries
    counts = []

    def fewer(blocks, size):
        counts.append(60 if counts else 40)
        return leading(blocks, counts[-1])

    monkeypatch.setattr(sketches, "leading_entries", fewer)
    trainer.train()

    index = trainer.build_index()

    assert counts == [40, 60] == [sketch.entries.size for sketch in index.sketches]
    assert index.faiss_index.d == sum(sketch.size for sketch in index.sketches)
    assert trainer.compute_influence(QUERIES).shape == (4, 24)
