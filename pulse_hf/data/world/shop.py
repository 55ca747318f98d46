"""The embedded synthetic shop: people whose motives are known choose items and say why.

A title is brand, two features and a kind of thing ("Norvik Foldable Bamboo Kettle"). A feature serves
one motive fully and another one half, so every item serves several motives and no title names one.
Each user has a first and a second motive. At every step one of the two is at work, and one item is
chosen with probability proportional to ``exp(utility)``:

    utility = motive * served(item, motive at work) + popularity * pop(item) + sequence * same domain(last item, item)

The three weights are the knobs. The review shows the motive at work in words, most of the time; it may
also quote somebody else's motive, or say nothing of interest. The truth is kept beside the log.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

DAY_S = 86_400
FIRST_DAY_S = 1_600_000_000


@dataclass(frozen=True)
class WorldSettings:
    """Size and knobs of the embedded world (all ours).

    Args:
        num_users: People.
        items_per_kind: Items of each kind of thing; there are 40 kinds in 4 domains.
        min_events: Fewest choices of a person.
        max_events: Most choices of a person.
        motive: Weight of the motive at work; 0 leaves only popularity and sequence.
        popularity: Weight of an item's popularity, a standard normal draw.
        sequence: Weight of staying in the last item's domain.
        first_motive_share: How often the first motive is at work, the second one otherwise.
        own_words: How often a review names the motive at work.
        others_words: How often it quotes somebody else's motive.
    """

    num_users: int = 1_500
    items_per_kind: int = 8
    min_events: int = 6
    max_events: int = 10
    motive: float = 5.0
    popularity: float = 0.7
    sequence: float = 1.5
    first_motive_share: float = 0.85
    own_words: float = 0.8
    others_words: float = 0.25


@dataclass(frozen=True)
class Lexicon:
    """The words of a world: what motives are called, which features serve them, how reviews are phrased.

    Args:
        motives: Names.
        phrases: For each motive, the ways to say it.
        features: For each motive, the title words that serve it.
        second_motive_shift: Feature ``j`` of motive ``m`` also half serves motive ``m + shift[j]``.
        domains: Each domain's kinds of things.
        brands: Made-up names.
        own, other, plain: Review sentences; ``{phrase}`` is filled.
    """

    motives: tuple[str, ...]
    phrases: tuple[tuple[str, ...], ...]
    features: tuple[tuple[str, ...], ...]
    second_motive_shift: tuple[int, ...]
    domains: tuple[tuple[str, tuple[str, ...]], ...]
    brands: tuple[str, ...]
    own: tuple[str, ...]
    other: tuple[str, ...]
    plain: tuple[str, ...]


@dataclass(frozen=True)
class World:
    """A generated shop with its truth.

    Args:
        reviews: One dict per event: user_id, item_id, timestamp, rating, review.
        items: One dict per item: item_id, title.
        truth: JSON-able: ``motives`` (name to phrases), ``motive_names`` in their order,
            ``users`` (first and second motive of each, by index),
            ``events`` (name of the motive at work in each event), and what is needed to compute every
            choice's true probability.
    """

    reviews: list[dict[str, Any]]
    items: list[dict[str, str]]
    truth: dict[str, Any]


@cache
def _raw() -> dict[str, Any]:
    text = resources.files(__package__).joinpath("lexicon.json").read_text(encoding="utf-8")
    return dict(json.loads(text))


def full_lexicon() -> Lexicon:
    """Every motive, domain and sentence: the lexicon of the demo world."""
    return _lexicon(_raw(), lambda kind, index, name: True)


def training_lexicon() -> Lexicon:
    """What pulse-nano may see: without the held-out motives, domain and sentences."""
    raw = _raw()
    held_templates = raw["held_out_templates"]

    def allowed(kind: str, index: int, name: str) -> bool:
        if kind == "motive":
            return name not in raw["held_out_motives"]
        if kind == "domain":
            return name != raw["held_out_domain"]
        return index not in held_templates[kind]

    return _lexicon(raw, allowed)


def held_out_motives() -> tuple[str, ...]:
    """Motives of the demo world that pulse-nano never saw."""
    return tuple(_raw()["held_out_motives"])


def _lexicon(raw: Mapping[str, Any], allowed: Any) -> Lexicon:
    motives = [name for index, name in enumerate(raw["motives"]) if allowed("motive", index, name)]
    sentences = {
        kind: tuple(text for index, text in enumerate(raw["templates"][kind]) if allowed(kind, index, text))
        for kind in ("own", "other", "plain")
    }
    return Lexicon(
        motives=tuple(motives),
        phrases=tuple(tuple(raw["motives"][name]["phrases"]) for name in motives),
        features=tuple(tuple(raw["motives"][name]["features"]) for name in motives),
        second_motive_shift=tuple(raw["second_motive_shift"]),
        domains=tuple(
            (name, tuple(kinds))
            for index, (name, kinds) in enumerate(raw["domains"].items())
            if allowed("domain", index, name)
        ),
        brands=tuple(raw["brands"]),
        **sentences,
    )


@dataclass(frozen=True)
class Catalogue:
    """Items of a world as arrays: what utilities are computed from.

    Args:
        titles: One per item.
        served: ``(num_items, num_motives)`` in [0, 1], how well each item serves each motive.
        kind: ``(num_items,)`` index of the kind of thing.
        domain: ``(num_items,)`` index of the domain.
        features: For each item, its two ``(motive, feature)`` index pairs.
        pop: ``(num_items,)`` standard normal popularity.
    """

    titles: list[str]
    served: NDArray[np.float64]
    kind: NDArray[np.int64]
    domain: NDArray[np.int64]
    features: list[tuple[tuple[int, int], tuple[int, int]]]
    pop: NDArray[np.float64]


def make_catalogue(lexicon: Lexicon, items_per_kind: int, rng: np.random.Generator) -> Catalogue:
    """Draw the items of a shop; titles are distinct."""
    num_motives = len(lexicon.motives)
    titles: list[str] = []
    served, kinds, domains, features = [], [], [], []
    seen: set[str] = set()
    kind = 0
    for domain, (_, names) in enumerate(lexicon.domains):
        for name in names:
            wanted = len(titles) + items_per_kind
            while len(titles) < wanted:
                first, second = rng.choice(num_motives, 2, replace=False)
                pair = tuple((int(m), int(rng.integers(len(lexicon.features[m])))) for m in (first, second))
                words = " ".join(lexicon.features[m][f] for m, f in pair)
                title = f"{lexicon.brands[rng.integers(len(lexicon.brands))]} {words} {name}"
                if title in seen:
                    continue
                seen.add(title)
                row = np.zeros(num_motives)
                for m, f in pair:
                    row[m] += 1.0
                    row[(m + lexicon.second_motive_shift[f]) % num_motives] += 0.5
                titles.append(title)
                served.append(np.minimum(row, 1.0))
                kinds.append(kind)
                domains.append(domain)
                features.append((pair[0], pair[1]))
            kind += 1
    return Catalogue(
        titles, np.array(served), np.array(kinds), np.array(domains), features, rng.standard_normal(len(titles))
    )


def follows(catalogue: Catalogue, last: int, sequence: float) -> NDArray[np.float64]:
    """The sequence part of the utility after item ``last``: people tend to stay in a domain for a while."""
    return sequence * (catalogue.domain == catalogue.domain[last])


def write_review(lexicon: Lexicon, motive: int, settings: WorldSettings, rng: np.random.Generator) -> str:
    """What a person says: usually the motive at work, sometimes somebody else's, sometimes nothing of interest."""
    sentences = []
    if rng.random() < settings.own_words:
        phrases = lexicon.phrases[motive]
        sentences.append(_sentence(lexicon.own, phrases, rng))
    if rng.random() < settings.others_words:
        other = int((motive + 1 + rng.integers(len(lexicon.motives) - 1)) % len(lexicon.motives))
        sentences.append(_sentence(lexicon.other, lexicon.phrases[other], rng))
    if not sentences or rng.random() < 0.4:
        sentences.append(lexicon.plain[rng.integers(len(lexicon.plain))])
    rng.shuffle(sentences)
    return " ".join(sentences)


