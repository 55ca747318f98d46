"""What every stage reads, rebuilt from sequences for the leak audit.

The texts come from the functions that the stages call themselves (prompts, behaviour texts, candidate
draws, lending); the glue between them is written once more here, on purpose: a stage whose own glue let
the future in has recorded another hash than this one.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Series

from pulse_hf.artifacts import sha256_of_text
from pulse_hf.data.sequences import some_decisions
from pulse_hf.evaluation.finished_run import FinishedRun
from pulse_hf.reasoning.behaviour import behaviour_text
from pulse_hf.reasoning.examples import NO_THOUGHT, PromptShape, scorer_example
from pulse_hf.reasoning.prompts import Prompt, rationale_prompt
from pulse_hf.reasoning.shared_reasons import chosen_for
from pulse_hf.reasoning.soft_prompts import soft_examples
from pulse_hf.reasoning.thoughts import ThoughtInput, thought_inputs
from pulse_hf.reasoning.titles import title_pairs
from pulse_hf.retrieval.candidates import CandidateSettings, chosen_decisions, draw_candidates
from pulse_hf.retrieval.similar_users import lendable
from pulse_hf.schema import SPLITS, CandidateSet, Decision, Sequence, Split
from pulse_hf.stages import A_LLMREC

Texts = dict[str, list[str]]
Lent = Mapping[str, Series[str]]

__all__ = ["Lent", "Texts", "redrawn", "sha256_of_inputs", "stage_texts", "thoughts_read"]


def sha256_of_inputs(texts: Texts) -> dict[str, str]:
    """The sha256 of each input, as the stages record them."""
    return {name: sha256_of_text(rows) for name, rows in texts.items()}


def stage_texts(finished: FinishedRun, sequences: Series[Sequence], lent: Lent | None = None) -> Texts:
    """What each stage of a run reads, rebuilt from sequences as texts: for hashing and for looking for canaries.

    Args:
        finished: The run.
        sequences: The run's own, or the same users with swapped targets.
        lent: Items lent to each decision; by default as stored.

    Returns:
        Name of each input (``sequential``, ``candidates``, ``thoughts/test`` ...) to its texts.
    """
    by_user = {sequence.user_id: sequence for sequence in sequences}
    lent = finished.stored_lent if lent is None and finished.has("sequential") else lent or {}
    texts = {"candidates": _training_candidates(finished, sequences)}
    if finished.has("sequential"):
        texts |= _sequential(sequences)
    if finished.has("rationales"):
        texts["rationales"] = _prompt_texts(_rationale_prompts(finished, by_user))
    if finished.has("thought_space"):
        texts["thought-space"] = _thought_space(finished, by_user)
    if finished.has("baselines"):
        texts["baselines"] = _title_pairs(finished, sequences)
        for system in sorted(set(A_LLMREC) & set(finished.settings("baselines")["systems"])):
            texts |= _soft_prompts(finished, by_user, system)
    if finished.has("thoughts"):
        for split in SPLITS:
            read = thoughts_read(finished, by_user, _thinking(finished, split), lent)
            texts[f"thoughts/{split}"] = _prompt_texts([one.prompt for one in read])
            texts[f"behaviour/{split}"] = [one.behaviour for one in read]
    if finished.has("recommender"):
        texts |= _scorer_prompts(finished, by_user)
        chosen = chosen_for(finished.rows("rationales/rationales.parquet"), by_user)
        texts["shared-reasons"] = ["\x1f".join(pair) for pair in chosen]
    return texts


def _thinking(finished: FinishedRun, split: Split) -> list[Decision]:
    """The decisions of a split that get a thought."""
    decisions = finished.decisions(split)
    if split != "train":
        return decisions
    settings = finished.settings("thoughts")
    return some_decisions(
        decisions, settings["training_decisions_per_user"], settings["max_training_users"], settings["seed"]
    )


def redrawn(finished: FinishedRun, sequences: Series[Sequence], splits: Series[Split] = SPLITS) -> list[CandidateSet]:
    """The candidate sets that the run's settings and seed draw for some sequences."""
    values = finished.settings("candidates")
    seed = values.pop("seed")
    settings = CandidateSettings(**values)
    chosen = [one for one in chosen_decisions(sequences, settings, seed=seed) if one.split in splits]
    return draw_candidates(sequences, list(finished.items), chosen, settings, seed=seed)


