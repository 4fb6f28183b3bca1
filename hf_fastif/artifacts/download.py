"""Artifacts from the Hub: the manifest first, then the files that it names, each of the size that it says."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import hf_hub_download

from hf_fastif.artifacts.hub_errors import hub_errors
from hf_fastif.artifacts.manifests import MAX_BYTES, read_manifest
from hf_fastif.errors import InfluenceError
from hf_fastif.version import __version__


def fetch(
    repo_id_or_path: str | Path, inside: str, manifest: str, revision: str | None, token: str | bool | None
) -> Path:
    """The folder of an artifact: the one given, or one that its files were downloaded to.

    Args:
        repo_id_or_path (`str` or `Path`): A folder, or a dataset repository.
        inside (`str`): Where in a repository the artifact is; ends with a slash, or is empty.
        manifest (`str`): The name of the manifest.
        revision (`str`, *optional*): A branch, tag or commit.
        token (`str` or `bool`, *optional*): As in `huggingface_hub`.

    Raises:
        FileNotFoundError: If there is no such repository, revision or artifact.
        ValueError: If the manifest is none, or a file has another size than it says.
    """
    if isinstance(repo_id_or_path, Path) or Path(repo_id_or_path).is_dir():
        return Path(repo_id_or_path)
    with hub_errors(repo_id_or_path, "dataset", revision):
        path, commit = _download(repo_id_or_path, inside + manifest, revision, token)
        for name, file in read_manifest(path)["files"].items():
            _download(repo_id_or_path, inside + name, commit, token, file["size"])
    return path.parent


def _download(
    repo_id: str, name: str, revision: str | None, token: str | bool | None, size: int | None = None
) -> tuple[Path, str]:
    """The local path of a file and the commit it is of; without a size, it is a manifest and small."""
    asked = {
        "repo_type": "dataset",
        "revision": revision,
        "token": token,
        "library_name": "hf_fastif",
        "library_version": __version__,
    }
    found = hf_hub_download(repo_id, name, dry_run=True, **asked)
    if size is None and (found.file_size or 0) > MAX_BYTES:
        raise InfluenceError(f"{repo_id}: {name} has {found.file_size:,} bytes; a manifest has {MAX_BYTES:,} at most.")
    if size is not None and found.file_size not in (None, size):
        raise InfluenceError(f"{repo_id}: {name} has {found.file_size:,} bytes; the manifest says {size:,}.")
    return Path(hf_hub_download(repo_id, name, **asked)), found.commit_hash
