"""Settings are checked when they are made, and reach the command line."""

from __future__ import annotations

import pytest
from transformers import HfArgumentParser

from hf_fastif import InfluenceConfig


def config(tmp_path, **settings) -> InfluenceConfig:
    return InfluenceConfig(output_dir=str(tmp_path), use_cpu=True, **settings)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lissa_repeats", 0),
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
    ],
)
def test_bad_values_name_the_argument_and_the_value(tmp_path, name, value):
    with pytest.raises(ValueError, match=f"{name}={value!r}.*give"):
        config(tmp_path, **{name: value})


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
    assert "1 % of the largest eigenvalue" in " ".join(parser.format_help().split())
