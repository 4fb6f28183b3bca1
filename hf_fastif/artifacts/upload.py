"""Upload files and a card in one commit, so that a repository holds a complete artifact or none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypedDict

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, RepoCard

from hf_fastif.artifacts.hub_errors import hub_errors
from hf_fastif.version import __version__


class PushOptions(TypedDict, total=False):
    """Keyword options of every push, as in `huggingface_hub`.

    Attributes:
        private (`bool`): Whether a new repository is private. By default its owner's setting.
        revision (`str`): The branch to push to, which is created if it does not exist. By default `main`.
        create_pr (`bool`): Whether to open a pull request instead of committing to the branch.
        token (`str` or `bool`): By default the token of `hf auth login`. It is never written to a file.
        commit_message (`str`): By default a line that describes the upload.

    Example:

    ```python
    result.push_to_hub("me/influences", private=True, commit_message="Influence of the dev set")
    ```
    """

    private: bool | None
    revision: str | None
    create_pr: bool
    token: str | bool | None
    commit_message: str | None


Stage = Callable[[Path, str], tuple[RepoCard, Mapping[str, Path]]]


def push(
    repo_id: str,
    repo_type: str,
    stage: Stage,
    owned: Sequence[str],
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    token: str | bool | None = None,
    commit_message: str | None = None,
) -> CommitInfo:
    """Create a repository if needed, and commit a card and files to it.

    Files that an interrupted upload has already sent are not sent again.

    Args:
        repo_id (`str`): The repository.
        repo_type (`str`): `"dataset"` or `"space"` (a static one).
        stage (`Callable`): Takes an empty folder and the full id of the repository. Returns the card and a mapping
            from names in the repository to local files.
        owned (`Sequence[str]`): Patterns of names. Remote files that match one and are not pushed are deleted.
        private, revision, create_pr, token, commit_message: See `PushOptions`.

    Raises:
        InfluenceError: If `repo_id` is not a valid id.
        NotAllowedError: If the token has no permission to write.
    """
    api = HfApi(token=token, library_name="hf_fastif", library_version=__version__)
    sdk = {"space_sdk": "static"} if repo_type == "space" else {}
    with hub_errors(repo_id, repo_type, revision), TemporaryDirectory() as folder:
        url = api.create_repo(repo_id, private=private, repo_type=repo_type, exist_ok=True, **sdk)
        where = {"repo_id": url.repo_id, "repo_type": repo_type, "revision": revision}
        if revision is not None and not create_pr and not revision.startswith("refs/"):
            api.create_branch(url.repo_id, branch=revision, repo_type=repo_type, exist_ok=True)
        card, files = stage(Path(folder), url.repo_id)
        remote = set(api.list_repo_files(**where))
        if "README.md" in remote:
            _keep_metadata(card, Path(api.hf_hub_download(filename="README.md", **where)))
        card.save(Path(folder) / "README.md")
        files = {**files, "README.md": Path(folder) / "README.md"}
        stale = sorted(name for name in remote - set(files) if any(fnmatch(name, pattern) for pattern in owned))
        return api.create_commit(
            **where,
            operations=[
                *(CommitOperationAdd(name, path) for name, path in files.items()),
                *(CommitOperationDelete(name) for name in stale),
            ],
            commit_message=commit_message or f"Upload {len(files)} files with hf_fastif {__version__}",
            create_pr=create_pr,
        )


def _keep_metadata(card: RepoCard, old: Path) -> None:
    """Keep metadata that the owner of the repository has added, such as a license."""
    for name, value in RepoCard.load(old, ignore_metadata_errors=True).data.to_dict().items():
        if card.data.get(name) is None:
            card.data[name] = value


def files_in(folder: Path) -> dict[str, Path]:
    """List all files in a folder by their relative names, with slashes on every system."""
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
