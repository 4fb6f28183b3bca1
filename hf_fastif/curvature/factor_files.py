"""Fetch published EK-FAC factors from the Hub or from a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hf_fastif.artifacts import check_files, fetch, read_manifest
from hf_fastif.errors import InfluenceError, NotFoundError


FACTORS = "ekfac.safetensors"
FACTORS_TYPES = {"model": str, "dataset": str, "settings": str}


def fetch_factors(
    repo_id_or_path: str | Path, revision: str | None, token: str | bool | None
) -> tuple[Path, dict[str, Any]]:
    """Return the checked file of EK-FAC factors, and its manifest.

    Raises:
        NotFoundError: If there are no factors.
        InfluenceError: If the file does not match its manifest.
    """
    folder = fetch(repo_id_or_path, "factors/", "manifest.json", revision, token)
    if not (folder / "manifest.json").is_file():
        raise NotFoundError(f"{folder} holds no factors; publish some with trainer.push_factors_to_hub().")
    manifest = read_manifest(folder / "manifest.json", **FACTORS_TYPES)
    if set(manifest["files"]) != {FACTORS}:
        raise InfluenceError(f"{folder / 'manifest.json'} must list {FACTORS} and no other file; download it again.")
    check_files(folder, manifest["files"])
    return folder / FACTORS, manifest
