"""Download artifacts from the Hub: the manifest first, then the files that it lists, if their sizes agree."""

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
    """Return the folder of an artifact, after downloading its files unless it is local.

    Args:
        repo_id_or_path (`str` or `Path`): A folder, or a dataset repository.
        inside (`str`): Path of the artifact within a repository: empty, or with a slash at the end.
        manifest (`str`): File name of the manifest.
        revision (`str`, *optional*): A branch, tag or commit.
        token (`str` or `bool`, *optional*): As in `huggingface_hub`.

    Raises:
        NotFoundError: If there is no such repository, revision or artifact.
        NotAllowedError: If the token has no access.
        InfluenceError: If the manifest is invalid, or the size of a file differs from it.
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
    """Download a file and return its local path and commit; without a size, it must be as small as a manifest."""
    options = {
        "repo_type": "dataset",
        "revision": revision,
        "token": token,
        "library_name": "hf_fastif",
        "library_version": __version__,
    }
    remote = hf_hub_download(repo_id, name, dry_run=True, **options)  # before the download, which may be huge
    if size is None and (remote.file_size or 0) > MAX_BYTES:
        raise InfluenceError(
            f"{repo_id}: {name} has {remote.file_size:,} bytes; a manifest has at most {MAX_BYTES:,}."
        )
    if size is not None and remote.file_size not in (None, size):
        raise InfluenceError(f"{repo_id}: {name} has {remote.file_size:,} bytes; the manifest says {size:,}.")
    return Path(hf_hub_download(repo_id, name, **options)), remote.commit_hash
