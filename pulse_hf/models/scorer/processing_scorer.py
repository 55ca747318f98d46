"""From texts to the packed tensors of the scorer, and the one function that scores whole sets of examples."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import isfinite
from typing import TYPE_CHECKING, Any, Protocol

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from .modeling_branches import packed_branches

if TYPE_CHECKING:
    from .modeling_scorer import PulseScorerModel

logger = logging.getLogger(__name__)

MOST_PACKED = 32  # candidates in one pass; beyond it attention between candidates, masked as it is, costs too much
_TELL_AFTER_S = 5  # seconds; what ends sooner shows no progress
CHUNK_SIZE = 16  # of larger sets over the prompt's cache; measured fastest of 8, 16 and 32


class ScorableExample(Protocol):
    """What scoring needs of an example; labels are not part of it."""

    @property
    def prompt(self) -> str:
        """The scorer's prompt."""

    @property
    def candidates(self) -> Sequence[str]:
        """The text of each candidate."""

    @property
    def features(self) -> Sequence[Sequence[float]]:
        """The scalars beside each candidate; empty where there are none."""


@dataclass(frozen=True, slots=True)
class EncodedExample:
    """One decision as tokens.

    Args:
        prompt_ids: Tokens of the prompt.
        candidate_ids: Tokens of each candidate, the judge text last.
        features: Scalars of each candidate, or empty.
        label: The chosen candidate's place, or ``None``.
    """

    prompt_ids: list[int]
    candidate_ids: list[list[int]]
    features: Sequence[Sequence[float]] = ()
    label: int | None = None

    @property
    def num_tokens(self) -> int:
        """Length of the packed sequence."""
        return len(self.prompt_ids) + sum(map(len, self.candidate_ids))


