"""Words as models read them: cleaned texts of people and shops, and the one line that stands for an item."""

from __future__ import annotations

import html
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

from pulse_hf.schema import Item

MAX_TEXT_CHARS = 10_000  # ours: the longest review or description that is kept; prompts use a few dozen words of it
MAX_TITLE_CHARS = 300  # ours
FALLBACK_TITLE_WORDS = 8  # ours: words of the description that stand for a missing title

# A tag, a comment or doctype, a chat model's control token, or a tag that was torn off at the end of the
# text (Amazon's scraped titles are such torn tags). "I <3 it" and "a < b" are words and stay.
_MARKUP = re.compile(
    r"</?[A-Za-z][^<>]*>|<![^<>]*>|<\|[^<>|]{0,64}\|>|</?[A-Za-z][\w-]*\s+[\w-]+\s*=[^<>]*\Z|</[A-Za-z][\w-]*\Z"
)
_SURROGATE = re.compile("[\ud800-\udfff]")
# Control characters, and characters that change what is read without being seen. A zero-width joiner
# inside an emoji belongs to the picture and stays.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u00ad\u034f\u061c\u180b-\u180f\u200b\u200c\u200e\u200f\u202a-\u202e"
    "\u2060-\u206f\ufe00-\ufe0f\ufeff\ufff9-\ufffb\U000e0000-\U000e0fff]"
    "|(?<![\u2600-\u27bf\ufe0f\U0001f000-\U0001faff])\u200d|\u200d(?![\u2600-\u27bf\U0001f000-\U0001faff])"
)
_FLAG_LETTERS = "".join(map(chr, range(0x1F1E6, 0x1F200)))
_LETTER = re.compile(r"[^\W_]")  # or digit
_PLAIN = re.compile(r"[ !-%'-;=?-~]*\Z")  # printable ASCII without "&", "<", ">"


def clean_text(text: str, repaired: Counter[str] | None = None, *, max_chars: int = MAX_TEXT_CHARS) -> str:
    r"""One line of visible words: entities unescaped once, markup and invisible characters removed.

    Args:
        text: Anything a shop or a person wrote.
        repaired: Where each kind of repair is counted, once per text; ``None`` to count nothing.
        max_chars: Longer texts are cut, never inside a character that a reader sees as one.

    Returns:
        The text in Unicode normal form C with single spaces; ``""`` if nothing readable is left.

    Example:
        >>> clean_text("Crabtree &amp; Evelyn<br />hand\u200b cream, I <3 it")
        'Crabtree & Evelyn hand cream, I <3 it'
        >>> clean_text('<span class="a-size-medium a-color-secondary"')
        ''
    """
    if not text:
        return ""
    counts: Counter[str] = Counter() if repaired is None else repaired
    cut = len(text) > MAX_TEXT_CHARS  # before all else, so that no text is too long for what follows
    text = cut_text(text, MAX_TEXT_CHARS) if cut else text
    if not _PLAIN.match(text):
        text = _cleaned(text, counts)
    text = " ".join(text.split())
    if len(text) > max_chars:  # what is read, not its markup
        text, cut = " ".join(cut_text(text, max_chars).split()), True
    if cut:
        counts["text cut"] += 1
    return text


def _cleaned(text: str, counts: Counter[str]) -> str:
    text = _counted(text, html.unescape(text), "entities unescaped", counts)
    text = without_surrogates(text, counts)
    text = _counted(text, _INVISIBLE.sub("", text), "invisible characters removed", counts)
    text = unicodedata.normalize("NFC", text)
    # A space, not nothing: "<<b>script>" must not close up into a new tag.
    return _counted(text, _MARKUP.sub(" ", text), "markup removed", counts)


def without_surrogates(text: str, repaired: Counter[str]) -> str:
    """The text with halves of surrogate pairs, which no file can store, replaced and counted."""
    return _counted(text, _SURROGATE.sub("\ufffd", text), "broken characters replaced", repaired)


