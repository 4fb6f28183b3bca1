"""Files and a card in one commit: a repository holds an artifact as a whole, or not at all."""

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
    """Options of every push, as in `huggingface_hub`.

    Attributes:
        private (`bool`): Whether a repository that is created is private; what its owner has set unless given.
        revision (`str`): The branch to push to, created if it is not there; `main` unless given.
        create_pr (`bool`): Opens a pull request.
        token (`str` or `bool`): Unless given, the one of `hf auth login`. It is sent and never written.
        commit_message (`str`): Says what was pushed unless given.
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
    """Creates a repository if it is not there, and commits a card and files to it.

    The files of an upload that was interrupted are known to the Hub and not sent again.

    Args:
        repo_id (`str`): The repository.
        repo_type (`str`): `"dataset"` or `"space"` (a static one).
        stage (`Callable`): Gets an empty folder and the full id of the repository; gives the card and, by their names
            in the repository, the files.
        owned (`Sequence[str]`): Patterns of names; what matches and is not pushed is deleted.
        private, revision, create_pr, token, commit_message: See `PushOptions`.

    Raises:
        PermissionError: If the token may not write there.
    """
    api = HfApi(token=token, library_name="hf_fastif", library_version=__version__)
    sdk = {"space_sdk": "static"} if repo_type == "space" else {}
    with hub_errors(repo_id, repo_type, revision), TemporaryDirectory() as folder:
        url = api.create_repo(repo_id, private=private, repo_type=repo_type, exist_ok=True, **sdk)
        where = {"repo_id": url.repo_id, "repo_type": repo_type, "revision": revision}
        if revision is not None and not create_pr and not revision.startswith("refs/"):
            api.create_branch(url.repo_id, branch=revision, repo_type=repo_type, exist_ok=True)
        card, files = stage(Path(folder), url.repo_id)
        there = set(api.list_repo_files(**where))
        if "README.md" in there:
            _keep_metadata(card, Path(api.hf_hub_download(filename="README.md", **where)))
        card.save(Path(folder) / "README.md")
        files = {**files, "README.md": Path(folder) / "README.md"}
        stale = sorted(name for name in there - set(files) if any(fnmatch(name, pattern) for pattern in owned))
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
    """Takes over what the owner of the repository has added to the metadata, such as a license."""
    for name, value in RepoCard.load(old, ignore_metadata_errors=True).data.to_dict().items():
        if card.data.get(name) is None:
            card.data[name] = value


def files_in(folder: Path) -> dict[str, Path]:
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
