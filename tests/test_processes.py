"""Several processes give the answer of one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest


HERE = Path(__file__).parent


def run(folder: Path, processes: int) -> list[dict[str, np.ndarray]]:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    subprocess.run(
        [*launch, str(HERE / "scripts" / "run_influence.py"), str(folder)],
        check=True,
        env=os.environ | {"PYTHONPATH": str(HERE)},
        timeout=300,
    )
    return [dict(np.load(folder / f"{processes}-{rank}.npz")) for rank in range(processes)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return run(tmp_path_factory.mktemp("alone"), 1)[0]


@pytest.mark.parametrize("processes", [2, 4])  # 23 examples in 6 batches and 3 repeats divide by neither
def test_processes_agree_with_one(tmp_path, alone, processes):
    for found in run(tmp_path, processes):
        assert found["train_index"].tolist() == alone["train_index"].tolist()
        assert found["rank"].tolist() == alone["rank"].tolist()
        for name in set(alone) - {"train_index", "rank"}:
            size = np.abs(alone[name]).max(initial=0)  # a solver without steps has an empty trace
            np.testing.assert_allclose(found[name], alone[name], rtol=2e-3, atol=1e-4 * size + 2e-5)
