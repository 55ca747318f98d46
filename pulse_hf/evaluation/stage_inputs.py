"""What every stage reads, rebuilt from sequences for the leak audit (DESIGN §8.4).

The texts come from the functions that the stages call themselves (prompts, behaviour texts, candidate
draws, lending); the glue between them is written once more here, on purpose: a stage whose own glue let
the future in has recorded another hash than this one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from collections.abc import Sequence as Series
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pulse_hf.artifacts import MANIFEST, read_manifest, read_table, settings_of, sha256_of_text
from pulse_hf.data.sequences import load_items, load_sequences, some_decisions
from pulse_hf.reasoning.behaviour import behaviour_text
from pulse_hf.reasoning.examples import NO_THOUGHT, PromptShape, Thought, scorer_example
from pulse_hf.reasoning.prompts import Prompt, PromptBudget, candidate_text, rationale_prompt
from pulse_hf.reasoning.shared_reasons import chosen_for
from pulse_hf.reasoning.soft_prompts import soft_examples
from pulse_hf.reasoning.thoughts import ThoughtInput, thought_inputs
from pulse_hf.reasoning.titles import A_LLMREC, title_pairs
from pulse_hf.retrieval.candidates import CandidateSettings, chosen_decisions, draw_candidates, load_candidates
from pulse_hf.retrieval.similar_users import NO_USER, lend_items, lendable, neighbours
from pulse_hf.schema import SPLITS, CandidateSet, Decision, Item, Sequence, Split, fold_of, stable_hash

if TYPE_CHECKING:
    from collections.abc import Callable

CANARY = "zqcanary"

Texts = dict[str, list[str]]
Lent = Mapping[str, Series[str]]

__all__ = [
    "CANARY",
    "Ground",
    "lend_again",
    "lent_items",
    "sha256_of_inputs",
    "stage_inputs",
    "stage_texts",
    "swap_targets",
    "thoughts_read",
]


@dataclass(frozen=True)
class Ground:
    """A run's finished artefacts, read once.

    Args:
        run: The run folder.
    """

    run: Path

    @cached_property
    def sequences(self) -> list[Sequence]:
        """The users' sequences as prepared."""
        return load_sequences(self.run)

    @cached_property
    def items(self) -> dict[str, Item]:
        """The catalogue."""
        return {item.item_id: item for item in load_items(self.run)}

    @cached_property
    def sets(self) -> list[CandidateSet]:
        """The frozen candidate sets of all splits."""
        return load_candidates(self.run)

    def decisions(self, split: Split) -> list[Decision]:
        """The decisions of a split that have a candidate set."""
        found = [one.decision_id.rpartition("#") for one in self.sets if one.split == split]
        return [Decision(user_id, int(position), split) for user_id, _, position in found]

    def has(self, folder: str) -> bool:
        """Whether a stage has finished; a run of baselines alone has no thoughts."""
        return (self.run / folder / MANIFEST).exists()

    def pulled(self, folder: str) -> bool:
        """Whether an artefact came from the Hub: what it was made from is not here."""
        return "pulled_from" in self.settings(folder)

    def rows(self, path: str) -> list[dict[str, Any]]:
        """One table of the run."""
        return list(read_table(self.run / path).to_pylist())

    def settings(self, folder: str) -> dict[str, Any]:
        """The settings that made an artefact, and its seed under ``"seed"``."""
        flat = read_manifest(self.run / folder)["fingerprint"]
        return settings_of(flat) | {"seed": json.loads(flat["seed"])}

    def budget(self, folder: str) -> PromptBudget:
        """The prompt budget that a stage worked with."""
        return PromptBudget(**self.settings(folder)["budget"])

    @cached_property
    def thoughts(self) -> dict[str, Thought]:
        """The chosen reason and its agreement by decision id."""
        rows = self.rows("thoughts/thoughts.parquet")
        return {row["decision_id"]: Thought(row["reason"] or None, row["agreement"]) for row in rows}

    @cached_property
    def branch(self) -> Callable[[str], str]:
        """What a scorer reads of one candidate, by item id."""
        return cache(lambda item_id: candidate_text(self.items[item_id]))

    @cached_property
    def scorer(self) -> Callable[[str], tuple[PromptShape, Callable[[str], bool]]]:
        """What a tuned scorer is shown, and whether a prompt fits into it, by system; prompts are measured once."""
        return cache(lambda system: _scorer(self.run / "recommender" / system))

    @cached_property
    def stored_lent(self) -> dict[str, list[str]]:
        """The items that similar users lent to each decision, as stored."""
        return {row["decision_id"]: row["item_ids"] for row in self.rows("sequential/neighbours.parquet")}


