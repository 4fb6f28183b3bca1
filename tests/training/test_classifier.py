"""Models that recipes train once and share: what they were trained with is compared."""

from __future__ import annotations

import json

import pytest
from datasets import ClassLabel, DatasetDict
from tiny import quick_config as config

from hf_fastif.data import relabelled
from hf_fastif.training import DataArguments, classifier
from hf_fastif.training.classifier import ModelArguments
from hf_fastif.training.runs import ACCURACY, fine_tune, make_trainer, train_again, trained


@pytest.fixture(scope="module")
def model(files):
    return ModelArguments(str(files / "model"), num_frozen_layers=1)


@pytest.fixture(scope="module")
def data(files):
    return DataArguments(train_file=str(files / "train.jsonl"), validation_file=str(files / "validation.jsonl"))


@pytest.fixture(scope="module")
def folder(model, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    fine_tune(model, data, config(folder))
    return folder


def weights(folder):
    return (folder / "model.safetensors").read_bytes()


def test_a_finished_model_is_taken_by_whoever_would_train_the_same(model, data, folder):
    before, noted = weights(folder), json.loads((folder / ACCURACY).read_text())
    assert noted["trained_with"]["learning_rate"] == "0.01" and 0 <= noted["validation"] <= 1
    # Settings of influence decide nothing about the model.
    assert fine_tune(model, data, config(folder, damping=3.0)) == noted["validation"]
    trainer, examples = trained(model, data, config(folder))
    assert weights(folder) == before
    wrong = trainer.find_misclassified(examples["validation"])
    assert 1 - len(wrong) / len(examples["validation"]) == noted["validation"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 2e-2}, r"learning_rate was 0\.01 and is 0\.02\)"),
        ({"seed": 7, "max_steps": 3}, r"max_steps was 2 and is 3; seed was 42 and is 7\)"),
    ],
)
def test_another_training_does_not_pass_for_this_one(model, data, folder, changes, message):
    before = weights(folder)
    with pytest.raises(ValueError, match=f"output_dir='{folder}': .*{message}.*--overwrite.*--model_name_or_path"):
        fine_tune(model, data, config(folder, **changes))
    assert weights(folder) == before


def test_nor_do_other_examples_or_frozen_layers(model, data, folder):
    _, examples = make_trainer(model, data, config(folder))
    labels = examples["train"].with_format("numpy")["label"][:]
    turned = relabelled(examples["train"], 1 - labels)
    assert isinstance(turned.features["label"], ClassLabel)
    with pytest.raises(ValueError, match=r"train_dataset was \w+ and is \w+\)"):
        fine_tune(model, data, config(folder), DatasetDict(examples, train=turned))
    with pytest.raises(ValueError, match="num_frozen_layers was 1 and is 0"):
        fine_tune(ModelArguments(model.model_name_or_path, num_frozen_layers=0), data, config(folder))


def test_overwrite_trains_again(model, data, tmp_path):
    fine_tune(model, data, config(tmp_path))
    before = weights(tmp_path)
    fine_tune(model, data, config(tmp_path, learning_rate=2e-2, overwrite=True))
    assert weights(tmp_path) != before
    noted = json.loads((tmp_path / ACCURACY).read_text())
    assert noted["trained_with"]["learning_rate"] == "0.02"


def test_examples_are_read_once_for_many_models(model, data, tmp_path, monkeypatch):
    reads, load = [], classifier.load_examples
    monkeypatch.setattr(
        classifier, "load_examples", lambda *args, **options: reads.append(1) or load(*args, **options)
    )
    settings = config(tmp_path, do_train=True)
    trainer, examples = trained(model, data, settings)
    halves = [DatasetDict(examples, train=examples["train"].select(range(start, 40, 2))) for start in (0, 1)]
    models = [train_again(model, half, settings, repeat).model.state_dict() for half in halves for repeat in (0, 0, 1)]
    assert len(reads) == 1 and len(trainer.train_dataset) == 40
    same = [
        all((one[name] == other[name]).all() for name in one) for one, other in zip(models, models[1:], strict=False)
    ]
    assert same == [True, False, False, True, False]
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("checkpoint")) == []
