"""The paper's ablations, tuned anew: what chooses a reason (its table A), which reasons are used (B), and ours.

    python scripts/ablations.py --run runs/demo
    python scripts/ablations.py --run runs/evidence/luxury-beauty-dedup-1x9-s1 --users 2000 --arms a b

Every arm is a run of its own beside the finished one, with links to all that it shares with it. In A and B the
trees are the finished run's: an arm chooses another reason from the same tree for every training, validation and test
decision, and the language model is tuned and weighed on those, with the same settings and rows. In ``tree`` and
``space`` a stage is made anew with one setting changed, and so are the stages after it. In ``words`` the same training
choices are explained by other texts: by the review that the person wrote of it, or by a rationale of somebody else's
choice; everything after that is made anew.

Both forms are told: ``pulse-text`` (the reason in the prompt, the paper's form) and ``pulse`` (votes of shared reasons
beside it). The paper's DistilBERT is no file of ours; ``--encoder`` names any that is at hand. Differences are paired
over the same users, with 95 % intervals and Holm's correction over the arms. An interrupted study goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pulse_hf import artifacts
from pulse_hf.evaluation.comparisons import compare, summarise
from pulse_hf.evaluation.cost import STAGES
from pulse_hf.evaluation.our_scores import slm_scores
from pulse_hf.evaluation.protocol import Study, load_study
from pulse_hf.evaluation.reasons import (
    Trees,
    base_reasons,
    derangement,
    likeliest_leaves,
    nearest_leaves,
    random_leaves,
    trees_of,
)
from pulse_hf.evaluation.score_book import ScoreBook, System
from pulse_hf.evaluation.systems import has_reviews
from pulse_hf.metrics import rank_metrics
from pulse_hf.pipeline import run_stage
from pulse_hf.presets import preset_named
from pulse_hf.reasoning.examples import Thought, load_thoughts
from pulse_hf.schema import Decision
from pulse_hf.settings import RunSettings, merge
from pulse_hf.stages import ROAD

ROOT = Path(__file__).resolve().parents[1]
READ = ("sequential", "candidates", "rationales", "thought-space", "thoughts", "recommender")  # remade or linked
OWN, NONE = "Thought Space", "no reason"
FORMS = ("pulse-text", "pulse")
TABLES = ("a", "b", "tree", "space", "words")

Choose = Callable[[Study, Trees, Sequence[Decision], str, int], dict[str, Thought]]
Explained = Sequence[tuple[Decision, str]]
Retell = Callable[[Study, Explained, int], list[str]]


@dataclass(frozen=True)
class Arm:
    """One line of a table.

    Args:
        table: Which one.
        name: What differs from the run as it is.
        choose: Which reason of a tree is taken; the trees stay.
        settings: Settings that differ; their stage and all later ones are made anew.
        retell: What stands in place of each rationale; all stages from ``rationales`` on are made anew.
        published: HR@1 on Luxury Beauty in the paper, if it has the arm.
    """

    table: str
    name: str
    choose: Choose | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    retell: Retell | None = None
    published: float | None = None


def by_encoder(study: Study, grown: Trees, some: Sequence[Decision], encoder: str, seed: int) -> dict[str, Thought]:
    """The leaf nearest to the behaviour by an encoder that was never tuned."""
    told = [study.shared.told(history, study.items) for history in study.histories(some)]
    return nearest_leaves(grown, some, told, encoder)


def reviews(study: Study, explained: Explained, seed: int) -> list[str]:
    """What the person wrote of each choice, which is nothing for some."""
    return [study.sequences[one.user_id].reviews[one.position] for one, _ in explained]


def somebody_elses(study: Study, explained: Explained, seed: int) -> list[str]:
    """The rationales dealt out anew: whose choice they are of is lost, their words and number stay."""
    return [explained[place][1] for place in derangement(len(explained), seed)]


ARMS = (
    Arm("a", "an untuned encoder", by_encoder, published=0.8636),
    Arm("a", "a random leaf", lambda study, grown, some, encoder, seed: random_leaves(grown, some, seed)),
    Arm("b", "the base reason", lambda study, grown, some, encoder, seed: base_reasons(grown, some), published=0.7186),
    Arm(
        "b",
        "the likeliest leaf",
        lambda study, grown, some, encoder, seed: likeliest_leaves(grown, some),
        published=0.8559,
    ),
    Arm("tree", "depth 2, width 2", settings={"thoughts": {"depth": 2, "width": 2}}),
    Arm("tree", "depth 1, width 4", settings={"thoughts": {"depth": 1, "width": 4}}),
    Arm("space", "10 negatives", settings={"thought_space": {"num_negatives": 10}}),
    Arm("space", "all of the batch as negatives", settings={"thought_space": {"num_negatives": None}}),
    Arm("space", "two towers", settings={"thought_space": {"shared_towers": False}}),
    Arm("space", "two layers tuned", settings={"thought_space": {"trained_layers": 2}}),
    Arm(
        "space",
        "two layers tuned, two towers",
        settings={"thought_space": {"trained_layers": 2, "shared_towers": False}},
    ),
    Arm("space", "never fitted", settings={"thought_space": {"epochs": 0}}),
    Arm("words", "reviews in place of rationales", retell=reviews),
    Arm("words", "somebody else's rationales", retell=somebody_elses),
)


def settings_of_study(run: Path) -> RunSettings:
    """The settings that a run's stages were made with, as far as an arm makes them anew."""
    found: dict[str, Any] = {}
    for word in READ:
        found[STAGES[word]] = artifacts.settings_of(run / STAGES[word])
        found["seed"] = artifacts.seed_of(run / STAGES[word])
    settings: RunSettings = merge(preset_named("small"), found, str(run))
    return replace(settings, recommender=replace(settings.recommender, systems=FORMS))


