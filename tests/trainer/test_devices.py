"""Influence on a GPU is influence on a CPU, up to rounding."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch


HERE = Path(__file__).parents[1]
pytestmark = [
    pytest.mark.slow,  # two cold interpreters
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]


def test_a_gpu_gives_the_numbers_of_a_cpu(tmp_path):
    numbers = {}
    for device in ("cpu", "cuda"):
        path = tmp_path / f"{device}.npz"
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE / "helpers"), *filter(None, sys.path)])}
        environment |= {"ACCELERATE_USE_CPU": str(device == "cpu").lower()}
        command = [sys.executable, str(HERE / "scripts" / "run_on_device.py"), device, str(path)]
        subprocess.run(command, check=True, env=environment, timeout=500)
        numbers[device] = dict(np.load(path))
    assert numbers["cpu"].keys() == numbers["cuda"].keys()
    for name, expected in numbers["cpu"].items():
        scale = np.abs(expected).max()
        np.testing.assert_allclose(numbers["cuda"][name], expected, rtol=0.02, atol=2e-3 * scale, err_msg=name)
