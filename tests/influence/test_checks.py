"""What a trainer is made with, and what is given to its methods, is what was meant, or is refused with the fix."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import DatasetDict, IterableDatasetDict
from tiny import tiny_data, tiny_model, tiny_tokenizer, tiny_trainer

from hf_fastif import InfluenceConfig, InfluenceTrainer
from hf_fastif.errors.classes import InfluenceError


TRAIN, QUERIES = tiny_data(20), tiny_data(3, seed=1)
SETTINGS = {"solver": "identity", "checkpoints": "final"}


def made(tmp_path, **named) -> InfluenceTrainer:
    args = InfluenceConfig(str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True, **SETTINGS)
    return InfluenceTrainer(**{"args": args, "processing_class": tiny_tokenizer()} | named)


def test_model_init(tmp_path):
    trainer = made(tmp_path, model_init=lambda: tiny_model(), train_dataset=TRAIN)
    expected = tiny_trainer(tmp_path, train=TRAIN, **SETTINGS).compute_influence(QUERIES)
    np.testing.assert_array_equal(trainer.compute_influence(QUERIES), expected)


def test_model_init_with_defaults(tmp_path):
    trainer = made(tmp_path, model_init=lambda labels=3, frozen=1: tiny_model(frozen=frozen), train_dataset=TRAIN)
    assert trainer.model.config.num_labels == 3


def test_the_name_of_a_model(tmp_path):
    with pytest.raises(InfluenceError, match=r"model='bert-base-cased' is a name.*from_pretrained\('bert-base-cased'"):
        made(tmp_path, model="bert-base-cased", train_dataset=TRAIN)


@pytest.mark.parametrize(
    ("given", "fix"),
    [
        (DatasetDict(train=TRAIN, test=QUERIES), r"is a DatasetDict.*dataset\['train'\] \(there are train, test\)"),
        (IterableDatasetDict(train=TRAIN.to_iterable_dataset()), "without streaming=True, and give one of its splits"),
        (TRAIN.to_iterable_dataset(), "without streaming=True, or convert it with .*from_generator"),
        (TRAIN[0], r"is a dict.*dataset.select\(\[0\]\)"),
        ("a sentence", r"is a str.*datasets.Dataset.from_list\(\[\{'text': \.\.\.,"),
    ],
)
def test_what_is_no_dataset(tmp_path, given, fix):
    with pytest.raises(InfluenceError, match=f"train_dataset {fix}" if fix.startswith("is") else fix):
        made(tmp_path, model=tiny_model(), train_dataset=given)
    with pytest.raises(InfluenceError, match=f"train_dataset {fix}" if fix.startswith("is") else fix):
        InfluenceTrainer(tiny_model(), None, None, given)
    with pytest.raises(InfluenceError, match=f"examples {fix}" if fix.startswith("is") else fix):
        made(tmp_path, model=tiny_model(), train_dataset=TRAIN).find_influential(given)


@pytest.mark.parametrize("given", [None, torch.ones(2, 3), QUERIES.to_pandas()])
def test_other_things_that_are_no_dataset(tmp_path, given):
    said = f"examples is a {type(given).__name__}; .*: create one with datasets.Dataset.from_list, from_pandas or"
    with pytest.raises(InfluenceError, match=said):
        made(tmp_path, model=tiny_model(), train_dataset=TRAIN).find_influential(given)


def test_a_list_of_rows(tmp_path):
    with pytest.raises(InfluenceError, match=r"examples is a list.*Dataset.from_list, and tokenize it"):
        made(tmp_path, model=tiny_model(), train_dataset=TRAIN).find_influential(QUERIES.to_list())


def test_no_training_set(tmp_path):
    trainer = made(tmp_path, model=tiny_model())
    assert set(trainer.find_misclassified(QUERIES)) <= {0, 1, 2}
    trainer.args.solver = "lissa"
    for call in (trainer.compute_s_test, trainer.compute_influence, trainer.find_influential):
        with pytest.raises(InfluenceError, match=r"train_dataset is a NoneType.*with train_dataset=\.\.\."):
            call(QUERIES)


def test_inside_inference_mode_and_without_gradients(tmp_path):
    expected = tiny_trainer(tmp_path / "plain", train=TRAIN, **SETTINGS).compute_influence(QUERIES)
    for mode in (torch.inference_mode, torch.no_grad):
        trainer = tiny_trainer(tmp_path / mode.__name__, train=TRAIN, **SETTINGS)
        with mode():
            np.testing.assert_array_equal(trainer.compute_influence(QUERIES), expected)
            assert not trainer.compute_s_test(QUERIES).vectors.is_inference()
            assert torch.is_inference_mode_enabled() == (mode is torch.inference_mode)


def test_a_model_that_was_made_inside_inference_mode(tmp_path):
    with torch.inference_mode():
        model = tiny_model()
    trainer = tiny_trainer(tmp_path, model, TRAIN, **SETTINGS)
    with pytest.raises(InfluenceError, match=r"weight was created inside torch.inference_mode\(\).*outside"):
        trainer.compute_influence(QUERIES)
