"""From what a model wrote to a reason, or to a named failure; nothing is dropped silently.

A reason is what follows the marker ``Reason:``, as one line. Small slips are forgiven (Markdown,
quotes, a fence, an unfinished last sentence); the rest fails with one of :data:`Status`, and the
caller keeps the raw text beside the status.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import cache
from typing import Literal

from pulse_hf.reasoning.generator import Generation
from pulse_hf.reasoning.prompts import TEMPLATES, template

Status = Literal["ok", "empty", "no_marker", "echo", "looping", "cut", "too_long"]
MAX_WORDS = 100
MAX_CHARS = 2_000  # a "word" may be of any length, and some scripts have no spaces

_CLOSED = "</think>"
_THINKING = re.compile(r"<think>.*?</think>", re.DOTALL)
_TAG = re.compile(r"</?[A-Za-z][^<>\n]{0,80}>")
_WRAPPING = r"\s>#*_`~\"'“”‘’«»\-"
MARKER = re.compile(rf"^[{_WRAPPING}]*(?:```\w*\s*)?reason[{_WRAPPING}]*[:：][{_WRAPPING}]*", re.IGNORECASE)
SECOND_MARKER = re.compile(r"\bReason[*_`]*\s*[:：]")
_SENTENCE_END = re.compile(r"[.!?…。！？][\"'”’)\]]*(?=\s|$)")
_WORD = re.compile(r"[^\W_]+")
_ECHO_WORDS = 7
_MIN_SENTENCE_WORDS = 4


@dataclass(frozen=True, slots=True)
class Parsed:
    """What became of one generated text.

    Args:
        status: ``ok``, or why there is no reason.
        text: The reason on one line; ``""`` unless the status is ``"ok"``.
        repaired: The end was trimmed to the last full sentence, or to the first of several reasons.
    """

    status: Status
    text: str = ""
    repaired: bool = False


def parse_reason(generation: Generation) -> Parsed:
    """Read one generated text.

    Example:
        >>> parse_reason(Generation("**Reason:** They like quiet things."))
        Parsed(status='ok', text='They like quiet things.', repaired=False)
        >>> parse_reason(Generation("I think they like quiet things.")).status
        'no_marker'
    """
    written = _plain(generation.text)
    if not written:
        return Parsed("empty")
    marker = MARKER.match(written)
    if marker is None:
        return Parsed("echo" if _echoes(written) else "no_marker")
    first = SECOND_MARKER.split(written[marker.end() :], maxsplit=1)
    text = _one_line(first[0])
    if not text:
        return Parsed("empty")
    if _echoes(text):
        return Parsed("echo")
    if not generation.quoted and loops(text):  # a person who wrote the same word four times did
        return Parsed("looping")
    repaired = len(first) > 1
    if generation.finish == "length" and not repaired:
        finished = _finished(text)
        if finished is None:
            return Parsed("cut")
        repaired, text = finished != text, finished
    if len(text.split()) > MAX_WORDS or len(text) > MAX_CHARS:
        return Parsed("too_long")
    return Parsed("ok", text, repaired)


def _plain(text: str) -> str:
    """Without thinking blocks, tags, control and invisible characters."""
    # Only as far as blocks are closed: every block without an end would be searched to the end of the text.
    end = text.rfind(_CLOSED) + len(_CLOSED) if _CLOSED in text else 0
    text = _TAG.sub(" ", _THINKING.sub(" ", text[:end]) + text[end:])
    kept = (" " if char.isspace() else "" if unicodedata.category(char)[0] == "C" else char for char in text)
    return "".join(kept).strip()


def _one_line(text: str) -> str:
    text = re.sub(r"\s+", " ", text.replace("**", "").replace("`", "")).strip(' *_#"“”«»')
    # A closing quote went with its opening one above; apostrophes inside words stay.
    return text.strip("'‘’").strip() if _WORD.search(text) else ""


def _finished(text: str) -> str | None:
    """The text up to its last full sentence, ``None`` if there is none worth keeping."""
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    if not ends or len(text[: ends[-1]].split()) < _MIN_SENTENCE_WORDS:
        return None
    return text[: ends[-1]]


def loops(text: str) -> bool:
    """Whether some words come again and again in a row, or hardly any word is new.

    Example:
        >>> loops("peace and quiet and quiet and quiet and quiet"), loops("a very, very quiet home")
        (True, False)
    """
    words = [word.lower() for word in _WORD.findall(text)]
    for size in range(1, 13):
        needed = 4 if size == 1 else 3
        run = size
        for place in range(size, len(words)):
            run = run + 1 if words[place] == words[place - size] else size
            if run >= size * needed:
                return True
    return len(words) >= 30 and len(set(words)) < 0.3 * len(words)


def _echoes(text: str) -> bool:
    """Whether the text copies a stretch of an instruction."""
    words = [word.lower() for word in _WORD.findall(text)]
    return any(tuple(words[start : start + _ECHO_WORDS]) in _instructions() for start in range(len(words)))


@cache
def _instructions() -> frozenset[tuple[str, ...]]:
    stretches = set()
    for name in TEMPLATES:
        for part in re.split(r"\{\w+\}", template(name)):
            words = [word.lower() for word in _WORD.findall(part)]
            stretches |= {tuple(words[start : start + _ECHO_WORDS]) for start in range(len(words) - _ECHO_WORDS + 1)}
    return frozenset(stretches)
