"""Settings are checked when they are made, and reach the command line."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from transformers import HfArgumentParser

from hf_fastif import InfluenceConfig, InfluenceError
from hf_fastif.config import FASTIF


def config(tmp_path, **settings) -> InfluenceConfig:
    return InfluenceConfig(output_dir=str(tmp_path), use_cpu=True, **settings)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_repeats", 0),
        ("sdca_visits", 0),
        ("cg_steps", 0),
        ("cg_samples", 0),
        ("ekfac_samples", -2),
        ("solver_tolerance", 0.0),
        ("solver_tolerance", 1.5),
        ("solver", "newton"),
        ("lissa_depth", 0),
        ("lissa_batch_size", -1),
        ("num_neighbors", 0),
        ("influence_batch_size", 0),
        ("query_batch_size", 0),
        ("curvature_samples", 0),
        ("damping", 0),
        ("damping", -0.1),
        ("damping", "some"),
        ("damping", float("nan")),
        ("lissa_scale", 0.0),
        ("curvature", "fisher"),
        ("preconditioner", "xx"),
        ("damping", None),
        ("damping", True),
        ("lissa_scale", None),
        ("solver_tolerance", "0.1"),
        ("solver_tolerance", float("nan")),
        ("loss_weight_decay", -1),
        ("loss_weight_decay", float("nan")),
        ("loss_weight_decay", "0.1"),
        ("frozen_states_gb", float("nan")),
        ("frozen_states_gb", None),
        ("index_factory", None),
        ("index_factory", ""),
        ("index_search", 3),
        ("index_device", -1),
        ("num_neighbors", 2.5),
        ("num_neighbors", True),
        ("checkpoints", 2.0),
        ("checkpoints", True),
        ("checkpoints", ""),
        ("checkpoints", "-1"),
        ("checkpoints", "0"),
        ("checkpoints", "early-x"),
        ("checkpoints", "early-0"),
        ("checkpoints", None),
        ("checkpoint_weights", "foo"),
        ("checkpoint_weights", "auto"),
        ("checkpoint_weights", "-0.5"),
        ("checkpoint_weights", None),
    ],
)
def test_bad_values_name_the_argument_and_the_value(tmp_path, name, value):
    with pytest.raises(InfluenceError, match=f"{name}={value!r}.*give"):
        config(tmp_path, **{name: value})


@pytest.mark.parametrize("value", [1.5, float("nan"), None, "3", [3], True])
@pytest.mark.parametrize(
    "name",
    [
        *("num_repeats", "cg_steps", "cg_samples", "lissa_depth", "lissa_batch_size", "sdca_visits", "ekfac_samples"),
        *("curvature_samples", "influence_batch_size", "query_batch_size", "index_size", "index_shard_size"),
    ],
)
def test_counts_are_whole_numbers(tmp_path, name, value):
    with pytest.raises(InfluenceError, match=re.escape(f"{name}={value!r}: give a whole number of at least 1")):
        config(tmp_path, **{name: value})


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"damping": [1]}, r"damping=\[1\]: give a number above 0, or 'auto'"),
        ({"checkpoints": ["a/b", 2.0]}, "checkpoints=2.0: give one of auto, final, epochs, a number"),
        ({"checkpoints": {"a": 1}}, "checkpoints={'a': 1}: give one of auto"),
        ({"checkpoints": ["final", "a/b"]}, "checkpoints='final' in a list of 2: a word or a number stands alone"),
        ({"checkpoints": [3, 6]}, "checkpoints='3' in a list of 2: .* a list names checkpoints by"),
        ({"checkpoint_weights": "unifrom"}, "give one of uniform, learning_rate, or a list.*did you mean 'uniform'"),
        ({"checkpoint_weights": [1, "auto"]}, r"checkpoint_weights=\['1', 'auto'\]: give one of uniform, learning"),
    ],
)
def test_lists_and_their_entries(tmp_path, settings, match):
    with pytest.raises(InfluenceError, match=match):
        config(tmp_path, **settings)


def test_a_file_that_is_no_checkpoint(tmp_path):
    file = tmp_path / "trainer_state.json"
    file.write_text("{}")
    with pytest.raises(InfluenceError, match=r"trainer_state.json' is a file of another kind; give its folder, or a"):
        config(tmp_path, checkpoints=["a/b", str(file)])


@pytest.mark.parametrize(
    ("checkpoints", "weights", "texts"),
    [
        (3, "uniform", (["3"], ["uniform"])),
        ("early-3", ["learning_rate"], (["early-3"], ["learning_rate"])),
        (Path("out"), 0.5, (["out"], ["0.5"])),
        (("a/b@main", "c"), (np.float32(1), "2"), (["a/b@main", "c"], ["1.0", "2"])),
    ],
)
def test_checkpoints_and_weights_become_text(tmp_path, checkpoints, weights, texts):
    args = config(tmp_path, checkpoints=checkpoints, checkpoint_weights=weights)
    assert (args.checkpoints, args.checkpoint_weights) == texts


@pytest.mark.parametrize(
    ("name", "value", "meant"),
    [
        ("solver", "sdac", "sdca"),
        ("index_features", "gradient_scetch", "gradient_sketch"),
        ("scoring", "gradient", "gradients"),
        ("curvature", "hesian", "hessian"),
        ("loss_reduction", "men", "mean"),
    ],
)
def test_typing_errors(tmp_path, name, value, meant):
    with pytest.raises(ValueError, match=f"{name}='{value}': give one of .*; did you mean '{meant}'\\?"):
        config(tmp_path, **{name: value})


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"curvature": "hessian", "solver": "ekfac"}, "curvature='hessian': solver='ekfac'.*gauss_newton"),
        ({"curvature": "hessian", "solver": "sdca"}, "curvature='hessian': solver='sdca'.*gauss_newton"),
        (
            {"curvature": "hessian", "solver": "cg", "preconditioner": "ekfac"},
            "preconditioner='ekfac' needs the Gauss-Newton",
        ),
        ({"solver": "sdca", "preconditioner": "ekfac"}, "preconditioner='ekfac': only solver='lissa' and 'cg'"),
        (
            {"solver": "lissa", "lissa_batch_size": 4, "solver_tolerance": 0.1},
            "solver_tolerance=0.1.*lissa_batch_size=4.*at least 16",
        ),
    ],
)
def test_settings_that_do_not_go_together(tmp_path, settings, match):
    with pytest.raises(ValueError, match=match):
        config(tmp_path, **settings)


def test_setting_of_the_authors(tmp_path):
    args = InfluenceConfig.fastif(str(tmp_path), use_cpu=True, lissa_depth=2000)
    # damp * scale of their recursion
    assert args.damping == 5e-3 * 1e4
    assert (args.curvature, args.lissa_scale, args.lissa_batch_size, args.lissa_depth) == ("hessian", 1e4, 1, 2000)


def test_recipe_of_the_authors_setting_is_the_preset():
    path = Path(__file__).parent.parent / "recipes" / "configs" / "find_influential-fastif.yaml"
    settings = yaml.safe_load(path.read_text("utf-8"))
    assert {name: type(value)(settings[name]) for name, value in FASTIF.items()} == FASTIF


def test_numbers_and_auto(tmp_path):
    assert config(tmp_path).damping == "auto"
    assert config(tmp_path, damping="1e-3").damping == 1e-3
    assert config(tmp_path, lissa_scale=5).lissa_scale == 5.0


def test_flags_and_help(tmp_path):
    parser = HfArgumentParser(InfluenceConfig)
    (parsed,) = parser.parse_args_into_dataclasses(
        ["--output_dir", str(tmp_path), "--use_cpu", "--damping", "0.5", "--num_neighbors", "7"]
    )
    assert (parsed.damping, parsed.num_neighbors, parsed.lissa_scale) == (0.5, 7, "auto")
    chosen = parser.parse_args_into_dataclasses(
        ["--output_dir", str(tmp_path), "--use_cpu", "--solver", "lissa", "--preconditioner", "ekfac"]
    )[0]
    assert (chosen.solver, chosen.preconditioner, parsed.preconditioner) == ("lissa", "ekfac", None)
    assert "0.3 % of the largest eigenvalue" in " ".join(parser.format_help().split())


def test_every_setting_is_described_once_for_flags_and_help(tmp_path):
    flags = {
        option: action for action in HfArgumentParser(InfluenceConfig)._actions for option in action.option_strings
    }
    for name in (*config(tmp_path).influence_settings(), "overwrite"):
        described = " ".join((flags[f"--{name}"].help or "").replace("%%", "%").split())
        assert described.endswith("."), name
        assert described in " ".join(InfluenceConfig.__doc__.split()), name
    assert set(config(tmp_path).influence_settings()) >= {"sdca_visits", "lissa_depth", "cg_steps", "ekfac_samples"}
