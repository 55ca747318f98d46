"""The study's steps, each kept on disk: candidates, scores, prompts, what is tuned on, floors, rankings."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from qa_prompts import CONCLUDE, THINK, Cutter, Shown, act_places, cot_thoughts, prompts_of, pulse_thoughts, react
from qa_questions import Question
from qa_rationales import ASK, PARAGRAPH_TOKENS, SAMPLING, Pools, Rationale, quoted, written
from qa_report import Table, paragraph_row, rank_section, rank_table
from qa_selection import (
    SPACE,
    Scores,
    bm25,
    by_bm25,
    by_chance,
    by_encoder,
    by_fitted_spaces,
    by_likelihood,
    by_space,
    by_start,
    fit_spaces,
    load_space,
    question_pairs,
)
from qa_tuning import Tuning, training_rows

from pulse_hf.artifacts import MANIFEST, read_json, sha256_of_file, sha256_of_text, write_json
from pulse_hf.models.embedded import MINILM_ID, resolve_model

if TYPE_CHECKING:
    from pulse_hf.reasoning.generator import Generator
    from pulse_hf.reasoning.transformers_engine import TransformersGenerator

FROZEN, CHANCE, FITTED = "minilm-frozen", "random", "space/questions"
START = "start/"
"""Before the name of a space: what its fit began with, of the same width and limits of length."""
_CHUNK = 50
_BOTH = {"quoted", "written"}


@dataclass
class Steps:
    """Results kept on disk under a key; a step whose key is the same is read, not made.

    Args:
        work: Where to.
        base: What decides every step: data, model, seed.
    """

    work: Path
    base: dict[str, Any]

    def __call__(self, name: str, settings: Any, make: Callable[[], Any]) -> tuple[Any, float]:
        """The step's JSON value, and the seconds it took when it was made."""
        path = self.work / f"{name.replace('/', '-')}.json"
        key = sha256_of_text([json.dumps([self.base, settings], sort_keys=True)])
        if path.exists() and (kept := read_json(path))["key"] == key:
            return kept["value"], kept["seconds"]
        print(f"== {name}", flush=True)
        started = time.perf_counter()
        value = json.loads(json.dumps(make()))
        seconds = time.perf_counter() - started
        write_json(path, {"key": key, "seconds": seconds, "value": value})
        return value, seconds


def all_pools(
    questions: Sequence[Question], generator: Generator, cut: Cutter, steps: Steps, width: int, seed: int
) -> tuple[Pools, float]:
    """Every question's candidates, quoted ones first, and the seconds; in chunks, so that little is lost by a kill."""
    pools: Pools = {one.question_id: quoted(one) for one in questions}
    total = 0.0
    for start in range(0, len(questions) if width else 0, _CHUNK):
        mine = questions[start : start + _CHUNK]

        def make(mine: Sequence[Question] = mine) -> dict[str, Any]:
            made = written(mine, generator, cut, width=width, seed=seed)
            return {key: [[one.paragraph, one.text] for one in pool] for key, pool in made.items()}

        asked = [ASK, PARAGRAPH_TOKENS, asdict(SAMPLING), width, [one.question_id for one in mine]]
        made, seconds = steps(f"written-{start:05d}", asked, make)
        total += seconds
        for key, pool in made.items():
            pools[key] += [Rationale(place, "written", text) for place, text in pool]
    return pools, total


def all_scores(
    train: list[Question],
    test: list[Question],
    pools: Pools,
    spaces: dict[str, Path],
    generator: TransformersGenerator,
    steps: Steps,
    seed: int,
) -> tuple[dict[str, Scores], dict[str, float], dict[str, Any]]:
    """Scores and seconds by selector, and the record of the space fitted on training questions."""
    questions = [*train, *test]
    content = sha256_of_text([f"{key} {one.text}" for key in sorted(pools) for one in pools[key]])
    pairs = question_pairs(train, pools)
    texts = sha256_of_text([text for pair in pairs for text in (pair.history, pair.rationale)])
    folder = steps.work / "space" / texts[:16]
    fitted, _ = steps("space-fit", [texts, asdict(SPACE)], lambda: fit_spaces(pairs, folder, seed=seed))
    makers: dict[str, tuple[Any, Callable[[], Scores]]] = {
        f"space/{name}": (
            resolve_model(str(path))[1]["weights_sha256"],
            lambda path=path: by_space(load_space(path), questions, pools),
        )
        for name, path in spaces.items()
    }
    makers |= {
        f"{START}{name}": (
            sha256_of_file(path.parent / MANIFEST),
            lambda path=path: by_start(path.parent, questions, pools),
        )
        for name, path in spaces.items()
        if (path.parent / MANIFEST).is_file()
    }
    makers |= {
        FITTED: (texts, lambda: by_fitted_spaces(folder, train, test, pools, seed=seed)),
        FROZEN: (MINILM_ID, lambda: by_encoder(questions, pools)),
        "bm25": ("", lambda: by_bm25(questions, pools)),
        "likelihood": ("", lambda: by_likelihood(questions, pools, generator)),
        CHANCE: ("", lambda: by_chance(questions, pools, seed=seed)),
    }
    scores, seconds = {}, {}
    for name, (identity, make) in makers.items():
        found, seconds[name] = steps(
            f"scores-{name}",
            [content, identity],
            lambda make=make: {key: value.tolist() for key, value in make().items()},
        )
        scores[name] = {key: np.array(value) for key, value in found.items()}
    return scores, seconds, fitted


