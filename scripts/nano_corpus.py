"""The training text of pulse-nano: generated worlds, rated rationales and written explanations.

    python scripts/nano_corpus.py --data ../shared/data --out runs/nano --worlds 110 --part 1
    python scripts/nano_corpus.py --data ../shared/data --out runs/nano --worlds 110 --part 2
    python scripts/nano_corpus.py --data ../shared/data --out runs/nano --worlds 60 --part 3

Three sources, each turned into the very prompts of ``pulse_hf.reasoning.prompts``:

* worlds: shops drawn with ``training_lexicon()`` (no held-out motive, domain or sentence) or with words
  drawn for one world (from the second part on those of the allowed rollouts, so that it is a wide vocabulary and
  phrases must be read, not remembered); a teacher that reads only what the prompt shows writes the reasons, and
  choices against random items give yes/no judgements in the scorer's form;
* ``reason4rec_rollouts``: the best-rewarded rationales of 80 % of the prompts (by id);
* ``xrec``: explanations of the Amazon part; the Google part is never read.

Titles are replaced by made-up ones, the same in prompt and answer, so that a reader must copy them.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from nano_words import ADJECTIVES, KINDS, NOUNS, OTHER, OWN, PLAIN, QUALITIES, RATIONALES, REASONS, SILENT, VERBS

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
from pulse_hf.schema import Decision, Item, Sequence, stable_hash

HELD_OUT_ROLLOUT_SHARE = 0.2


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


def made_up_word(rng: np.random.Generator) -> str:
    """A pronounceable word that means nothing."""
    syllables = [
        f"{'bcdfghjklmnprstvwz'[rng.integers(18)]}{'aeiou'[rng.integers(5)]}{'nrlsmt '[rng.integers(7)].strip()}"
        for _ in range(rng.integers(2, 4))
    ]
    return "".join(syllables).capitalize()


def made_up_title(rng: np.random.Generator) -> str:
    """A title for real text whose own title must not be memorised."""
    words = [
        made_up_word(rng) if rng.random() < 0.4 else str(rng.choice(ADJECTIVES)) for _ in range(rng.integers(1, 3))
    ]
    return " ".join([*words, KINDS[rng.integers(len(KINDS))]])


@dataclass(frozen=True)
class Words:
    """Words that worlds are made of: phrases for motives, capitalised words for features."""

    phrases: tuple[str, ...]
    features: tuple[str, ...]


def composed_words() -> Words:
    """The words of the first part: composed from short lists."""
    pairs = [f"{quality} {noun}" for quality in QUALITIES for noun in NOUNS]
    return Words(tuple(pairs + [f"{verb} {pair}" for verb in VERBS for pair in pairs[::7]]), tuple(ADJECTIVES))


def read_words(data: Path) -> Words:
    """The words of the second part: what people of the allowed rollouts are said to prefer.

    Nothing of the held-out part of the demo world gets in, not even a single feature word.
    """
    full, seen = full_lexicon(), training_lexicon()
    hidden = {f.lower() for group in full.features for f in group} - {
        f.lower() for group in seen.features for f in group
    }
    hidden_phrases = {p for group in full.phrases for p in group} - {p for group in seen.phrases for p in group}
    phrases: set[str] = set()
    features: set[str] = set()
    for row in _rows(data / "reason4rec_rollouts" / "prompts.jsonl.gz"):
        if held_out_rollout(row["id"]):
            continue
        for event in row["user_history"]:
            for part in str(event.get("User Preference Elements", "")).split(","):
                words = re.findall(r"[a-z]+", part.lower())
                phrase = " ".join(words)
                if 2 <= len(words) <= 6 and not any(one in phrase for one in hidden_phrases):
                    phrases.add(phrase)
                features |= {word.capitalize() for word in words if len(word) >= 4 and word not in hidden}
    return Words(tuple(sorted(phrases)), tuple(sorted(features)) + tuple(ADJECTIVES))


def made_up_lexicon(rng: np.random.Generator, words: Words) -> Lexicon:
    """A world of its own: what it calls its motives and features must be read from the prompt."""
    count = int(rng.integers(8, 15))
    features = rng.choice(words.features, (count, 6), replace=False)
    phrases = [tuple(str(phrase) for phrase in rng.choice(words.phrases, 3, replace=False)) for _ in range(count)]
    kinds = rng.permutation(KINDS)[:40].reshape(4, 10)
    return Lexicon(
        motives=tuple(f"motive {number}" for number in range(count)),
        phrases=tuple(phrases),
        features=tuple(tuple(str(word) for word in row) for row in features),
        second_motive_shift=tuple(int(x) for x in rng.integers(1, count, 6)),
        domains=tuple((f"domain {number}", tuple(str(kind) for kind in row)) for number, row in enumerate(kinds)),
        brands=tuple(made_up_word(rng) for _ in range(12)),
        own=OWN,
        other=OTHER,
        plain=PLAIN,
    )


def known_lexicon(rng: np.random.Generator) -> Lexicon:
    """The allowed part of the demo world's words, its kinds in another order so that no sequence rule is learnt."""
    lexicon = training_lexicon()
    domains = tuple((name, tuple(str(kind) for kind in rng.permutation(kinds))) for name, kinds in lexicon.domains)
    return replace(
        lexicon,
        domains=domains,
        own=lexicon.own + OWN,
        other=lexicon.other + OTHER,
        plain=lexicon.plain + PLAIN,
    )