def linked(run: Path, folder: Path, words: Sequence[str]) -> None:
    """Links to the stages of a run that an arm shares with it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("sequences", *(STAGES[word] for word in words)):
        if not (folder / name).exists():
            (folder / name).symlink_to(os.path.relpath(run / name, folder))


def rechosen(run: Path, folder: Path, name: str, choose: Choose, encoder: str, seed: int) -> None:
    """``thoughts/`` of the arm ``name``: other reasons of the same trees."""
    read = ("thoughts", "thought_space", "candidates")
    parents = {stage: artifacts.content_sha256(run / stage) for stage in read}
    facts = {"chosen_by": name, "encoder": encoder}

    def make(work: Path) -> dict[str, Any]:
        study, rows = load_study(run), artifacts.read_table(run / "thoughts" / "thoughts.parquet").to_pylist()
        some = [study.decisions[row["decision_id"]] for row in rows]
        chosen = choose(study, trees_of(run), some, encoder, seed)
        nodes = {
            (row["decision_id"], row["text"]): row["node"]
            for row in artifacts.read_table(run / "thoughts" / "trees.parquet").to_pylist()
        }
        changed = 0
        for row in rows:
            thought = chosen.get(row["decision_id"], Thought())
            changed += (thought.reason or "") != row["reason"]
            row |= {"reason": thought.reason or "", "agreement": thought.agreement}
            row["leaf"] = nodes.get((row["decision_id"], thought.reason), -1)
        artifacts.write_table(work / "thoughts.parquet", "thoughts", rows)
        return {"rows": len(rows), "changed": changed}

    artifacts.build(folder / "thoughts", artifacts.Fingerprint("thoughts", facts, seed, parents), make)


def retold(run: Path, path: Path, retell: Retell, seed: int) -> dict[str, Any]:
    """Write down what explains each training choice instead, and the settings that read it."""
    study = load_study(run)
    rows = artifacts.read_table(run / "rationales" / "rationales.parquet").to_pylist()
    explained = [
        (Decision(row["user_id"], row["position"], row["split"]), row["text"]) for row in rows if row["status"] == "ok"
    ]
    texts = retell(study, explained, seed)
    told = [
        {"user_id": one.user_id, "item_id": study.sequences[one.user_id].item_ids[one.position], "text": text}
        for (one, _), text in zip(explained, texts, strict=True)
        if text
    ]
    artifacts.write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in told))
    return {"rationales": {"engine": "recorded", "model": str(path)}}


def arm_run(run: Path, folder: Path, arm: Arm, settings: RunSettings, encoder: str) -> None:
    """Make the run of an arm."""
    if arm.choose:
        linked(run, folder, READ[:-2])
        rechosen(run, folder, arm.name, arm.choose, encoder, settings.seed)
        changed = "recommender"
    else:
        folder.mkdir(parents=True, exist_ok=True)
        differs = retold(run, folder / "retold.jsonl", arm.retell, settings.seed) if arm.retell else arm.settings
        changed = next(word for word in READ if STAGES[word] in differs)
        linked(run, folder, READ[: READ.index(changed)])
        settings = merge(settings, differs, arm.name)
    for stage in ROAD:
        if stage.word in READ[READ.index(changed) :]:
            run_stage(stage, folder, settings)


def applies(arm: Arm, run: Path, settings: RunSettings) -> str:
    """Why an arm says nothing about a run, ``""`` if it does."""
    if arm.name == "the likeliest leaf":
        likelihoods = artifacts.read_table(run / "thoughts" / "trees.parquet")["log_likelihood"].to_pylist()
        return "" if any(likelihoods) else "the engine that wrote the reasons knows no likelihood"
    if arm.retell is reviews and not has_reviews(run):
        return "nobody wrote a review there"
    changed = merge(settings, arm.settings, arm.name).thought_space
    if not changed.shared_towers and changed.trained_layers == 0:
        return "no layer of the encoder is tuned there, so that both towers are the same"
    return "the run has it" if arm.settings and merge(settings, arm.settings, arm.name) == settings else ""


class Measured:
    """Metrics of the arms, on the same decisions; scores are kept beside the arms.

    Args:
        run: The finished run.
        work: Where the arms' runs and scores lie.
        users: How many test users; ``None`` for all.
    """

    def __init__(self, run: Path, work: Path, users: int | None) -> None:
        self.run, self.work, self.study = run, work, load_study(run)
        self.test = self.study.split("test")[:users]
        self.rows: dict[str, dict[str, Mapping[str, np.ndarray]]] = {form: {} for form in FORMS}

    def add(self, arm: str, run: Path, form: str, folder: str | None = None) -> float:
        """Score the test decisions by one tuned model of a run; its HR@1."""
        few = {decision.decision_id: decision for decision in self.test}
        study = replace(load_study(run), decisions=few)
        read = [artifacts.content_sha256(run / name) for name in ("thought_space", "thoughts", "recommender")]
        made_of = artifacts.sha256_of_text([*read, *few])[:12]
        thoughts = load_thoughts(run) if folder is None else {}
        system = System(form, partial(slm_scores, folder=folder or form, thoughts=thoughts))
        rows = ScoreBook(self.work / "scores" / f"{plain(arm)}-{made_of}", study).rows(system, "test")
        found = rank_metrics(rows, study.targets(self.test), system=form, decision_ids=list(few))
        self.rows[form][arm] = found
        return float(found["hr@1"].mean())

    def report(self, seed: int) -> dict[str, Any]:
        """Intervals, slices and paired differences of each form."""
        cold = self.study.cold(self.test)
        return {
            form: {
                "systems": summarise(found, cold=cold, seed=seed),
                "comparisons": compare(found, [(name, OWN) for name in found if name != OWN], seed=seed),
            }
            for form, found in self.rows.items()
        }


def plain(name: str) -> str:
    """An arm's name as a folder.

    >>> plain("depth 2, width 2")
    'depth-2-width-2'
    """
    return name.replace(",", "").replace("'", "").replace(" ", "-")


def ablations(
    run: Path, wanted: Sequence[str], work: Path, settings: RunSettings, *, users: int | None, encoder: str
) -> dict[str, Any]:
    """Run every arm of some tables.

    Args:
        run: The finished run.
        wanted: Tables (``a``, ``b``, ``tree``, ``space``, ``words``) and names of single arms.
        work: Where the arms' runs lie.
        settings: The run's.
        users: How many test users; ``None`` for all.
        encoder: The untuned encoder.
    """
    measured = Measured(run, work, users)
    kept: list[dict[str, Any]] = [
        {"name": OWN, "table": "a", "published": 0.9339},
        {"name": NONE, "table": "b", "published": 0.6111},
    ]
    without: dict[str, str] = {}
    for form in FORMS:
        measured.add(OWN, run, form)
    measured.add(NONE, run, "pulse-text", "slm+sft")
    for arm in ARMS:
        if not {arm.table, arm.name} & set(wanted):
            continue
        why = applies(arm, run, settings)
        if why:
            without[arm.name] = why
            continue
        print(f"== {arm.table}: {arm.name} ==", flush=True)
        arm_run(run, work / plain(arm.name), arm, settings, encoder)
        found = {form: measured.add(arm.name, work / plain(arm.name), form) for form in FORMS}
        print({form: round(hit_rate, 4) for form, hit_rate in found.items()}, flush=True)
        counts = artifacts.read_manifest(work / plain(arm.name) / "thoughts")["counts"]
        kept.append(
            {"name": arm.name, "table": arm.table, "published": arm.published, "changed": counts.get("changed")}
        )
    return {
        "users": len(measured.test),
        "decisions": artifacts.read_manifest(run / "thoughts")["counts"]["rows"]["read"],
        "arms": kept,
        "left_out": without,
        "forms": measured.report(settings.seed),
    }


def main() -> None:
    """Run the arms that are asked for, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="a finished run")
    known = [*TABLES, *(arm.name for arm in ARMS)]
    parser.add_argument("--arms", nargs="+", default=list(TABLES), choices=known, metavar="ARM", help=", ".join(known))
    parser.add_argument("--users", type=int, help="test users, the first ones of the candidates table; all by default")
    parser.add_argument("--encoder", help="the untuned encoder; the run's own by default")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "ablations")
    parser.add_argument("--out", type=Path, help="hub_cards/reports/ablations-of-RUN.json by default")
    given = parser.parse_args()
    settings = settings_of_study(given.run)
    encoder = given.encoder or settings.sequential.encoder
    work = given.work / given.run.name
    found = ablations(given.run, given.arms, work, settings, users=given.users, encoder=encoder)
    users = f" --users {given.users}" if given.users else ""
    report = {
        "run": given.run.name,
        "command": f"python scripts/ablations.py --run {given.run} --arms {shlex.join(given.arms)}{users}",
        "seed": settings.seed,
        "encoder": encoder,
        "engine": settings.thoughts.engine,
        "synthetic": (given.run / "world").exists(),
        **found,
        "versions": artifacts.package_versions(),
    }
    artifacts.write_json(given.out or ROOT / "hub_cards" / "reports" / f"ablations-of-{given.run.name}.json", report)


if __name__ == "__main__":
    main()
