"""What carries over to another shop: finished runs' models before decisions of a shop that none was fitted on.

    python scripts/cross_domain.py       # Luxury Beauty (three seeds) to Video Games, the paper's section 5.6
    python scripts/cross_domain.py --source runs/demo --target other --reviews r.jsonl --metadata i.jsonl --out o.json

The new shop is prepared as the source was, 1 positive and 9 uniform negatives are frozen for a seeded sample of its
users, and every system of the source ranks them as it is: nothing is fitted, chosen or calibrated there. What a system
may read is the catalogue's texts and the history of the person it serves (everything before the test event). Nobody
else's events are in the study that systems are given, so there are no similar users to lend items to a reason, and no
rationale of the source votes for an item here. One row, marked as such, sees the shop: its popularity. Of several
sources, which differ in their seed, every person's metrics are averaged.

Scores and reasons are kept in ``--work``, by a hash of source, shop and candidates; an interrupted study goes on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from cross_domain_shop import BASE, LIKELY, NONE, abroad, by_text, grown, prepared, reasons

from pulse_hf.artifacts import (
    ArtifactError,
    content_sha256,
    package_versions,
    read_json,
    read_manifest,
    seed_of,
    sha256_of_text,
    write_json,
)
from pulse_hf.evaluation.baselines import chance, popularity
from pulse_hf.evaluation.comparisons import compare, summarise
from pulse_hf.evaluation.our_scores import fitted_with_titles, slm_scores
from pulse_hf.evaluation.protocol import Study
from pulse_hf.evaluation.score_book import ScoreBook, System
from pulse_hf.evaluation.systems import systems
from pulse_hf.metrics import rank_metrics
from pulse_hf.reasoning.examples import Thought
from pulse_hf.reasoning.prompts import prompt_hashes

ROOT = Path(__file__).resolve().parents[1]
SHOP = ROOT.parent / "shared" / "data" / "video_games_2018"
STAGES = ("sequences", "sequential", "thought_space", "thoughts", "recommender")

POPULARITY = "popularity"
PAPER = {  # its table for section 5.6: trained on Luxury Beauty, HR@1 on Video Games
    "sasrec": 0.1030,
    "morec": 0.0700,
    "ctrl": 0.0673,
    "slm+sft": 0.4075,
    BASE: 0.5580,
    LIKELY: 0.5460,
    "pulse-text": 0.6240,
}
PAIRS = (
    ("pulse-text", "slm+sft"),
    ("pulse-text", NONE),
    ("pulse-text", BASE),
    ("pulse-text", LIKELY),
    ("pulse", "slm+sft"),
    ("pulse", "thought-space"),
    ("thought-space", "title-similarity"),
    ("thought-space", "encoder-tuned"),
    ("encoder-tuned", "title-similarity"),
    ("thought-space", "bm25"),
    ("pulse", "bm25"),
)
_NO_IDS = "knows its own shop's ids only, so all items here are alike to it: chance by expected value"
NOTES = {
    "sasrec": _NO_IDS,
    "ctrl": _NO_IDS,
    "sasrec+text": "a new item is its text alone, as one without a training event is at home; texts about their mean",
    "pulse": "no rationale votes for an item here; text and the titles' agreements are weighed as at home",
    POPULARITY: "sees the shop's interactions: a reference, nothing that carried over",
}


def rows_of(study: Study, shop: Study, told: Mapping[str, Mapping[str, Thought]], book: ScoreBook) -> list[System]:
    """Every row, as far as the source was fitted for it."""
    run, known = study.run, systems(book, l2=1.0)  # no stacker is fitted here
    there = {name for stage in ("recommender", "baselines", "sequential") for name in _fitted(run, stage)} | (
        {"thought-space"} if fitted_with_titles(run) else set()
    )
    rows = [known[name] for name in ("random", "title-similarity", "bm25")]
    rows += [known[name] for name in ("encoder-tuned", "thought-space", "slm+sft") if name in there]
    rows += [System(name, chance.scores) for name in ("sasrec", "ctrl") if name in there]
    if "sasrec+text" in there:
        rows.append(System("sasrec+text", by_text))
    if "pulse-text" in there:
        rows += [System(name, partial(slm_scores, folder="pulse-text", thoughts=told[name])) for name in told]
    if "pulse" in there:
        rows.append(System("pulse", partial(slm_scores, folder="pulse", thoughts=told["pulse-text"])))
    return [*rows, System(POPULARITY, lambda _, decisions: popularity.scores(shop, decisions))]


def _fitted(run: Path, stage: str) -> list[str]:
    return [path.name for path in (run / stage).glob("*") if path.is_dir()]


def left_out(run: Path, rows: Sequence[str], told: Mapping[str, Any]) -> dict[str, str]:
    """The rows that a reader may look for, and why they are not there."""
    why = {}
    for name in ("encoder-tuned", "ctrl", "thought-space", "slm+sft", "pulse-text", "pulse"):
        if name not in rows:
            why[name] = "not fitted in the source run"
    for name in (BASE, LIKELY):
        if name not in told:
            why[name] = "the same reasons as pulse-text for every person: no other was written"
    kept = (run / "baselines" / "morec").is_dir()
    why["morec"] = "its tuned encoder is not kept, only its items' vectors" if kept else "not fitted in the source run"
    return why


def checked(source: Path) -> dict[str, str]:
    """The sha256 of every stage that is read.

    Raises:
        ArtifactError: A stage is missing, or its prompts are not the ones of this package.
    """
    more = ("baselines",) if (source / "baselines").exists() else ()
    manifests = {stage: read_manifest(source / stage) for stage in (*STAGES, *more)}
    for stage, manifest in manifests.items():
        made = {key: json.loads(one) for key, one in manifest["fingerprint"].items() if key.startswith("prompts.")}
        now = {f"prompts.{name}": one for name, one in prompt_hashes().items()}
        changed = sorted(key for key, one in made.items() if now.get(key) != one)
        if changed:
            raise ArtifactError(
                f"{source / stage}: made with other prompts ({', '.join(changed)}) than this package's"
            )
    return {stage: manifest["sha256"] for stage, manifest in manifests.items()}


def protocol(given: argparse.Namespace, study: Study) -> dict[str, Any]:
    """What was compared on what."""
    made, theirs = read_manifest(given.work / "candidates"), read_manifest(given.source / "candidates")
    sets = study.candidates(study.split("test"))
    return {
        "source": given.source.name,
        "source_seed": seed_of(given.source / "candidates"),
        "source_candidates_sha256": theirs["counts"]["candidates_sha256"]["test"],
        "target": given.target,
        "users": len(sets),
        "items": len(study.items),
        "negatives": len(sets[0]) - 1,
        "sampling": "uniform",
        "candidates_sha256": made["counts"]["candidates_sha256"]["test"],
        "seed": given.seed,
        "history": "everything before the test event",
        "synthetic": (given.source / "world").exists(),
    }


@dataclass(frozen=True)
class Scored:
    """One source's rows before the new shop.

    Args:
        facts: What was compared on what.
        metrics: Name of each row to its metrics by decision.
        left_out: Rows without a figure, and why.
        reasons: The engine, how many reasons, their mean agreement.
        seconds: What scoring and writing took.
        cold: (n,) whether the target has few events in the shop.
    """

    facts: dict[str, Any]
    metrics: dict[str, dict[str, np.ndarray]]
    left_out: dict[str, str]
    reasons: dict[str, Any]
    seconds: float
    cold: np.ndarray


def scored(given: argparse.Namespace) -> Scored:
    """Prepare the shop, and let one source's systems rank its candidates."""
    sha256, shop = checked(given.source), prepared(given.source, given)
    study, decisions = abroad(given.source, shop), shop.split("test")
    facts = protocol(given, study)
    parents = [*sha256.values(), *(content_sha256(given.work / stage) for stage in ("sequences", "candidates"))]
    folder = given.work / f"scores-{sha256_of_text(parents)[:12]}"
    if not (folder / "trees.json").exists():
        write_json(folder / "trees.json", grown(study))
    written = read_json(folder / "trees.json")
    told, book = reasons(written["trees"], decisions), ScoreBook(folder, study)
    rows = rows_of(study, shop, told, book)
    ids, targets = [one.decision_id for one in decisions], study.targets(decisions)
    metrics = {}
    for row in rows:
        metrics[row.name] = rank_metrics(book.rows(row, "test"), targets, system=row.name, decision_ids=ids)
        print(f"{given.source.name}, {row.name}: HR@1 {metrics[row.name]['hr@1'].mean():.4f}", flush=True)
    spent = [book.beside(row, "test")["seconds"] for row in rows]
    agreements = [one.agreement for one in told["pulse-text"].values() if one.agreement is not None]
    return Scored(
        facts,
        metrics,
        left_out(given.source, list(metrics), told),
        {
            "engine": written["engine"],
            "given": len(told["pulse-text"]),
            "mean_agreement": float(np.mean(agreements)) if agreements else None,
        },
        round(sum(spent) + written["seconds"], 1),
        shop.cold(decisions),
    )


