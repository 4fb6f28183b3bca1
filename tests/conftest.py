"""Settings of the whole suite: offline, quiet, one thread (tiny tensors only wait for each other on two).

`TEST_THREADS=2` runs it with two, whose sums round otherwise.

The address of the Hub is that of the tests' own server, which answers only tests that ask for the fixture `hub`.
"""

import json
import os
import sys
import tempfile

from hub_server import WRITER, HubServer


SERVER = HubServer()
THREADS = os.environ.get("TEST_THREADS", "1")
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_ENDPOINT=SERVER.url,  # read when huggingface_hub is imported
    HF_HUB_DISABLE_XET="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    HF_HOME=tempfile.mkdtemp(prefix="hf_fastif_tests_"),
    OMP_NUM_THREADS=THREADS,
    TOKENIZERS_PARALLELISM="false",
    ACCELERATE_USE_CPU="true",
)

import datasets  # noqa: E402
import huggingface_hub  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402


torch.set_num_threads(int(THREADS))
datasets.disable_progress_bars()


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def without_matplotlib(monkeypatch):
    """As if the extra "plots" were not installed."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)


@pytest.fixture(scope="session")
def serving():
    return SERVER.start()


@pytest.fixture
def hub(serving, monkeypatch, tmp_path):
    """An empty Hub, online, for a user who is logged in as "me"."""
    serving.reset()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")  # for processes that a test starts
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    monkeypatch.setenv("HF_TOKEN", WRITER)
    return serving


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """A folder with what a recipe reads: `train.jsonl`, `validation.jsonl` and a tiny `model`."""
    from tiny import VOCABULARY, tiny_model, tiny_tokenizer

    folder = tmp_path_factory.mktemp("recipe")
    random = np.random.default_rng(0)
    for name, size in (("train", 40), ("validation", 30)):
        rows = [
            {"text": " ".join(random.choice(VOCABULARY[2:], 6)), "label": str(random.choice(["bad", "good"]))}
            for _ in range(size)
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    tiny_model(frozen=None, num_labels=2).save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    return folder
