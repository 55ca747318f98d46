"""The training text of pulse-nano: generated worlds, rated rationales and written explanations.

    python scripts/nano_corpus.py --data ../shared/data --out runs/nano --worlds 1000

Three sources, each turned into the very prompts of ``pulse_hf.reasoning.prompts``:

* worlds: see ``nano_worlds.py``; their words are those of the allowed rollouts, so that it is a wide vocabulary;
* ``reason4rec_rollouts``: the best-rewarded rationales of 80 % of the prompts (by id);
* ``xrec``: explanations of the Amazon part; the Google part is never read.

Titles of real text are replaced by made-up ones, the same in prompt and answer, so that a reader must copy them.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from nano_words import ADJECTIVES, KINDS, PLAIN_RATIONALES
from nano_worlds import Example, Words, clean_words, made_up_word, world_examples

from pulse_hf.reasoning import prompts
from pulse_hf.schema import stable_hash

HELD_OUT_ROLLOUT_SHARE = 0.2


def made_up_title(rng: np.random.Generator) -> str:
    """A title for real text whose own title must not be memorised."""
    words = [
        made_up_word(rng) if rng.random() < 0.4 else str(rng.choice(ADJECTIVES)) for _ in range(rng.integers(1, 3))
    ]
    return " ".join([*words, KINDS[rng.integers(len(KINDS))]])


def read_words(data: Path) -> Words:
    """What people of the allowed rollouts are said to prefer: whole phrases, and the words in them."""
    phrases: set[str] = set()
    plain = {word.lower() for word in ADJECTIVES}
    for row in _rows(data / "reason4rec_rollouts" / "prompts.jsonl.gz"):
        if held_out_rollout(row["id"]):
            continue
        for event in row["user_history"]:
            for part in str(event.get("User Preference Elements", "")).split(","):
                words = re.findall(r"[a-z]+", part.lower())
                if 2 <= len(words) <= 6:
                    phrases.add(" ".join(words))
                plain |= {word for word in words if len(word) >= 3}
    return clean_words(phrases, plain)


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


def plain_examples(data: Path, seed: int) -> Iterator[Example]:
    """The allowed prompts again, answered in the words of the person and nothing else.

    The written rationales are full of stock phrases that a small model learns by heart; these unlearn them.
    """
    rng = np.random.default_rng(seed)
    for row in _rows(data / "reason4rec_rollouts" / "prompts.jsonl.gz"):
        if held_out_rollout(row["id"]):
            continue
        shown = row["user_history"][-int(rng.integers(2, 6)) :]
        told = [prompts.inert(str(event.get("User Preference Elements", "")), 20) for event in shown]
        phrases = [part.strip().lower() for text in told for part in text.split(",") if len(part.split()) > 1]
        if len(phrases) < 2:
            continue
        chosen = [str(phrase) for phrase in rng.choice(phrases, 2, replace=False)]
        target = made_up_title(rng)
        lines = [f"- {made_up_title(rng)} | {rng.integers(3, 6)}/5 | {text}" for text in told]
        answer = PLAIN_RATIONALES[rng.integers(len(PLAIN_RATIONALES))].format(
            phrase=" and ".join(chosen), Phrase=(" and ".join(chosen)).capitalize(), target=target
        )
        prompt = prompts.fill("rationale", history="\n".join(lines), target=target)
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
    parser.add_argument("--worlds", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=20261121)
    parser.add_argument("--plain", action="store_true", help="the last part: no written rationales, plain ones")
    arguments = parser.parse_args()
    words = read_words(arguments.data)
    arguments.out.mkdir(parents=True, exist_ok=True)
    sources = [
        ("rollouts", rollout_examples(arguments.data, arguments.seed)),
        ("xrec", xrec_examples(arguments.data, arguments.seed)),
    ]
    if arguments.plain:
        sources = [("plain", plain_examples(arguments.data, arguments.seed + time)) for time in range(3)]
    seeds = range(arguments.seed, arguments.seed + arguments.worlds)
    sources += [("worlds", world_examples(seed, words)) for seed in seeds]
    counts: dict[str, int] = {}
    with (arguments.out / "corpus.jsonl").open("w", encoding="utf-8") as stream:
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
