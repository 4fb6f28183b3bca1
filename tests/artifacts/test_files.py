"""A disk that is full leaves nothing that looks whole, and is named."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from tiny import tiny_data, tiny_trainer

from hf_fastif.artifacts.files import atomic_folder, atomic_write
from hf_fastif.errors.classes import InfluenceError, NotFoundError
from hf_fastif.index import influence_index
from hf_fastif.results.result import InfluenceResult


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def load_parameters_(path: Path) -> None:
    path.write_bytes(b"half")
    raise FULL


@pytest.mark.parametrize("error", [FULL, RuntimeError("write error in x.faiss: 0 != 1 (No space left on device)")])
def test_a_file_that_does_not_fit(tmp_path, error):
    (tmp_path / "scores").write_text("before")

    def write(path):
        path.write_bytes(b"half")
        raise error

    with pytest.raises(InfluenceError, match=f"{tmp_path}: no space is left on its disk. Free some") as caught:
        atomic_write(tmp_path / "scores", write)
    assert isinstance(caught.value, OSError)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"scores": "before"}


def test_other_errors_stay_what_they_are(tmp_path):
    with pytest.raises(PermissionError):
        atomic_write(tmp_path / "scores", lambda _path: (_ for _ in ()).throw(PermissionError(errno.EACCES, "no")))


def test_a_folder_that_does_not_fit(tmp_path):
    with atomic_folder(tmp_path / "index") as folder:
        (folder / "shard").write_text("before")
    with (
        pytest.raises(InfluenceError, match=f"{tmp_path / 'index'}: no space"),
        atomic_folder(tmp_path / "index") as f,
    ):
        load_parameters_(f / "shard")
    assert [path.name for path in tmp_path.iterdir()] == ["index"]
    assert (tmp_path / "index" / "shard").read_text() == "before"


def test_an_index_that_does_not_fit_is_built_when_there_is_space(tmp_path, monkeypatch):
    trainer = tiny_trainer(tmp_path, train=tiny_data(20), checkpoints="final")
    with monkeypatch.context() as full:
        full.setattr(
            influence_index, "write_shards", lambda folder, *_: load_parameters_(folder / "shard-00000.faiss")
        )
        with pytest.raises(InfluenceError, match=r"no space is left on its disk.*repeat the same call"):
            trainer.build_index()
    assert not list((tmp_path / "influence" / "indexes").iterdir())
    assert len(trainer.build_index()) == 20


def test_a_result_that_does_not_fit(tmp_path, monkeypatch):
    settings = {"solver": "identity", "checkpoints": "final"}
    result = tiny_trainer(tmp_path, train=tiny_data(20), **settings).find_influential(tiny_data(2, seed=1))
    result.save_to_disk(tmp_path / "result")
    with monkeypatch.context() as full:
        full.setattr(result.queries, "to_parquet", load_parameters_)
        with pytest.raises(InfluenceError, match=f"{tmp_path / 'result'}: no space is left"):
            result.save_to_disk(tmp_path / "result")
    with pytest.raises(NotFoundError, match="no complete result"):
        InfluenceResult.load_from_disk(tmp_path / "result")
    result.save_to_disk(tmp_path / "result")
    loaded = InfluenceResult.load_from_disk(tmp_path / "result")
    np.testing.assert_array_equal(loaded.influences["influence"], result.influences["influence"])
