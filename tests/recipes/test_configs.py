"""The configs of the recipes: read as a recipe reads them, and alike where they have to be."""

from __future__ import annotations

import pytest
import yaml
from recipe_modules import CONFIGS, RECIPES, recipe_arguments

from hf_fastif import InfluenceConfig


NAMES = sorted(path.stem for path in RECIPES.glob("*.py"))
EXPERIMENTS = {  # recipes that have the setting of the paper and one for a small machine, by the data that it is about
    "correction": "hans",
    **dict.fromkeys(("correlation", "inverse_hessian", "lds", "mislabels", "recall", "retraining"), "mnli"),
    **dict.fromkeys(("runtime", "simulatability"), "mnli"),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_reads_its_configs_and_has_help(name, monkeypatch, capsys):
    for path in sorted(CONFIGS.glob(f"{name}-*.yaml")):
        words = ["--config", str(path), "--use_cpu", "--train_file", "a.jsonl"]
        _, data, config = recipe_arguments(name, monkeypatch, *words)
        assert data.train_file == "a.jsonl"  # flags go over the file
        assert config.output_dir == yaml.safe_load(path.read_text("utf-8"))["output_dir"]
    with pytest.raises(SystemExit):
        recipe_arguments(name, monkeypatch, "--help")
    assert "--output_dir" in capsys.readouterr().out


def test_configs_are_complete_and_alike():
    """Small ones train alike, so that recipes that are given the same output_dir train one model between them.

    They train in float32, since processors without hardware for bfloat16 are dozens of times slower at it.
    """
    configs = {path.stem: yaml.safe_load(path.read_text("utf-8")) for path in CONFIGS.glob("*.yaml")}
    names = {f"{name}-{data}" for name, data in EXPERIMENTS.items()}
    assert names | {f"{name}-small" for name in names} <= set(configs)
    small = [configs[f"{name}-small"] for name in names]
    trained = ("per_device_train_batch_size", "learning_rate", "num_train_epochs", "train_sampling_strategy")
    assert [[config[name] for name in trained] for config in small] == [[32, "3e-4", 3, "group_by_length"]] * len(
        small
    )
    assert len({(config["num_frozen_layers"], config["label_mapping"]) for config in small}) == 1
    language = [configs[f"find_influential-{name}"] for name in ("facts", "lm")]
    assert all(config["completion_column"] and config["do_train"] for config in language)
    assert not [
        name for name, one in configs.items() if name.endswith("-small") and (one.get("bf16") or one.get("fp16"))
    ]


def test_the_demo_explains_at_the_default_settings(monkeypatch, tmp_path):
    demo = str(CONFIGS / "find_influential-demo.yaml")
    _, _, config = recipe_arguments("find_influential", monkeypatch, "--config", demo, "--use_cpu")
    assert config.influence_settings() == InfluenceConfig(str(tmp_path)).influence_settings()