def study_of(*asked: argparse.Namespace) -> dict[str, Any]:
    """Prepare, score, compare: the report without its command.

    Every user's metrics are averaged over the sources that have a row, which differ in nothing but their seed.

    Raises:
        ArtifactError: Two sources were given other candidates.
    """
    given, found = asked[0], [scored(one) for one in asked]
    facts, every = found[0].facts, {name: None for one in found for name in one.metrics}
    for one in found[1:]:
        if one.facts["candidates_sha256"] != facts["candidates_sha256"]:
            raise ArtifactError(
                f"{one.facts['source']} and {facts['source']} ranked other candidates of {given.target}; "
                "sources must be prepared alike"
            )
    having = {name: [one for one in found if name in one.metrics] for name in every}
    metrics = {
        name: {key: np.mean([one.metrics[name][key] for one in some], axis=0) for key in some[0].metrics[name]}
        for name, some in having.items()
    }
    paper = PAPER if (given.source.name.startswith("luxury-beauty"), given.target) == (True, "video-games") else {}
    return {
        "protocol": {
            **facts,
            "source": [one.facts["source"] for one in found],
            "source_seed": [one.facts["source_seed"] for one in found],
            "source_candidates_sha256": [one.facts["source_candidates_sha256"] for one in found],
        },
        "systems": {
            name: {
                **row,
                "paper_hr@1": paper.get(name),
                "note": NOTES.get(name),
                "sees_the_shop": name == POPULARITY,
                "by_source": [float(one.metrics[name]["hr@1"].mean()) for one in having[name]],
            }
            for name, row in summarise(metrics, cold=found[0].cold, seed=given.seed).items()
        },
        "left_out": {
            name: {"why": why, "paper_hr@1": paper.get(name)}
            for one in found
            for name, why in one.left_out.items()
            if name not in metrics
        },
        "comparisons": compare(metrics, [pair for pair in PAIRS if set(pair) <= set(metrics)], seed=given.seed),
        "reasons": found[0].reasons,
        "seconds": round(sum(one.seconds for one in found), 1),
        "versions": package_versions(),
    }