def all_prompts(
    questions: Sequence[Question],
    pools: Pools,
    scores: dict[str, Scores],
    generator: Generator,
    cut: Cutter,
    steps: Steps,
    settings: Tuning,
) -> dict[str, dict[str, Shown]]:
    """What each system shows for each question; no label is read."""
    room = settings.room
    asked = [room, THINK, CONCLUDE]
    cot, _ = steps("thoughts-cot", asked, lambda: cot_thoughts(questions, generator, cut, room))
    (places, thoughts), _ = steps("thoughts-react", asked, lambda: react(questions, generator, cut, room))
    shown = {
        "standard": prompts_of(questions, cut, room),
        "cot": prompts_of(questions, cut, room, thoughts=cot),
        "act": prompts_of(questions, cut, room, places=act_places(questions)),
        "react+cot": prompts_of(questions, cut, room, places=places, thoughts=thoughts),
    }
    return shown | {
        f"pulse/{name}": prompts_of(questions, cut, room, thoughts=pulse_thoughts(questions, pools, mine))
        for name, mine in scores.items()
        if not name.startswith(START)
    }


def tuning_rows(train: Sequence[Question], shown: dict[str, Shown], cut: Cutter, settings: Tuning) -> list[Any]:
    """The tokens a system is tuned on: prompts and right answers of training questions alone."""
    texts = [(shown[one.question_id].text, one.answer) for one in train]
    return training_rows(texts, cut.chat, cut, settings.answer_tokens)


def floors(train: Sequence[Question], test: Sequence[Question]) -> dict[str, dict[str, str]]:
    """Answers without a model: yes, the commonest training answer, the title of the paragraph with the best BM25."""
    commonest = Counter(one.answer for one in train).most_common(1)[0][0]
    titles = {
        one.question_id: one.paragraphs[int(np.argmax(bm25(one.text, [p.text for p in one.paragraphs])))].title
        for one in test
    }
    return {
        "floor/yes": {one.question_id: "yes" for one in test},
        "floor/most-frequent-training-answer": {one.question_id: commonest for one in test},
        "floor/best-title": titles,
    }


def rankings(
    train: Sequence[Question],
    test: Sequence[Question],
    pools: Pools,
    scores: dict[str, Scores],
    shown: dict[str, dict[str, Shown]],
    **of_rows: Any,
) -> dict[str, Any]:
    """Paragraph retrieval and rationale selection: of test questions, of all, of all by kind of candidate."""
    flat = {name: mine for name, mine in scores.items() if name != CHANCE}
    # What chance is worth on average is known exactly: all candidates alike.
    flat[CHANCE] = {key: np.zeros_like(value) for key, value in scores[CHANCE].items()}
    whole = [*train, *test]
    sections = {}
    for name, questions, kinds in (
        ("test", test, _BOTH),
        ("all", whole, _BOTH),
        ("all, quoted", whole, {"quoted"}),
        ("all, written", whole, {"written"}),
    ):
        table = rank_table(questions, pools, flat, kinds)
        if kinds == _BOTH:
            table |= _floors_of_rank(questions, shown)
        settings = {
            system: {"candidates": sorted(kinds), "quoted_selected": _quoted_selected(questions, pools, mine)}
            for system, mine in flat.items()
        }
        begun = [system for system in table if system.startswith(START)]
        sections[name] = rank_section(table, (FROZEN, CHANCE, *begun), settings=settings, **of_rows)
    return sections


def _quoted_selected(questions: Sequence[Question], pools: Pools, scores: Scores) -> float:
    """Share of the questions whose best candidate of both kinds is a quoted one; ties by expected value."""
    rows = []
    for one in questions:
        values, pool = scores[one.question_id], pools[one.question_id]
        rows.append(np.mean([pool[place].kind == "quoted" for place in np.flatnonzero(values == values.max())]))
    return round(float(np.mean(rows)), 4)


def _floors_of_rank(questions: Sequence[Question], shown: dict[str, dict[str, Shown]]) -> Table:
    def looked_up(name: str, one: Question) -> np.ndarray:
        places = shown[name][one.question_id].places
        return np.array([len(places) - places.index(n) if n in places else 0.0 for n in range(len(one.paragraphs))])

    rankers: dict[str, Callable[[Question], np.ndarray]] = {
        "floor/first-paragraph": lambda one: -np.arange(len(one.paragraphs), dtype=float),
        "floor/bm25-paragraphs": lambda one: bm25(one.text, [p.text for p in one.paragraphs]),
        "lookups/act": lambda one: looked_up("act", one),
        "lookups/react+cot": lambda one: looked_up("react+cot", one),
    }
    return {name: np.array([paragraph_row(one, rank(one)) for one in questions]) for name, rank in rankers.items()}