def _sentence(templates: tuple[str, ...], phrases: tuple[str, ...], rng: np.random.Generator) -> str:
    text = templates[rng.integers(len(templates))].replace("{phrase}", phrases[rng.integers(len(phrases))])
    return text[0].upper() + text[1:]


def make_world(settings: WorldSettings, seed: int, lexicon: Lexicon | None = None) -> World:
    """Generate a shop, its log and its truth.

    Args:
        settings: Size and knobs.
        seed: Same seed, same world.
        lexicon: The words; the demo world's by default.
    """
    lexicon = lexicon or full_lexicon()
    rng = np.random.default_rng(seed)
    catalogue = make_catalogue(lexicon, settings.items_per_kind, rng)
    item_ids = [f"B{number:05d}" for number in rng.permutation(len(catalogue.titles))]
    reviews: list[dict[str, Any]] = []
    users: dict[str, list[int]] = {}
    at_work: dict[str, list[str]] = {}
    for number in rng.permutation(settings.num_users):
        user_id = f"U{number:05d}"
        chosen, motives, pair = _live(catalogue, settings, len(lexicon.motives), rng)
        users[user_id] = pair
        at_work[user_id] = [lexicon.motives[motive] for motive in motives]
        day = int(rng.integers(0, 200))
        for index, (item, motive) in enumerate(zip(chosen, motives, strict=True)):
            day += int(rng.integers(1, 30))
            reviews.append(
                {
                    "user_id": user_id,
                    "item_id": item_ids[item],
                    "timestamp": FIRST_DAY_S + day * DAY_S + index,
                    "rating": float(3 + round(2 * catalogue.served[item, motive])),
                    "review": write_review(lexicon, motive, settings, rng),
                }
            )
    items = [{"item_id": item_id, "title": title} for item_id, title in zip(item_ids, catalogue.titles, strict=True)]
    truth = {
        "motives": {name: list(phrases) for name, phrases in zip(lexicon.motives, lexicon.phrases, strict=True)},
        "motive_names": list(lexicon.motives),
        "held_out_motives": [name for name in held_out_motives() if name in lexicon.motives],
        "users": users,
        "events": at_work,
        "weights": {"motive": settings.motive, "popularity": settings.popularity, "sequence": settings.sequence},
        "first_motive_share": settings.first_motive_share,
        "item_ids": item_ids,
        "served": catalogue.served.tolist(),
        "kind": catalogue.kind.tolist(),
        "domain": catalogue.domain.tolist(),
        "popularity": catalogue.pop.tolist(),
    }
    return World(reviews, items, truth)


def _live(
    catalogue: Catalogue, settings: WorldSettings, num_motives: int, rng: np.random.Generator
) -> tuple[list[int], list[int], list[int]]:
    pair = [int(m) for m in rng.choice(num_motives, 2, replace=False)]
    chosen: list[int] = []
    motives: list[int] = []
    for _ in range(int(rng.integers(settings.min_events, settings.max_events + 1))):
        motive = pair[0] if rng.random() < settings.first_motive_share else pair[1]
        utility = settings.motive * catalogue.served[:, motive] + settings.popularity * catalogue.pop
        if chosen:
            utility = utility + follows(catalogue, chosen[-1], settings.sequence)
            utility[chosen] = -np.inf
        chosen.append(int(np.argmax(utility + rng.gumbel(size=utility.size))))
        motives.append(motive)
    return chosen, motives, pair
