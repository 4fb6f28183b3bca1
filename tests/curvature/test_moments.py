"""Second moments against numpy, from rows and from the matrix, of one process and of several."""

from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hf_fastif.curvature import SecondMoment, moments


DEVICE = torch.device("cpu")


def rows_of(count: int, size: int, decay: float = 0.9, seed: int = 0) -> torch.Tensor:
    """Rows (n, d) whose second moment has eigenvalues that fall by a factor."""
    numbers = np.random.default_rng(seed)
    basis = np.linalg.qr(numbers.standard_normal((size, size)))[0]
    return torch.from_numpy(numbers.standard_normal((count, size)) * decay ** (np.arange(size) / 2) @ basis.T).float()


def moment_of(rows: torch.Tensor, parts: int = 3) -> SecondMoment:
    moment = SecondMoment(rows.shape[1], DEVICE)
    for part in rows.tensor_split(parts):
        moment.add(part)
    return moment


def by_numpy(rows: torch.Tensor, count: int) -> tuple[np.ndarray, np.ndarray]:
    values, vectors = np.linalg.eigh(rows.double().numpy().T @ rows.double().numpy())
    return values[::-1][:count], vectors[:, ::-1][:, :count]


def assert_leading(found: tuple[torch.Tensor, torch.Tensor], rows: torch.Tensor, count: int, rtol: float = 1e-4):
    values, vectors = (each.double().numpy() for each in found)
    expected, basis = by_numpy(rows, count)
    assert vectors.shape == (rows.shape[1], count)
    np.testing.assert_allclose(values, expected, rtol=rtol)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(count), atol=1e-4)
    overlap = np.abs((vectors * basis).sum(axis=0))
    np.testing.assert_allclose(overlap, 1, atol=max(1e-4, 10 * rtol))


@pytest.mark.parametrize("count", [1, 7, 20])
@pytest.mark.parametrize("num_rows", [25, 39, 41, 500, 5000])  # rows, then the matrix, of 40 entries
def test_leading_eigenvectors_are_those_of_numpy(num_rows, count):
    rows = rows_of(num_rows, 40)
    moment = moment_of(rows, 4)

    found = moment.leading(count, 0)

    assert (moment.matrix is None) == (num_rows <= 40)
    assert_leading(found, rows, count)


def test_the_matrix_is_added_up_in_strips_and_pieces(monkeypatch):
    monkeypatch.setattr(moments, "STRIP", 7)
    monkeypatch.setattr(moments, "BUFFER", 3)
    rows = rows_of(101, 40)
    assert_leading(moment_of(rows, 13).leading(20, 0), rows, 20)


def test_no_more_directions_than_rows_span():
    rows = rows_of(3, 40)
    values, vectors = moment_of(torch.cat([rows, rows[:1] * 2])).leading(10, 0)
    assert vectors.shape == (40, 3) and len(values) == 3
    one = moment_of(rows[:1], 1).leading(10, 0)
    torch.testing.assert_close(one[0], rows[0].square().sum()[None])
    torch.testing.assert_close(one[1][:, 0].abs(), (rows[0] / rows[0].norm()).abs())


def test_rounding_adds_no_direction_to_the_matrix():
    rows = rows_of(3, 40)
    moment = moment_of(rows)
    moment._merge()
    assert moment.leading(10, 0)[1].shape == (40, 3)


@pytest.mark.parametrize("num_rows", [5, 100])
def test_zeros_have_no_directions(num_rows):
    values, vectors = moment_of(torch.zeros(num_rows, 40)).leading(10, 0)
    assert values.shape == (0,) and vectors.shape == (40, 0)


@pytest.mark.parametrize("num_rows", [280, 2000])
@pytest.mark.parametrize("decay", [0.9, 0.98])
def test_a_randomized_decomposition_is_close_to_the_exact_one(num_rows, decay, monkeypatch):
    rows, calls, randomized = rows_of(num_rows, 300, decay), [], moments._leading_subspace
    monkeypatch.setattr(moments, "_leading_subspace", lambda *args: calls.append(1) or randomized(*args))
    monkeypatch.setattr(moments, "OVERSAMPLING", 20)

    values, vectors = moment_of(rows).leading(30, 0)

    assert calls
    np.testing.assert_allclose(values, by_numpy(rows, 30)[0], rtol=0.02)
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(30), rtol=0, atol=1e-4)
    assert (rows @ vectors).square().sum() > 0.995 * by_numpy(rows, 30)[0].sum()


@pytest.mark.parametrize("num_rows", [280, 2000])
def test_it_is_decided_by_the_seed_and_leaves_random_states_alone(num_rows):
    rows = rows_of(num_rows, 300, 0.999)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()

    one, same, other = (moment_of(rows).leading(5, seed) for seed in (0, 0, 1))

    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all() and random.getstate() == before[2]
    assert torch.equal(one[0], same[0]) and torch.equal(one[1], same[1])
    assert not torch.equal(one[1], other[1])


@pytest.mark.parametrize("num_rows", [2, 30, 500])
def test_processes_add_up(num_rows):
    """Also where one of them had no rows."""
    rows = rows_of(num_rows, 40)
    parts = [moment_of(part, 1) for part in rows.tensor_split(3)] if num_rows > 2 else [moment_of(rows, 1)]
    parts = parts + [SecondMoment(40, DEVICE)]
    for part in parts:
        part._merge()
    everything = sum(part.matrix for part in parts)
    process = SimpleNamespace(num_processes=len(parts), reduce=lambda matrix, _how: everything)

    for part in parts:
        count = min(num_rows, 10)
        assert_leading(part.reduced(process).leading(count, 0), rows, count)


def test_one_process_keeps_its_rows():
    moment = moment_of(rows_of(3, 40))
    assert moment.reduced(SimpleNamespace(num_processes=1)) is moment