def swap_targets(sequences: Series[Sequence], items: Series[str], splits: Series[Split], seed: int) -> list[Sequence]:
    """The same users with other targets: another item, other stars, a canary for a review.

    Args:
        sequences: All users.
        items: The catalogue, with more items than any user has.
        splits: Whose targets are swapped.
        seed: Which other items.

    Example:
        >>> user = Sequence("u", ("a", "b", "c"), (1, 2, 3), (5.0, 5.0, 5.0), ("", "", "fine"))
        >>> (other,) = swap_targets([user], ["a", "b", "c", "d"], ["test"], seed=0)
        >>> other.item_ids, other.ratings, other.reviews[2].startswith(CANARY)
        (('a', 'b', 'd'), (5.0, 5.0, 1.0), True)
    """
    return [_swapped(sequence, items, splits, seed) for sequence in sequences]


def _swapped(sequence: Sequence, items: Series[str], splits: Series[Split], seed: int) -> Sequence:
    item_ids, ratings, reviews = list(sequence.item_ids), list(sequence.ratings), list(sequence.reviews)
    taken = set(item_ids)
    for position in range(sequence.num_train, len(sequence)):
        if sequence.split_of(position) in splits:
            start = stable_hash("swap", seed, sequence.user_id, position) % len(items)
            other = next(item for item in (*items[start:], *items[:start]) if item not in taken)
            taken.add(other)
            item_ids[position], ratings[position] = other, 1.0 if ratings[position] != 1.0 else 2.0
            reviews[position] = f"{CANARY} {CANARY}{position} says {other}"
    return replace(sequence, item_ids=tuple(item_ids), ratings=tuple(ratings), reviews=tuple(reviews))


def lent_items(ground: Ground, sequences: Series[Sequence], decisions: Series[Decision]) -> dict[str, tuple[Any, ...]]:
    """Similar users found anew by the fitted models, and what they lend.

    Training decisions are served by the model that was fitted without their fold.

    Returns:
        Decision id to ``(lent item ids, neighbours' user ids, cosines)``.
    """
    settings = ground.settings("sequential")
    parts: dict[str, list[Decision]] = {}
    for decision in decisions:
        fold = fold_of(decision.user_id, settings["num_folds"], settings["seed"])
        parts.setdefault(f"sasrec-fold-{fold}" if decision.split == "train" else "sasrec", []).append(decision)
    found: dict[str, tuple[Any, ...]] = {}
    for model, mine in sorted(parts.items()):
        found.update(_lent_by(ground, sequences, mine, model, settings))
    return found


def _lent_by(
    ground: Ground, sequences: Series[Sequence], decisions: Series[Decision], model: str, settings: Mapping[str, Any]
) -> dict[str, tuple[Any, ...]]:
    from pulse_hf.models.sasrec.modeling_sasrec import PulseSASRecModel

    index = {item_id: number for number, item_id in enumerate(ground.items, start=1)}
    by_user = {sequence.user_id: sequence for sequence in sequences}
    fitted = PulseSASRecModel.from_pretrained(str(ground.run / "sequential" / model)).eval()

    def vectors(histories: Series[Sequence]) -> Any:
        return fitted.user_vectors([[index[item] for item in history.item_ids] for history in histories]).numpy()

    seen = [by_user[decision.user_id].before(decision.position) for decision in decisions]
    users = [user_id for user_id, sequence in by_user.items() if sequence.num_train]
    pool = vectors([by_user[user_id].training() for user_id in users])
    asking = [decision.user_id for decision in decisions]
    places, cosines = neighbours(vectors(seen), asking, pool, users, settings["num_neighbours"])
    lenders = lendable(sequences)
    found = {}
    for decision, row, near in zip(decisions, places.tolist(), cosines.tolist(), strict=True):
        others = [users[place] for place in row if place != NO_USER]
        near = near[: len(others)]
        lent = lend_again(by_user[decision.user_id], decision, others, near, lenders, settings["neighbour_items"])
        found[decision.decision_id] = (lent, others, near)
    return found


def lend_again(
    sequence: Sequence,
    decision: Decision,
    user_ids: Series[str],
    cosines: Series[float],
    lenders: Mapping[str, Sequence],
    max_items: int,
) -> list[str]:
    """What given neighbours lend to a decision."""
    time = sequence.timestamps[decision.position] if sequence.timestamps else None
    history = sequence.before(decision.position).item_ids
    return lend_items(user_ids, cosines, lenders, history=history, before=time, max_items=max_items)