def build_item(
    item_id: str,
    title: str,
    *,
    description: str = "",
    brand: str = "",
    categories: Sequence[str] = (),
    max_words: int = 64,
    repaired: Counter[str] | None = None,
) -> tuple[Item, str]:
    """The catalogue's record of one item, from whatever the shop's metadata holds.

    Args:
        item_id: The shop's id.
        title: The shop's title; may be missing or scraped markup.
        description: The shop's description.
        brand: Maker or publisher.
        categories: From the widest to the narrowest.
        max_words: Length of ``item_text`` in words; the title is kept whole.
        repaired: Where text repairs are counted.

    Returns:
        The item, and where its title is from: ``"title"``, ``"metadata"`` (brand, category, description)
        or ``"id"`` (nothing readable was found).

    Example:
        >>> build_item("7", "Soy Cream", brand="Fresh", categories=["Beauty"], description="Soft hands.")[0].item_text
        'Soy Cream. Fresh. Beauty. Soft hands.'
        >>> item, source = build_item("7", "<span class='x'", brand="Hearst", description="Good Housekeeping.")
        >>> item.title, source
        ('Hearst: Good Housekeeping.', 'metadata')
    """
    clean_title = clean_text(title, repaired, max_chars=MAX_TITLE_CHARS)
    brand = clean_text(brand, repaired, max_chars=MAX_TITLE_CHARS)
    category = _narrowest(clean_text(name, repaired, max_chars=MAX_TITLE_CHARS) for name in categories)
    words = clean_text(description, repaired).split()
    if _readable(clean_title):
        rest = [brand, category, " ".join(words)]
        return _described(item_id, clean_title, clean_title, rest, max_words), "title"
    maker = brand if _readable(brand) else category
    begin = " ".join(words[:FALLBACK_TITLE_WORDS])
    clean_title = ": ".join(part for part in (maker, begin) if _readable(part))
    if clean_title:
        # The title is the beginning of the description, which therefore goes on without a break.
        whole = " ".join([clean_title, *words[FALLBACK_TITLE_WORDS:]])
        return _described(item_id, clean_title, whole, [category], max_words), "metadata"
    return unnamed_item(item_id), "id"


def unnamed_item(item_id: str) -> Item:
    """The record of an item of which the shop says nothing."""
    return Item(item_id, f"Item {item_id}", f"Item {item_id}")


def _narrowest(categories: Iterable[str]) -> str:
    names = list(dict.fromkeys(name for name in categories if _readable(name)))
    return ", ".join(names[-2:])


def _readable(text: str) -> bool:
    return _LETTER.search(text) is not None


def _described(item_id: str, title: str, line: str, parts: Iterable[str], max_words: int) -> Item:
    for part in parts:
        if part and not _says(line, part):
            line += (" " if line[-1] in ".!?" else ". ") + part
    words = max(max_words, len(title.split()))
    return Item(item_id, title, " ".join(line.split()[:words]))


def _says(line: str, part: str) -> bool:
    # The plain test first: nearly all parts are new, and building an expression for each is slow.
    if part.casefold() not in line.casefold() and part.isascii():
        return False
    return re.search(rf"(?<!\w){re.escape(part)}(?!\w)", line, re.IGNORECASE) is not None


def _counted(before: str, after: str, kind: str, counts: Counter[str]) -> str:
    if before != after:
        counts[kind] += 1
    return after


def cut_text(text: str, max_chars: int) -> str:
    r"""The beginning of a text, never with a part of what a reader sees as one character.

    >>> cut_text("cafe\u0301", 4), cut_text("go \U0001f1e9\U0001f1ea", 4)
    ('caf', 'go ')
    """
    if len(text) <= max_chars:
        return text
    limit = max_chars
    while limit > 0 and (_joins(text[limit]) or text[limit - 1] == "\u200d" or _halves_flag(text, limit)):
        limit -= 1
    return text[:limit]


def _halves_flag(text: str, limit: int) -> bool:
    """Whether a cut would leave one of the two letters that make a flag."""
    letters = limit - len(text[:limit].rstrip(_FLAG_LETTERS))
    return letters % 2 == 1 and text[limit] in _FLAG_LETTERS


def _joins(character: str) -> bool:
    return (
        unicodedata.category(character) in ("Mn", "Mc", "Me")
        or character == "\u200d"
        or "\U0001f3fb" <= character <= "\U0001f3ff"
    )