def arguments() -> argparse.ArgumentParser:
    """What can be asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    homes = [ROOT / "runs" / "evidence" / f"luxury-beauty-dedup-1x9-s{seed}" for seed in range(3)]
    parser.add_argument(
        "--source", type=Path, nargs="+", default=homes, help="finished runs that differ in their seed; only read"
    )
    parser.add_argument("--target", default="video-games", help="what the other shop is called")
    parser.add_argument("--reviews", type=Path, default=SHOP / "interactions.jsonl.gz", help="its interactions")
    parser.add_argument("--metadata", type=Path, default=SHOP / "items.jsonl.gz", help="its items")
    parser.add_argument("--users", type=int, default=2000, help="a seeded sample of so many test users")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "cross-domain", help="for SOURCE-to-TARGET")
    reports = ROOT / "hub_cards" / "reports"
    parser.add_argument("--out", type=Path, default=reports / "cross-domain-luxury-beauty-to-video-games.json")
    return parser


def main() -> None:
    """Measure and write the report."""
    given = arguments().parse_args()
    asked = [
        argparse.Namespace(**{**vars(given), "source": one, "work": given.work / f"{one.name}-to-{given.target}"})
        for one in given.source
    ]
    report = study_of(*asked)
    sources = (one.relative_to(ROOT) if one.is_relative_to(ROOT) else one for one in given.source)
    said = f"--source {' '.join(map(str, sources))} --target {given.target} --users {given.users} --seed {given.seed}"
    write_json(given.out, {**report, "command": f"python scripts/cross_domain.py {said}"})


if __name__ == "__main__":
    main()
