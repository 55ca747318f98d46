"""What the Hub's client library raises, as errors of ours: one sentence, no token in it."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from pulse_hf.artifacts import ArtifactError, DiskFullError
from pulse_hf.network_faults import BUSY, lost_on_the_way

__all__ = [
    "NoAccessError",
    "OvertakenError",
    "WrongRepoError",
    "is_passing",
    "not_writable",
    "overtaken",
    "plain_errors",
]


class NoAccessError(ConnectionError, ValueError):
    """The Hub answered, and there is nothing for whoever asks: a name, a revision or a token has to change."""


class OvertakenError(ArtifactError):
    """Somebody else changed the repo since it was read; the same command again starts from what is there now."""


class WrongRepoError(ValueError):
    """What is in the repo is not what this push may replace."""


# What the client library could not do on this machine is no silence of the Hub.
_LOCAL: dict[int | None, type[ArtifactError]] = {
    errno.ENOSPC: DiskFullError,
    errno.EDQUOT: DiskFullError,
    errno.EACCES: ArtifactError,
    errno.EPERM: ArtifactError,
    errno.EROFS: ArtifactError,
}
_LATER = (*BUSY, 412)  # all other answers from 400 to 499 stay what they are


def overtaken(repo_id: str) -> OvertakenError:
    """The error that says so."""
    return OvertakenError(
        f"{repo_id}: somebody else changed it meanwhile; nothing was pushed. Run the same command again."
    )


@contextmanager
def plain_errors(
    repo_id: str, token: str | bool | None, passing: tuple[type[Exception], ...] = (), *, writing: bool = False
) -> Iterator[None]:
    """Errors of the client library as ours.

    Args:
        repo_id: What is asked for; every sentence names it.
        token: The token that is asked with; it is in no sentence.
        passing: Errors that the caller knows how to take.
        writing: Whether something is to be written there, so that a refusal is the token's.
    """
    try:
        yield
    except Exception as error:
        from huggingface_hub import errors

        if isinstance(error, (ArtifactError, NoAccessError, WrongRepoError, *passing)):
            raise
        if not isinstance(error, OSError | ValueError | errors.HfHubHTTPError) and not lost_on_the_way(error):
            raise
        text = _without_tokens(" ".join(str(error).split()), token)
        status = _status(error)
        if status == 412:
            raise overtaken(repo_id) from None
        if isinstance(error, OSError) and error.errno in _LOCAL:
            raise _LOCAL[error.errno](f"{repo_id}: {type(error).__name__}: {text}") from None
        no_writer = isinstance(error, errors.LocalTokenNotFoundError | errors.RepositoryNotFoundError)
        if writing and (no_writer or status in (401, 403)):
            raise NoAccessError(f"{not_writable(repo_id, token)}. ({text})") from None
        refusal = _refusal(error, status)
        if refusal:
            raise NoAccessError(f"{repo_id} {refusal}. ({text})") from None
        if isinstance(error, errors.LocalEntryNotFoundError):
            raise ConnectionError(
                f"{repo_id} is not in the cache, and the Hub is out of reach or was not to be asked. ({text})"
            ) from None
        raise ConnectionError(f"{repo_id}: {type(error).__name__}: {text}") from None


def is_passing(error: Exception) -> bool:
    """Whether the Hub answered that it cannot now, or a large file broke off on the way."""
    status = _status(error)
    broke_off = type(error) is RuntimeError and lost_on_the_way(error)
    return broke_off or (status is not None and (status >= 500 or status in BUSY))


def _status(error: BaseException | None) -> int | None:
    """The answer's status; of an error that another one led to, that one's."""
    while error is not None:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status is not None:
            return int(status)
        error = error.__cause__
    return None


def not_writable(repo_id: str, token: str | bool | None) -> str:
    """The sentence for whoever may not push there."""
    from huggingface_hub import get_token

    if isinstance(token, str) or get_token():
        return f"this token may not write to {repo_id}; log in with one that may (hf auth login), or name another repo"
    return f"nobody is logged in who may write to {repo_id}; log in with a token that may (hf auth login)"


def _refusal(error: Exception, status: int | None) -> str:
    from huggingface_hub import errors

    refusals = {
        errors.GatedRepoError: "is gated: ask its owner for access, then log in",
        errors.RepositoryNotFoundError: "does not exist, or is private and no token that may read it was given",
        errors.RevisionNotFoundError: "has no such revision",
    }
    for kind, sentence in refusals.items():
        if isinstance(error, kind):
            return sentence
    if status in (401, 403):
        return "may not be read with this token, or without one"
    return "is refused by the Hub" if status is not None and 400 <= status < 500 and status not in _LATER else ""


def _without_tokens(text: str, token: str | bool | None) -> str:
    from huggingface_hub import get_token

    for secret in (token, get_token()):
        if isinstance(secret, str) and secret:
            text = text.replace(secret, "***")
    return text
