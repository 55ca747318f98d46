"""Another shop as a source run's systems are given it: texts, histories and reasons, nothing of other people."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pulse_hf.artifacts import seed_of, settings_of
from pulse_hf.data.prepare import PrepareSettings, prepare
from pulse_hf.evaluation.baselines import sasrec
from pulse_hf.evaluation.protocol import Study, load_study
from pulse_hf.evaluation.reasons import base_reasons, likeliest_leaves
from pulse_hf.models.sasrec import PulseSASRecModel
from pulse_hf.models.text_encoder import encode_texts
from pulse_hf.reasoning.agreement import FULL_SPACE, load_space
from pulse_hf.reasoning.examples import Thought
from pulse_hf.reasoning.generator import open_generator
from pulse_hf.reasoning.shared_reasons import SharedReasons
from pulse_hf.reasoning.thoughts import ThoughtSettings, think, thought_inputs
from pulse_hf.retrieval.candidates import CandidateSettings, candidates
from pulse_hf.schema import Decision
from pulse_hf.training.sasrec import centred

if TYPE_CHECKING:
    from numpy.typing import NDArray

NONE, BASE, LIKELY = (f"pulse-text, {reason}" for reason in ("no reason", "base reason", "likeliest leaf"))


@dataclass(frozen=True)
class Abroad(Study):
    """Another shop's decisions before a source run's models; ``run`` is the source's folder."""

    @cached_property
    def item_vectors(self) -> NDArray[np.float32]:
        """The source's frozen encoder over this shop's item texts."""
        of = settings_of(self.run / "sequential")
        return encode_texts(
            [one.item_text for one in self.items.values()], of["encoder"], max_tokens=of["text_tokens"]
        )

    @cached_property
    def shared(self) -> SharedReasons:
        """The source's Thought Space without any rationale that votes: both shops may use the same ids."""
        nobody = np.zeros((0, 0), np.float32), np.zeros(0, np.int64)
        return SharedReasons(*nobody, {}, load_space(self.run, FULL_SPACE))


def prepared(source: Path, given: argparse.Namespace) -> Study:
    """The shop with all its people, read by the source's own settings, with candidates for a sample of them."""
    own = settings_of(source / "sequences")
    files = {"reviews": str(given.reviews), "metadata": str(given.metadata), "expected": {}}
    prepare(given.work, PrepareSettings(**{**own, **files}), seed=given.seed)
    # The stage wants one at least of each other split; nothing reads them.
    sizes = CandidateSettings(
        training_decisions_per_user=1, max_test_users=given.users, max_validation_users=1, max_train_users=1
    )
    candidates(given.work, sizes, seed=given.seed, force=True)
    return load_study(given.work)


def abroad(source: Path, shop: Study) -> Abroad:
    """What systems are given of a shop: its catalogue, the sampled people's histories, their candidates."""
    decisions = shop.split("test")
    histories = {one.user_id: shop.sequences[one.user_id].before(one.position) for one in decisions}
    known = {one.decision_id: one for one in decisions}
    return Abroad(source, histories, shop.items, {key: shop.sets[key] for key in known}, known)


def grown(study: Study) -> dict[str, Any]:
    """The trees of all decisions by the source's engine, settings and Thought Space, from the history alone."""
    values, seed = settings_of(study.run / "thoughts"), seed_of(study.run / "thoughts")
    settings = ThoughtSettings.from_dict(values)
    space, decisions, started = study.shared.space, study.split("test"), time.perf_counter()
    inputs = thought_inputs(
        decisions,
        study.sequences,
        study.items,
        {one.decision_id: () for one in decisions},  # whoever could lend an item is somebody else in this shop
        settings.budget,
        max_events=space.config.max_events,
        review_words=space.config.review_words,
    )
    generator = open_generator(settings.engine, settings.model, batch_size=settings.batch_size)
    trees = {}
    for start in range(0, len(inputs), settings.users_per_batch):
        part = inputs[start : start + settings.users_per_batch]
        for one, tree in zip(part, think(part, generator, {FULL_SPACE: space}, settings, seed), strict=True):
            nodes = [(node.depth, node.status, node.text, node.agreement, node.log_likelihood) for node in tree.nodes]
            trees[one.decision.decision_id] = {"leaf": tree.leaf, "nodes": nodes}
    return {"engine": settings.engine, "seconds": round(time.perf_counter() - started, 3), "trees": trees}


def reasons(trees: Mapping[str, Any], decisions: Sequence[Decision]) -> dict[str, dict[str, Thought]]:
    """What each decision is told, by row; without rows that would be told what ``pulse-text`` is told."""
    columns = ("depth", "status", "text", "agreement", "log_likelihood")
    nodes = {key: [dict(zip(columns, node, strict=True)) for node in tree["nodes"]] for key, tree in trees.items()}
    good = {key: [node for node in tree if node["status"] == "ok"] for key, tree in nodes.items()}
    leaves = {key: nodes[key][tree["leaf"]] for key, tree in trees.items() if tree["leaf"] >= 0}
    chosen = {key: Thought(leaf["text"], leaf["agreement"]) for key, leaf in leaves.items()}
    others = {NONE: {}, BASE: base_reasons(good, decisions), LIKELY: likeliest_leaves(good, decisions)}

    def texts(told: Mapping[str, Thought]) -> dict[str, str | None]:
        return {key: thought.reason for key, thought in told.items()}

    return {"pulse-text": chosen} | {name: told for name, told in others.items() if texts(told) != texts(chosen)}


def by_text(study: Study, decisions: Sequence[Decision]) -> list[NDArray[np.float64]]:
    """``sasrec+text`` over new items, each its text alone.

    That is what the model makes of an item without a training event at home: id embeddings begin at zero and its
    softmax leaves such items out. Texts are centred on this catalogue's mean, as the source's were on its own.
    """
    fitted = PulseSASRecModel.from_pretrained(study.run / "sequential" / "sasrec+text")
    learnt = fitted.state_dict()
    config = type(fitted.config)(**{**fitted.config.to_dict(), "num_items": len(study.items)})
    for name in ("item_embedding.weight", "text_features"):
        learnt[name] = torch.zeros(len(study.items) + 1, learnt[name].shape[1])
    moved = PulseSASRecModel(config).eval()
    moved.load_state_dict(learnt)
    moved.set_text_features(centred(torch.from_numpy(study.item_vectors)))
    return sasrec.scores_by(moved, study, decisions)
