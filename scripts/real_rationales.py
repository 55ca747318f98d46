"""What do rationales of a large language model add to an encoder that is tuned from titles to the next title?

    python scripts/real_rationales.py

The control for what rationales add to Thought Space, with rationales that were not written here: Reason4Rec's, as
``digital_music.py`` makes a shop of them. Every space is the same encoder with the same settings, fitted on training
choices' titles (``encoder-tuned``), on nothing more or on those of these choices that have a rationale once more with

* ``the rationale``: what the large model said of this choice,
* ``another's rationale``: the same texts, each with another choice (a control for more text and more steps),
* ``item words``: what other people said of the chosen album, no reason at all.

That is done twice: with the titles of all training choices, and with those of the explained choices alone, where
every choice has its rationale. Ranked are the last choices of people of whom no fit saw anything, 1 of 10, by the
agreement of their titles with each candidate's title; nothing but the epoch is chosen, and that on training people.
Fits are kept under ``--work``.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import digital_music
import numpy as np
import torch
from numpy.typing import NDArray

from pulse_hf import artifacts
from pulse_hf.data.columns import Columns
from pulse_hf.data.prepare import PrepareSettings, prepare
from pulse_hf.data.sequences import items_by_id, load_sequences
from pulse_hf.evaluation.reasons import derangement
from pulse_hf.evaluation.statistics import holm, intervals, paired
from pulse_hf.metrics import rank_metrics
from pulse_hf.models.device import few_compiled_products
from pulse_hf.models.embedded import resolve_model
from pulse_hf.models.thought_space import PulseThoughtSpaceModel
from pulse_hf.reasoning.recorded import recorded_rationales
from pulse_hf.reasoning.titles import history_titles
from pulse_hf.retrieval.candidates import CandidateSettings, candidates, load_candidates
from pulse_hf.training.thought_pairs import Pair, inputs_sha256, next_title_pairs
from pulse_hf.training.thought_space import Fitting, ThoughtSpaceSettings, start_model

ROOT = Path(__file__).resolve().parents[1]
TITLES = "titles"
MORE = ("the rationale", "another's rationale", "item words")
MEASURES = ("hr@1", "mrr")
AMONG = ("all", "explained")
NUM_TITLES = 5
# Shares of people: the small one only makes that the candidates' stage finds validation targets.
SHARES = {"validation_share": 0.02, "test_share": 0.48}
SETTINGS = ThoughtSpaceSettings(
    num_negatives=None,
    symmetric=True,
    epochs=8,
    max_history_tokens=128,
    max_rationale_tokens=128,
    num_folds=0,
)
FEW = {"epochs": 32, "patience": 4}  # of the explained choices alone: a fifth of the steps an epoch


class Shop:
    """The prepared shop: its people, albums, choices to be ranked, and what is told of some training choices."""

    def __init__(self, data: Path, work: Path) -> None:
        files = work / digital_music.FOLDER
        self.counts = digital_music.convert(data, files)
        settings = PrepareSettings(
            "table",
            str(files / "interactions.jsonl.gz"),
            str(files / "items.jsonl.gz"),
            columns=Columns(timestamp=None, order="position"),
            min_user_events=0,
            min_item_events=0,
            split="people",
            **SHARES,
        )
        prepare(work, settings, seed=0)
        drawn = CandidateSettings(max_test_users=None, max_validation_users=None, max_train_users=1)
        candidates(work, drawn, seed=0)
        self.sequences = load_sequences(work)
        self.users = {one.user_id: one for one in self.sequences}
        self.items = items_by_id(work)
        self.sets = [one for one in load_candidates(work) if one.split == "test"]
        self.rationales, self.words = (
            recorded_rationales(str(files / name), self.sequences).texts
            for name in ("rationales.jsonl.gz", "item_words.jsonl.gz")
        )

    def titles(self, among: str) -> list[Pair]:
        """Training choices, all or those that have a rationale: titles before it, and its title."""
        pairs = next_title_pairs(self.sequences, self.items, NUM_TITLES)
        return [pair for pair in pairs if among == "all" or pair.decision_id in self.rationales]

    def more(self, kind: str, seed: int) -> dict[str, str]:
        """Further texts by training choice."""
        if kind == "item words":
            return dict(self.words)
        if kind == "the rationale":
            return dict(self.rationales)
        keys = sorted(self.rationales)
        return {
            key: self.rationales[keys[other]] for key, other in zip(keys, derangement(len(keys), seed), strict=True)
        }


def settings_among(among: str) -> ThoughtSpaceSettings:
    """The same for every space of a study."""
    return SETTINGS if among == "all" else replace(SETTINGS, **FEW)


def fitted(shop: Shop, among: str, kind: str, work: Path, seed: int) -> Path:
    """The folder of one space, fitted if it is not there."""
    pairs, settings = shop.titles(among), settings_among(among)
    texts = {} if kind == TITLES else shop.more(kind, seed)
    twins = [
        replace(pair, rationale=texts[pair.decision_id], masked_rationale=texts[pair.decision_id])
        for pair in pairs
        if pair.decision_id in texts
    ]
    identity = resolve_model(settings.encoder)[1]
    parents = {"pairs": inputs_sha256([*pairs, *twins])}
    fingerprint = artifacts.Fingerprint("real-rationales", asdict(settings), seed, parents, model=identity)

    def make(folder: Path) -> dict[str, Any]:
        record = Fitting(start_model(settings), pairs, settings, seed, twins).fit(folder, "model")[2]
        return {"pairs": record["pairs"], "best_epoch": record["best_epoch"], "further": len(twins)}

    words = kind.replace(" ", "-").replace("'", "")
    folder = work / f"{words if among == 'all' else f'{among}-{words}'}-s{seed}"
    artifacts.build(folder, fingerprint, make)
    return folder


def ranked(shop: Shop, model: PulseThoughtSpaceModel) -> NDArray[np.float64]:
    """(people, measures) of the choices that no fit saw."""
    names = sorted(shop.items)
    place = {name: number for number, name in enumerate(names)}
    told = []
    for one in shop.sets:
        history = shop.users[one.decision.user_id].before(one.decision.position)
        told.append(history_titles(history, shop.items, NUM_TITLES))
    with torch.no_grad():
        histories = model.encode_histories(told).float().cpu().numpy()
        albums = model.encode_rationales([shop.items[name].title for name in names]).float().cpu().numpy()
    scores = [
        albums[[place[item] for item in one.item_ids]] @ history
        for one, history in zip(shop.sets, histories, strict=True)
    ]
    found = rank_metrics(scores, [one.target_index for one in shop.sets], system="space")
    return np.stack([found[name] for name in MEASURES], axis=1)


def judged(shop: Shop, among: str, kinds: Sequence[str], work: Path, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """One row a space of one study, averaged over the seeds for every person, each beside all others."""
    values: dict[str, NDArray[np.float64]] = {}
    facts: dict[str, dict[str, Any]] = {}
    for kind in kinds:
        folders = [fitted(shop, among, kind, work, seed) for seed in seeds]
        models = [PulseThoughtSpaceModel.from_pretrained(str(folder / "model")).eval() for folder in folders]
        values[kind] = np.mean([ranked(shop, model) for model in models], axis=0)
        manifests = [artifacts.read_manifest(folder) for folder in folders]
        facts[kind] = {
            "among": among,
            "further_pairs": manifests[0]["counts"]["further"],
            "best_epochs": [one["counts"]["best_epoch"] for one in manifests],
            "seconds": round(sum(float(one["seconds"]) for one in manifests), 1),
        }
    rows: list[dict[str, Any]] = []
    for kind in kinds:
        row = {"space": kind, **spans(values[kind]), **facts[kind]}
        row["over"] = {other: differences(values[kind], values[other]) for other in kinds if other != kind}
        rows.append(row)
    return with_holm(rows)


def spans(values: NDArray[np.float64]) -> dict[str, dict[str, float]]:
    """Mean and 95 % interval of every measure."""
    return {name: asdict(one) for name, one in zip(MEASURES, intervals(values, seed=0), strict=True)}


def differences(first: NDArray[np.float64], second: NDArray[np.float64]) -> dict[str, dict[str, float]]:
    """Paired difference of every measure."""
    return {name: asdict(one) for name, one in zip(MEASURES, paired(first - second, seed=0), strict=True)}


def with_holm(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A study's rows with p corrected over its comparisons of the rationale with something else, per measure."""
    mine = next((row for row in rows if row["space"] == MORE[0]), None)
    for name in MEASURES if mine else ():
        corrected = holm({other: found[name]["p"] for other, found in mine["over"].items()})
        for other, p in corrected.items():
            mine["over"][other][name]["p_holm"] = p
    return rows


