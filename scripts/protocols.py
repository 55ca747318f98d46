"""HR@1 as candidates grow, uniform and popularity-sampled, from the models of one finished run.

    python scripts/protocols.py --run runs/evidence/luxury-beauty-dedup-1x9-s0 --users 1000
    python scripts/protocols.py --run runs/evidence/luxury-beauty-dedup-1x9-s0 --users 9154 --most 20 --read 20

No score of this package depends on the company a candidate is in, so one scoring of many candidates ranks
any part of them, too. Each test decision's own set is drawn out: its ten candidates come first, more negatives behind
them, so that 1 of 10 is the run's own protocol on these users and 20, 100, 1,000 and the whole catalogue go on from
it. ``popularity`` draws negatives in proportion to training events instead. Nothing is fitted anew: fusions keep the
constants that the run fitted on its validation sets of ten.

A language model reads at most ``--read`` candidates of a decision. Up to there it ranks all of them; of the whole
catalogue it ranks the best ones by ``sasrec+text``, and a target that was not retrieved is a miss (retrieve, then
score). In between such rows are left out. ``--most`` stops at sets of that size; the catalogue is left out then.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pulse_hf.artifacts import content_sha256, read_json, settings_of, write_json
from pulse_hf.evaluation.comparisons import compare, compared_pairs, summarise
from pulse_hf.evaluation.protocol import Study, load_study
from pulse_hf.evaluation.score_book import ScoreBook, System
from pulse_hf.evaluation.systems import systems
from pulse_hf.metrics import rank_metrics
from pulse_hf.retrieval.candidates import CandidateSettings, candidates_sha256, draw_candidates
from pulse_hf.schema import CandidateSet, Decision

SIZES = (10, 20, 100, 1000)
RETRIEVER = "sasrec+text"
AT_ONCE = 1000  # decisions whose whole catalogues are in memory before they are cut
READERS = frozenset({"a-llmrec", "a-llmrec+reason", "slm+sft", "pulse-text", "pulse"})

Rows = Sequence[NDArray[np.float64] | None]  # None: the target was not retrieved
Measured = dict[str, dict[str, NDArray[np.float64]]]


def drawn_out(
    study: Study, decisions: Sequence[Decision], *, seed: int, most: int | None = None
) -> list[CandidateSet]:
    """Each decision's own set and behind it, in drawn order, every other item that the person had not chosen.

    Args:
        study: The run's data.
        decisions: Test decisions.
        seed: Of the draw.
        most: Candidates that are kept of a set, so that no more than some whole catalogues are in memory at once.
    """
    everything, sequences, items = CandidateSettings(sampling="full"), [*study.sequences.values()], list(study.items)
    at_once = len(decisions) if most is None else AT_ONCE
    made = []
    for start in range(0, len(decisions), at_once):
        some = decisions[start : start + at_once]
        for one in draw_candidates(sequences, items, some, everything, seed=seed):
            own = study.sets[one.decision_id]
            first = set(own.item_ids)
            more = (item for item in one.item_ids if item not in first)
            made.append(replace(own, item_ids=(*own.item_ids, *more)[:most]))
    return made


def popular(study: Study, decisions: Sequence[Decision], size: int, *, seed: int) -> list[CandidateSet]:
    """Sets whose negatives are drawn in proportion to training events; the first of a set are a smaller such set."""
    settings = CandidateSettings(num_negatives=size - 1, sampling="popularity")
    users = list(study.sequences.values())
    return draw_candidates(users, list(study.items), decisions, settings, seed=seed, shuffle=False)


def first(sets: Sequence[CandidateSet], size: int) -> list[CandidateSet]:
    """The first candidates of each set."""
    return [replace(one, item_ids=one.item_ids[:size]) for one in sets]


def retrieved(sets: Sequence[CandidateSet], rows: Rows, size: int) -> list[CandidateSet]:
    """The best candidates by a system's scores, in the set's order; a target that is not among them comes last.

    Example:
        >>> one = CandidateSet("u#2", "test", ("a", "b", "c"), 2)
        >>> retrieved([one], [np.array([0.1, 0.9, 0.5])], 1)[0].item_ids
        ('b', 'c')
    """
    made = []
    for one, row in zip(sets, rows, strict=True):
        best = np.sort(np.argsort(-row, kind="stable")[:size]).tolist()
        kept = best if one.target_index in best else [*best, one.target_index]
        members = tuple(one.item_ids[place] for place in kept)
        made.append(replace(one, item_ids=members, target_index=kept.index(one.target_index)))
    return made


def none_if_missed(rows: Rows, sets: Sequence[CandidateSet], size: int) -> Rows:
    """Scores, and none where the target stands beyond the retrieved ones: a miss by every metric."""
    return [None if len(one.item_ids) > size else row for row, one in zip(rows, sets, strict=True)]


class Leg:
    """Scores of all wanted systems on one kind of sets, kept on disk.

    Args:
        study: The run's data.
        decisions: Test decisions.
        sets: Their candidates.
        folder: Where scores are kept.
        l2: The run's setting of its stackers.
    """

    def __init__(
        self, study: Study, decisions: Sequence[Decision], sets: Sequence[CandidateSet], folder: Path, *, l2: float
    ) -> None:
        kept = {one.decision_id: one for one in [*study.split("validation"), *decisions]}
        changed = replace(study, decisions=kept, sets={**study.sets, **{one.decision_id: one for one in sets}})
        changed.__dict__["shared"] = study.shared  # texts that are encoded already stay so
        self.sets = sets
        # Scores of another evaluation of the run rest on other models or other ingredients.
        self.folder = folder / content_sha256(study.run / "evaluate")[:16] / candidates_sha256(sets)[:16]
        if not (self.folder / "validation").exists():
            # Fusions are fitted on the run's own validation scores.
            shutil.copytree(study.run / "evaluate" / "scores" / "validation", self.folder / "validation")
        self.book = ScoreBook(self.folder, changed)
        self.known: Mapping[str, System] = systems(self.book, l2=l2)

    def rows(self, name: str) -> Rows:
        """Scores of every candidate."""
        print(f"   {name}", flush=True)
        return [np.asarray(row) for row in self.book.rows(self.known[name], "test")]

    def reads(self, name: str) -> bool:
        """Whether a language model takes part in a system."""
        return bool({name, *self.known[name].parts} & READERS)


def metrics(rows: Rows, sets: Sequence[CandidateSet], name: str) -> dict[str, NDArray[np.float64]]:
    """Rank metrics of the sets, from scores that may go on behind them."""
    cut = [None if row is None else row[: len(one.item_ids)] for row, one in zip(rows, sets, strict=True)]
    return rank_metrics(cut, [one.target_index for one in sets], system=name)


def measure(study: Study, decisions: Sequence[Decision], given: argparse.Namespace) -> dict[str, Measured]:
    """Metrics by protocol and system."""
    names = list(read_json(given.run / "report.json")["systems"])
    l2 = float(settings_of(given.run / "evaluate")["stacker_l2"])
    measured: dict[str, Measured] = {}

    def leg_of(sets: Sequence[CandidateSet]) -> Leg:
        print(f"== {len(sets[0].item_ids):,} candidates ==", flush=True)
        return Leg(study, decisions, sets, given.work / given.run.name, l2=l2)

    def grow(kind: str, sets: Sequence[CandidateSet]) -> dict[str, Rows]:
        """Sizes that language models read, with all systems; larger ones without them. Returns the latter's rows."""
        near, smallest = leg_of(first(sets, given.read)), min(len(one.item_ids) for one in sets)
        rows, more = {name: near.rows(name) for name in names}, {}
        if smallest > given.read or not given.most:
            far = leg_of(sets)
            more = {name: far.rows(name) for name in names if not far.reads(name)}
        for size in (size for size in SIZES if size <= smallest):
            found = rows if size <= given.read else more
            cut = first(sets, size)
            measured[f"{kind} 1+{size - 1}"] = {name: metrics(found[name], cut, name) for name in found}
        return more

    bought = sum(1 for count in study.training_counts.values() if count)
    most = min(SIZES[-2], bought // 2, given.most or bought)
    grow("popularity", popular(study, decisions, most, seed=given.seed))
    whole = drawn_out(study, decisions, seed=given.seed, most=given.most)
    rows = grow("uniform", whole)
    if given.most:
        return measured
    measured["catalogue"] = {name: metrics(rows[name], whole, name) for name in rows}
    near = retrieved(whole, rows[RETRIEVER], given.read)
    leg = leg_of(near)
    for name in names:
        if leg.reads(name):
            found = none_if_missed(leg.rows(name), near, given.read)
            measured["catalogue"][name] = metrics(found, near, name)
    return measured


def main() -> None:
    """Measure and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="a finished run with uniform negatives")
    parser.add_argument("--users", type=int, default=1000, help="test users, the first ones of the candidates table")
    parser.add_argument("--read", type=int, default=100, help="candidates of a decision that a language model reads")
    parser.add_argument(
        "--most", type=int, help="candidates of the largest sets; up to the whole catalogue by default"
    )
    parser.add_argument("--work", type=Path, default=Path("runs/protocols"))
    parser.add_argument("--out", type=Path, default=Path("hub_cards/reports/protocols.json"))
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if given.most is not None and given.most < SIZES[0]:
        parser.error(f"--most is {given.most}, expected at least {SIZES[0]}")
    most = f" --most {given.most}" if given.most else ""
    study = load_study(given.run)
    decisions = study.split("test")[: given.users]
    started = time.perf_counter()
    measured = measure(study, decisions, given)
    report: dict[str, Any] = {
        "run": given.run.name,
        "users": len(decisions),
        "read": given.read,
        "command": f"python scripts/protocols.py --run {given.run} --users {given.users} --read {given.read}{most}",
        "seed": given.seed,
        "protocols": {
            name: {
                "systems": summarise(rows, cold=study.cold(decisions), seed=given.seed),
                "comparisons": compare(rows, compared_pairs(tuple(rows)), seed=given.seed, compared=("hr@1",)),
            }
            for name, rows in measured.items()
        },
        "seconds": round(time.perf_counter() - started, 1),
    }
    write_json(given.out, report)


if __name__ == "__main__":
    main()
