"""Does a Thought Space learned in recommendation help to answer questions? HotpotQA, as in the paper's §5.7.

    python scripts/question_answering.py --seed 11
    python scripts/question_answering.py --data hotpotqa/hotpot_qa --model microsoft/Phi-4-mini-instruct \
        --questions 7405 --test 1000 --max-length 4096

Every question gets candidate rationales (``qa_rationales.py``); selectors score them (``qa_selection.py``): Thought
Spaces learned in recommendation, one fitted on the training questions, the frozen encoder they start from, BM25, the
language model's likelihood, chance. The language model is then tuned on (question, context, rationale -> answer) and
answers the test questions, beside the paper's standard, chain of thought, act and ReAct + CoT (``qa_prompts.py``,
``qa_tuning.py``). No choice is made on test questions: all settings are fixed before.

Deviations from the paper: one model writes the candidates and is tuned (the paper has two, 27 B and 4 B); its
baselines are tuned like ours and also shown untuned, as ``prompt/*``; the ReAct frame around the selected rationale
is left out.
Finished steps are kept in ``--work`` and not made again while their settings stay.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from qa_metrics import RANK_METRICS
from qa_prompts import Cutter, Shown
from qa_questions import Question, read_questions, split_questions
from qa_report import ANSWER_METRICS, PUBLISHED, answer_shown, answer_table, command, comparisons, printed, rows_of
from qa_selection import SPACE
from qa_stages import CHANCE, FROZEN, Steps, all_pools, all_prompts, all_scores, floors, rankings, tuning_rows
from qa_tuning import Tuning, answers, tuned

from pulse_hf.artifacts import package_versions, sha256_of_text, write_json
from pulse_hf.models.device import few_compiled_products
from pulse_hf.models.embedded import resolve_model

if TYPE_CHECKING:
    from pulse_hf.reasoning.generator import Generator

PROMPTED = ("standard", "cot", "act", "react+cot")


def main() -> None:
    """Run the study and write its report."""
    given = _arguments()
    few_compiled_products()
    from pulse_hf.reasoning.transformers_engine import TransformersGenerator

    settings = Tuning(given.model, given.max_length, epochs=given.epochs, batch_size=given.batch_size)
    spaces = {name: Path(folder) for name, _, folder in (one.partition("=") for one in given.thought_space)}
    questions, dropped = read_questions(given.data)
    train, test = split_questions(questions, given.questions, given.test)
    seed, whole = given.seed, [*train, *test]
    data = sha256_of_text(json.dumps(asdict(one), sort_keys=True) for one in whole)
    identity = resolve_model(given.model)[1]
    steps = Steps(given.work, {"data": data, "model": identity, "seed": seed, "test": given.test})
    generator = TransformersGenerator.from_pretrained(given.model, batch_size=96)
    generator.cache_bytes = 0
    cut = Cutter(generator.chat)

    pools, writing = all_pools(whole, generator, cut, steps, given.width, seed)
    scores, seconds, fitted = all_scores(train, test, pools, spaces, generator, steps, seed)
    shown = all_prompts(whole, pools, scores, generator, cut, steps, settings)
    report = {
        "protocol": {
            "data": Path(given.data).name,
            "data_sha256": data,
            "questions": {"train": len(train), "test": len(test), "dropped": dropped},
            "candidates": dict(Counter(one.kind for pool in pools.values() for one in pool)),
            "candidate_seconds": round(writing, 1),
            "model": identity | {"parameters": generator.model.num_parameters()},
            "thought_spaces": {name: resolve_model(str(path))[1]["weights_sha256"] for name, path in spaces.items()},
            "space_of_questions": fitted,
            "space_settings": asdict(SPACE),
            "tuning": asdict(settings),
            "seed": seed,
            "command": command(),
        },
        "rankings": rankings(train, test, pools, scores, shown, seed=seed, seconds=seconds),
        "answers": None if given.without_answers else _answers(train, test, shown, generator, cut, steps, settings),
        "versions": package_versions(),
    }
    write_json(given.out, report)
    for name, section in report["rankings"].items():
        print(f"\n{name}\n{printed(section['rows'], RANK_METRICS)}")
    if report["answers"]:
        print(f"\nanswers\n{printed(report['answers']['rows'], ANSWER_METRICS)}")
    print(f"\n{given.out}")


def _answers(
    train: list[Question],
    test: list[Question],
    shown: dict[str, dict[str, Shown]],
    generator: Generator,
    cut: Cutter,
    steps: Steps,
    settings: Tuning,
) -> dict[str, Any]:
    """Rows and comparisons of every system's answers to the test questions."""
    seed = steps.base["seed"]
    said = floors(train, test)
    facts: dict[str, dict[str, Any]] = {name: {"tuned": False} for name in said}
    taken: dict[str, float] = {}
    for name, prompts in shown.items():
        texts = {one.question_id: prompts[one.question_id].text for one in test}
        rows = tuning_rows(train, prompts, cut, settings)
        key = [asdict(settings), sha256_of_text([*texts.values(), json.dumps(rows)])]
        if name in PROMPTED:
            other = f"prompt/{name}"
            said[other], taken[other] = steps(
                other, key, lambda texts=texts: answers(generator, texts, settings.answer_tokens)
            )
            facts[other] = {"tuned": False} | _facts(test, prompts)
        (said[name], loss), taken[name] = steps(
            f"answers/{name}", key, lambda rows=rows, texts=texts: _tune_and_answer(rows, texts, settings, seed)
        )
        facts[name] = {"tuned": True, "training_loss": round(loss, 4)} | _facts(test, prompts)
    table = answer_table(test, said)
    baselines = (f"pulse/{FROZEN}", f"pulse/{CHANCE}", "standard")
    rows = rows_of(table, ANSWER_METRICS, seed=seed, settings=facts, seconds=taken)
    return {
        "rows": [{**row, "paper": PUBLISHED.get(row["system"])} for row in rows],
        "comparisons": comparisons(table, ANSWER_METRICS, baselines, seed=seed),
    }


