"""What is asked of a repo of the Hub before anything is sent: its name, its head, its card, and who may write."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pulse_hf.hub.refusals import NoAccessError, WrongRepoError, not_writable, plain_errors

if TYPE_CHECKING:
    from huggingface_hub import HfApi

RepoType = Literal["model", "dataset", "space"]


def is_repo_id(name: str) -> bool:
    """Whether a text has the form ``owner/name``.

    Example:
        >>> is_repo_id("alice/my-shop"), is_repo_id("runs/demo/recommender"), is_repo_id("my shop")
        (True, False, False)
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return name.count("/") == 1


def require_repo_id(name: str) -> None:
    """Refuse a string that is not a repo id.

    Raises:
        ValueError: It has not the form ``owner/name``.
    """
    if not is_repo_id(name):
        raise ValueError(f"{name!r} is not a Hub repo id; expected owner/name, of letters, digits, '-', '_' and '.'")


def require_writable(
    repo_id: str, repo_type: RepoType, *, private: bool | None = None, token: str | None = None
) -> None:
    """Ask the Hub before something is made for it whether it may be pushed there.

    Raises:
        ValueError: ``repo_id`` is not of the form ``owner/name``, or the repo is public and should be private.
        NoAccessError: The token may not write there.
        ConnectionError: The Hub could not be reached.
    """
    from huggingface_hub import HfApi, errors

    require_repo_id(repo_id)
    api = HfApi(token=token)
    with plain_errors(repo_id, token, writing=True):
        try:
            api.auth_check(repo_id, repo_type=repo_type, write=True)
        except errors.HfHubHTTPError as error:
            if error.response.status_code != 404:
                raise
            # There is no such repo yet: a new one takes a token that may write somewhere.
            if api.whoami().get("auth", {}).get("accessToken", {}).get("role") == "read":
                raise NoAccessError(not_writable(repo_id, token)) from None
        if private:
            refuse_public(api, repo_id, repo_type)


def refuse_public(api: HfApi, repo_id: str, repo_type: RepoType) -> None:
    """See that a repo is private, or does not exist yet.

    Raises:
        WrongRepoError: It is public.
    """
    from huggingface_hub import errors

    try:
        info: Any = api.repo_info(repo_id, repo_type=repo_type)
    except errors.RepositoryNotFoundError:  # it will be made, private
        return
    if not info.private:
        raise WrongRepoError(
            f"{repo_id} is public, and --private (private=True) is for new repos; nothing was pushed. Make it private "
            "in its settings on the Hub, name another repo, or push without it."
        )


def head_of(repo_id: str, repo_type: RepoType, *, revision: str | None = None, token: str | None = None) -> str | None:
    """The newest commit of a branch, of ``main`` for one that is not there; ``None`` if there is no repo yet."""
    from huggingface_hub import HfApi, errors

    require_repo_id(repo_id)
    passing = (errors.RepositoryNotFoundError, errors.RevisionNotFoundError)
    try:
        with plain_errors(repo_id, token, passing):
            info: Any = HfApi(token=token).repo_info(repo_id, repo_type=repo_type, revision=revision)
    except errors.RepositoryNotFoundError:
        return None
    except errors.RevisionNotFoundError:
        return head_of(repo_id, repo_type, token=token) if revision else None
    return str(info.sha)


def card_of(repo_id: str, repo_type: RepoType, *, revision: str | None = None, token: str | None = None) -> str:
    """The text of a repo's ``README.md``; ``""`` if there is no repo or no card yet."""
    from huggingface_hub import errors, hf_hub_download

    try:
        with plain_errors(repo_id, token, passing=(errors.EntryNotFoundError, errors.RepositoryNotFoundError)):
            path = hf_hub_download(repo_id, "README.md", repo_type=repo_type, revision=revision, token=token)
    except (errors.EntryNotFoundError, errors.RepositoryNotFoundError):
        return ""
    return Path(path).read_text(encoding="utf-8")
