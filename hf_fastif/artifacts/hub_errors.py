"""Explain errors of the Hub by the argument that caused them and its fix."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from hf_fastif.errors import InfluenceError, NotAllowedError, NotFoundError


@contextmanager
def hub_errors(repo_id: str, repo_type: str, revision: str | None) -> Iterator[None]:
    """Turn errors of `huggingface_hub` into ones that name the argument and never contain a token.

    Raises:
        NotFoundError: If the repository, the revision or a file does not exist.
        NotAllowedError: If the token has no permission.
        InfluenceError: If `repo_id` is not a valid id.
    """
    try:
        yield
    except HFValidationError as error:
        raise InfluenceError(
            f"repo_id={repo_id!r}: neither a folder nor the id of a repository, such as 'me/influences'."
        ) from error
    except RevisionNotFoundError as error:
        raise NotFoundError(f"revision={revision!r}: {repo_id} has no such branch, tag or commit.") from error
    except RepositoryNotFoundError as error:
        raise NotFoundError(
            f"repo_id={repo_id!r}: there is no such {repo_type} repository, or it is private or gated and your token "
            "has no access; check the id, or log in with `hf auth login`."
        ) from error
    except EntryNotFoundError as error:
        raise NotFoundError(
            f"repo_id={repo_id!r}: the {repo_type} repository does not have this file; check repo_id and revision "
            f"({error})."
        ) from error
    except HfHubHTTPError as error:
        if error.response.status_code not in (401, 403):
            raise
        raise NotAllowedError(
            f"repo_id={repo_id!r}: your token has no permission for this; log in with `hf auth login` as a user with "
            "permission; to write, give a repository of your own or create_pr=True."
        ) from error
