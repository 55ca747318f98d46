"""What each known leak is worth: planted by patching, measured in HR@1, beside the honest row on the same users.

    python scripts/leak_worth.py --run runs/evidence/luxury-beauty-dedup-1x9-s0 --users 1000

The leaks are those found in this family of papers (IDGenRec #1, MLLMRec #6, RDRec's README). Nothing in
the package can switch them on: this script replaces functions and inputs of its own process. Models stay as the honest
run fitted them, since a leak in *training* would need a run of its own; the few constants that weigh the scorer's text
and the votes are fitted anew on validation decisions with the same leak, as whoever did not notice it would do. So a
figure is the least that its leak adds. All rows of a leak are scored on the same leaky inputs.

Rows: ``text`` the language model's logit alone, ``pulse`` with the votes, ``space`` the candidate's agreement in
Thought Space (where the space knows titles). Differences are paired over users with 95 % intervals.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pulse_hf.artifacts import read_table, write_json
from pulse_hf.evaluation.finished_run import FinishedRun
from pulse_hf.evaluation.our_scores import fitted_with_titles, slm_scores
from pulse_hf.evaluation.protocol import Study, load_study
from pulse_hf.evaluation.regenerate import thoughts_again
from pulse_hf.evaluation.statistics import paired
from pulse_hf.metrics import rank_metrics
from pulse_hf.models.scorer.adapter import read_record
from pulse_hf.reasoning.behaviour import behaviour_text
from pulse_hf.reasoning.examples import PromptShape, Thought, load_thoughts
from pulse_hf.reasoning.generator import Generation, Sampling, open_generator
from pulse_hf.reasoning.parsing import parse_reason
from pulse_hf.reasoning.prompts import PromptBudget, rationale_prompt
from pulse_hf.reasoning.shared_reasons import SharedReasons
from pulse_hf.retrieval.similar_users import lend_items
from pulse_hf.schema import Decision
from pulse_hf.schema import Sequence as History
from pulse_hf.training.vote_weights import fit_vote_weights

UNLIKE = 0.4  # cosine of titles above which a negative counts as like the target

Thoughts = Mapping[str, Thought]


class TargetTold(SharedReasons):
    """Behaviour texts that begin with the target, as the paper's b_u does while training."""

    targets: dict[tuple[str, int], str]

    def told(self, history: History, items: Mapping[str, Any]) -> str:
        """The behaviour with what came after it."""
        limits = self.space.config
        target = self.targets[history.user_id, len(history)]
        return behaviour_text(
            history, items, target=target, max_events=limits.max_events, review_words=limits.review_words
        )


def target_in_behaviour(study: Study, decisions: Sequence[Decision], thoughts: Thoughts) -> tuple[Study, Thoughts]:
    """b_u holds the target when the leaf is chosen and when behaviour votes."""
    shared = study.shared
    leaky = TargetTold(shared.vectors, shared.item_indices, shared.places, shared.space, shared.user_ids)
    leaky.targets = {
        (one.user_id, one.position): item for one, item in zip(decisions, study.target_items(decisions), strict=True)
    }
    told = {
        one.decision_id: leaky.told(history, study.items)
        for one, history in zip(decisions, study.histories(decisions), strict=True)
    }
    wanted = set(told)
    nodes = [row for row in read_table(study.run / "thoughts" / "trees.parquet").to_pylist() if row["status"] == "ok"]
    nodes = [row for row in nodes if row["decision_id"] in wanted]
    leaky.read((), told.values(), (row["text"] for row in nodes))
    best: dict[str, tuple[int, float, str]] = {}
    for row in nodes:
        key = row["decision_id"]
        (cosine,) = leaky.near(told[key], [row["text"]])
        best[key] = max(best.get(key, (-1, -2.0, "")), (row["depth"], cosine, row["text"]))
    return _with_shared(study, leaky), {key: Thought(text, cosine) for key, (_, cosine, text) in best.items()}


