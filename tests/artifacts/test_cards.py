"""Whole cards: metadata, numbers, and snippets that run as they stand."""

from __future__ import annotations

import re
from dataclasses import replace
from io import BytesIO

import pyarrow.parquet as pq
import pytest
import yaml
from hub_tools import FULL, make_recall, make_result
from tiny import tiny_data, tiny_trainer

from hf_fastif import InfluenceResult
from hf_fastif.analysis import Recall
from hf_fastif.experiments import Corrections
from hf_fastif.scoring import sign_of
from hf_fastif.training.reporting import ResultArguments, report


TAGS = ["hf_fastif", "influence-functions", "training-data-attribution"]


def split(hub, repo_id, repo_type="dataset"):
    text = hub.files(repo_id, repo_type)["README.md"].decode()
    _, data, body = text.split("---\n", 2)
    body = body[body.find("\n## Influence\n") + 1 :]  # of a model what was added to the card of the Trainer
    assert not re.search(r"\{\{ |\{%|None|nan\b|\n\n\n|[ \t]\n", body), body
    assert body.endswith("```\n") or repo_type == "space"
    return yaml.safe_load(data), body


def run_snippets(body, **names):
    snippets = re.findall(r"```python\n(.*?)```", body, re.DOTALL)
    for snippet in snippets:
        exec(compile(snippet, "card", "exec"), names)
    return names, len(snippets)


def configs(*names):
    found = [{"config_name": n, "data_files": [{"split": "train", "path": f"{n}.parquet"}]} for n in names]
    found[0]["default"] = True
    return found


def test_the_card_of_a_result(hub, capsys):
    recall, diagnosis = FULL
    result = make_result()
    result.push_to_hub("me/influences", include_text=True, recall=recall, diagnosis=diagnosis)
    data, body = split(hub, "me/influences")
    assert data == {
        "pretty_name": "influences",
        "library_name": "hf_fastif",
        "tags": TAGS,
        "base_model": "me/tiny",
        "datasets": ["you/sentences"],
        "configs": configs("influences", "queries"),
    }
    for part in (
        "that most helped or hurt 2 predictions of `me/tiny`, out of 6\ncandidates.",
        "`rank` (1 is the strongest of its direction), `query_text`, `query_label`, `train_text`, `train_label` |",
        "| `queries.parquet` | 2, one for each prediction |",
        "**Texts.** The texts, labels and other columns of queries and training examples are published here",
        "| Damping λ | 0.2, 0.50% of the largest eigenvalue 40 |",
        "λ = 0.2 is 0.50% of the largest eigenvalue of C; 0.1% to 1% is recommended.",
        "on a sample of the training set: 0.1 (0 is exact",
        "Only the 5 nearest neighbors of each query were scored. Recall, the share",
        "95 % of the top 10 are among k = 4\n  k = 1: 0.50, k = 4: 0.97\n```",
        "(figures/recall.png)",
        "lambda = 0.2, 2.00% of the largest eigenvalue",
        "(figures/diagnosis.png)",
        "@inproceedings{guo-etal-2021-fastif,",
    ):
        assert part in body, part
    for figure in re.findall(r"\]\((.*?)\)", body):
        assert hub.files("me/influences")[figure].startswith(b"\x89PNG")
    names, count = run_snippets(body)
    assert count == 2
    assert repr(result) in capsys.readouterr().out
    assert names["harmful"]["train_index"] == [3, 0]
    assert names["influences"].to_list() == result.influences.to_list()
    assert len(names["queries"]) == 2


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"damping": 5.0}, "λ = 5 is 12.50% of the largest eigenvalue of C. This is large: most"),
        ({"damping": 0.01}, "λ = 0.01 is 0.03% of the largest eigenvalue of C. This is small: directions"),
        ({"largest_eigenvalue": None}, "No curvature was used"),
        ({"largest_eigenvalue": None, "damping_by_layer": True}, "Each layer has a separate λ"),
        ({"num_neighbors": None}, "Every candidate was scored, so nothing was missed (recall 1)."),
        ({"model": "a|b"}, "| Model | a\\|b |"),
        ({"measure": "g.<locals>.Loc()"}, "| Measure | g.\\<locals>.Loc() |"),
    ],
)
def test_what_the_card_makes_of_the_settings(hub, changes, sentence):
    result = make_result()
    result.summary = replace(result.summary, **changes)
    result.push_to_hub("me/influences")
    _, body = split(hub, "me/influences")
    assert sentence in body
    assert "**No texts.** Only positions, scores and predictions are published." in body
    assert "train_text" not in body