def _tune_and_answer(
    rows: list[Any], texts: dict[str, str], settings: Tuning, seed: int
) -> tuple[dict[str, str], float]:
    engine, loss = tuned(rows, settings, seed=seed)
    return answers(engine, texts, settings.answer_tokens), loss


def _facts(test: list[Question], prompts: dict[str, Shown]) -> dict[str, float]:
    """What the budget left of the test prompts."""
    shown = [prompts[one.question_id] for one in test]
    return {
        "answer_shown": round(answer_shown(test, {one.question_id: prompts[one.question_id].text for one in test}), 4),
        "paragraphs_cut": round(float(np.mean([one.num_cut for one in shown])), 2),
        "paragraphs_shown": round(float(np.mean([len(one.places) for one in shown])), 2),
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="../shared/data/hotpotqa/ircot_dev_500.jsonl.gz")
    parser.add_argument("--model", default="pulse-hf/pulse-nano")
    parser.add_argument(
        "--thought-space",
        nargs="+",
        default=["demo=runs/demo/thought_space/model"],
        metavar="NAME=FOLDER",
        help="Thought Spaces learned in recommendation",
    )
    parser.add_argument("--questions", type=int, default=500, help="how many take part")
    parser.add_argument("--test", type=int, default=200, help="how many of them are for testing")
    parser.add_argument(
        "--width", type=int, default=1, help="rationales written per paragraph; 0 for quoted ones only"
    )
    parser.add_argument("--max-length", type=int, default=512, help="tokens of prompt and answer")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--without-answers", action="store_true", help="rankings of rationales only, no tuning")
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--work", type=Path, default=Path("runs/question-answering"))
    parser.add_argument("--out", type=Path, default=Path("hub_cards/reports/question-answering.json"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
