"""Typing errors in paths and names are told from names of repositories on the Hub, and mended."""

from __future__ import annotations

import pytest
from tiny import quick_config as config
from torch import nn

from hf_fastif.checkpoints import find_checkpoints
from hf_fastif.errors.classes import InfluenceError, NotFoundError
from hf_fastif.errors.suggestions import check_path, did_you_mean
from hf_fastif.training import DataArguments, LanguageArguments, make_trainer
from hf_fastif.training.classifier import ModelArguments, check_model_path


@pytest.fixture
def runs(tmp_path, monkeypatch):
    (tmp_path / "out" / "demo" / "checkpoint-100").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "out"


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("out/dmo", "out/demo"),
        ("ot/demo", "out/demo"),
        ("./out/demo/checkpoint-10", "out/demo/checkpoint-100"),
        ("out/demo/chekpoint-100", "out/demo/checkpoint-100"),
    ],
)
def test_a_path_with_a_typing_error(runs, name, meant):
    with pytest.raises(NotFoundError, match=f"checkpoints: there is no folder '{name}'; did you mean '{meant}'\\?"):
        check_path("checkpoints", name)
    whole = str(runs.parent / name)
    with pytest.raises(NotFoundError, match=f"there is no folder '{whole}'; did you mean '{runs.parent / meant}'\\?"):
        check_path("checkpoints", whole)


def test_a_path_like_no_other(runs):
    with pytest.raises(NotFoundError, match=r"there is no folder 'out/xyz' \(out holds demo\)"):
        check_path("model_name_or_path", "out/xyz")


@pytest.mark.parametrize("name", ["google-bert/bert-base-cased", "gpt2", "demo", "out/demo", "me/model@epoch-1"])
def test_what_is_there_or_may_be_on_the_hub(runs, name):
    check_path("checkpoints", name)


def test_checkpoints_with_a_typing_error(runs):
    with pytest.raises(InfluenceError, match=r"checkpoints: there is no folder 'out/dem'; did you mean 'out/demo'\?"):
        find_checkpoints(["out/dem"], "out/demo", nn.Linear(1, 1))


def test_models_with_a_typing_error(runs):
    with pytest.raises(InfluenceError, match=r"model_name_or_path: there is no folder 'out/dmo'.*'out/demo'"):
        make_trainer(ModelArguments("out/dmo"), DataArguments(), config(runs / "new"))
    language = LanguageArguments("out/dmo", completion_column="text")
    with pytest.raises(InfluenceError, match=r"model_name_or_path: there is no folder 'out/dmo'.*'out/demo'"):
        make_trainer(language, DataArguments(), config(runs / "new"))


def test_a_folder_without_a_model(runs):
    with pytest.raises(
        NotFoundError, match=r"'out/demo' holds no model \(there is no config.json\); trainer.save_mod"
    ):
        check_model_path("out/demo")
    (runs / "demo" / "checkpoint-100" / "config.json").write_text("{}")
    with pytest.raises(NotFoundError, match="it has the folders checkpoint-100 with one"):
        check_model_path("out/demo")
    check_model_path("out/demo/checkpoint-100")


def test_names(runs):
    assert did_you_mean("sdac", ["lissa", "sdca"]) == "; did you mean 'sdca'?"
    assert did_you_mean("newton", ["lissa", "sdca"]) == ""