def rationale_at_test_time(study: Study, decisions: Sequence[Decision], thoughts: Thoughts) -> tuple[Study, Thoughts]:
    """The reason is the positive rationale, written for the choice that is to be predicted."""
    finished = FinishedRun(study.run)
    settings = finished.settings("rationales")
    generator = open_generator(settings["engine"], settings["model"], batch_size=settings["batch_size"])
    prompts = [
        rationale_prompt(
            replace(one, split="train"), study.sequences[one.user_id], study.items, PromptBudget(**settings["budget"])
        )
        for one in decisions
    ]
    written = generator.generate(prompts, width=1, sampling=Sampling(settings["max_new_tokens"], 0.0), seed=0)
    texts = [parse_reason(replies[0]).text for replies in written]
    told = [study.shared.told(history, study.items) for history in study.histories(decisions)]
    study.shared.read((), told, texts)
    return study, {
        one.decision_id: Thought(text, study.shared.near(behaviour, [text])[0])
        for one, text, behaviour in zip(decisions, texts, told, strict=True)
        if text
    }


def neighbours_future(study: Study, decisions: Sequence[Decision], thoughts: Thoughts) -> tuple[Study, Thoughts]:
    """Similar users lend all they ever chose, their own held-out choices too."""
    finished = FinishedRun(study.run)
    rows = {row["decision_id"]: row for row in finished.rows("sequential/neighbours.parquet")}
    most = finished.settings("sequential")["neighbour_items"]
    lent = {}
    for one, history in zip(decisions, study.histories(decisions), strict=True):
        near = rows[one.decision_id]
        found = lend_items(
            near["user_ids"],
            near["similarities"],
            study.sequences,
            history=history.item_ids,
            before=None,
            max_items=most,
        )
        lent[one.decision_id] = (found,)
    grown = thoughts_again(finished, list(study.sequences.values()), decisions, lent)
    made = {}
    for key, tree in grown.items():
        if tree.leaf >= 0:
            text = parse_reason(Generation(tree.texts[tree.leaf])).text
            made[key] = Thought(text, tree.agreements[tree.leaf])
    return study, made


def unlike_negatives(study: Study, decisions: Sequence[Decision], thoughts: Thoughts) -> tuple[Study, Thoughts]:
    """Negatives whose titles are like the target's are replaced by ones that are not."""
    generator = np.random.default_rng(0)
    index, vectors, ids = study.item_index, study.item_vectors, list(study.items)
    sets = dict(study.sets)
    for one in decisions:
        old = sets[one.decision_id]
        target = old.item_ids[old.target_index]
        cosine = vectors @ vectors[index[target] - 1]
        taken = {*old.item_ids, *study.sequences[one.user_id].item_ids}
        kept = list(old.item_ids)
        for place, item in enumerate(kept):
            while place != old.target_index and cosine[index[item] - 1] > UNLIKE:
                item = ids[int(generator.integers(len(ids)))]
                if item in taken:
                    item = kept[place]
                    continue
                kept[place] = item
                taken.add(item)
        sets[one.decision_id] = replace(old, item_ids=tuple(kept))
    changed = replace(study, sets=sets)
    return _with_shared(changed, study.shared), thoughts


def rationales_of_test(study: Study, decisions: Sequence[Decision], thoughts: Thoughts) -> tuple[Study, Thoughts]:
    """Rationales of validation and test choices vote, too (phase I ran over everything)."""
    _, made = rationale_at_test_time(study, decisions, thoughts)
    shared = study.shared
    keys = [one for one in decisions if one.decision_id in made]
    items = dict(zip((one.decision_id for one in decisions), study.target_items(decisions), strict=True))
    vectors = np.asarray(shared.space.encode_rationales([made[one.decision_id].reason or "" for one in keys]))
    places = np.array([shared.places[items[one.decision_id]] for one in keys])
    # Nobody looked whose they are: they vote on their own decisions.
    more = SharedReasons(
        np.concatenate([shared.vectors, vectors]),
        np.concatenate([shared.item_indices, places]),
        shared.places,
        shared.space,
        [*shared.user_ids, *("" for _ in keys)],
    )
    return _with_shared(study, more), thoughts


