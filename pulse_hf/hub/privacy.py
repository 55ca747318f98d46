"""What a published dataset does not tell: who somebody is, and what they wrote."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pulse_hf.artifacts import ArtifactError, read_table

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

QUOTE_WORDS = 6
_SHORT = 4  # words; a whole sentence of fewer tells nothing of a person ("Love it.")
_SENTENCE_END = re.compile(r"[.!?\n。．！？｡]+")
# Scripts that put no space between words (Han, kana, Thai, Lao, Burmese, Khmer): there each letter counts as a word.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\uff66-\uff9d\U00020000-\U0003ffff"
)
_WORD = re.compile(rf"[{_UNSPACED}]|(?:(?![{_UNSPACED}])[^\W_])+")
_STREET = "Street|St|Avenue|Ave|Road|Rd|Lane|Ln|Drive|Dr|Boulevard|Blvd|Court|Ct|Terrace|Highway|Hwy"
# In this order: an address of the web may hold digits, an order number looks like a telephone number.
_CONTACTS = {
    "e-mail": re.compile(
        r"(?<![\w.+-])[\w.+-]+\s?(?:@|[\[(]at[\])])\s?[\w-]+(?:\.[a-z]{2,}|\s?[\[(]dot[\])]\s?[a-z]{2,})+",
        re.IGNORECASE,
    ),
    "address of the web": re.compile(r"(?:https?://|www\.)\S+[\w/]", re.IGNORECASE),
    "order number": re.compile(
        r"\b\d{3}-\d{7}-\d{7}\b|(?<=\border )(?:(?:no\.?|number|id)\s?)?[#:]?\s?(?=[\w-]*\d)[A-Z\d-]{5,}\b",
        re.IGNORECASE,
    ),
    "street": re.compile(rf"\b\d{{1,5}}\s+(?:[NSEW]\.?\s+)?(?:[A-Z][a-z]+\s+){{1,3}}(?:{_STREET})\b\.?"),
    "telephone number": re.compile(
        r"(?<![\w.,$-])(?:\+\d{1,3}[\s.-]?)?(?:\(\d{2,4}\)|\d{2,4})(?:[\s./-]\d{2,4}){1,4}(?![\w-]|[.,]\d)"
    ),
    "number": re.compile(r"(?<!\w)(?:\d[ -]?){8,}\d(?!\w)"),
}
_DATE = re.compile(r"(?:19|20)\d\d([-/.])\d{1,2}\1\d{1,2}|\d{1,2}([-/.])\d{1,2}\2(?:19|20)\d\d")
_PHONE_DIGITS = range(7, 16)
_KEY_PREFIX = b"pulse_hf pseudonyms\0"


def pseudonyms(run: Path) -> dict[str, str]:
    """A name for every user of a run that tells nothing about the user id.

    Names are HMAC-SHA256 of the user id under a key that is the sha256 of the run's unpublished sequences, reviews
    included. The key is never stored: every artefact of the run gets the same names, so its datasets can be joined and
    a second push finds nothing new, and from a name alone nobody gets to an id. Whoever *has* the original data can
    recognise people by what they chose, whatever they are called. And whoever has a list of user ids can test each of
    them: what is drawn for a person (candidates, texts) and the order of events of one time come from hashes of the id
    that anybody can compute. Where that matters, prepare a file whose user ids mean nothing elsewhere.

    Raises:
        ArtifactError: The run has no sequences, or two users would share a name.
    """
    path = run / "sequences" / "sequences.parquet"
    users = read_table(path).column("user_id").to_pylist()
    with path.open("rb") as stream:
        key = hashlib.file_digest(stream, lambda: hashlib.sha256(_KEY_PREFIX)).digest()
    names = {user: hmac.new(key, user.encode(), hashlib.sha256).hexdigest()[:20] for user in users}
    if len(set(names.values())) < len(names):
        raise ArtifactError(f"{path}: two users would get the same pseudonym; nothing is published")
    return names


def content_order(vectors: NDArray[np.float32], rows: Iterable[Iterable[int]]) -> list[int]:
    """Places of people in an order that comes from what is told of them and from nothing else.

    A run's own order is one of user ids: whoever has these could read off who is who.

    Args:
        vectors: ``(people, dim)``.
        rows: Each one's items.

    Example:
        >>> import numpy as np
        >>> vectors, rows = np.eye(3, dtype=np.float32), [[1, 2], [3], [1]]
        >>> order = content_order(vectors, rows)
        >>> again = content_order(vectors[order], [rows[place] for place in order])
        >>> sorted(order), again
        ([0, 1, 2], [0, 1, 2])
    """
    keys = [
        hashlib.sha256(f"{list(row)}".encode() + vector.tobytes()).digest()
        for vector, row in zip(vectors, rows, strict=True)
    ]
    return sorted(range(len(keys)), key=keys.__getitem__)


class Quotes:
    """Finds texts that repeat a person's review word by word.

    Args:
        reviews: User id to that person's reviews.
        words: So many words in a row, in any case and punctuation, are a quote; so is a whole sentence of a review
            that has fewer, but at least four. In scripts without spaces between words a letter counts as one.

    Example:
        >>> quotes = Quotes({"u": ["It had to help with peace and quiet, nothing else."]})
        >>> quotes.found("u", "They want help with peace and quiet."), quotes.found("u", "They like quiet.")
        (False, False)
        >>> quotes.found("u", "They said it had to help with peace and quiet.")
        True
        >>> Quotes({"u": ["My husband Bob snores. Great."]}).found("u", "They said: my husband Bob snores.")
        True
    """

    def __init__(self, reviews: Mapping[str, Iterable[str]], words: int = QUOTE_WORDS) -> None:
        self.words = words
        self._reviews = reviews
        self._last: tuple[str, set[tuple[str, ...]]] = ("", set())

    def found(self, user_id: str, text: str) -> bool:
        """Whether the text quotes one of the user's reviews."""
        if self._last[0] != user_id:  # one person at a time: of all people they would fill the memory
            reviews = self._reviews.get(user_id, ())
            self._last = user_id, {stretch for review in reviews for stretch in self._quotable(review)}
        known, words = self._last[1], _words(text)
        return any(
            stretch in known
            for size in {*range(_SHORT, self.words), self.words}
            for stretch in _stretches(words, size)
        )

    def _quotable(self, review: str) -> Iterable[tuple[str, ...]]:
        yield from _stretches(_words(review), self.words)
        for sentence in map(_words, _SENTENCE_END.split(review)):
            if _SHORT <= len(sentence) < self.words:
                yield tuple(sentence)


