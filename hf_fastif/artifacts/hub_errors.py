"""What the Hub refuses, said so that the fix can be seen."""

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
    """Turns the errors of `huggingface_hub` into ones that name the argument. A token is in none of them.

    Raises:
        FileNotFoundError: If the repository, the revision or a file is not there.
        PermissionError: If the token may not do it.
        ValueError: If `repo_id` is no id.
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
            "does not open it; check the id, or log in with `hf auth login`."
        ) from error
    except EntryNotFoundError as error:
        raise NotFoundError(
            f"repo_id={repo_id!r}: the {repo_type} repository does not hold what is looked for ({error})."
        ) from error
    except HfHubHTTPError as error:
        if error.response.status_code not in (401, 403):
            raise
        raise NotAllowedError(
            f"repo_id={repo_id!r}: your token may not do that there; log in with `hf auth login` as somebody who may, "
            "or to write give a repository of your own, or create_pr=True."
        ) from error
