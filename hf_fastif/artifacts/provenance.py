"""Where a model and its training set come from, in names that other people know."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

from datasets import Dataset
from huggingface_hub.utils import HFValidationError, validate_repo_id
from torch import nn


PACKAGES = ("hf_fastif", "torch", "transformers", "datasets")
ON_THE_HUB = re.compile(r"hf://datasets/([^@]+)@")  # in the addresses that a dataset was downloaded from


def model_name(model: nn.Module) -> str:
    """The model's Hub id or folder, or else its class."""
    name = model.config._name_or_path or type(model).__name__
    # Of a local folder the last two parts: results are shared, and other people's paths are not for reading.
    return name if _base_model(model) else "/".join(Path(name).parts[-2:])


def sources(model: nn.Module, dataset: Dataset | None) -> dict[str, Any]:
    """What is known on the Hub: `base_model`, the id that the model was loaded from, and `datasets`, a list of ids."""
    addresses = (dataset.info.download_checksums if dataset is not None else None) or {}
    found = (ON_THE_HUB.match(address) for address in addresses)
    return {"base_model": _base_model(model), "datasets": sorted({match[1] for match in found if match})}


def versions() -> dict[str, str]:
    """The versions of what computed."""
    return {name: version(name) for name in PACKAGES}


def _base_model(model: nn.Module) -> str | None:
    name = model.config._name_or_path
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return None if Path(name).exists() else name
