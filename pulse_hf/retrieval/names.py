"""What people type, found in the catalogue: item ids, titles that it has, and titles that it does not have."""

from __future__ import annotations

import math
import unicodedata
from collections import ChainMap
from collections.abc import Iterable, Mapping, MutableMapping, Set
from collections.abc import Sequence as Series
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any

from pulse_hf.data.item_text import MAX_TITLE_CHARS, clean_text
from pulse_hf.schema import Item, Sequence

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ALIKE = 0.5  # cosine from which an unknown title counts as like a known item

__all__ = ["Event", "Names", "Title", "typed_text"]


class Title(str):
    """A text that somebody typed as a title: where one item is called so and another has it as its id, the first.

    A plain text is an id before it is a title: ids are the key, and whoever gives back an id that the catalogue, a
    recommendation or ``history_of`` told means that item, whatever another one is called.

    Example:
        >>> import numpy as np
        >>> films = {"7": Item("7", "300", "300"), "300": Item("300", "Se7en", "Se7en")}
        >>> Names(films, np.zeros((2, 3), np.float32), "none is asked").found(["300", Title("300")], dict(films))
        ['300', '7']
    """

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Event:
    """One thing a person did.

    Args:
        item: An item id of the catalogue, or any title (:class:`Title` where it is a title before it is an id).
        rating: Stars of five, whatever scale the shop's own file has; ``None`` or NaN where unknown.
        review: The person's own words, if any; reasons are drawn from them.
    """

    item: str
    rating: float | None = None
    review: str | None = ""


class Names:
    """Item ids and titles of a catalogue.

    Args:
        items: By item id, in catalogue order.
        vectors: ``(num_items, dim)`` unit vectors of the item texts, in that order.
        encoder: Name of the encoder that made them.
    """

    def __init__(self, items: dict[str, Item], vectors: NDArray[np.float32], encoder: str) -> None:
        self.items, self.vectors, self.encoder = items, vectors, encoder
        self.ids = list(items)
        self._titles = _by_title(items)
        self._index = {item_id: index for index, item_id in enumerate(items, start=1)}

    def read(self, history: Series[str | Event]) -> tuple[Sequence, MutableMapping[str, Item]]:
        """A history as a sequence, and the catalogue with whatever it names beyond.

        Args:
            history: Oldest first: item ids, titles (known or not), or events with words, which are cleaned.

        Raises:
            ValueError: It is not a list, an item is empty, a rating is not a number, or a review is not a string.
        """
        listed = _listed(history, "item ids, titles or events")
        events = [event if isinstance(event, Event) else Event(event) for event in listed]
        items: MutableMapping[str, Item] = ChainMap({}, self.items)  # no copy: it is as large as the shop
        ids = tuple(self.found([event.item for event in events], items))
        ratings = tuple(_stars(event.rating) for event in events)
        reviews = tuple(typed_text(event.review, "a review") for event in events)
        return Sequence("", ids, (), ratings, reviews), items

    def found(self, names: Series[str], items: MutableMapping[str, Item]) -> list[str]:
        """Item ids of ids or titles; a title outside the catalogue becomes, cleaned, an item of its own.

        What is both is an id, of a :class:`Title` a title. Ids are taken exactly as they are, titles also as the shop
        wrote them before the pipeline cleaned them.

        Args:
            names: Ids or titles.
            items: The catalogue, to which new items are added.

        Raises:
            ValueError: It is not a list of strings, or one is empty.
        """
        listed = _listed(names, "item ids or titles")
        other = [name for name in listed if not isinstance(name, str)]
        if other:
            raise ValueError(f"found {other[0]!r} as an item, expected an item id or a title as a text, such as '17'")
        found = []
        for name in listed:
            known = name in items and not isinstance(name, Title)
            item_id = str(name) if known else self._titled(name)
            if not item_id:
                raise ValueError(f"an item is empty: found {name!r}, expected an item id or a title")
            items.setdefault(item_id, Item(item_id, item_id, item_id))
            found.append(item_id)
        return found

    def _titled(self, name: str) -> str:
        """The id of the item of this title, else the title that a new item has; ``""`` if nothing of it is readable.

        As it stands first: a title of the catalogue is clean, and what a shop escaped twice would be cleaned on.
        """
        for title in (name, clean_text(name, max_chars=MAX_TITLE_CHARS)):
            if _spelling(title) in self._titles:
                return self._titles[_spelling(title)]
        return clean_text(name)

    def best(self, scores: NDArray[Any], count: int, without: Iterable[str]) -> list[str]:
        """Ids of the items with the largest scores, largest first, equal ones in catalogue order.

        Args:
            scores: One for each item of the catalogue, in its order.
            count: How many at most.
            without: Ids that are left out.
        """
        import numpy as np

        kept = np.ones(len(self.ids), dtype=bool)
        kept[[self._index[item_id] - 1 for item_id in without if item_id in self._index]] = False
        places = np.flatnonzero(kept)
        if count < len(places):  # sorting the whole shop would take longer than all the rest
            least = np.partition(scores[places], -count)[-count]
            places = places[scores[places] >= least]
        order = np.argsort(-scores[places], kind="stable")[:count]
        return [self.ids[place] for place in places[order].tolist()]

    def stand_ins(self, item_ids: Iterable[str], items: Mapping[str, Item]) -> list[int]:
        """Catalogue indices, from 1, for a sequential model; an unknown title lends the place to its nearest item.

        Args:
            item_ids: Ids in order; an unknown one that no item is like is left out.
            items: What :meth:`read` returned beside them.
        """
        from pulse_hf.models.text_encoder import encode_texts

        ids = list(item_ids)
        unknown = [item_id for item_id in ids if item_id not in self._index]
        nearest: dict[str, int] = {}
        if unknown:
            vectors = encode_texts([items[item_id].item_text for item_id in unknown], self.encoder)
            similarity = vectors @ self.vectors.T
            best = similarity.argmax(axis=1)
            nearest = {
                item_id: int(place) + 1
                for item_id, place, row in zip(unknown, best, similarity, strict=True)
                if row[place] >= ALIKE
            }
        return [
            self._index.get(item_id, nearest.get(item_id, 0))
            for item_id in ids
            if item_id in self._index or item_id in nearest
        ]


