"""From settings to a language model: tokenizer, completions, building and loading, adapters."""

from __future__ import annotations

import json

import pytest
import torch
from datasets import Dataset, DatasetDict

from hf_fastif import InfluenceConfig
from hf_fastif.training import DataArguments, make_trainer
from hf_fastif.training.language_model import (
    LanguageArguments,
    tokenize_completions,
    train_tokenizer,
)


ROWS = [
    {"question": f"Where is the {thing}?", "answer": f" In the {place}."}
    for thing, place in (("book", "bag"), ("cup", "box"), ("hat", "hall"), ("key", "coat"))
]
SIZES = "n_embd=8,n_layer=2,n_head=2,n_positions=32,vocab_size=300"
COLUMNS = {"prompt_column": "question", "completion_column": "answer"}
BUILT = {"model_type": "gpt2", "config_overrides": SIZES}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("language") / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in ROWS))
    return DataArguments(train_file=str(path), validation_file=str(path), max_length=32)


def config(folder, **changes):
    settings = {"use_cpu": True, "disable_tqdm": True, "report_to": "none", "save_strategy": "no", "do_train": True}
    return InfluenceConfig(str(folder), **settings | {"max_steps": 3, "learning_rate": 1e-2} | changes)


@pytest.fixture(scope="module")
def folder(data, tmp_path_factory):
    """A model that was built, trained and saved."""
    folder = tmp_path_factory.mktemp("built")
    trainer, _ = make_trainer(LanguageArguments(**BUILT, **COLUMNS), data, config(folder))
    trainer.train()
    trainer.save_model()
    return folder


def test_a_built_model_has_the_sizes_and_its_own_tokenizer(data, tmp_path):
    trainer, examples = make_trainer(LanguageArguments(**BUILT, **COLUMNS), data, config(tmp_path))
    made, tokenizer = trainer.model.config, trainer.processing_class
    assert (made.n_embd, made.n_layer, made.vocab_size) == (8, 2, 300)
    assert made.eos_token_id == tokenizer.eos_token_id and made.pad_token_id == tokenizer.pad_token_id
    assert len(tokenizer) <= 300
    assert all(parameter.requires_grad for parameter in trainer.model.parameters())
    for row in examples["train"]:
        text = row["question"] + row["answer"] + tokenizer.eos_token
        assert tokenizer.decode(row["input_ids"]) == text
        labelled = [i for i in row["labels"] if i != -100]
        assert tokenizer.decode(labelled) == row["answer"] + tokenizer.eos_token
        assert row["input_ids"][-len(labelled) :] == labelled


def test_a_trained_one_is_loaded_and_explained(data, folder, tmp_path):
    model = LanguageArguments(str(folder), num_frozen_layers=1, **COLUMNS)
    trainer, examples = make_trainer(model, data, config(tmp_path, do_train=False, solver="identity"))
    trained = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert any(".h.1." in name for name in trained) and not any(".h.0." in name or "wpe" in name for name in trained)
    result = trainer.find_influential(examples["validation"].select([1]), num_examples=1)
    assert result.queries["prediction"][0].endswith(" right")
    assert len(result.helpful(0)) == 1


def test_what_is_too_long_loses_the_beginning_of_the_prompt():
    tokenizer = train_tokenizer(Dataset.from_list(ROWS), 300)
    splits = DatasetDict(train=Dataset.from_list(ROWS[:1]))
    whole, cut, short = (
        tokenize_completions(splits, tokenizer, LanguageArguments(**COLUMNS), length)["train"][0]
        for length in (100, 8, 2)
    )
    assert cut["input_ids"] == whole["input_ids"][-8:] and cut["labels"] == whole["labels"][-8:]
    answer = [i for i in whole["labels"] if i != -100]
    assert len(answer) < 8 and short["labels"] == short["input_ids"] == answer[:2]
    alone = tokenize_completions(splits, tokenizer, LanguageArguments(completion_column="answer"), 100)["train"][0]
    assert alone["labels"] == alone["input_ids"] == answer


def test_invented_facts_where_no_data_is_named(tmp_path):
    model = LanguageArguments(**BUILT, prompt_column="prompt", completion_column="completion", fact_column="fact")
    _, examples = make_trainer(model, DataArguments(max_length=32), config(tmp_path))
    assert len(examples["train"]) == 12 * len(examples["validation"])
    model.fact_column = "facts"
    with pytest.raises(ValueError, match="column 'facts' is not in the train examples.*set --prompt_column"):
        make_trainer(model, DataArguments(max_length=32), config(tmp_path))


@pytest.mark.parametrize(
    ("settings", "changes", "message"),
    [
        ({}, {}, "model_name_or_path=None, model_type=None: give one of them"),
        ({"model_name_or_path": "x", **BUILT}, {}, "model_name_or_path='x', model_type='gpt2': give one of them"),
        (BUILT, {"do_train": False}, "model_type='gpt2': a model that is built from a config must be trained"),
        (BUILT | {"lora_rank": 2}, {}, "give --do_train and no --lora_rank"),
        ({"model_name_or_path": "x", "lora_rank": 0}, {}, "lora_rank=0: give at least 1"),
    ],
)
def test_unclear_models(settings, changes, message, data, tmp_path):
    with pytest.raises(ValueError, match=message):
        make_trainer(LanguageArguments(**COLUMNS, **settings), data, config(tmp_path, **changes))


@pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning", "ignore:fan_in_fan_out:UserWarning")
def test_adapters_are_trained_saved_and_loaded(data, folder, tmp_path):
    pytest.importorskip("peft", reason="adapters need peft")
    model = LanguageArguments(str(folder), lora_rank=2, **COLUMNS)
    trainer, examples = make_trainer(model, data, config(tmp_path, solver="identity", checkpoints=["final"]))
    names = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    layers = {name.split(".lora_")[0] for name in names}
    assert all("lora_" in name for name in names) and len(layers) == 2 * 4  # four Conv1D in each of two layers
    trainer.train()
    trainer.save_model()
    expected = trainer.compute_influence(examples["validation"])

    saved = LanguageArguments(str(tmp_path), **COLUMNS)
    again, _ = make_trainer(saved, data, config(tmp_path / "again", do_train=False, solver="identity"))
    torch.testing.assert_close(torch.tensor(again.compute_influence(examples["validation"])), torch.tensor(expected))
    assert abs(expected).max() > 0