def test_anchors_are_asked_about_as_one(hub):
    anchors = make_result(as_one=True)
    anchors.push_to_hub("me/anchors")
    _, body = split(hub, "me/anchors")
    assert "hurt the mean loss of 2 predictions (anchors) of `me/tiny`, out of 6" in body
    assert "| `queries.parquet` | 2, one for each prediction |" in body
    loaded = InfluenceResult.from_hub("me/anchors")
    assert loaded.queries["query_index"] == [0, 0] and loaded.queries["loss"] == anchors.queries["loss"]


CONTRAST = "loss minus that of the alternative"


@pytest.mark.parametrize(
    ("measure", "shown", "verbs", "formula"),
    [
        ("loss", "loss", ("raises", "lowers"), "s_test = (C + λI)⁻¹ ∇L(query)"),
        ("g.<locals>.Loc()", "`g.<locals>.Loc()`", ("lowers", "raises"), "s_test = −(C + λI)⁻¹ ∇M(query)"),
        ("Logit(label='`')", "`` Logit(label='`') ``", ("lowers", "raises"), "s_test = −(C + λI)⁻¹ ∇M(query)"),
        (CONTRAST, CONTRAST, ("raises", "lowers"), "s_test = (C + λI)⁻¹ ∇M(query)"),
    ],
)
def test_the_card_says_what_is_measured_and_which_way(hub, measure, shown, verbs, formula):
    result = make_result(as_one=True)
    result.summary = replace(result.summary, measure=measure, sign=sign_of(measure))
    result.push_to_hub("me/anchors")
    _, body = split(hub, "me/anchors")
    assert f"hurt the mean {shown} of 2 predictions (anchors) of `me/tiny`" in body
    assert f"more weight {verbs[0]} " in body and f"more weight {verbs[1]} " in body
    assert measure == "loss" or f"more weight {verbs[0]} {shown} of the query." in body
    assert formula in body
    assert (f"where M is {shown}\nand C is" in body) == (measure != "loss")


@pytest.mark.parametrize(
    ("measure", "change", "shown", "formula"),
    [
        ("loss", "removed", "the loss", "−influence / 1,000"),
        ("loss", "added", "the loss", "influence / 1,000"),
        ("g.<locals>.Loc()", "removed", "`g.<locals>.Loc()`", "influence / 1,000"),
        (CONTRAST, "removed", f"the {CONTRAST}", "−influence / 1,000"),
    ],
)
def test_the_card_says_what_scores_predict(hub, measure, change, shown, formula):
    make_result(measure=measure, change=change, num_train=1000).push_to_hub("me/influences")
    _, body = split(hub, "me/influences")
    done = {"removed": "removed from", "added": "added to"}[change]
    assert (
        f"candidates. `predicted_loss_change` is the predicted change of {shown} of the query if the example were "
        f"{done} the 1,000 training examples and the model trained again.\n"
    ) in body
    assert f"\npredicted_loss_change = {formula}. A positive influence is harmful: " in body
    assert f"if {change}, of 1,000 training examples |" in body


def test_a_result_without_a_solved_system_is_published_too(hub):
    result = make_result()
    unknown = [float("nan")] * len(result.queries)
    result.queries = result.queries.remove_columns("residual").add_column("residual", unknown)
    result.queries = result.queries.cast(make_result().queries.select_columns(result.queries.column_names).features)
    result.summary = replace(result.summary, solver="identity", largest_eigenvalue=None)
    result.push_to_hub("me/influences")
    _, body = split(hub, "me/influences")
    assert "\n## Quality\n\nNo system was solved.\n" in body and "| Residual |" not in body


def test_the_card_of_a_report(hub):
    make_result().push_report_to_hub("me/report", title="What helped")
    data, body = split(hub, "me/report", "space")
    known = {"title": "What helped", "sdk": "static", "app_file": "index.html", "models": ["me/tiny"], "tags": TAGS}
    assert data == known | {"datasets": ["you/sentences"]}
    assert "out of 6\ncandidates" in body and "no texts" in body


