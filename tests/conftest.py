"""Settings of the whole suite: offline, quiet, one thread (tiny tensors only wait for each other on two)."""

import os
import tempfile


os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_HOME=tempfile.mkdtemp(prefix="hf_fastif_tests_"),
    OMP_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
    ACCELERATE_USE_CPU="true",
)

import datasets  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402


torch.set_num_threads(1)
datasets.disable_progress_bars()


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