def main() -> None:
    """Fit what is not there, judge, write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--out", type=Path, default=ROOT / "hub_cards" / "reports")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "real-rationales", help="fits are kept here")
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1, 2))
    parser.add_argument("--spaces", choices=(TITLES, *MORE), nargs="+", default=(TITLES, *MORE))
    parser.add_argument("--among", choices=AMONG, nargs="+", default=AMONG)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    if not (given.data / "reason4rec_rollouts").is_dir():
        raise SystemExit(f"{given.data} holds no reason4rec_rollouts: put it there, or give --data")
    torch.set_num_threads(given.threads)
    few_compiled_products()
    shop = Shop(given.data, given.work)
    rows: list[dict[str, Any]] = [{"space": "untrained", **spans(ranked(shop, start_model(SETTINGS)))}]
    for among in given.among:
        rows += judged(shop, among, given.spaces, given.work, given.seeds)
    report = {
        "command": " ".join(["python", os.path.relpath(__file__, ROOT), *sys.argv[1:]]),
        "people": len(shop.sets),
        "counts": shop.counts,
        "training_choices": {among: len(shop.titles(among)) for among in AMONG},
        "seeds": list(given.seeds),
        "settings": {among: asdict(settings_among(among)) for among in AMONG} | SHARES,
        "rows": rows,
        "versions": artifacts.package_versions(),
    }
    artifacts.write_json(given.out / "real-rationales.json", report)
    for row in rows:
        print(row.get("among", ""), row["space"], {name: round(row[name]["value"], 4) for name in MEASURES})
    print(f"written: {given.out / 'real-rationales.json'}")


if __name__ == "__main__":
    main()
