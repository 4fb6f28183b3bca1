"""The recipe `visualization`: both sides of the graph, and what a second run does again."""

from __future__ import annotations

import json
import re
import shutil

import pandas as pd
from recipe_modules import run_here, words

from hf_fastif import InfluenceResult


def test_both_sides_of_the_graph_and_going_on(files, tmp_path, capsys):
    settings = {"num_queries": 3, "num_examples": 2, "sdca_visits": 40, "num_neighbors": 20, "max_steps": 2}
    settings |= {"name": "Plain", "sliced_name": "Sliced"}
    for split in ("train", "validation"):
        rows = [json.loads(line) for line in (files / f"{split}.jsonl").read_text().split("\n")]
        sliced = [json.dumps(row | {"heuristic": "ab"[i % 2]}) for i, row in enumerate(rows)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(sliced))
        settings[f"sliced_{split}_file"] = tmp_path / f"{split}.jsonl"
    run_here("visualization", *words(files, tmp_path, **settings))
    first = capsys.readouterr().out

    for side, subsets in (("plain", ["all"]), ("sliced", ["a", "all", "b"])):
        folder = tmp_path / side / "influence"
        result = InfluenceResult.load_from_disk(folder)
        assert list(result.summary.slices) == ["Plain", "Sliced, a", "Sliced, b"]
        names = result.queries.features["label"].int2str(result.queries["label"])
        assert all(name != predicted for name, predicted in zip(names, result.queries["prediction"], strict=True))
        edges = pd.read_csv(folder / "edges.csv")
        assert sorted(set(edges["subset"])) == subsets
        counts = edges[edges["subset"] == "all"][["helpful_edges", "harmful_edges"]]
        assert counts.to_numpy().sum() == len(result.influences)
        assert len(pd.read_parquet(folder / "correlations.parquet")) == 9
        for name in ("graph.png", "graph.svg", "graph.pdf", "report.html"):
            assert str(folder / name) in first and (folder / name).is_file()
        assert all(name in (folder / "graph.svg").read_text("utf-8") for name in result.summary.slices)

    shutil.rmtree(tmp_path / "sliced" / "slices" / "sliced-b")
    run_here("visualization", *words(files, tmp_path, **settings))
    again = capsys.readouterr().out
    assert "train_runtime" in first and "train_runtime" not in again
    assert re.findall(r"(.*): \d+ of \d+ are wrong", again) == ["Sliced, b"]