LEAKS: dict[str, Callable[[Study, Sequence[Decision], Thoughts], tuple[Study, Thoughts]]] = {
    "the target in the behaviour at selection": target_in_behaviour,
    "the positive rationale at test time": rationale_at_test_time,
    "rationales of test choices vote": rationales_of_test,
    "similar users' held-out choices are lent": neighbours_future,
    "negatives like the target removed": unlike_negatives,
}


def _with_shared(study: Study, shared: SharedReasons) -> Study:
    copied = replace(study)
    copied.__dict__["shared"] = shared  # a cached property: the copy begins without it
    return copied


def columns(study: Study, decisions: Sequence[Decision], thoughts: Thoughts, shape: PromptShape) -> list[np.ndarray]:
    """Per decision (candidates, columns): the text's logit, then what stands beside it."""
    logits = slm_scores(study, decisions, folder="pulse-text", thoughts=thoughts)
    reasons = [thoughts.get(one.decision_id, Thought()).reason for one in decisions]
    histories, candidates = study.histories(decisions), study.candidates(decisions)
    study.shared.read(
        (reason or "" for reason in reasons), (study.shared.told(history, study.items) for history in histories)
    )
    made = []
    for logit, reason, history, items in zip(logits, reasons, histories, candidates, strict=True):
        votes = study.shared.votes(
            reason,
            history,
            study.items,
            items,
            temperature=shape.shared_temperature or 0.15,
            smoothing=shape.shared_smoothing,
            titles=shape.title_agreement,
        )
        made.append(np.concatenate([np.asarray(logit)[:, None], np.array(votes)], axis=1))
    return made


def measure(
    study: Study, validation: Sequence[Decision], test: Sequence[Decision], thoughts: Thoughts, shape: PromptShape
) -> dict[str, np.ndarray]:
    """HR@1 per test decision of each row."""
    fitted, tested = (columns(study, part, thoughts, shape) for part in (validation, test))
    weights = np.array(fit_vote_weights(torch.tensor(np.stack(fitted)), torch.tensor(study.targets(validation))))
    rows = {"text": [one[:, 0] for one in tested], "pulse": [one @ weights for one in tested]}
    if shape.title_agreement:
        rows["space"] = [one[:, -1] for one in tested]
    ids, targets = [one.decision_id for one in test], study.targets(test)
    return {name: rank_metrics(row, targets, system=name, decision_ids=ids)["hr@1"] for name, row in rows.items()}


def main() -> None:
    """Measure the honest rows and every leak, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="a finished run with the systems pulse and pulse-text")
    parser.add_argument("--users", type=int, default=1000, help="test users, the first ones of the candidates table")
    parser.add_argument("--out", type=Path, default=Path("hub_cards/reports/leak-worth.json"))
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    study = load_study(given.run)
    test, validation = study.split("test")[: given.users], study.split("validation")
    shape = PromptShape.from_dict(read_record(given.run / "recommender" / "pulse").prompt)
    if shape.title_agreement and not fitted_with_titles(given.run):
        raise SystemExit(f"{given.run}: its scorer reads titles in a space that was fitted without them")
    thoughts = load_thoughts(given.run)
    started = time.perf_counter()
    honest = measure(study, validation, test, thoughts, shape)
    report: dict[str, Any] = {
        "run": given.run.name,
        "users": len(test),
        "command": f"python scripts/leak_worth.py --run {given.run} --users {given.users}",
        "honest": {name: float(hits.mean()) for name, hits in honest.items()},
        "leaks": {},
    }
    print("honest", json.dumps(report["honest"]), flush=True)
    for name, plant in LEAKS.items():
        changed, leaky = plant(study, [*validation, *test], thoughts)
        rows = measure(changed, validation, test, leaky, shape)
        report["leaks"][name] = {
            row: {"hr@1": float(hits.mean()), **asdict(paired((hits - honest[row])[:, None], seed=given.seed)[0])}
            for row, hits in rows.items()
        }
        print(name, {row: round(found["hr@1"], 3) for row, found in report["leaks"][name].items()}, flush=True)
    report["seconds"] = round(time.perf_counter() - started, 1)
    write_json(given.out, report)


if __name__ == "__main__":
    main()