class Teacher:
    """Writes the reason that a careful reader of the prompt would give.

    It sees the events the prompt shows. It takes the motive that the person's own sentences name most
    (the latest one on a draw), and features that recur among the items chosen with it.
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
        self.own = [
            re.compile(".*" + re.escape(text).replace(r"\{phrase\}", "(.+?)"), re.IGNORECASE) for text in lexicon.own
        ]
        self.motive_of = {phrase.lower(): motive for motive, group in enumerate(lexicon.phrases) for phrase in group}

    def named(self, review: str) -> list[str]:
        """The phrases that the person's own sentences name."""
        shown = " ".join(review.split()[: self.budget.review_words])
        found = []
        for sentence in re.findall(r"[^.]+\.", shown):
            for pattern in self.own:
                match = pattern.fullmatch(sentence.strip())
                if match and match[1].lower() in self.motive_of:
                    found.append(match[1].lower())
                    break
        return found

    def motive(self, history: Sequence) -> tuple[int, str, list[int]] | None:
        """The motive, one phrase for it as the person put it, and the items chosen with it."""
        start = max(0, len(history) - self.budget.max_events)
        votes: dict[int, list[tuple[int, str, int]]] = {}
        for place in range(start, len(history)):
            for phrase in self.named(history.reviews[place]):
                votes.setdefault(self.motive_of[phrase], []).append(
                    (place, phrase, self.index[history.item_ids[place]])
                )
        if not votes:
            return None
        best = max(votes, key=lambda motive: (len(votes[motive]), votes[motive][-1][0]))
        return best, votes[best][-1][1], [item for _, _, item in votes[best]]

    def features(self, motive: int, chosen: list[int]) -> list[str]:
        """Up to three features: those of the chosen items that serve the motive, most recent first."""
        words: list[str] = []
        for item in reversed(chosen):
            for m, f in self.catalogue.features[item]:
                serves = m == motive or (m + self.lexicon.second_motive_shift[f]) % len(self.lexicon.motives) == motive
                word = self.lexicon.features[m][f]
                if serves and word not in words:
                    words.append(word)
        return words[:3]

    def reason(self, history: Sequence, wrong: bool = False) -> str:
        """A base reason; ``wrong`` names a motive that the person's own words do not support."""
        found = self.motive(history)
        if found is None and not wrong:
            last = self.kinds[self.catalogue.kind[self.index[history.item_ids[-1]]]]
            kind = self.kinds[self.catalogue.kind[self.index[history.item_ids[max(0, len(history) - 2)]]]]
            return "Reason: " + self._pick(SILENT).format(kind=kind, last=last)
        if wrong or found is None:
            motive = int(self.rng.integers(len(self.lexicon.motives)))
            phrase = self._pick(self.lexicon.phrases[motive])
            words = [str(word) for word in self.rng.permutation(self.lexicon.features[motive])[:2]]
        else:
            motive, phrase, chosen = found
            words = self.features(motive, chosen)
            if self.lexicon.motives[0] != "motive 0":  # a world whose words can be known beforehand
                extra = [word for word in self.lexicon.features[motive] if word not in words]
                words = (words[:2] + [str(word) for word in self.rng.permutation(extra)])[:3]
        text = self._pick(REASONS).format(
            phrase=phrase, Phrase=phrase[0].upper() + phrase[1:], features=_listed(words) or "of that sort"
        )
        return "Reason: " + text

    def rationale(self, history: Sequence, item_id: str) -> str:
        """Why the chosen item was chosen."""
        found = self.motive(history)
        item = self.index[item_id]
        kind = self.kinds[self.catalogue.kind[item]]
        own = [self.lexicon.features[m][f] for m, f in self.catalogue.features[item]]
        if found is None:
            return "Reason: " + self._pick(SILENT).format(
                kind=kind, last=self.kinds[self.catalogue.kind[self.index[history.item_ids[-1]]]]
            )
        motive, phrase, _ = found
        serving = self.features(motive, [item]) or own[:1]
        target = " ".join([*own, kind])
        text = self._pick(RATIONALES).format(
            phrase=phrase, Phrase=phrase[0].upper() + phrase[1:], feature=serving[0], kind=kind, target=target
        )
        return "Reason: " + text

    def _pick(self, options: tuple[str, ...]) -> str:
        return options[self.rng.integers(len(options))]


