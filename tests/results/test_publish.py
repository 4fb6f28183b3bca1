"""Results published and loaded, over HTTP."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import READER, WRITER
from hub_tools import FULL, TEXTS, make_result

from hf_fastif import InfluenceResult


FRESH = """
import sys
from hf_fastif import InfluenceResult
InfluenceResult.from_hub("me/influences").save_to_disk(sys.argv[1])
"""
FOREIGN = """
import json, sys
sys.modules["hf_fastif"] = None
from datasets import load_dataset
influences = load_dataset("me/influences", split="train")
queries = load_dataset("me/influences", "queries", split="train")
label = influences.features["train_label"]
print(json.dumps([influences.to_list(), label.names, influences.features["influence"].dtype, len(queries)]))
"""


def python(code, *arguments, **options):
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], check=True, capture_output=True, text=True, timeout=200, **options
    )


@pytest.fixture
def result():
    return make_result()


def test_a_fresh_process_loads_what_was_pushed_to_the_bit(hub, result, tmp_path):
    result.save_to_disk(tmp_path / "here")
    pushed = result.push_to_hub("me/influences", include_text=True)
    assert pushed.commit_url == f"{hub.url}/datasets/me/influences/commit/{pushed.oid}"
    python(FRESH, str(tmp_path / "there"))
    for name in ("influences.parquet", "queries.parquet", "summary.json"):
        assert (tmp_path / "there" / name).read_bytes() == (tmp_path / "here" / name).read_bytes()


def test_load_dataset_needs_nothing_of_ours(hub, result):
    result.push_to_hub("me/influences", include_text=True)
    rows, names, kind, num_queries = json.loads(python(FOREIGN).stdout)
    assert rows == result.influences.to_list()
    assert (names, kind, num_queries) == (["no", "yes"], "float32", 2)


def test_without_texts_there_are_none_anywhere(hub, result):
    result.push_to_hub("me/influences", include_text=True)
    assert any(TEXTS[0].encode() in data for data in hub.files("me/influences").values())
    result.push_to_hub("me/influences")
    result.push_report_to_hub("me/report")
    for repo_type, repo_id in (("dataset", "me/influences"), ("space", "me/report")):
        for name, data in hub.files(repo_id, repo_type).items():
            assert not any(text.encode() in data for text in TEXTS), name
    loaded = InfluenceResult.from_hub("me/influences")
    assert loaded.influences.column_names == [
        *("query_index", "train_index", "influence", "predicted_loss_change", "percentile", "direction", "rank")
    ]
    assert loaded.influences["influence"] == result.influences["influence"]
    assert loaded.queries["prediction"] == ["yes", "yes"]
    assert "label" not in loaded.queries.column_names
    assert "query 0: (no text) predicted yes, loss 0.13\n    helpful #1 -2.00 (no text)\n" in repr(loaded)


def test_predicted_changes_are_numbers_and_published_without_texts(hub):
    make_result(change="removed", num_train=6, num_neighbors=None).push_to_hub("me/influences")
    loaded = InfluenceResult.from_hub("me/influences")
    assert loaded.influences["predicted_loss_change"] == pytest.approx(
        [-x / 6 for x in loaded.influences["influence"]]
    )
    assert loaded.influences["percentile"][0] == 50
    assert loaded.queries["loss_at_attribution"] == pytest.approx([0.13, 1.31])
    assert "helpful #1 +0.333 (no text)\n      without it: loss 0.130 -> 0.463" in repr(loaded)


def test_the_files_of_a_push_and_what_a_smaller_one_takes_away(hub, result):
    recall, diagnosis = FULL
    result.push_to_hub("me/influences", recall=recall, diagnosis=diagnosis)
    names = {".gitattributes", "README.md", "influences.parquet", "queries.parquet", "summary.json", "report.html"}
    names.add("figures/influences.png")
    assert set(hub.files("me/influences")) == names | {"figures/recall.png", "figures/diagnosis.png"}
    assert b'src="data:image/png;base64,' in hub.files("me/influences")["report.html"]
    hub.replace("me/influences", **{"notes.txt": b"kept", "README.md": b"---\nlicense: mit\n---\nmine"})
    result.push_to_hub("me/influences")
    assert set(hub.files("me/influences")) == names | {"notes.txt"}
    assert b"license: mit" in hub.files("me/influences")["README.md"]


def test_without_matplotlib_there_are_no_figures(hub, result, without_matplotlib):
    recall, diagnosis = FULL
    result.push_to_hub("me/influences", recall=recall, diagnosis=diagnosis)
    files = hub.files("me/influences")
    assert not [name for name in files if name.startswith("figures/")] and b"![" not in files["README.md"]
    assert str(diagnosis).splitlines()[0].encode() in files["README.md"]
    assert b"<img" not in files["report.html"] and b'id="diagnosis"' in files["report.html"]


def test_private_branch_and_pull_request(hub, result):
    result.push_to_hub("me/influences", private=True, revision="more", commit_message="Two queries")
    repository = hub.repositories["dataset", "me/influences"]
    assert repository.private
    assert "summary.json" in repository.files("more") and "summary.json" not in repository.files()
    assert repository.titles[repository.branches["more"]] == "Two queries"
    with pytest.raises(FileNotFoundError, match="no such dataset repository, or it is private"):
        InfluenceResult.from_hub("me/influences", revision="more", token=READER)
    assert InfluenceResult.from_hub("me/influences", revision="more").summary.num_queries == 2
    with pytest.raises(FileNotFoundError, match="repo_id='me/influences': .* does not have this file"):
        InfluenceResult.from_hub("me/influences")
    with pytest.raises(FileNotFoundError, match="revision='less': me/influences has no such branch, tag or commit"):
        InfluenceResult.from_hub("me/influences", revision="less")

    result.push_to_hub("me/open")
    opened = result.push_to_hub("me/open", include_text=True, create_pr=True, token=READER)
    assert opened.pr_url == f"{hub.url}/datasets/me/open/discussions/1"
    assert len(InfluenceResult.from_hub("me/open", revision="refs/pr/1").influences.column_names) > 7
    assert len(InfluenceResult.from_hub("me/open").influences.column_names) == 7


def test_wrong_repository_and_no_permission(hub, result, caplog):
    with pytest.raises(FileNotFoundError, match="repo_id='me/nothing': there is no such dataset repository"):
        InfluenceResult.from_hub("me/nothing")
    with pytest.raises(ValueError, match="repo_id='a/b/c': neither a folder nor the id of a repository"):
        InfluenceResult.from_hub("a/b/c")
    result.push_to_hub("me/influences")
    before = hub.files("me/influences")
    for repo_id, token in (("me/influences", READER), ("me/influences", False), ("you/influences", WRITER)):
        with pytest.raises(PermissionError, match=f"repo_id='{repo_id}': your token has no permission") as refused:
            result.push_to_hub(repo_id, include_text=True, token=token)
        assert str(token) not in str(refused.value)
    assert hub.files("me/influences") == before
    assert WRITER not in caplog.text and READER not in caplog.text


KILLED = """
import sys
sys.path.insert(0, sys.argv[1])
from hub_tools import make_result
make_result().push_to_hub("me/influences", include_text=True)
"""


@pytest.mark.slow
def test_an_upload_that_was_killed_goes_on(hub, result):
    command = [sys.executable, "-c", KILLED, str(Path(__file__).parents[1] / "helpers")]
    running = subprocess.Popen(command, stderr=subprocess.DEVNULL)

    def kill_at_the_third():
        if len(hub.uploads) == 2:
            running.kill()
            running.wait()

    hub.on_upload = kill_at_the_third
    assert running.wait(timeout=200) == -9
    hub.on_upload = None
    assert set(hub.files("me/influences")) == {".gitattributes"}  # nothing that looks whole
    result.push_to_hub("me/influences", include_text=True)
    assert len(hub.uploads) == len(set(hub.uploads)) == 3  # two tables and a figure, each sent once
    assert InfluenceResult.from_hub("me/influences").influences.to_list() == result.influences.to_list()


def test_a_report_is_a_static_space(hub, result, tmp_path):
    result.push_report_to_hub("me/report", include_text=True, title="What helped")
    files = hub.files("me/report", "space")
    assert files["index.html"] == result.to_html(tmp_path / "page.html", "What helped").read_bytes()
    assert b"sdk: static" in files["README.md"] and b"title: What helped" in files["README.md"]
