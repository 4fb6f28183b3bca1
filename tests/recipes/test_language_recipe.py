"""The recipe with a language model: built, trained, explained, and its facts looked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from recipe_modules import recipe_module

from hf_fastif import InfluenceConfig, InfluenceResult
from hf_fastif.training import DataArguments
from hf_fastif.training.cli import parse_arguments


CONFIGS = Path(__file__).parents[2] / "recipes" / "configs"
SMALL = {
    "config_overrides": "n_embd=8,n_layer=1,n_head=2,n_positions=64,vocab_size=600",
    "max_train_examples": 150,
    "max_steps": 4,
    "num_queries": 12,
    "num_neighbors": 30,
    "num_examples": 5,
    "index_size": 64,
    "ekfac_samples": 64,
    "curvature_samples": 16,
}


@pytest.fixture
def recipe(monkeypatch):
    return recipe_module("find_influential", monkeypatch)


def run(recipe, name, **settings):
    flags = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    kinds = recipe.RecipeArguments, DataArguments, InfluenceConfig
    argv = ["--config", str(CONFIGS / f"find_influential-{name}.yaml"), "--use_cpu", "--disable_tqdm", "true", *flags]
    recipe.main(*parse_arguments(*kinds, argv=argv))


def test_facts_are_learned_and_looked_for(recipe, tmp_path, capsys):
    run(recipe, "facts", output_dir=tmp_path, **SMALL)
    printed, folder = capsys.readouterr().out, tmp_path / "influence"
    result = InfluenceResult.load_from_disk(folder)
    assert result.summary.text_columns == ["prompt", "completion"]
    assert len(result.queries) == 12 and len(set(result.queries["fact"])) == 12  # right or wrong
    assert all(len(row["tokens"]) == len(row["token_influence"]) for row in result.influences)
    found = json.loads((folder / "retrieval.json").read_text("utf-8"))
    assert found["table"] == result.summary.retrieval and found["k"] == 5
    assert [row["method"] for row in found["table"]] == [
        "influence, of 30 neighbours",
        "influence",
        "gradient product",
        "representation similarity",
        "BM25",
    ]
    assert (
        f"{found['num_queries']} queries, " in printed
        and "Validation examples of which every token is predicted: " in printed
    )
    assert (folder / "retrieval.png").is_file() and 'class="tokens"' in (folder / "report.html").read_text("utf-8")

    again = {"model_name_or_path": tmp_path, "output_dir": tmp_path / "again", "query_indices": 3}
    flags = {"completion_column": "completion", "num_frozen_layers": -1, "num_examples": 2, "max_train_examples": 20}
    words = [word for key, value in (again | flags).items() for word in (f"--{key}", str(value))]
    kinds = recipe.RecipeArguments, DataArguments, InfluenceConfig
    words += ["--use_cpu", "--disable_tqdm", "true", "--solver", "identity", "--index_features", "pooled"]
    recipe.main(*parse_arguments(*kinds, argv=words))
    second = InfluenceResult.load_from_disk(tmp_path / "again" / "influence")
    assert second.summary.query_rows == [3] and second.summary.retrieval is None


def test_configs_of_language_models_name_settings_that_there_are(recipe):
    for name in ("facts", "lm"):
        path = CONFIGS / f"find_influential-{name}.yaml"
        kinds = recipe.RecipeArguments, DataArguments, InfluenceConfig
        arguments, _, config = parse_arguments(*kinds, argv=["--config", str(path), "--use_cpu"])
        assert arguments.completion_column and config.do_train
        assert yaml.safe_load(path.read_text("utf-8"))["output_dir"] == config.output_dir