def _listed(words: list[str]) -> str:
    return " or ".join(words) if len(words) < 3 else f"{', '.join(words[:-1])} or {words[-1]}"


def world_examples(
    seed: int, num_users: int = 150, words: Words | None = None, known_share: float = 0.55
) -> Iterator[Example]:
    """All the conversations and judgements of one world."""
    rng = np.random.default_rng(seed)
    lexicon = known_lexicon(rng) if rng.random() < known_share else made_up_lexicon(rng, words or composed_words())
    settings = WorldSettings(
        num_users=num_users,
        items_per_kind=int(rng.integers(6, 14)),
        motive=float(rng.uniform(3, 6)),
        sequence=float(rng.uniform(0, 2)),
        popularity=float(rng.uniform(0, 1)),
        own_words=float(rng.uniform(0.6, 0.95)),
        others_words=float(rng.uniform(0.1, 0.4)),
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
            max_events=int(rng.integers(3, 7)),
            neighbour_items=int(rng.integers(0, 6)),
            score_events=int(rng.integers(3, 7)),
        )
        teacher = Teacher(lexicon, catalogue, world, budget, rng)
        position = int(rng.integers(2, len(sequence)))
        history = sequence.before(position)
        decision = Decision(user_id, position, "train")
        lent = [ids[rng.integers(len(ids))] for _ in range(5)]
        good = teacher.reason(history)
        ask = prompts.reason_prompt(decision, sequence, items, lent, budget).messages[0]["content"]
        first = teacher.reason(history, wrong=True) if rng.random() < 0.5 else good
        yield Example(
            turns=(
                prompts.rationale_prompt(decision, sequence, items, budget).messages[0]["content"],
                teacher.rationale(history, sequence.item_ids[position]),
            )
        )
        if first != good:  # the wrong first reason is context only: the trainer gives loss to the last answer
            yield Example(turns=(ask, first, prompts.refine_message()["content"], good))
        else:
            yield Example(turns=(ask, good))
        if rng.random() < 0.3:
            yield Example(
                turns=(
                    ask,
                    good,
                    prompts.refine_message()["content"],
                    teacher.reason(history),
                    prompts.refine_message()["content"],
                    teacher.reason(history),
                )
            )
        yield liked_items(sequence, position, good, teacher, items, world, rng)
        silent = rng.random() < 0.2
        agreement = float(np.clip(rng.normal(0.6, 0.15), -1, 1))
        prompt = prompts.score_prompt(
            history, items, None if silent else good.removeprefix("Reason: "), agreement, budget
        )
        negatives = [ids[rng.integers(len(ids))] for _ in range(7)]
        branches = [(prompts.candidate_text(items[sequence.item_ids[position]]), True)]
        branches += [
            (prompts.candidate_text(items[item]), False) for item in negatives if item != sequence.item_ids[position]
        ]
        yield Example(prompt=prompt, candidates=tuple(branches))


def liked_items(
    sequence: Sequence,
    position: int,
    reason: str,
    teacher: Teacher,
    items: dict[str, Item],
    world: World,
    rng: np.random.Generator,
) -> Example:
    """Six items that the motive would choose next and two at random, behind one scorer prompt.

    With a reason the motive is the one the reason names, without one it is the person's true first motive,
    so that the prompt of plain tuning is learnt just as much.
    """
    history = sequence.before(position)
    found = teacher.motive(history)
    shown = found is not None and rng.random() < 0.7
    motive = found[0] if found is not None and shown else world.truth["users"][sequence.user_id][0]
    catalogue = teacher.catalogue
    utility = 5.0 * catalogue.served[:, motive] + 1.5 * (
        catalogue.domain == catalogue.domain[teacher.index[history.item_ids[-1]]]
    )
    chosen = rng.choice(len(utility), 6, replace=False, p=np.exp(utility) / np.exp(utility).sum())
    ids = list(items)
    branches = [(prompts.candidate_text(items[ids[number]]), True) for number in chosen]
    branches += [(prompts.candidate_text(items[ids[rng.integers(len(ids))]]), False) for _ in range(2)]
    agreement = float(np.clip(rng.normal(0.6, 0.15), -1, 1))
    text = reason.removeprefix("Reason: ") if shown else None
    return Example(
        prompt=prompts.score_prompt(history, items, text, agreement, teacher.budget), candidates=tuple(branches)
    )


