"""Indexes, factors and models, published and loaded by trainers."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from datasets import Dataset
from hub_server import WRITER
from hub_tools import make_recall, make_result
from tiny import VOCABULARY, tiny_data, tiny_model, tiny_trainer
from transformers import AutoModelForSequenceClassification

from hf_fastif import InfluenceIndex, InfluenceResult, freeze
from hf_fastif.checkpoints.checkpoint import Checkpoint, save_checkpoint
from hf_fastif.curvature import KroneckerFactors


QUERIES = tiny_data(4, seed=1)
QUICK = {"solver": "ekfac", "damping": 0.5, "ekfac_samples": 40, "index_size": 64, "index_shard_size": 15}
FRESH = """
import sys
from hf_fastif import InfluenceIndex
index = InfluenceIndex.from_pretrained("me/index", on_disk=True)
print(index.name, len(index), index.sketches is not None, index.folder.name)
for name in index.manifest["files"]:
    print((index.folder / name).read_bytes().hex() == bytes.hex(open(sys.argv[1] + "/" + name, "rb").read()))
"""


def trainer_of(folder, model=None, train=None, **settings):
    return tiny_trainer(folder, model, train, **QUICK | settings)


def found_by(trainer):
    return trainer.find_candidates(QUERIES, 9).tolist()


@pytest.fixture
def trainer(tmp_path):
    return trainer_of(tmp_path / "mine")


def test_an_index_is_found_again_in_a_fresh_process_and_by_another_trainer(hub, trainer, tmp_path):
    built = trainer.build_index()
    trainer.push_index_to_hub("me/index")
    assert {name for name in hub.files("me/index") if name.startswith("indexes/")} == {
        "indexes/manifest.json",
        "indexes/sketches.safetensors",
        *(f"indexes/shard-0000{i}.faiss" for i in range(3)),
    }
    done = subprocess.run(
        [sys.executable, "-c", FRESH, str(built.folder)], check=True, capture_output=True, text=True, timeout=200
    )
    assert done.stdout.split() == ["gradient_sketch", "40", "True", "indexes", *["True"] * 4]
    other = trainer_of(tmp_path / "other")
    assert other.load_index("me/index").manifest == built.manifest
    assert found_by(other) == found_by(trainer)
    model = tiny_model()
    model.classifier.bias.data += 1
    with pytest.raises(ValueError, match=f"built with the model {built.manifest['model']}, and this is [0-9a-f]+"):
        trainer_of(tmp_path / "third", model).load_index("me/index")


def test_texts_of_indexed_rows_are_published_when_asked_for(hub, trainer, tmp_path):
    trainer.build_index()
    text = trainer.train_dataset[0]["text"].encode()
    recall = make_recall()
    trainer.push_index_to_hub("me/index", include_text=True, recall=recall)
    path = tmp_path / "rows.parquet"
    path.write_bytes(hub.files("me/index")["rows.parquet"])
    rows = Dataset.from_parquet(str(path), cache_dir=str(tmp_path / "read"))
    assert rows["train_text"] == trainer.train_dataset["text"] and rows["train_index"] == list(range(40))
    assert b"figures/recall.png" in hub.files("me/index")["README.md"]
    trainer.push_index_to_hub("me/index")
    assert not any(text in data for data in hub.files("me/index").values())
    assert "figures/recall.png" not in hub.files("me/index")
    with pytest.raises(ValueError, match="include_text=True, dataset=None: the texts come from the 40 rows"):
        InfluenceIndex.from_pretrained("me/index").push_to_hub("me/other", include_text=True)


def test_without_matplotlib_an_index_has_no_figure(hub, trainer, without_matplotlib):
    trainer.build_index()
    trainer.push_index_to_hub("me/index", recall=make_recall())
    assert "figures/recall.png" not in hub.files("me/index") and b"![" not in hub.files("me/index")["README.md"]
    assert str(make_recall()).splitlines()[0].encode() in hub.files("me/index")["README.md"]


def test_factors_are_taken_over_and_not_fitted_anew(hub, trainer, tmp_path, monkeypatch):
    expected = trainer.compute_influence(QUERIES)
    trainer.push_factors_to_hub("me/factors")
    other = trainer_of(tmp_path / "other")
    other.load_factors("me/factors")
    monkeypatch.setattr("hf_fastif.solvers.setup.KroneckerFit", lambda *_args: 1 / 0)
    np.testing.assert_array_equal(other.compute_influence(QUERIES), expected)
    mine, theirs = (tmp_path / name / "influence" / "ekfac.safetensors" for name in ("mine", "other"))
    assert mine.read_bytes() == theirs.read_bytes() == hub.files("me/factors")["factors/ekfac.safetensors"]
    assert len(KroneckerFactors.from_pretrained("me/factors").blocks) == 10

    model = tiny_model()
    model.classifier.bias.data += 1
    for what, changed in (
        ("model", trainer_of(tmp_path / "third", model)),
        ("dataset", trainer_of(tmp_path / "third", train=tiny_data(39))),
        ("settings", trainer_of(tmp_path / "third", ekfac_samples=20)),
    ):
        with pytest.raises(ValueError, match=f"factors were fitted with the {what} .*, and this is"):
            changed.load_factors("me/factors")
    assert not (tmp_path / "third" / "influence").exists()


def test_factors_are_those_of_the_checkpoint_that_influence_is_taken_at(hub, trainer, tmp_path, monkeypatch):
    moved = {name: 1.1 * p for name, p in trainer.model.named_parameters() if p.requires_grad}
    save_checkpoint(tmp_path, moved, Checkpoint(step=1))
    trainer.args.checkpoints = [str(tmp_path / "step-00000001.safetensors")]
    expected = trainer.compute_influence(QUERIES)
    trainer.push_factors_to_hub("me/factors")
    other = trainer_of(tmp_path / "other")
    with pytest.raises(ValueError, match="factors were fitted with the model"):
        other.load_factors("me/factors")
    other.args.checkpoints = trainer.args.checkpoints
    other.load_factors("me/factors")
    monkeypatch.setattr("hf_fastif.solvers.setup.KroneckerFit", lambda *_args: 1 / 0)
    np.testing.assert_array_equal(other.compute_influence(QUERIES), expected)


def test_tampered_factors_are_refused(hub, trainer, tmp_path):
    trainer.push_factors_to_hub("me/factors")
    whole = hub.files("me/factors")["factors/ekfac.safetensors"]
    other = trainer_of(tmp_path / "other")
    hub.replace("me/factors", **{"factors/ekfac.safetensors": whole[:-8]})
    with pytest.raises(ValueError, match="ekfac.safetensors has .* bytes; the manifest says"):
        other.load_factors("me/factors")
    hub.replace("me/factors", **{"factors/ekfac.safetensors": whole[:-1] + b"?"})
    with pytest.raises(ValueError, match="ekfac.safetensors is not the file that its manifest describes"):
        other.load_factors("me/factors")
    assert not (tmp_path / "other" / "influence").exists()


def test_a_model_takes_its_artifacts_along(hub, tmp_path):
    trainer = trainer_of(tmp_path / "mine", hub_model_id="me/model", hub_token=WRITER)
    built = trainer.build_index()
    result = trainer.find_influential(QUERIES, num_examples=2)
    folder = tmp_path / "mine" / "influence"
    result.save_to_disk(folder)
    with pytest.raises(ValueError, match=r"include_text=False: influences.parquet, queries.parquet in .* hold texts"):
        trainer.push_to_hub()
    assert not hub.repositories
    result.without_text().save_to_disk(folder)
    trainer.push_to_hub()
    files = hub.files("me/model", "model")
    inside = {path.relative_to(tmp_path / "mine").as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {name for name in files if name.startswith("influence/")} == inside
    assert f"influence/indexes/{built.folder.name}/manifest.json" in inside
    assert b"No texts" in files["README.md"] and b"base_model" not in files["README.md"]
    assert not any(
        word.encode() + b" " in data for word in VOCABULARY[-3:] for n, data in files.items() if n.endswith("parquet")
    )
    everything = [*files.values(), *(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())]
    assert not any(WRITER.encode() in data for data in everything)

    result.save_to_disk(folder)
    trainer.push_to_hub(include_text=True)
    assert b"**Texts.**" in hub.files("me/model", "model")["README.md"]
    model = AutoModelForSequenceClassification.from_pretrained("me/model")
    freeze(model, 1)
    other = trainer_of(tmp_path / "other", model)
    assert other.load_index(folder / "indexes" / built.folder.name).name == "gradient_sketch"
    loaded = InfluenceResult.load_from_disk(folder)
    assert loaded.influences.to_list() == result.influences.to_list()


def test_a_checkpoint_takes_no_texts_along(hub, tmp_path):
    make_result().save_to_disk(tmp_path / "influence")
    settings = {
        "push_to_hub": True,
        "hub_model_id": "me/model",
        "save_strategy": "steps",
        "save_steps": 1,
        "max_steps": 1,
    }
    trainer = trainer_of(tmp_path, **settings)
    trainer.train()
    assert set(hub.files("me/model", "model")) == {".gitattributes"}