def stage_inputs(run: Path, sequences: Series[Sequence]) -> dict[str, str]:
    """The sha256 of everything that each stage of a run reads, rebuilt from sequences.

    Args:
        run: The run folder.
        sequences: The run's own, or the same users with swapped targets.

    Returns:
        Name of each input (``sequential``, ``candidates``, ``thoughts/test`` ...) to its sha256.
    """
    return sha256_of_inputs(stage_texts(Ground(run), sequences))


def sha256_of_inputs(texts: Texts) -> dict[str, str]:
    """The sha256 of each input, as the stages record them."""
    return {name: sha256_of_text(rows) for name, rows in texts.items()}


def stage_texts(ground: Ground, sequences: Series[Sequence], lent: Lent | None = None) -> Texts:
    """The inputs behind :func:`stage_inputs` as texts, for hashing and for looking for canaries."""
    by_user = {sequence.user_id: sequence for sequence in sequences}
    lent = ground.stored_lent if lent is None and ground.has("sequential") else lent or {}
    texts = {"candidates": _training_candidates(ground, sequences)}
    if ground.has("sequential"):
        texts |= _sequential(sequences)
    if ground.has("rationales"):
        texts["rationales"] = _prompt_texts(_rationale_prompts(ground, by_user))
    if ground.has("thought_space"):
        texts["thought-space"] = _thought_space(ground, by_user)
    if ground.has("baselines"):
        texts["baselines"] = _title_pairs(ground, sequences)
        for system in sorted(set(A_LLMREC) & set(ground.settings("baselines")["systems"])):
            texts |= _soft_prompts(ground, by_user, system)
    if ground.has("thoughts"):
        for split in SPLITS:
            read = thoughts_read(ground, by_user, _thinking(ground, split), lent)
            texts[f"thoughts/{split}"] = _prompt_texts([one.prompt for one in read])
            texts[f"behaviour/{split}"] = [one.behaviour for one in read]
    if ground.has("recommender"):
        texts |= _scorer_prompts(ground, by_user)
        chosen = chosen_for(ground.rows("rationales/rationales.parquet"), by_user)
        texts["shared-reasons"] = ["\x1f".join(pair) for pair in chosen]
    return texts


def _thinking(ground: Ground, split: Split) -> list[Decision]:
    """The decisions of a split that get a thought."""
    decisions = ground.decisions(split)
    if split != "train":
        return decisions
    settings = ground.settings("thoughts")
    return some_decisions(
        decisions, settings["training_decisions_per_user"], settings["max_training_users"], settings["seed"]
    )


def redrawn(ground: Ground, sequences: Series[Sequence], splits: Series[Split] = SPLITS) -> list[CandidateSet]:
    """The candidate sets that the run's settings and seed draw for some sequences."""
    values = ground.settings("candidates")
    seed = values.pop("seed")
    settings = CandidateSettings(**values)
    chosen = [one for one in chosen_decisions(sequences, settings, seed=seed) if one.split in splits]
    return draw_candidates(sequences, list(ground.items), chosen, settings, seed=seed)


def _training_candidates(ground: Ground, sequences: Series[Sequence]) -> list[str]:
    sets = redrawn(ground, sequences, ("train",))
    return sorted("\x1f".join((one.decision_id, one.split, str(one.target_index), *one.item_ids)) for one in sets)


def _sequential(sequences: Series[Sequence]) -> Texts:
    training = [sequence.training() for sequence in sequences]
    lenders = lendable(sequences)
    return {
        "sequential": ["\x1f".join(events.item_ids) for events in training],
        "neighbours": [
            "\x1f".join([user_id, *events.item_ids, *map(str, events.timestamps)])
            for user_id, events in lenders.items()
        ],
    }


def _title_pairs(ground: Ground, sequences: Series[Sequence]) -> list[str]:
    pairs = title_pairs(sequences, ground.items, ground.settings("baselines")["num_titles"])
    return [text for _, history, title in pairs for text in (history, title)]


def _soft_prompts(ground: Ground, by_user: Mapping[str, Sequence], system: str) -> Texts:
    """What A-LLMRec's frozen language model reads, with candidates where it is trained, as the scorers' prompts."""
    from pulse_hf.models.a_llmrec import PulseALLMRecConfig
    from pulse_hf.models.a_llmrec.soft_prompts import SoftPromptProcessor

    config = PulseALLMRecConfig.from_pretrained(str(ground.run / "baselines" / system))
    shape, fits = PromptShape.from_dict(config.prompt), SoftPromptProcessor.of(config).fits
    texts: Texts = {}
    for split in SPLITS:
        train = split == "train"
        sets = [one for one in ground.sets if one.split == split]
        if train:  # the rows that the scorers learn from
            negatives = ground.settings("recommender").get("training_negatives")
            sets = [one.with_negatives(negatives) for one in sets if one.decision_id in ground.thoughts]
        read = soft_examples(sets, by_user, ground.items, ground.thoughts, shape, fits)
        texts[system if train else f"{system}/{split}"] = [one.told(candidates=train) for one in read]
    return texts


