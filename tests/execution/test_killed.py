"""Work that is killed goes on from its finished pieces, to the same answer, and computes none of them again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest


pytestmark = pytest.mark.slow  # eight processes that are killed
HERE = Path(__file__).parents[1]
KILLED = ["index", "sketch", "solving", "scan", "candidates", "self-influence", "checkpoints"]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(HERE / "helpers"), os.environ.get("PYTHONPATH", "")])
    }
    command = [sys.executable, str(HERE / "scripts" / "run_killed.py"), "all", str(folder)]
    subprocess.run(command, check=True, env=environment, timeout=300)
    return json.loads((folder / "found.json").read_text())


@pytest.mark.parametrize("stage", KILLED)
def test_after_kill_9_only_what_was_not_finished_is_done(found, stage):
    run = found[stage]
    assert run["end"] == -signal.SIGKILL
    assert run["batches"] == run["whole"] - run["finished"]
    assert run["same"] and not run["left"]


def test_ctrl_c_leaves_what_was_finished(found):
    run = found["scan, Ctrl-C"]
    assert run["end"] == 130
    assert run["batches"] == run["whole"] - run["finished"]
    assert run["same"] and not run["left"]


def test_a_piece_that_was_cut_short_is_done_again(found):
    run = found["scan, cut short"]
    assert run["batches"] == run["whole"] - (run["finished"] - 2)  # a piece holds two batches
    assert run["same"] and not run["left"]