def held_out_rollout(prompt_id: int) -> bool:
    """Whether a rollout prompt belongs to the 20 % that pulse-nano never sees."""
    return stable_hash("rollout", prompt_id) % 100 < 100 * HELD_OUT_ROLLOUT_SHARE


def rollout_examples(data: Path, seed: int) -> Iterator[Example]:
    """The best four rationales of each allowed prompt, titles replaced by made-up ones."""
    rng = np.random.default_rng(seed)
    by_prompt: dict[int, list[tuple[float, str]]] = {}
    for row in _rows(data / "reason4rec_rollouts" / "completions.jsonl.gz"):
        if not held_out_rollout(row["prompt_id"]):
            by_prompt.setdefault(row["prompt_id"], []).append((row["reward"], row["completion"]))
    for row in _rows(data / "reason4rec_rollouts" / "prompts.jsonl.gz"):
        for _, completion in sorted(set(by_prompt.get(row["id"], [])), reverse=True)[:4]:
            answer = _first_sentences(re.sub(r"\(Source[^)]*\)|\[\d+\]", "", completion))
            shown = row["user_history"][-int(rng.integers(2, 6)) :]
            titles = {
                title: made_up_title(rng) for title in [row["target_title"], *(event["title"] for event in shown)]
            }
            if not answer or row["target_title"] not in answer:
                continue
            for old in sorted(titles, key=len, reverse=True):
                answer = answer.replace(old, titles[old])
            lines = [
                f"- {titles[e['title']]} | {rng.integers(3, 6)}/5 | "
                + prompts.inert(str(e.get("User Preference Elements", "")), 20)
                for e in shown
            ]
            prompt = prompts.fill("rationale", history="\n".join(lines), target=titles[row["target_title"]])
            yield Example(turns=(prompt, "Reason: " + answer))


def xrec_examples(data: Path, seed: int) -> Iterator[Example]:
    """Written explanations of Amazon choices; the summary of the user stands for their own words."""
    rng = np.random.default_rng(seed)
    for row in _rows(data / "xrec" / "amazon.jsonl.gz"):
        title = made_up_title(rng)
        answer = _first_sentences(row["explanation"].replace(row["title"], title))
        if not answer:
            continue
        lines = [
            f"- {made_up_title(rng)} | {rng.integers(3, 6)}/5 | " + prompts.inert(part, 24)
            for part in re.split(r"(?<=[.,]) ", row["user_summary"])[:4]
        ]
        yield Example(turns=(prompts.fill("rationale", history="\n".join(lines), target=title), "Reason: " + answer))


def _first_sentences(text: str, max_words: int = 60) -> str:
    kept: list[str] = []
    for sentence in re.split(r"(?<=[.!?])\s+", " ".join(text.split())):
        if len(" ".join([*kept, sentence]).split()) > max_words or not sentence.endswith((".", "!", "?")):
            break
        kept.append(sentence)
    return " ".join(kept)


def _rows(path: Path) -> Iterator[dict]:  # type: ignore[type-arg]
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        for line in stream:
            yield json.loads(line)


def main() -> None:
    """Write the corpus as JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--worlds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=20261120)
    parser.add_argument(
        "--part",
        type=int,
        default=1,
        choices=(1, 2, 3),
        help="later parts draw other worlds, and words from the rollouts",
    )
    arguments = parser.parse_args()
    words, known_share = (
        (None, 0.55) if arguments.part == 1 else (read_words(arguments.data), 0.25 * (arguments.part - 1))
    )
    start = arguments.seed + 10_000 * (arguments.part - 1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    counts: dict[str, int] = {}
    with (arguments.out / f"corpus-{arguments.part}.jsonl").open("w", encoding="utf-8") as stream:
        sources = [
            ("rollouts", rollout_examples(arguments.data, arguments.seed)),
            ("xrec", xrec_examples(arguments.data, arguments.seed)),
        ]
        seeds = range(start, start + arguments.worlds)
        sources += [("worlds", world_examples(seed, words=words, known_share=known_share)) for seed in seeds]
        for name, examples in sources:
            for example in examples:
                counts[name] = counts.get(name, 0) + 1
                stream.write(
                    json.dumps({"turns": example.turns, "prompt": example.prompt, "candidates": example.candidates})
                    + "\n"
                )
    sys.stderr.write(f"{counts}\n")


if __name__ == "__main__":
    main()