def _training_candidates(finished: FinishedRun, sequences: Series[Sequence]) -> list[str]:
    sets = redrawn(finished, sequences, ("train",))
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


def _title_pairs(finished: FinishedRun, sequences: Series[Sequence]) -> list[str]:
    pairs = title_pairs(sequences, finished.items, finished.settings("baselines")["num_titles"])
    return [text for _, history, title in pairs for text in (history, title)]


def _soft_prompts(finished: FinishedRun, by_user: Mapping[str, Sequence], system: str) -> Texts:
    """What A-LLMRec's frozen language model reads, with candidates where it is trained, as the scorers' prompts."""
    from pulse_hf.models.a_llmrec import PulseALLMRecConfig
    from pulse_hf.models.a_llmrec.soft_prompts import SoftPromptProcessor

    config = PulseALLMRecConfig.from_pretrained(str(finished.run / "baselines" / system))
    shape, fits = PromptShape.from_dict(config.prompt), SoftPromptProcessor.of(config).fits
    texts: Texts = {}
    for split in SPLITS:
        train = split == "train"
        sets = [one for one in finished.sets if one.split == split]
        if train:  # the rows that the scorers learn from
            negatives = finished.settings("recommender").get("training_negatives")
            sets = [one.with_negatives(negatives) for one in sets if one.decision_id in finished.thoughts]
        read = soft_examples(sets, by_user, finished.items, finished.thoughts, shape, fits)
        texts[system if train else f"{system}/{split}"] = [one.told(candidates=train) for one in read]
    return texts


def _prompt_texts(made: Series[Prompt]) -> list[str]:
    return [message["content"] for prompt in made for message in prompt.messages]


def _rationale_prompts(finished: FinishedRun, by_user: Mapping[str, Sequence]) -> list[Prompt]:
    budget = finished.budget("rationales")
    # A rationale for another target has no prompt at all; the audit names it by its row.
    rows = [row for row in finished.rows("rationales/rationales.parquet") if row["split"] == "train"]
    chosen = [Decision(row["user_id"], row["position"], row["split"]) for row in rows]
    return [rationale_prompt(one, by_user[one.user_id], finished.items, budget) for one in chosen]


def _thought_space(finished: FinishedRun, by_user: Mapping[str, Sequence]) -> list[str]:
    """History text and rationale of every pair that trained the space."""
    settings = finished.settings("thought_space")
    limits = {"max_events": settings["max_events"], "review_words": settings["review_words"]}

    def told(user_id: str, position: int) -> tuple[str, str]:
        sequence = by_user[user_id]
        chosen = sequence.item_ids[position]
        target = chosen if settings["behaviour"] == "paper" else None
        history = behaviour_text(sequence.before(position), finished.items, target=target, **limits)
        return history, finished.items[chosen].title

    explained = [row for row in finished.rows("rationales/rationales.parquet") if row["status"] == "ok"]
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
    finished: FinishedRun, by_user: Mapping[str, Sequence], decisions: Series[Decision], lent: Lent
) -> list[ThoughtInput]:
    """Prompts of base reasons, and b_u as agreement is measured with it."""
    space = finished.settings("thought_space")
    limits = {"max_events": space["max_events"], "review_words": space["review_words"]}
    return thought_inputs(decisions, by_user, finished.items, lent, finished.budget("thoughts"), **limits)


def _scorer_prompts(finished: FinishedRun, by_user: Mapping[str, Sequence]) -> Texts:
    """What both scorers read: with candidates where they train, without where targets may stand among them."""
    thoughts = finished.thoughts
    texts: Texts = {"recommender": [], "recommender/validation": [], "recommender/test": []}
    settings = finished.settings("recommender")
    tuned, negatives = settings["systems"], settings.get("training_negatives")
    for system in (name for name in ("pulse", "slm+sft") if name in tuned):
        shape, fits = finished.scorer(system)
        for one in finished.sets:
            if one.split == "train" and one.decision_id not in thoughts:
                continue
            decision, thought = one.decision, thoughts.get(one.decision_id, NO_THOUGHT)
            history = by_user[decision.user_id].before(decision.position)
            prompt = scorer_example(history, finished.items, (), thought, shape, fits).prompt
            if one.split == "train":
                read = one.with_negatives(negatives).item_ids
                texts["recommender"] += [prompt, *(finished.branch(item_id) for item_id in read)]
            else:
                texts[f"recommender/{one.split}"].append(prompt)
    return texts
