"""Reason4Rec's prompts and rationales as a shop: people, their choices and what a large language model says of them.

    python scripts/digital_music.py OUT            # writes OUT/digital_music
    python scripts/evidence.py digital-music-people-1x9 --data OUT

The data (Amazon Digital Music) has no user ids, only prompts: the last reviews of a person, told as aspects, and the
album that came next, with rationales for that choice, 16 a step. Prompts that share a review are one person's. The
windows of a person are put together into one sequence; where they contradict each other, or leave open what came
first, the person is left out and counted. Every choice of a prompt gets the rationale with the highest reward (minus
the rating error of a judge that read it) whose first paragraph is a rationale and nothing else.

Written are ``interactions.jsonl.gz`` (``user_id``, ``item_id``, ``position``, ``review``: what the person said of it,
``""`` where the data does not tell), ``items.jsonl.gz`` (titles, and nothing but titles), and files for
``rationales.engine=recorded``, all of the same choices: ``rationales.jsonl.gz`` (the large model's) and, as a control
that explains nothing, ``item_words.jsonl.gz`` (what other people said of the album, as the prompt tells it).
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from outside_judge_data import people, rows

from pulse_hf.data.item_text import clean_text

ROOT = Path(__file__).resolve().parents[1]
FOLDER = "digital_music"
WORDS = (12, 100)  # of a rationale; longer ones end with their last whole sentence before that
ITEM_REVIEWS = 3
_SENTENCE_END = re.compile(r"[.!?][\"')”’]*(?=\s|\Z)")
_NOT_PROSE = re.compile(r"[{}|<>\[\]#*`]|\bstars?\b|\brat(e|ed|ing|ings)\b", re.IGNORECASE)


def one_order(windows: Iterable[Sequence[str]]) -> list[str] | None:
    """The only order that all windows of a person agree with, ``None`` if there is none or more than one.

    >>> one_order([["a", "b", "c"], ["b", "c", "d"]]), one_order([["a", "b"], ["b", "a"]]), one_order([["a"], ["b"]])
    (['a', 'b', 'c', 'd'], None, None)
    """
    sorter: TopologicalSorter[str] = TopologicalSorter()
    for window in windows:
        for place, title in enumerate(window):
            sorter.add(title, *window[max(0, place - 1) : place])
    order: list[str] = []
    try:
        sorter.prepare()
    except CycleError:  # an album twice, or a review that two people share
        return None
    while sorter.is_active():
        ready = sorter.get_ready()
        if len(ready) > 1:
            return None
        order += ready
        sorter.done(*ready)
    return order


def said(event: dict[str, str]) -> str:
    """What a person said of an album, as the data tells it."""
    return f"{event['User Preference Elements']}. {event['Positive Aspects']}."


def first_paragraph(text: str) -> str | None:
    """A rationale without what the model went on to write; ``None`` if it is none.

    >>> first_paragraph(" The user cares about lyrics, and this album, like the ones before, has them all over. | x")
    'The user cares about lyrics, and this album, like the ones before, has them all over.'
    """
    paragraph = clean_text(re.split(r"\n|\s\|", text.strip())[0])
    paragraph = " ".join(re.sub(r"\s*\(Source:.*?\)", "", paragraph).split()[: WORDS[1]])
    ends = [match.end() for match in _SENTENCE_END.finditer(paragraph)]
    told = paragraph[: ends[-1]] if ends else ""
    return None if _NOT_PROSE.search(told) or len(told.split()) < WORDS[0] else told


def write(path: Path, records: Iterable[dict[str, Any]]) -> int:
    """Gzipped JSON lines, the same bytes every time."""
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    with path.open("wb") as file, gzip.GzipFile("", "wb", fileobj=file, mtime=0) as stream:
        stream.writelines(line.encode() for line in lines)
    return len(lines)


def convert(data: Path, out: Path) -> dict[str, Any]:
    """Write the shop.

    Args:
        data: Folder of ``reason4rec_rollouts``.
        out: Where the files go.

    Returns:
        Counts of everything that was read, kept and left out.
    """
    prompts = {row["id"]: row for row in rows(data / "reason4rec_rollouts" / "prompts.jsonl.gz")}
    best = best_rationales(data)
    titles = sorted({event["title"] for row in prompts.values() for event in row["user_history"]})
    titles = sorted({*titles, *(row["target_title"] for row in prompts.values())})
    item_ids = {title: f"album-{number:04d}" for number, title in enumerate(titles)}
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for prompt, person in people(list(prompts.values())).items():
        groups[person].append(prompts[prompt])
    count: Counter[str] = Counter(prompts=len(prompts), people=len(groups))
    events, why, words = [], [], []
    for person, mine in groups.items():
        order = one_order([[*(event["title"] for event in row["user_history"]), row["target_title"]] for row in mine])
        if order is None:
            count["people left out: no order, or more than one"] += 1
            continue
        reviews = {event["title"]: said(event) for row in mine for event in row["user_history"]}
        user = f"person-{person}"
        for position, title in enumerate(order):
            about = {"user_id": user, "item_id": item_ids[title]}
            events.append({**about, "position": position, "review": reviews.get(title, "")})
        for row in mine:
            count["choices of a prompt"] += 1
            if row["id"] not in best:
                count["choices without a usable rationale"] += 1
                continue
            about = {"user_id": user, "item_id": item_ids[row["target_title"]]}
            why.append({**about, "text": best[row["id"]]})
            told = " ".join(event["Positive Aspects"] + "." for event in row["item_history"][:ITEM_REVIEWS])
            words.append({**about, "text": f"{row['target_title']}: {told}"})
    out.mkdir(parents=True, exist_ok=True)
    count["events"] = write(out / "interactions.jsonl.gz", events)
    count["items"] = write(out / "items.jsonl.gz", ({"item_id": item_ids[one], "title": one} for one in titles))
    count["rationales"] = write(out / "rationales.jsonl.gz", why)
    write(out / "item_words.jsonl.gz", words)
    return dict(count)


def best_rationales(data: Path) -> dict[int, str]:
    """Of each prompt the usable rationale with the highest reward; the first of equal ones."""
    found: dict[int, tuple[float, str]] = {}
    for row in rows(data / "reason4rec_rollouts" / "completions.jsonl.gz"):
        text = first_paragraph(row["completion"])
        if text and (row["prompt_id"] not in found or row["reward"] > found[row["prompt_id"]][0]):
            found[row["prompt_id"]] = (row["reward"], text)
    return {prompt: text for prompt, (_, text) in found.items()}


def main() -> None:
    """Convert and tell the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for the evidence's --data; files go to OUT/digital_music")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder of the datasets")
    chosen = parser.parse_args()
    source = chosen.data / "reason4rec_rollouts"
    if not source.exists():
        parser.error(f"{source}: not there; give --data with the folder that holds reason4rec_rollouts")
    for name, number in convert(chosen.data, chosen.out / FOLDER).items():
        print(f"{name}: {number:,}")


if __name__ == "__main__":
    main()
