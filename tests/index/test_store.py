"""FAISS against brute force, whole and in shards, in memory and on disk."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from hf_fastif.index.store import (
    inner_products,
    made_index,
    on_device,
    read_shards,
    search_both_ends,
    shards_of,
    train_index,
    write_shards,
)


RANDOM = np.random.default_rng(0)
VECTORS = RANDOM.standard_normal((2000, 16), np.float32)
QUERIES = RANDOM.standard_normal((20, 16), np.float32)


def made(folder, factory="Flat", inner_product=True, search=None, shard_size=10_000, vectors=VECTORS):
    folder.mkdir(parents=True, exist_ok=True)
    trained = made_index(16, factory, inner_product, search)
    train_index(trained, factory, VECTORS)
    write_shards(folder, trained, np.array_split(vectors, 7), shard_size)
    return folder


def test_flat_l2_is_brute_force(tmp_path):
    found = read_shards(made(tmp_path, inner_product=False)).search(QUERIES, 9)[1]
    distances = ((QUERIES[:, None] - VECTORS[None]) ** 2).sum(-1)
    np.testing.assert_array_equal(found, np.argsort(distances, axis=1)[:, :9])


@pytest.mark.parametrize("k", [1, 9, 30])
def test_both_ends_take_turns(tmp_path, k):
    found = search_both_ends(read_shards(made(tmp_path)), QUERIES, k)
    order = np.argsort(-(QUERIES @ VECTORS.T), axis=1)
    np.testing.assert_array_equal(found[:, ::2], order[:, : (k + 1) // 2])
    np.testing.assert_array_equal(found[:, 1::2], order[:, ::-1][:, : k // 2])


@pytest.mark.parametrize("k", [1001, 1500, 2000])
def test_ends_that_meet_give_each_row_once(tmp_path, k):
    found = search_both_ends(read_shards(made(tmp_path)), QUERIES, k)
    assert all(len(set(rows)) == k for rows in found.tolist())
    assert found.min() >= 0


@pytest.mark.parametrize("on_disk", [False, True])
def test_shards_answer_as_the_whole(tmp_path, on_disk):
    whole = search_both_ends(read_shards(made(tmp_path / "whole")), QUERIES, 12)
    folder = made(tmp_path / "shards", shard_size=300)
    assert len(list(folder.iterdir())) == 7
    np.testing.assert_array_equal(search_both_ends(read_shards(folder, on_disk), QUERIES, 12), whole)


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("factory", ["Flat", "SQfp16", "SQ8"])
def test_products_are_those_of_the_stored_vectors(tmp_path, factory, on_disk):
    index = read_shards(made(tmp_path, factory, shard_size=700), on_disk)
    stored = np.concatenate([shard.reconstruct_n(0, shard.ntotal) for shard in shards_of(index)])
    np.testing.assert_allclose(inner_products(index, QUERIES), QUERIES @ stored.T, rtol=1e-5, atol=1e-5)
    found = search_both_ends(index, QUERIES, 9)
    np.testing.assert_array_equal(found[:, ::2], index.search(QUERIES, 5)[1])
    np.testing.assert_array_equal(found[:, 1::2], index.search(-QUERIES, 4)[1])


def test_vectors_are_added_without_building_anew(tmp_path):
    folder = made(tmp_path / "parts", vectors=VECTORS[:1500])
    before = (folder / "shard-00000.faiss").read_bytes()
    made(folder, vectors=VECTORS[1500:])
    assert (folder / "shard-00000.faiss").read_bytes() == before
    whole = read_shards(made(tmp_path / "whole"))
    np.testing.assert_array_equal(
        search_both_ends(read_shards(folder), QUERIES, 8), search_both_ends(whole, QUERIES, 8)
    )


@pytest.mark.parametrize(
    ("factory", "search", "floor"),
    [
        ("SQfp16", None, 0.99),
        ("IVF16,Flat", "nprobe=12", 0.9),
        ("HNSW32", "efSearch=256", 0.95),
        ("IVF8,PQ8np", "nprobe=8", 0.5),
        ("PCA12,SQ8", None, 0.3),
    ],
)
def test_approximate_indexes_find_most(tmp_path, factory, search, floor):
    found = search_both_ends(read_shards(made(tmp_path, factory, search=search, shard_size=700)), QUERIES, 20)
    order = np.argsort(-(QUERIES @ VECTORS.T), axis=1)
    exact = np.concatenate([order[:, :10], order[:, -10:]], axis=1)
    recall = np.mean([len(set(a) & set(b)) / 20 for a, b in zip(found.tolist(), exact.tolist(), strict=True)])
    assert recall >= floor


def test_search_parameters_are_kept_in_the_file(tmp_path):
    few = read_shards(made(tmp_path / "few", "IVF16,Flat", search="nprobe=1")).search(QUERIES, 20)[1]
    many = read_shards(made(tmp_path / "many", "IVF16,Flat", search="nprobe=16")).search(QUERIES, 20)[1]
    exact = np.argsort(-(QUERIES @ VECTORS.T), axis=1)[:, :20]
    assert (many == exact).mean() > 0.99 > 0.8 > (few == exact).mean()


@pytest.mark.parametrize(("factory", "search"), [("Flatt", None), ("IVF16,Flat", "nprobes=3")])
def test_bad_factories_are_named(factory, search):
    with pytest.raises(ValueError, match=f"index_factory='{factory}', index_search={search!r}"):
        made_index(16, factory, True, search)


def test_a_sample_that_is_too_small_is_named():
    with pytest.raises(ValueError, match="index_factory='IVF4000,Flat', trained on 2000 vectors"):
        train_index(made_index(16, "IVF4000,Flat", True, None), "IVF4000,Flat", VECTORS)


def test_a_gpu_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match="index_device=7: FAISS sees"):
        on_device(read_shards(made(tmp_path)), 7)


MILLION = """
import resource, sys
from pathlib import Path
import numpy as np
from hf_fastif.index.store import made_index, read_shards, search_both_ends, write_shards

def blocks():
    for seed in range(50):
        yield np.random.default_rng(seed).standard_normal((20_000, 64), np.float32)

folder = Path(sys.argv[1])
start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
write_shards(folder, made_index(64, "Flat", True, None), blocks(), 100_000)
wanted = np.random.default_rng(33).standard_normal((20_000, 64), np.float32)[123]
found = search_both_ends(read_shards(folder, on_disk=True), wanted[None], 5)
print(found[0, 0], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start)
"""


@pytest.mark.slow
def test_a_million_vectors_are_written_and_searched_within_a_part_of_their_size(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", MILLION, str(tmp_path)], check=True, capture_output=True, text=True, timeout=300
    )
    row, kilobytes = map(int, done.stdout.split())
    assert row == 33 * 20_000 + 123
    size = sum(file.stat().st_size for file in tmp_path.iterdir())
    assert size >= 256_000_000
    assert 1024 * kilobytes < size  # mapped pages that were looked at count too
