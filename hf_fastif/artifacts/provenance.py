"""Name the sources of a model and its training set so that other people can find them."""

from __future__ import annotations

import re
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from datasets import Dataset
from huggingface_hub.utils import HFValidationError, validate_repo_id
from torch import nn


PACKAGES = ("hf_fastif", "torch", "transformers", "datasets")
ON_THE_HUB = re.compile(r"hf://datasets/([^@]+)@")  # in the URLs that a dataset was downloaded from


def model_name(model: nn.Module) -> str:
    """Return the model's Hub id, the last two parts of its folder, or else its class."""
    name = model.config._name_or_path or type(model).__name__
    # Results are shared, and full paths would tell readers more of the author's machine than they need.
    return name if _base_model(model) else "/".join(Path(name).parts[-2:])


def sources(model: nn.Module, dataset: Dataset | None) -> dict[str, Any]:
    """Return the sources that are on the Hub.

    Returns:
        `dict`: `base_model`, the id that the model was loaded from or None, and `datasets`, a list of ids.
    """
    urls = (dataset.info.download_checksums if dataset is not None else None) or {}
    matches = (ON_THE_HUB.match(url) for url in urls)
    return {"base_model": _base_model(model), "datasets": sorted({match[1] for match in matches if match})}


def versions() -> dict[str, str]:
    """Return the versions of the packages that results depend on."""
    return {name: _version(name) for name in PACKAGES}


_version = cache(version)  # which parses the metadata of the package


def _base_model(model: nn.Module) -> str | None:
    name = model.config._name_or_path
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return None if Path(name).exists() else name