def _words(text: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(text)]


def _stretches(words: list[str], size: int) -> Iterable[tuple[str, ...]]:
    return (tuple(words[start : start + size]) for start in range(len(words) - size + 1))


def redacted(text: str, found: Counter[str]) -> str:
    """A text without what leads to a person: addresses, telephone and order numbers, long numbers.

    Names are not found: no pattern tells them from those of makers and scents.

    Args:
        text: Words of a person, or of a model that read them.
        found: Counts what was replaced, by kind.

    Example:
        >>> found = Counter()
        >>> redacted("Write to jo.b@mail.example or call (555) 010-4477, size 10-12.", found)
        'Write to [e-mail] or call [telephone number], size 10-12.'
        >>> dict(found)
        {'e-mail': 1, 'telephone number': 1}
    """

    def mark(kind: str, match: re.Match[str]) -> str:
        digits = sum(letter.isdigit() for letter in match[0])
        if kind == "telephone number" and (digits not in _PHONE_DIGITS or _DATE.fullmatch(match[0])):
            return match[0]
        found[kind] += 1
        return f"[{kind}]"

    for kind, pattern in _CONTACTS.items():
        text = pattern.sub(partial(mark, kind), text)
    return text


def without_folders(value: str) -> str:
    """A model's name; of what is a folder or file of this machine only the last part.

    Example:
        >>> without_folders("/home/ada/models/tiny"), without_folders("microsoft/Phi-4-mini-instruct")
        ('tiny', 'microsoft/Phi-4-mini-instruct')
    """
    path = Path(value)
    return path.name if path.is_absolute() or value.startswith(("./", "../", "~")) or path.exists() else value