class PulseScorerProcessor(ProcessorMixin):
    """Tokenizes prompts and candidates and packs them.

    Candidates are never dropped: one that exceeds its budget loses words of its own, never the judge
    text, and ``truncated_candidates`` counts it. Prompts are never cut here; they are cut by fields
    where they are written, so a prompt beyond its budget is an error.

    Args:
        tokenizer: The base model's tokenizer.
        judge_text: What every candidate ends with, so that the judged hidden state always stands at the
            same token.
        max_prompt_tokens: Longest prompt.
        max_candidate_tokens: Longest candidate, judge text included. The two together are the paper's
            maximum token length of 512 (§5.3).
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        judge_text: str = "\nFits:",
        max_prompt_tokens: int = 464,
        max_candidate_tokens: int = 48,
        **kwargs: Any,
    ) -> None:
        super().__init__(tokenizer, **kwargs)
        self.judge_text = judge_text
        self.max_prompt_tokens = max_prompt_tokens
        self.max_candidate_tokens = max_candidate_tokens
        self.truncated_candidates = 0
        self._judge_ids: list[int] = tokenizer(judge_text, add_special_tokens=False)["input_ids"]
        self._known: dict[str, list[int]] = {}
        self._cut: set[str] = set()
        if not self._judge_ids or len(self._judge_ids) >= max_candidate_tokens:
            raise ValueError(
                f"judge_text {judge_text!r} has {len(self._judge_ids)} tokens; expected at least 1 and fewer than "
                f"max_candidate_tokens={max_candidate_tokens}"
            )

    def prompt_fits(self, prompt: str) -> bool:
        """Whether a prompt is within ``max_prompt_tokens``."""
        return len(self._prompt_ids(prompt)) <= self.max_prompt_tokens

    def encode(
        self, examples: Iterable[ScorableExample], labels: Iterable[int | None] | None = None
    ) -> list[EncodedExample]:
        """Tokenize examples; equal candidate texts are tokenized once.

        Args:
            examples: What to score.
            labels: The chosen place of each, for training.

        Raises:
            ValueError: A prompt exceeds its budget, or an example has no candidates.
        """
        examples = list(examples)
        places = [None] * len(examples) if labels is None else list(labels)
        self._learn({text for example in examples for text in example.candidates})
        return [self._encode_one(example, label) for example, label in zip(examples, places, strict=True)]

    def forget(self, *, beyond: int) -> None:
        """Forget candidate texts once there are more than ``beyond``: a server would fill its memory."""
        if len(self._known) > beyond:
            self._known.clear()
            self._cut.clear()

    def _encode_one(self, example: ScorableExample, label: int | None) -> EncodedExample:
        prompt_ids = self._prompt_ids(example.prompt)
        if len(prompt_ids) > self.max_prompt_tokens:
            raise ValueError(
                f"A prompt has {len(prompt_ids)} tokens, at most max_prompt_tokens={self.max_prompt_tokens} fit; "
                f"show fewer events or raise the limit. It begins {example.prompt[:80]!r}"
            )
        if not example.candidates:
            raise ValueError(f"An example has no candidates to score. Its prompt begins {example.prompt[:80]!r}")
        candidate_ids = [self._known[text] for text in example.candidates]
        self.truncated_candidates += sum(text in self._cut for text in example.candidates)
        return EncodedExample(prompt_ids, candidate_ids, example.features, label)

    def _prompt_ids(self, prompt: str) -> list[int]:
        ids: list[int] = self.tokenizer(prompt, verbose=False)["input_ids"]
        # Some tokenizers close every text; a closed prompt would tell the model that nothing follows.
        return ids[:-1] if len(ids) > 1 and ids[-1] == self.tokenizer.eos_token_id else ids

    def _learn(self, texts: set[str]) -> None:
        new = sorted(texts - self._known.keys())
        if not new:
            return
        closed = [text if text.endswith(self.judge_text) else text + self.judge_text for text in new]
        for text, whole, ids in zip(
            new, closed, self.tokenizer(closed, add_special_tokens=False)["input_ids"], strict=True
        ):
            if len(ids) > self.max_candidate_tokens:
                body = self.tokenizer(whole.removesuffix(self.judge_text), add_special_tokens=False)["input_ids"]
                ids = body[: self.max_candidate_tokens - len(self._judge_ids)] + self._judge_ids
                self._cut.add(text)
            self._known[text] = ids

    def pack(self, batch: Sequence[EncodedExample]) -> dict[str, torch.Tensor]:
        """Pad encoded examples at the right and stack them into the model's inputs.

        Returns:
            ``input_ids``, ``segment_ids``, ``position_ids`` (batch, length), ``last_index``
            (batch, num_candidates), and ``labels`` and ``candidate_features`` where the examples have them.
        """
        length = max(example.num_tokens for example in batch)
        most = max(len(example.candidate_ids) for example in batch)
        pad = self.tokenizer.pad_token_id or 0
        rows = [_layout(example) for example in batch]
        inputs = {
            "input_ids": [tokens + [pad] * (length - len(tokens)) for tokens, _, _, _ in rows],
            "segment_ids": [segments + [-1] * (length - len(segments)) for _, segments, _, _ in rows],
            "position_ids": [positions + [0] * (length - len(positions)) for _, _, positions, _ in rows],
            "last_index": [last + [-1] * (most - len(last)) for _, _, _, last in rows],
        }
        tensors = {name: torch.tensor(values) for name, values in inputs.items()}
        if batch[0].label is not None:
            tensors["labels"] = torch.tensor([example.label for example in batch])
        if len(batch[0].features):
            width = len(batch[0].features[0])
            padded = [
                [*map(list, example.features), *[[0.0] * width] * (most - len(example.features))] for example in batch
            ]
            tensors["candidate_features"] = torch.tensor(padded, dtype=torch.float32)
        return tensors

    def __call__(self, examples: Iterable[ScorableExample]) -> dict[str, torch.Tensor]:
        """Encode and pack one batch."""
        return self.pack(self.encode(examples))


def _layout(example: EncodedExample) -> tuple[list[int], list[int], list[int], list[int]]:
    """Tokens, segments, positions and the last column of each candidate of one packed row."""
    ends = accumulate(map(len, example.candidate_ids), initial=len(example.prompt_ids) - 1)
    return *packed_branches(example.prompt_ids, example.candidate_ids), [*ends][1:]


def score_sets(
    model: PulseScorerModel,
    processor: PulseScorerProcessor,
    examples: Sequence[ScorableExample],
    batch_size: int = 16,
    *,
    bf16: bool = False,
) -> list[list[float]]:
    """One raw logit per candidate for every example, in the order given.

    Examples run sorted by length, so that little is spent on padding; sets beyond ``MOST_PACKED``
    candidates run in chunks over the prompt's keys and values. A scorer whose text counts for nothing
    adds up its features and reads no text.

    Args:
        model: The scorer, with or without PEFT around it.
        processor: Its processor.
        examples: What to score.
        batch_size: Examples per pass; halved by itself where memory does not suffice.
        bf16: Compute in bfloat16 by autocast: faster where the hardware has it, scores less exact (of
            pulse-nano, whose ten candidates spread over 5.5: .04 on average, .3 at most; of a text encoder .01, .02).

    Raises:
        ValueError: A score is not finite.
    """
    if not model.reads_text and all(example.features for example in examples):
        weights = model.feature_score.weight[0].tolist()
        sums = [
            [sum(weight * value for weight, value in zip(weights, one, strict=True)) for one in example.features]
            for example in examples
        ]
        return _finite(sums)
    return score_encoded(model, processor, processor.encode(examples), batch_size, bf16=bf16)


def score_encoded(
    model: PulseScorerModel,
    processor: PulseScorerProcessor,
    encoded: Sequence[EncodedExample],
    batch_size: int = 16,
    *,
    bf16: bool = False,
) -> list[list[float]]:
    """What :func:`score_sets` gives, for examples that are tokens already.

    Raises:
        ValueError: A score is not finite.
    """
    order = sorted(range(len(encoded)), key=lambda row: encoded[row].num_tokens)
    large = [row for row in order if len(encoded[row].candidate_ids) > MOST_PACKED]
    small = [row for row in order if len(encoded[row].candidate_ids) <= MOST_PACKED]
    scores: dict[int, list[float]] = {}
    model.eval()
    progress = tqdm(total=len(encoded), desc="scoring", unit="set", leave=False, delay=_TELL_AFTER_S)
    compute = torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=bf16)
    with torch.inference_mode(), compute, progress:
        for start in range(0, len(small), batch_size):
            rows = small[start : start + batch_size]
            scores.update(zip(rows, _score_packed(model, processor, [encoded[row] for row in rows]), strict=True))
            progress.update(len(rows))
        for row in large:
            one = encoded[row]
            features = (
                torch.tensor(one.features, dtype=torch.float32, device=model.device) if len(one.features) else None
            )
            scores[row] = model.score_in_chunks(one.prompt_ids, one.candidate_ids, features, CHUNK_SIZE).tolist()
            progress.update()
    return _finite([scores[row] for row in range(len(encoded))])


def _score_packed(
    model: PulseScorerModel, processor: PulseScorerProcessor, batch: Sequence[EncodedExample]
) -> list[list[float]]:
    """One pass over a batch; in halves where memory does not suffice, which changes no score."""
    try:
        inputs = {name: tensor.to(model.device) for name, tensor in processor.pack(batch).items()}
        logits = model(**inputs).logits.tolist()
        return [row[: len(one.candidate_ids)] for one, row in zip(batch, logits, strict=True)]
    except torch.OutOfMemoryError:
        if len(batch) == 1:
            raise
        logger.warning("out of memory with %d decisions; going on with halves", len(batch))
    # Not within the except: the error would keep the memory of the batch that was too large.
    half = len(batch) // 2
    return [*_score_packed(model, processor, batch[:half]), *_score_packed(model, processor, batch[half:])]


def _finite(scores: list[list[float]]) -> list[list[float]]:
    wrong = [row for row, values in enumerate(scores) if not all(map(isfinite, values))]
    if wrong:
        raise ValueError(
            f"{len(wrong)} of {len(scores)} examples have a score that is not finite, the first is number {wrong[0]}"
        )
    return scores
