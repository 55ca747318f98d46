"""Stage ``thoughts``: base reasons, their trees, and the leaf that agrees best (paper §4.2, Eq. 2).

Thoughts of training rows are made exactly as at test time, and judged by the thought space that was
fitted without their user's fold; validation and test rows are judged by the full one.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Series
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from pulse_hf import artifacts
from pulse_hf.data.sequences import items_by_id, sequences_by_user
from pulse_hf.ranges import at_least, one_of
from pulse_hf.reasoning.agreement import FULL_SPACE, agreement_with, load_spaces, weights_sha256
from pulse_hf.reasoning.behaviour import behaviour_text
from pulse_hf.reasoning.generator import Engine, Generator, Sampling, engine_identity, open_generator
from pulse_hf.reasoning.prompts import Prompt, PromptBudget, left_out, prompt_hashes, reason_prompt
from pulse_hf.reasoning.tree_of_thought import Selection, Tree, TreeSettings, grow_trees
from pulse_hf.schema import SPLITS, Decision, Item, Sequence

if TYPE_CHECKING:
    from pulse_hf.models.thought_space import PulseThoughtSpaceModel

__all__ = ["ThoughtInput", "ThoughtSettings", "inputs_sha256", "load_spaces", "think", "thought_inputs", "thoughts"]

logger = logging.getLogger(__name__)

FOLDER = "thoughts"
PARENTS = ("sequences", "sequential", "candidates", "thought_space")


@dataclass(frozen=True)
class ThoughtSettings:
    """Settings of the stage; "ours" where the paper gives no value.

    Args:
        engine: ``"transformers"``, ``"vllm"`` (in this process, on GPUs), ``"server"`` (any OpenAI-compatible one,
            ``model`` names it and its address) or ``"extractive"``, which needs no language model (ours).
        model: Language model: Hub id (``owner/name[@revision]``), folder, or the embedded one (paper: Phi-4 mini).
        depth: Levels of refinement under the base reason (paper: 2).
        width: Refinements of every node (ours).
        keep: Best nodes of a level that are refined; ``None`` refines all (paper).
        selection: What chooses the leaf (paper Eq. 2: ``"thought-space"``); see ``tree_of_thought``.
        temperature: Of refinements; base reasons are greedy (ours).
        top_p: Nucleus of refinements (ours).
        rewinds: How often a text that goes in circles is cut back and written on another way (ours).
        max_new_tokens: Longest reason in tokens (ours).
        batch_size: Texts written at once.
        users_per_batch: Trees grown at once; each batch is kept when the stage is interrupted.
        training_decisions_per_user: Thoughts for at most so many of each user's latest training decisions with a
            candidate set; ``None`` for all (ours).
        max_training_users: For training only this many users, by a stable hash; ``None`` for all (ours).
        budget: How much of each field a prompt holds.
    """

    engine: Engine = "transformers"
    model: str = "pulse-hf/pulse-nano"
    depth: int = 2
    width: int = 2
    keep: int | None = None
    selection: Selection = "thought-space"
    temperature: float = 0.8
    top_p: float = 0.95
    rewinds: int = 3
    max_new_tokens: int = 80
    batch_size: int = 192
    users_per_batch: int = 192
    training_decisions_per_user: int | None = None
    max_training_users: int | None = None
    budget: PromptBudget = field(default_factory=PromptBudget)

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        one_of(self, "engine", get_args(Engine))
        at_least(self, 1, "batch_size", "users_per_batch", "training_decisions_per_user", "max_training_users")
        _ = self.tree, self.sampling

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ThoughtSettings:
        """From the plain values that a manifest or a record holds."""
        return cls(**{**values, "budget": PromptBudget(**values["budget"])})

    @property
    def tree(self) -> TreeSettings:
        """The shape of a tree."""
        return TreeSettings(self.depth, self.width, self.keep, self.selection)

    @property
    def sampling(self) -> Sampling:
        """How refinements are drawn."""
        return Sampling(self.max_new_tokens, self.temperature, self.top_p, self.rewinds)


@dataclass(frozen=True, slots=True)
class ThoughtInput:
    """All that the stage reads of one decision; the target is nowhere in it.

    Args:
        decision: Which decision.
        prompt: The prompt of its base reason.
        behaviour: The text b_u that the history encoder reads.
    """

    decision: Decision
    prompt: Prompt
    behaviour: str


def thoughts(run: Path, settings: ThoughtSettings, *, seed: int, force: bool = False) -> Path:
    """Make the thought of every decision that has a candidate set.

    *Input*: ``sequences/``, ``sequential/`` (items lent by similar users), ``candidates/`` (which decisions),
    ``thought_space/``. *Output columns* of ``thoughts/thoughts.parquet``: the decision, ``reason`` (r*, ``""`` if
    all reasons failed), ``agreement`` (s*), ``base_reason``, ``leaf``, and what wrote it; ``thoughts/trees.parquet``
    has every node. An interrupted stage goes on with the decisions that are missing.

    Args:
        run: The run's folder.
        settings: Engine, tree, sampling, sizes.
        seed: The run's seed.
        force: Make anew although another version is there.

    Returns:
        The artefact's folder.

    Raises:
        ArtifactError: A parent is missing, the artefact was made from other settings or inputs, or an encoder changed.
    """
    fingerprint = artifacts.Fingerprint(
        stage=FOLDER,
        settings=asdict(settings),
        seed=seed,
        parents={name: artifacts.parent_sha256(run / name) for name in PARENTS},
        model=engine_identity(settings.engine, settings.model),
        prompts=prompt_hashes("reason", "refine"),
    )
    artifacts.build(
        run / FOLDER, fingerprint, lambda work: _make(run, work, settings, seed), force=force, together=True
    )
    return run / FOLDER


def _make(run: Path, work: Path, settings: ThoughtSettings, seed: int) -> dict[str, Any]:
    from tqdm import tqdm

    inputs, untold = _read_inputs(run, settings, seed)
    spaces = load_spaces(run)
    before = {name: weights_sha256(space) for name, space in spaces.items()}
    chosen, trees = artifacts.Shards(work, "chosen", "thoughts"), artifacts.Shards(work, "grown", "trees")
    trees.keep_only(chosen)
    chosen.keep_only(trees)
    done = chosen.done()
    artifacts.wait_for_all()  # before anybody adds to it
    pending = [one for one in inputs if one.prompt.key not in done]
    logger.info(
        "%d decisions, %d reasons each: at most %s tokens",
        len(pending),
        settings.tree.num_nodes,
        f"{len(pending) * settings.tree.num_nodes * settings.max_new_tokens:,}",
    )
    generator = open_generator(settings.engine, settings.model, batch_size=settings.batch_size)
    mine, ends_trimmed, shortened = artifacts.dealt(pending, settings.users_per_batch), 0, 0
    with tqdm(total=len(done) + sum(map(len, mine)), initial=len(done), desc=FOLDER, unit="tree") as bar:
        for part in mine:
            with artifacts.whole_batch():
                grown = list(zip(part, think(part, generator, spaces, settings, seed), strict=True))
                # Trees first: a decision counts as done when its thought is there, too.
                trees.append(row for one, tree in grown for row in _tree_rows(one.decision, tree))
                chosen.append(_thought_row(one.decision, tree, generator, seed) for one, tree in grown)
            shortened += sum(tree.prompt != one.prompt for one, tree in grown)
            ends_trimmed += sum(node.repaired for _, tree in grown for node in tree.nodes)
            bar.update(len(part))
            bar.set_postfix_str(f"{generator.usage.tokens_per_second:,.0f} tokens/s")
    if before != {name: weights_sha256(space) for name, space in spaces.items()}:
        raise artifacts.ArtifactError(
            "a thought space changed while thoughts were made; encoders are frozen in phase II (paper §4.2)"
        )
    artifacts.wait_for_all()
    if artifacts.process() > 0:
        return {}
    rows, nodes = (shards.rows_of([one.decision.decision_id for one in inputs]) for shards in (chosen, trees))
    artifacts.write_table(work / "thoughts.parquet", "thoughts", rows)
    artifacts.write_table(work / "trees.parquet", "trees", nodes)
    counts = _counts(rows, nodes)
    return {
        **counts,
        "written_by_this_process": {
            "trees": sum(map(len, mine)),
            "prompts_shortened": shortened,
            "ends_trimmed": ends_trimmed,
            "texts_cut": _texts_cut(spaces.values()),
            **generator.usage.as_counts(),
        },
        "encoders_sha256": before,
        "tokenizer_sha256": getattr(generator, "tokenizer_sha256", ""),  # an extractive engine or a server has none
        "left_out": untold,
        "inputs_sha256": inputs_sha256(inputs),
    }


def _texts_cut(spaces: Iterable[PulseThoughtSpaceModel]) -> dict[str, int]:
    """Behaviours and reasons that were longer than the encoders read, by side."""
    counts: Counter[str] = Counter()
    for space in spaces:
        counts.update(space.processor.truncated)
    return dict(counts)


def _read_inputs(run: Path, settings: ThoughtSettings, seed: int) -> tuple[list[ThoughtInput], dict[str, int]]:
    """All that the stage reads, and what its prompts leave out."""
    from pulse_hf.data.sequences import some_decisions
    from pulse_hf.models.thought_space import PulseThoughtSpaceConfig

    table = artifacts.read_table(run / "candidates" / "candidates.parquet").select(["user_id", "position", "split"])
    rows = (
        artifacts.read_table(run / "sequential" / "neighbours.parquet").select(["decision_id", "item_ids"]).to_pylist()
    )
    config = PulseThoughtSpaceConfig.from_pretrained(str(run / "thought_space" / FULL_SPACE))
    found = [Decision(**row) for row in table.to_pylist()]
    training = some_decisions(
        [decision for decision in found if decision.split == "train"],
        settings.training_decisions_per_user,
        settings.max_training_users,
        seed,
    )
    decisions = [*(decision for decision in found if decision.split != "train"), *training]
    sequences = sequences_by_user(run)
    items = items_by_id(run)
    lent = {row["decision_id"]: row["item_ids"] for row in rows}
    behaviour = {"max_events": config.max_events, "review_words": config.review_words}
    untold = left_out((sequences[one.user_id].before(one.position) for one in decisions), items, settings.budget)
    return thought_inputs(decisions, sequences, items, lent, settings.budget, **behaviour), untold


def thought_inputs(
    decisions: Iterable[Decision],
    sequences: Mapping[str, Sequence],
    items: Mapping[str, Item],
    lent: Mapping[str, Series[str]],
    budget: PromptBudget,
    *,
    max_events: int,
    review_words: int,
) -> list[ThoughtInput]:
    """What the stage reads of each decision; a pure function, so that the leak audit can call it.

    Args:
        decisions: Of any split.
        sequences: By user id.
        items: The catalogue.
        lent: Decision id to the items lent by similar users.
        budget: How much of each field a prompt holds.
        max_events: Events that b_u tells, as the thought space was trained.
        review_words: Words of each review in it, likewise.

    Raises:
        ValueError: A decision has no row of similar users; an empty row is fine.
    """
    made = []
    for decision in decisions:
        key, sequence = decision.decision_id, sequences[decision.user_id]
        if key not in lent:
            raise ValueError(
                f"{key} has no row in neighbours.parquet; run the stage sequential for the same decisions"
            )
        history = sequence.before(decision.position)
        text = behaviour_text(history, items, target=None, max_events=max_events, review_words=review_words)
        made.append(ThoughtInput(decision, reason_prompt(decision, sequence, items, lent[key], budget), text))
    return made


def inputs_sha256(inputs: Iterable[ThoughtInput]) -> dict[str, str]:
    """The sha256 of all prompts (``thoughts/<split>``) and behaviour texts (``behaviour/<split>``)."""
    inputs = list(inputs)
    hashes = {}
    for split in SPLITS:
        mine = [one for one in inputs if one.decision.split == split]
        prompts = (message["content"] for one in mine for message in one.prompt.messages)
        hashes[f"thoughts/{split}"] = artifacts.sha256_of_text(prompts)
        hashes[f"behaviour/{split}"] = artifacts.sha256_of_text(one.behaviour for one in mine)
    return hashes


def think(
    inputs: Series[ThoughtInput],
    generator: Generator,
    spaces: Mapping[str, PulseThoughtSpaceModel],
    settings: ThoughtSettings,
    seed: int,
) -> list[Tree]:
    """Grow the trees of some decisions, every reason judged by the space that may judge its user."""
    evaluate = agreement_with([(one.decision, one.behaviour) for one in inputs], spaces, seed)
    return grow_trees([one.prompt for one in inputs], generator, evaluate, settings.tree, settings.sampling, seed)


def _thought_row(decision: Decision, tree: Tree, generator: Generator, seed: int) -> dict[str, Any]:
    chosen = tree.chosen
    return {
        **asdict(decision),
        "decision_id": decision.decision_id,
        "reason": chosen.text if chosen else "",
        "agreement": chosen.agreement if chosen else None,
        "base_reason": tree.nodes[0].text,
        "leaf": tree.leaf,
        "engine": generator.engine,
        "model_id": generator.model_id,
        "revision": generator.revision,
        "prompt_sha256": artifacts.sha256_of_text(prompt_hashes("reason", "refine").values()),
        "seed": seed,
    }


def _tree_rows(decision: Decision, tree: Tree) -> list[dict[str, Any]]:
    same = {**asdict(decision), "decision_id": decision.decision_id}
    columns = ("parent", "depth", "status", "text", "raw", "log_likelihood", "agreement")
    return [{**same, "node": node.number, **{name: getattr(node, name) for name in columns}} for node in tree.nodes]


def _counts(rows: list[dict[str, Any]], nodes: list[dict[str, Any]]) -> dict[str, Any]:
    by_split = {
        split: [row["agreement"] for row in rows if row["split"] == split and row["reason"]] for split in SPLITS
    }
    roots = {
        split: [n["agreement"] for n in nodes if n["split"] == split and n["node"] == 0 and n["text"]]
        for split in SPLITS
    }
    failed = sum(not row["reason"] for row in rows)
    if failed > 0.1 * len(rows):
        logger.warning(
            "%d of %d decisions have no usable reason; trees.parquet holds the raw texts", failed, len(rows)
        )
    return {
        "rows": {
            "read": len(rows),
            "kept": len(rows) - failed,
            "dropped": {"all_reasons_failed": failed} if failed else {},
        },
        "nodes": dict(Counter(node["status"] for node in nodes)),
        "mean_agreement": {split: _mean(values) for split, values in by_split.items()},
        "mean_agreement_of_base_reasons": {split: _mean(values) for split, values in roots.items()},
    }


def _mean(values: list[float]) -> float | None:
    return round(sum(values) / len(values), 6) if values else None
