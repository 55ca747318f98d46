"""Stage ``rationales``: the language model says why training targets were chosen (paper §4.1, r+).

Only training targets are ever explained: a rationale is written with the target in sight, so one for a
validation or test target would be the answer itself.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from collections.abc import Sequence as Series
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from pulse_hf import artifacts
from pulse_hf.data.sequences import items_by_id, sequences_by_user
from pulse_hf.ranges import at_least, one_of
from pulse_hf.reasoning.generator import (
    Engine,
    Generation,
    Generator,
    Sampling,
    engine_identity,
    open_generator,
    with_room,
)
from pulse_hf.reasoning.parsing import Parsed, parse_reason
from pulse_hf.reasoning.prompts import Prompt, PromptBudget, left_out, prompt_hashes, rationale_prompt
from pulse_hf.reasoning.recorded import RecordedGenerator, recorded_identity, recorded_rationales
from pulse_hf.schema import Decision, Item, Sequence, stable_hash

__all__ = ["RationaleSettings", "rationale_inputs", "rationales", "write_rationales"]

logger = logging.getLogger(__name__)

FOLDER = "rationales"
TEMPLATE = "rationale"


@dataclass(frozen=True)
class RationaleSettings:
    """Settings of the stage; "ours" where the paper gives no value.

    Args:
        engine: ``"transformers"``, ``"vllm"`` (in this process, on GPUs), ``"server"`` (any OpenAI-compatible one,
            ``model`` names it and its address), ``"extractive"``, which needs no language model, or ``"recorded"``:
            texts that are there already, ``model`` names their file (ours).
        model: Language model: Hub id (``owner/name[@revision]``), folder, or the embedded one (paper: Phi-4 mini); for
            ``"recorded"`` a table with the columns ``user_id``, ``item_id`` and ``text``, of which only the choices
            that have a text are explained.
        rewinds: How often a text that goes in circles is cut back and written on another way (ours).
        max_new_tokens: Longest rationale in tokens (ours).
        temperature: 0 is greedy (ours).
        top_p: Nucleus of retries, and of all texts at a temperature above 0 (ours).
        batch_size: Texts written at once.
        training_decisions_per_user: At most so many of each user's latest training decisions with a candidate
            set; ``None`` takes all (ours).
        max_users: Only this many users, by a stable hash; ``None`` takes all (ours).
        retries: How often a failed text is written anew with another seed, at most 2 (ours).
        retry_temperature: The least temperature of a retry; greedy again would fail again (ours).
        budget: How much of each field a prompt holds.
    """

    engine: Engine | Literal["recorded"] = "transformers"
    model: str = "pulse-hf/pulse-nano"
    rewinds: int = 3
    max_new_tokens: int = 80
    temperature: float = 0.0
    top_p: float = 0.95
    batch_size: int = 192
    training_decisions_per_user: int | None = None
    max_users: int | None = None
    retries: int = 2
    retry_temperature: float = 0.7
    budget: PromptBudget = field(default_factory=PromptBudget)

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        one_of(self, "engine", (*get_args(Engine), "recorded"))
        at_least(self, 1, "batch_size", "training_decisions_per_user", "max_users")
        at_least(self, 0, "retry_temperature")
        if not 0 <= self.retries <= 2:
            raise ValueError(f"retries is {self.retries}; expected 0, 1 or 2")
        _ = self.sampling

    @property
    def sampling(self) -> Sampling:
        """How the first attempt is drawn."""
        return Sampling(self.max_new_tokens, self.temperature, self.top_p, self.rewinds)


def rationales(run: Path, settings: RationaleSettings, *, seed: int, force: bool = False) -> Path:
    """Write the positive rationales of a run's training decisions.

    *Input*: ``sequences/``, ``candidates/`` (its training decisions). *Output columns* of
    ``rationales/rationales.parquet``: the decision, ``status``, ``text`` (``""`` unless ``ok``), ``raw``, and
    what wrote it. An interrupted stage goes on with the decisions that are missing.

    Args:
        run: The run's folder.
        settings: Engine, sampling, sizes.
        seed: The run's seed.
        force: Make anew although another version is there.

    Returns:
        The artefact's folder.

    Raises:
        ValueError: A decision to be explained is not a training target.
        ArtifactError: A parent is missing, or the artefact was made from other settings or inputs.
    """
    fingerprint = artifacts.Fingerprint(
        stage=FOLDER,
        settings=asdict(settings),
        seed=seed,
        parents={name: artifacts.parent_sha256(run / name) for name in ("sequences", "candidates")},
        model=_identity(settings),
        prompts={} if settings.engine == "recorded" else prompt_hashes(TEMPLATE),
    )
    artifacts.build(
        run / FOLDER, fingerprint, lambda work: _make(run, work, settings, seed), force=force, together=True
    )
    return run / FOLDER


def _make(run: Path, work: Path, settings: RationaleSettings, seed: int) -> dict[str, Any]:
    from tqdm import tqdm

    sequences = sequences_by_user(run)
    items = items_by_id(run)
    generator = _generator(settings, sequences.values())
    recorded = generator if isinstance(generator, RecordedGenerator) else None
    decisions = training_decisions_with_candidates(run, settings, seed, recorded.texts if recorded else None)
    prompts = rationale_inputs(decisions, sequences, items, settings)
    shards = artifacts.Shards(work, "written", "rationales")
    done = shards.done()
    artifacts.wait_for_all()  # before anybody adds to it
    pending = [
        (decision, prompt) for decision, prompt in zip(decisions, prompts, strict=True) if prompt.key not in done
    ]
    repaired = retried = shortened = 0
    mine = artifacts.dealt(pending, 2 * settings.batch_size)
    with tqdm(total=len(done) + sum(map(len, mine)), initial=len(done), desc=FOLDER, unit="decision") as bar:
        for part in mine:
            with artifacts.whole_batch():
                whole = [prompt for _, prompt in part]
                shown = with_room(whole, generator, settings.max_new_tokens)
                written = write_rationales(shown, generator, settings, seed)
                shards.append(
                    _row(decision, *one, generator) for (decision, _), one in zip(part, written, strict=True)
                )
            shortened += sum(one != other for one, other in zip(shown, whole, strict=True))
            repaired += sum(parsed.repaired for parsed, _, _ in written)
            retried += sum(used != seed for _, _, used in written)
            bar.update(len(part))
            bar.set_postfix_str(f"{generator.usage.tokens_per_second:,.0f} tokens/s")
    artifacts.wait_for_all()
    if artifacts.process() > 0:
        return {}
    rows = shards.rows_of(decision.decision_id for decision in decisions)
    artifacts.write_table(work / "rationales.parquet", "rationales", rows)
    statuses = Counter(row["status"] for row in rows)
    _warn_of_failures(statuses)
    return {
        **({"recorded": recorded.count.as_dict()} if recorded else {}),
        "rows": {
            "read": len(decisions),
            "kept": statuses["ok"],
            "dropped": {k: n for k, n in statuses.items() if k != "ok"},
        },
        "written_by_this_process": {
            "rows": sum(map(len, mine)),
            "prompts_shortened": shortened,
            "repaired": repaired,
            "retried": retried,
            **generator.usage.as_counts(),
        },
        "left_out": left_out(
            (sequences[one.user_id].before(one.position) for one in decisions), items, settings.budget
        ),
        "inputs_sha256": {
            "rationales": artifacts.sha256_of_text(text for prompt in prompts for text in texts_of(prompt))
        },
    }


def _identity(settings: RationaleSettings) -> dict[str, str]:
    if settings.engine == "recorded":
        return recorded_identity(settings.model)
    return engine_identity(settings.engine, settings.model)


def _generator(settings: RationaleSettings, sequences: Iterable[Sequence]) -> Generator:
    if settings.engine == "recorded":
        return recorded_rationales(settings.model, sequences)
    return open_generator(settings.engine, settings.model, batch_size=settings.batch_size)


def training_decisions_with_candidates(
    run: Path, settings: RationaleSettings, seed: int, known: Collection[str] | None = None
) -> list[Decision]:
    """The training decisions that have a candidate set, as the settings limit them, in stored order.

    Args:
        run: The run's folder.
        settings: How many of each user, and how many users.
        seed: Of the sample of users.
        known: Only decisions with these ids; ``None`` for all.
    """
    from pulse_hf.data.sequences import some_decisions

    table = artifacts.read_table(run / "candidates" / "candidates.parquet").select(["user_id", "position", "split"])
    decisions = [Decision(**row) for row in table.to_pylist() if row["split"] == "train"]
    if known is not None:
        decisions = [decision for decision in decisions if decision.decision_id in known]
    return some_decisions(decisions, settings.training_decisions_per_user, settings.max_users, seed)


def rationale_inputs(
    decisions: Iterable[Decision],
    sequences: Mapping[str, Sequence],
    items: Mapping[str, Item],
    settings: RationaleSettings,
) -> list[Prompt]:
    """The prompts of the stage: all that it reads of a decision.

    Raises:
        ValueError: A decision is not a training target, whatever it says of itself.
    """
    prompts = []
    for decision in decisions:
        sequence = sequences[decision.user_id]
        actual = sequence.split_of(decision.position)
        if decision.split != "train" or actual != "train":
            raise ValueError(
                f"{decision.decision_id} is a {actual} target (listed under {decision.split}); "
                "rationales are written for training targets only. Make the candidates anew."
            )
        prompts.append(rationale_prompt(decision, sequence, items, settings.budget))
    return prompts


def texts_of(prompt: Prompt) -> list[str]:
    """A prompt's texts, as they are hashed for the leak audit."""
    return [message["content"] for message in prompt.messages]


