"""What a published dataset does not tell: who somebody is, and what they wrote."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from pulse_hf.artifacts import ArtifactError, read_table

QUOTE_WORDS = 6
_WORD = re.compile(r"[^\W_]+")
_KEY_PREFIX = b"pulse_hf pseudonyms\0"


def pseudonyms(run: Path) -> dict[str, str]:
    """A name for every user of a run that tells nothing about the user id.

    Names are HMAC-SHA256 of the user id under a key that is the sha256 of the run's unpublished sequences, reviews
    included. The key is never stored: every artefact of the run gets the same names, so its datasets can be joined and
    a second push finds nothing new, and without the sequences nobody can go from an id to a name. Whoever *has* the
    original data can recognise people by what they chose, whatever they are called.

    Raises:
        ArtifactError: The run has no sequences, or two users would share a name.
    """
    path = run / "sequences" / "sequences.parquet"
    users = read_table(path).column("user_id").to_pylist()
    with path.open("rb") as stream:
        digest = hashlib.sha256(_KEY_PREFIX)
        while block := stream.read(2**20):
            digest.update(block)
    key = digest.digest()
    names = {user: hmac.new(key, user.encode(), hashlib.sha256).hexdigest()[:20] for user in users}
    if len(set(names.values())) < len(names):
        raise ArtifactError(f"{path}: two users would get the same pseudonym; nothing is published")
    return names


class Quotes:
    """Finds texts that repeat a person's review word by word.

    Args:
        reviews: User id to that person's reviews.
        words: So many words in a row, in any case and punctuation, are a quote.

    Example:
        >>> quotes = Quotes({"u": ["It had to help with peace and quiet, nothing else."]})
        >>> quotes.found("u", "They want help with peace and quiet."), quotes.found("u", "They like quiet.")
        (False, False)
        >>> quotes.found("u", "They said it had to help with peace and quiet.")
        True
    """

    def __init__(self, reviews: Mapping[str, Iterable[str]], words: int = QUOTE_WORDS) -> None:
        self.words = words
        self.stretches = {
            user: {stretch for text in texts for stretch in self._stretches(text)} for user, texts in reviews.items()
        }

    def found(self, user_id: str, text: str) -> bool:
        """Whether the text quotes one of the user's reviews."""
        known = self.stretches.get(user_id, set())
        return any(stretch in known for stretch in self._stretches(text))

    def _stretches(self, text: str) -> Iterable[tuple[str, ...]]:
        words = [word.lower() for word in _WORD.findall(text)]
        return (tuple(words[start : start + self.words]) for start in range(len(words) - self.words + 1))


def without_folders(value: str) -> str:
    """A model's name, where the name is a folder of this machine only its last part.

    Example:
        >>> without_folders("/home/ada/models/tiny"), without_folders("microsoft/Phi-4-mini-instruct")
        ('tiny', 'microsoft/Phi-4-mini-instruct')
    """
    path = Path(value)
    return path.name if path.is_absolute() or value.startswith(("./", "../", "~")) or path.is_dir() else value
