"""Generated worlds as training text: conversations about reasons, and likely next items behind a scorer prompt.

Every world calls its motives and features by words of its own and phrases its reviews with sentences of its
own, and is left after a few people, so that a reader can only answer by reading. Some worlds are like the allowed
part of the demo world (``training_lexicon()``: no held-out motive, domain or sentence). Of the held-out part
nothing gets in, not even a word.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from collections.abc import Sequence as Series
from dataclasses import dataclass, replace

import nano_words as words_of
import numpy as np
from nano_words import KINDS, RATIONALES, REASONS, SILENT

from pulse_hf.data.world.shop import (
    Catalogue,
    Lexicon,
    World,
    WorldSettings,
    full_lexicon,
    make_catalogue,
    make_world,
    training_lexicon,
)
from pulse_hf.reasoning import prompts
from pulse_hf.schema import Decision, Item, Sequence

HALF_KNOWN_WORLDS = 0.2
KNOWN_PHRASES = 0.2


@dataclass(frozen=True)
class Example:
    """One training example.

    Args:
        turns: Alternating user and assistant texts of a conversation; empty for judgements.
        prompt: A scorer prompt; empty for conversations.
        candidates: ``(branch text, fits)`` of a scorer prompt.
    """

    turns: tuple[str, ...] = ()
    prompt: str = ""
    candidates: tuple[tuple[str, bool], ...] = ()


@dataclass(frozen=True)
class Words:
    """Words that worlds are made of.

    Args:
        phrases: Phrases that people use.
        plain: Single lower-case words.
    """

    phrases: tuple[str, ...]
    plain: tuple[str, ...]


def hidden_text() -> tuple[set[str], set[str], set[str]]:
    """What of the demo world nothing may hold: phrases, single words (of features and kinds), sentences."""
    full, seen = full_lexicon(), training_lexicon()
    phrases = {p for group in full.phrases for p in group} - {p for group in seen.phrases for p in group}
    features = {f for group in full.features for f in group} - {f for group in seen.features for f in group}
    kinds = {k for _, kinds in full.domains for k in kinds} - {k for _, kinds in seen.domains for k in kinds}
    singles = {part.lower() for text in features | kinds for part in re.split(r"[ -]", text)}
    sentences = {s for kind in ("own", "other", "plain") for s in getattr(full, kind)} - {
        s for kind in ("own", "other", "plain") for s in getattr(seen, kind)
    }
    return phrases, singles, sentences


def clean_words(phrases: set[str], plain: set[str]) -> Words:
    """The given words without everything that is held out."""
    hidden_phrases, hidden_words, _ = hidden_text()
    return Words(
        tuple(
            sorted(p for p in phrases if not hidden_words & set(p.split()) and not any(h in p for h in hidden_phrases))
        ),
        tuple(sorted(plain - hidden_words)),
    )


def made_up_word(rng: np.random.Generator) -> str:
    """A pronounceable word that means nothing."""
    syllables = [
        f"{'bcdfghjklmnprstvwz'[rng.integers(18)]}{'aeiou'[rng.integers(5)]}{'nrlsmt '[rng.integers(7)].strip()}"
        for _ in range(rng.integers(2, 4))
    ]
    return "".join(syllables).capitalize()


def made_up_phrase(words: Words, rng: np.random.Generator) -> str:
    """A phrase of the length and build that motives have; no two worlds are likely to share one."""
    hidden_phrases, *_ = hidden_text()
    doing = [word for word in words.plain if word.endswith("ing")] or list(words.plain)
    while True:
        pick = [made_up_word(rng).lower() if rng.random() < 0.08 else _pick(words.plain, rng) for _ in range(4)]
        text = _pick(words_of.PHRASES, rng).format(
            a=pick[0], n=pick[1], m=pick[2], w=pick[3], v=_pick(doing, rng)
        )  # fmt: skip
        if not any(hidden in text for hidden in hidden_phrases):
            return text


def made_up_feature(words: Words, rng: np.random.Generator) -> str:
    """A title word: capitalised, sometimes a compound."""
    if rng.random() < 0.1:
        return made_up_word(rng)
    parts = [_pick(words.plain, rng).capitalize() for _ in range(2 if rng.random() < 0.2 else 1)]
    return "-".join(parts)


def sentences(rng: np.random.Generator) -> dict[str, tuple[str, ...]]:
    """The review sentences of one world: a dozen or two of the thousands that the parts make."""
    *_, hidden = hidden_text()

    def some(count: int, make: Series[Series[str]]) -> tuple[str, ...]:
        texts: set[str] = set()
        while len(texts) < count:
            text = "".join(_pick(part, rng) for part in make)
            text = text[0].upper() + text[1:]  # "{phrase}" stays as it is; the world capitalises it
            if text not in hidden:
                texts.add(text)
        return tuple(sorted(texts))

    end = (".",)
    own = some(int(rng.integers(6, 16)), (words_of.BEFORE, words_of.OWN_MIDDLE, words_of.AFTER, end))
    who = some(int(rng.integers(3, 8)), (words_of.OTHER_WHO, (" ",), words_of.OTHER_MIDDLE, words_of.OTHER_AFTER, end))
    denied = some(int(rng.integers(2, 5)), (words_of.NOT_MINE, end))
    plain = some(int(rng.integers(4, 10)), (words_of.PLAIN_WHO, (" ",), words_of.PLAIN_MIDDLE, end))
    short = tuple(_pick(words_of.PLAIN, rng) for _ in range(2))
    return {"own": own, "other": who + denied, "plain": plain + short}


def made_up_lexicon(rng: np.random.Generator, words: Words) -> Lexicon:
    """A world of its own: what it calls its motives and features must be read from the prompt."""
    count = int(rng.integers(8, 16))
    features = [made_up_feature(words, rng) for _ in range(count * 6)]
    phrases = [
        tuple(_pick(words.phrases, rng) if rng.random() < 0.35 else made_up_phrase(words, rng) for _ in range(3))
        for _ in range(count)
    ]
    kinds = rng.permutation(KINDS)[:40].reshape(4, 10)
    return Lexicon(
        motives=tuple(f"motive {number}" for number in range(count)),
        phrases=tuple(phrases),
        features=tuple(tuple(features[6 * m : 6 * m + 6]) for m in range(count)),
        second_motive_shift=tuple(int(x) for x in rng.integers(1, count, 6)),
        domains=tuple((f"domain {number}", tuple(str(kind) for kind in row)) for number, row in enumerate(kinds)),
        brands=tuple(made_up_word(rng) for _ in range(12)),
        **sentences(rng),
    )


def half_known_lexicon(rng: np.random.Generator, words: Words) -> Lexicon:
    """A shop like the demo world in its allowed domains, brands and sentences, most motives by other words.

    Were its phrases always the same few, they would be remembered, and whatever else people say not be read.
    """
    lexicon, own = training_lexicon(), sentences(rng)
    other = made_up_lexicon(rng, words)
    known = [rng.random() < KNOWN_PHRASES for _ in lexicon.motives]
    both = [
        (phrases, features)
        if keep
        else (other.phrases[n % len(other.phrases)], other.features[n % len(other.features)])
        for n, (keep, phrases, features) in enumerate(zip(known, lexicon.phrases, lexicon.features, strict=True))
    ]
    return replace(
        lexicon,
        phrases=tuple(phrases for phrases, _ in both),
        features=tuple(features for _, features in both),
        domains=tuple((name, tuple(str(kind) for kind in rng.permutation(kinds))) for name, kinds in lexicon.domains),
        **{kind: getattr(lexicon, kind) + own[kind] for kind in own},
    )


class Teacher:
    """Writes the reason that a careful reader of the prompt would give.

    It sees the events the prompt shows. It names the one or two phrases that the person's own sentences hold
    most often (the latest on a draw), and features that recur among the items chosen with them.
    """

    def __init__(
        self,
        lexicon: Lexicon,
        catalogue: Catalogue,
        world: World,
        budget: prompts.PromptBudget,
        rng: np.random.Generator,
    ) -> None:
        self.lexicon, self.catalogue, self.budget, self.rng = lexicon, catalogue, budget, rng
        self.index = {item["item_id"]: number for number, item in enumerate(world.items)}
        self.kinds = [kind for _, names in lexicon.domains for kind in names]
        self.patterns = {kind: [_pattern(text) for text in getattr(lexicon, kind)] for kind in ("own", "other")}
        self.motive_of = {phrase.lower(): motive for motive, group in enumerate(lexicon.phrases) for phrase in group}

    def named(self, review: str, kind: str = "own") -> list[str]:
        """The phrases that the sentences of one kind name, as far as the prompt shows them."""
        shown = " ".join(review.split()[: self.budget.review_words])
        found = []
        for sentence in re.findall(r"[^.]+\.", shown):
            for pattern in self.patterns[kind]:
                match = pattern.fullmatch(sentence.strip())
                if match and match[1].lower() in self.motive_of:
                    found.append(match[1].lower())
                    break
        return found

    def concerns(self, history: Sequence) -> dict[str, list[int]]:
        """The one or two phrases that count, the first one first, and the items chosen with each."""
        start = max(0, len(history) - self.budget.max_events)
        votes: dict[str, list[int]] = {}
        for place in range(start, len(history)):
            for phrase in self.named(history.reviews[place]):
                votes.setdefault(phrase, []).append(place)
        best = sorted(votes, key=lambda phrase: (len(votes[phrase]), votes[phrase][-1]), reverse=True)[:2]
        return {phrase: [self.index[history.item_ids[place]] for place in votes[phrase]] for phrase in best}

    def features(self, concerns: dict[str, list[int]]) -> list[str]:
        """Up to three features of the chosen items that serve a concern; what recurs first, then the most recent."""
        shift, count = self.lexicon.second_motive_shift, len(self.lexicon.motives)
        words: list[str] = []
        for phrase, chosen in concerns.items():
            motive = self.motive_of[phrase]
            for item in reversed(chosen):
                for m, f in self.catalogue.features[item]:
                    if motive in (m, (m + shift[f]) % count):
                        words.append(self.lexicon.features[m][f])
        return [word for word, _ in Counter(words).most_common(3)]

    def reason(self, history: Sequence) -> str:
        """A base reason."""
        concerns = self.concerns(history)
        if not concerns:
            last = self.kind_of(history.item_ids[-1])
            kind = self.kind_of(history.item_ids[max(0, len(history) - 2)])
            return "Reason: " + _pick(SILENT, self.rng).format(kind=kind, last=last)
        words = self.features(concerns)
        return self._reason(" and ".join(concerns), words)

    def wrong_reason(self, history: Sequence) -> str:
        """A reason that the person's own words do not support: somebody else's concern if one is quoted."""
        quoted = [phrase for review in history.reviews[-3:] for phrase in self.named(review, "other")]
        phrase = _pick(quoted or list(self.motive_of), self.rng)
        words = self.rng.permutation(self.lexicon.features[self.motive_of[phrase]])[:2]
        return self._reason(phrase, [str(word) for word in words])

    def rationale(self, history: Sequence, item_id: str) -> str:
        """Why the chosen item was chosen."""
        concerns = self.concerns(history)
        kind = self.kind_of(item_id)
        if not concerns:
            return "Reason: " + _pick(SILENT, self.rng).format(kind=kind, last=self.kind_of(history.item_ids[-1]))
        item = self.index[item_id]
        own = [self.lexicon.features[m][f] for m, f in self.catalogue.features[item]]
        serving = self.features({phrase: [item] for phrase in concerns}) or own
        phrase = " and ".join(concerns)
        text = _pick(RATIONALES, self.rng).format(
            phrase=phrase, Phrase=_capital(phrase), feature=serving[0], kind=kind, target=" ".join([*own, kind])
        )
        return "Reason: " + text

    def kind_of(self, item_id: str) -> str:
        """What kind of thing an item is."""
        return self.kinds[self.catalogue.kind[self.index[item_id]]]

    def _reason(self, phrase: str, words: list[str]) -> str:
        text = _pick(REASONS, self.rng).format(
            phrase=phrase, Phrase=_capital(phrase), features=_listed(words) or "of that sort"
        )
        return "Reason: " + text


def _pattern(sentence: str) -> re.Pattern[str]:
    return re.compile(re.escape(sentence).replace(r"\{phrase\}", "(.+?)"), re.IGNORECASE)


def _pick(options: Series[str], rng: np.random.Generator) -> str:
    return options[rng.integers(len(options))]


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _listed(words: list[str]) -> str:
    return " or ".join(words) if len(words) < 3 else f"{', '.join(words[:-1])} or {words[-1]}"


def world_examples(seed: int, words: Words, num_users: int = 15) -> Iterator[Example]:
    """All the conversations and scorer prompts of one world."""
    rng = np.random.default_rng(seed)
    lexicon = half_known_lexicon(rng, words) if rng.random() < HALF_KNOWN_WORLDS else made_up_lexicon(rng, words)
    settings = WorldSettings(
        num_users=num_users,
        items_per_kind=int(rng.integers(6, 14)),
        motive=float(rng.uniform(3, 6)),
        sequence=float(rng.uniform(0, 2)),
        popularity=float(rng.uniform(0, 1)),
        own_words=float(rng.uniform(0.6, 0.95)),
        others_words=float(rng.uniform(0.1, 0.5)),
    )
    world = make_world(settings, seed, lexicon)
    catalogue = make_catalogue(lexicon, settings.items_per_kind, np.random.default_rng(seed))
    items = {row["item_id"]: Item(row["item_id"], row["title"], row["title"]) for row in world.items}
    ids = list(items)
    events: dict[str, list[dict[str, object]]] = {}
    for row in world.reviews:
        events.setdefault(str(row["user_id"]), []).append(row)
    for user_id, rows in events.items():
        sequence = Sequence(
            user_id,
            tuple(str(r["item_id"]) for r in rows),
            (),
            tuple(r["rating"] for r in rows),
            tuple(str(r["review"]) for r in rows),  # type: ignore[misc]
        )
        budget = prompts.PromptBudget(
            max_events=int(rng.integers(2, 6)),
            neighbour_items=int(rng.integers(0, 6)),
            score_events=int(rng.integers(3, 7)),
        )
        teacher = Teacher(lexicon, catalogue, world, budget, rng)
        position = int(rng.integers(2, len(sequence)))
        history = sequence.before(position)
        decision = Decision(user_id, position, "train")
        lent = [ids[rng.integers(len(ids))] for _ in range(5)]
        ask = prompts.reason_prompt(decision, sequence, items, lent, budget).messages[0]["content"]
        refine = prompts.refine_message()["content"]
        yield Example(
            turns=(
                prompts.rationale_prompt(decision, sequence, items, budget).messages[0]["content"],
                teacher.rationale(history, sequence.item_ids[position]),
            )
        )
        # An earlier reason is context only: the trainer gives full weight to the last answer alone.
        draft = teacher.wrong_reason(history) if rng.random() < 0.4 else teacher.reason(history)
        turns = (ask, draft, refine) if rng.random() < 0.5 else (ask,)
        yield Example(turns=(*turns, teacher.reason(history)))
        yield likely_items(sequence, position, teacher, items, world, rng)


def likely_items(
    sequence: Sequence,
    position: int,
    teacher: Teacher,
    items: dict[str, Item],
    world: World,
    rng: np.random.Generator,
) -> Example:
    """Seven items that the motive would choose next and one at random, behind one scorer prompt.

    With a reason the motive is that of the reason's first phrase; without one it is the person's true first
    motive, so that the prompt of plain tuning is learnt as well.
    """
    history = sequence.before(position)
    concerns = teacher.concerns(history)
    shown = bool(concerns) and rng.random() < 0.8
    motive = teacher.motive_of[next(iter(concerns))] if shown else world.truth["users"][sequence.user_id][0]
    catalogue = teacher.catalogue
    utility = 5.0 * catalogue.served[:, motive] + 1.5 * (
        catalogue.domain == catalogue.domain[teacher.index[history.item_ids[-1]]]
    )
    chosen = rng.choice(len(utility), 7, replace=False, p=np.exp(utility) / np.exp(utility).sum())
    ids = list(items)
    branches = [(prompts.candidate_text(items[ids[number]]), True) for number in chosen]
    branches.append((prompts.candidate_text(items[ids[rng.integers(len(ids))]]), False))
    agreement = float(np.clip(rng.normal(0.6, 0.15), -1, 1))
    text = teacher.reason(history).removeprefix("Reason: ") if shown else None
    return Example(
        prompt=prompts.score_prompt(history, items, text, agreement, teacher.budget), candidates=tuple(branches)
    )