def write_rationales(
    prompts: Series[Prompt], generator: Generator, settings: RationaleSettings, seed: int
) -> list[tuple[Parsed, Generation, int]]:
    """Write one rationale per prompt, failed ones again with other seeds.

    Returns:
        Per prompt what was read from the last attempt, its raw generation, and the seed that made it.
    """
    results: dict[int, tuple[Parsed, Generation, int]] = {}
    pending = list(range(len(prompts)))
    sampling = settings.sampling
    for attempt in range(settings.retries + 1):
        used = seed if attempt == 0 else stable_hash("retry", seed, attempt) % 2**31
        replies = generator.generate([prompts[number] for number in pending], width=1, sampling=sampling, seed=used)
        for number, (generation,) in zip(pending, replies, strict=True):
            results[number] = (parse_reason(generation), generation, used)
        pending = [number for number in pending if results[number][0].status != "ok"]
        if not pending:
            break
        sampling = replace(settings.sampling, temperature=max(settings.temperature, settings.retry_temperature))
    return [results[number] for number in range(len(prompts))]


def _row(
    decision: Decision, parsed: Parsed, generation: Generation, seed: int, generator: Generator
) -> dict[str, Any]:
    return {
        **asdict(decision),
        "decision_id": decision.decision_id,
        "status": parsed.status,
        "text": parsed.text,
        "raw": generation.text,
        "engine": generator.engine,
        "model_id": generator.model_id,
        "revision": generator.revision,
        # Nobody knows what whoever wrote a recorded text was asked.
        "prompt_sha256": "" if generator.engine == "recorded" else prompt_hashes(TEMPLATE)[TEMPLATE],
        "seed": seed,
    }


def _warn_of_failures(statuses: Counter[str]) -> None:
    failed = statuses.total() - statuses["ok"]
    if failed > 0.1 * statuses.total():
        named = ", ".join(f"{status} {count}" for status, count in statuses.most_common() if status != "ok")
        logger.warning(
            "%d of %d rationales failed (%s); their raw text is in rationales.parquet", failed, statuses.total(), named
        )