def test_the_card_of_an_analysis_that_a_recipe_publishes(hub, tmp_path, capsys):
    settings = {"damping": 0.5, "checkpoints": ["runs/of/mine/out/seed-1"], "hub_private_repo": True}
    trainer, found = tiny_trainer(tmp_path, **settings), make_recall()
    asked = ResultArguments("me/recall")
    report(found, "recall", trainer, trainer.args, asked)
    printed = capsys.readouterr().out
    assert Recall.load(tmp_path / "recall.json") == found
    assert f"Published: {hub.url}/datasets/me/recall/commit/" in printed
    assert hub.repositories["dataset", "me/recall"].private

    data, body = split(hub, "me/recall")
    assert data["configs"] == configs("table") and data["tags"] == TAGS
    files = {".gitattributes", "README.md", "recall.json", "recall.png", "recall.svg", "table.parquet"}
    assert set(hub.files("me/recall")) == files
    assert hub.files("me/recall")["recall.png"].startswith(b"\x89PNG")
    for part in (
        "# Recall: BertForSequenceClassification",
        "The fraction of the top m of the full scan",
        f"```text\n{found}\n```",
        'table (`list[dict]`): Rows with `direction` ("helpful", "harmful" or "absolute")',
        "| damping | 0.5 |",
        "| checkpoints | ['out/seed-1'] |",
        "| training examples | 40 |",
    ):
        assert part in body, part
    assert "index_size" not in body and "mine" not in body
    names, count = run_snippets(body)
    assert count == 2 and names["result"] == found
    assert names["table"].to_list() == found.table
    assert str(found) in capsys.readouterr().out

    report(Recall(found.table[:2], 6, 2), "recall", trainer, trainer.args, asked)
    assert set(hub.files("me/recall")) == files
    report(found, "recall", trainer, trainer.args, ResultArguments())
    assert len(hub.repositories["dataset", "me/recall"].commits) == 3  # the empty one and two pushes
    with pytest.raises(ValueError, match="result_repo_id='me//recall': give the id of a repository"):
        ResultArguments("me//recall")


def test_a_result_whose_rows_hold_curves_is_published_too(hub, tmp_path):
    curves = {name: {part: [0.5, 0.25] for part in ("anchors", "test", "guard")} for name in ("loss", "accuracy")}
    runs = [
        {"slice": "one", "system": system, "repeat": 0, "learning_rate": [0.1], "labels": labels} | curves
        for system, labels in (("helpful", {"a": 2}), ("anchors", {}))
    ]
    found = Corrections(runs, {"steps": 1, "num_examples": 2, "learning_rate": 0.1, "candidates": 5})
    trainer = tiny_trainer(tmp_path)
    report(found, "correction", trainer, trainer.args, ResultArguments("me/correction"))
    table = pq.read_table(BytesIO(hub.files("me/correction")["runs.parquet"])).to_pylist()
    assert [(row["system"], row["loss"]["test"]) for row in table] == [
        ("helpful", [0.5, 0.25]),
        ("anchors", [0.5, 0.25]),
    ]
    assert "correction-validation.png" in hub.files("me/correction")


def test_the_cards_of_an_index_factors_and_a_model(hub, tmp_path, capsys):
    settings = {"solver": "ekfac", "damping": 0.5, "ekfac_samples": 40, "index_size": 64, "hub_model_id": "me/model"}
    trainer, queries = tiny_trainer(tmp_path, **settings), tiny_data(2, seed=1)
    built = trainer.build_index()
    trainer.push_index_to_hub("me/index")
    trainer.push_factors_to_hub("me/factors")
    result = trainer.find_influential(queries, num_examples=2)
    result.without_text().save_to_disk(tmp_path / "influence")
    trainer.push_to_hub()

    data, body = split(hub, "me/index")
    assert data["tags"] == [*TAGS, "faiss"] and data["configs"] == configs("rows")
    assert "base_model" not in data and "license" not in data
    assert "| Vectors | 40 of 64 numbers |" in body and "| FAISS factory | `SQfp16` |" in body
    assert f"rows `{built.manifest['dataset']}` |" in body and "**No texts.**" in body
    assert "Recall was not measured" in body
    assert "it scores them all" in body and "`sketches.safetensors`" in body and "misses" not in body
    names, count = run_snippets(body, trainer=trainer, queries=queries)
    assert count == 2 and len(names["index"]) == 40
    assert names["result"].summary.num_neighbors is None

    trainer.args.index_features = "pooled"
    trainer.build_index()
    trainer.push_index_to_hub("me/pooled")
    _, body = split(hub, "me/pooled")
    assert "only those need to be scored" in body and "sketches" not in body and "Examples that it misses" in body
    names, _ = run_snippets(body, trainer=trainer, queries=queries)
    assert names["result"].summary.num_neighbors == 1

    data, body = split(hub, "me/factors")
    assert data["configs"] == configs("layers")
    assert "samples=40 seed=42 bf16=False" in body and "10 linear layers and norms" in body
    names, count = run_snippets(body, trainer=trainer)
    assert count == 2 and len(names["factors"].blocks) == 10

    data, body = split(hub, "me/model", "model")
    assert data["tags"] == ["generated_from_trainer", *TAGS] and data["library_name"] == "transformers"
    assert f"| `indexes/{built.folder.name}` | a FAISS index" in body
    assert "| Damping λ | 0.5" in body
    capsys.readouterr()
    names, count = run_snippets(body)
    assert count == 1 and names["result"].influences.to_list() == result.without_text().influences.to_list()
    assert "40 indexed training examples" in capsys.readouterr().out
