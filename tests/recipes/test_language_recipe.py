"""The recipe with a language model: built, trained, explained, and its facts looked for."""

from __future__ import annotations

import json

from recipe_modules import CONFIGS, flags, run_here

from hf_fastif import InfluenceResult
from hf_fastif.results import check_text


QUIET = ["--use_cpu", "--disable_tqdm", "true"]
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


def test_facts_are_learned_and_looked_for(tmp_path, capsys):
    facts = ["--config", str(CONFIGS / "find_influential-facts.yaml"), *QUIET]
    run_here("find_influential", *facts, *flags({"output_dir": tmp_path, "check_by_retraining": 3} | SMALL))
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
    models = result.summary.models_without
    assert [(model.num_removed, model.num_explained) for model in models] == [(0, 12), (3, 12), (3, 12)]
    assert check_text(models) in printed
    assert (folder / "retrieval.png").is_file() and 'class="tokens"' in (folder / "report.html").read_text("utf-8")

    again = {"model_name_or_path": tmp_path, "output_dir": tmp_path / "again", "query_indices": 3}
    again |= {"completion_column": "completion", "num_frozen_layers": -1, "num_examples": 2, "max_train_examples": 20}
    run_here("find_influential", *QUIET, *flags(again | {"solver": "identity", "index_features": "pooled"}))
    second = InfluenceResult.load_from_disk(tmp_path / "again" / "influence")
    assert second.summary.query_rows == [3] and second.summary.retrieval is None