def _listed(names: Any, of_what: str) -> list[Any]:
    """Whatever gives one thing after another, in an order that means something; no table and no file does."""
    unordered = isinstance(names, (str, bytes, Mapping, Set)) or hasattr(names, "columns") or hasattr(names, "read")
    if unordered or not isinstance(names, Iterable):
        raise ValueError(f"found {names!r:.200}, expected a list, in order, of {of_what}")
    return list(names)


def typed_text(text: object, what: str) -> str:
    """Words that somebody typed, cleaned as the pipeline cleans those that models are fitted on.

    Args:
        text: What was given; ``None`` or NaN for no words.
        what: What to call it in a refusal.

    Raises:
        ValueError: It is not a string.

    Example:
        >>> typed_text("so <b>quiet</b> &amp; light", "a review")
        'so quiet & light'
    """
    if text is None or (isinstance(text, float) and math.isnan(text)):  # NaN is how tables say that there is none
        return ""
    if not isinstance(text, str):
        raise ValueError(f"{what} is {text!r}; expected a text, or None for none")
    return clean_text(text)


def _stars(rating: object) -> float | None:
    """A rating as prompts show it; NaN is how tables say that there is none."""
    if rating is None:
        return None
    if isinstance(rating, bool) or not isinstance(rating, Real):
        raise ValueError(f"a rating is {rating!r}; expected a number of stars, or None for none")
    stars = float(rating)
    if math.isnan(stars):
        return None
    if not 0 <= stars <= 5:
        raise ValueError(
            f"a rating is {rating!r}; expected stars of five, from 0 to 5: of ten stars give half as many"
        )
    return stars


def _by_title(items: Mapping[str, Item]) -> dict[str, str]:
    """Item ids by title as it is looked up; of several items with one title the second one is ``title (#2)``."""
    bearers: dict[str, list[str]] = {}
    for item_id, item in items.items():
        bearers.setdefault(_spelling(item.title), []).append(item_id)
    numbered = {
        f"{title} (#{number})": item_id
        for title, item_ids in bearers.items()
        for number, item_id in enumerate(item_ids[1:], start=2)
    }
    return numbered | {title: item_ids[0] for title, item_ids in bearers.items()}


def _spelling(title: str) -> str:
    """A title as it is looked up: the catalogue's are in normal form C, typed ones need not be."""
    return unicodedata.normalize("NFC", title).strip().casefold()