def _prompt_texts(made: Series[Prompt]) -> list[str]:
    return [message["content"] for prompt in made for message in prompt.messages]


def _rationale_prompts(ground: Ground, by_user: Mapping[str, Sequence]) -> list[Prompt]:
    budget = ground.budget("rationales")
    # A rationale for another target has no prompt at all; the audit names it by its row.
    rows = [row for row in ground.rows("rationales/rationales.parquet") if row["split"] == "train"]
    chosen = [Decision(row["user_id"], row["position"], row["split"]) for row in rows]
    return [rationale_prompt(one, by_user[one.user_id], ground.items, budget) for one in chosen]


def _thought_space(ground: Ground, by_user: Mapping[str, Sequence]) -> list[str]:
    """History text and rationale of every pair that trained the space."""
    settings = ground.settings("thought_space")
    limits = {"max_events": settings["max_events"], "review_words": settings["review_words"]}

    def told(user_id: str, position: int) -> tuple[str, str]:
        sequence = by_user[user_id]
        chosen = sequence.item_ids[position]
        target = chosen if settings["behaviour"] == "paper" else None
        history = behaviour_text(sequence.before(position), ground.items, target=target, **limits)
        return history, ground.items[chosen].title

    explained = [row for row in ground.rows("rationales/rationales.parquet") if row["status"] == "ok"]
    choices = [(row["user_id"], row["position"]) for row in explained]
    texts = [text for row, one in zip(explained, choices, strict=True) for text in (told(*one)[0], row["text"])]
    if settings.get("all_titles"):
        latest = settings["training_pairs_per_user"]
        choices = [
            (user_id, position)
            for user_id, sequence in by_user.items()
            for position in range(1, sequence.num_train)[-latest if latest else None :]
        ]
    return texts + [text for one in choices for text in told(*one)] if settings.get("titles") else texts


def thoughts_read(
    ground: Ground, by_user: Mapping[str, Sequence], decisions: Series[Decision], lent: Lent
) -> list[ThoughtInput]:
    """Prompts of base reasons, and b_u as agreement is measured with it."""
    space = ground.settings("thought_space")
    limits = {"max_events": space["max_events"], "review_words": space["review_words"]}
    return thought_inputs(decisions, by_user, ground.items, lent, ground.budget("thoughts"), **limits)


def _scorer_prompts(ground: Ground, by_user: Mapping[str, Sequence]) -> Texts:
    """What both scorers read: with candidates where they train, without where targets may stand among them."""
    thoughts = ground.thoughts
    texts: Texts = {"recommender": [], "recommender/validation": [], "recommender/test": []}
    settings = ground.settings("recommender")
    tuned, negatives = settings["systems"], settings.get("training_negatives")
    for system in (name for name in ("pulse", "slm+sft") if name in tuned):
        shape, fits = ground.scorer(system)
        for one in ground.sets:
            if one.split == "train" and one.decision_id not in thoughts:
                continue
            user_id = one.decision_id.rpartition("#")[0]
            thought = thoughts.get(one.decision_id, NO_THOUGHT)
            history = by_user[user_id].before(int(one.decision_id.rpartition("#")[2]))
            prompt = scorer_example(history, ground.items, (), thought, shape, fits).prompt
            if one.split == "train":
                read = one.with_negatives(negatives).item_ids
                texts["recommender"] += [prompt, *(ground.branch(item_id) for item_id in read)]
            else:
                texts[f"recommender/{one.split}"].append(prompt)
    return texts


def _scorer(folder: Path) -> tuple[PromptShape, Callable[[str], bool]]:
    from transformers import AutoTokenizer

    from pulse_hf.models.embedded import resolve_model
    from pulse_hf.models.scorer.adapter import read_record
    from pulse_hf.models.scorer.processing_scorer import PulseScorerProcessor

    record = read_record(folder)
    commit = record.base["revision"] if len(record.base["revision"]) == 40 else None
    path = resolve_model(record.base["id"] + (f"@{commit}" if commit else ""))[0]
    tokenizer = AutoTokenizer.from_pretrained(path, revision=commit, trust_remote_code=False)
    processor = PulseScorerProcessor(
        tokenizer, record.judge_text, record.max_prompt_tokens, record.max_candidate_tokens
    )
    # Texts alone are compared here; who votes for what is an input of its own ("shared-reasons").
    shape = replace(PromptShape.from_dict(record.prompt), shared_temperature=None)
    return shape, cache(processor.prompt_fits)
