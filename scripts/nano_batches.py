"""What pulse-nano learns from as numbers: its tokenizer, examples as token arrays, batches with their masks."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

VOCABULARY = 4096
PAD, USER, ASSISTANT, END = "<|pad|>", "<|user|>", "<|assistant|>", "<|end|>"
TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
PROMPT_WEIGHT = 0.1
JUDGEMENT_WEIGHT = 0.5
YES, NO = " yes", " no"


@dataclass
class Encoded:
    """One example as arrays of equal length; ``segments`` is all 0 for conversations."""

    tokens: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    positions: np.ndarray
    segments: np.ndarray


def train_tokenizer(corpus: Path) -> PreTrainedTokenizerFast:
    """Byte-level BPE over the corpus."""

    def texts() -> Any:
        with corpus.open(encoding="utf-8") as stream:
            for line in stream:
                row = json.loads(line)
                yield "\n".join(row["turns"]) or row["prompt"] + "".join(
                    text + (YES if fits else NO) + "\n" for text, fits in row["candidates"]
                )

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = [PAD, USER, ASSISTANT, END]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=specials, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(texts(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[USER, ASSISTANT],
        chat_template=TEMPLATE,
        model_max_length=1024,
        padding_side="left",
    )


class Encoder:
    """Turns corpus rows into token arrays."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        self.user, self.assistant, self.end = (
            tokenizer.convert_tokens_to_ids(token) for token in (USER, ASSISTANT, END)
        )
        self.yes, self.no = (self._one(text) for text in (YES, NO))
        self.newline = self._ids("\n")

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def _one(self, text: str) -> int:
        ids = self._ids(text)
        if len(ids) != 1:
            raise ValueError(f"{text!r} takes {len(ids)} tokens, expected 1; train the tokenizer on judgements too")
        return ids[0]

    def __call__(self, row: dict[str, Any]) -> Encoded:
        """Encode a conversation or a packed set of judgements."""
        return self._conversation(row["turns"]) if row["turns"] else self._judgements(row["prompt"], row["candidates"])

    def _conversation(self, turns: list[str]) -> Encoded:
        tokens: list[int] = []
        weights: list[float] = []
        for number, text in enumerate(turns):
            answer = number % 2 == 1
            head = [self.assistant if answer else self.user, *self.newline]
            body = [*self._ids(text), self.end]
            tokens += [*head, *body, *self.newline]
            weight = 1.0 if number == len(turns) - 1 else PROMPT_WEIGHT
            weights += [0.0] * len(head) + [weight] * len(body) + [0.0] * len(self.newline)
        array = np.array(tokens)
        targets = np.append(array[1:], 0)
        return Encoded(
            array,
            targets,
            np.append(np.array(weights)[1:], 0.0),
            np.arange(len(array)),
            np.zeros(len(array), dtype=np.int64),
        )

    def _judgements(self, prompt: str, candidates: list[list[Any]]) -> Encoded:
        tokens = self._ids(prompt)
        start = len(tokens)
        targets, weights, positions, segments = [0] * start, [0.0] * start, list(range(start)), [0] * start
        negatives = max(1, sum(not fits for _, fits in candidates))
        for number, (text, fits) in enumerate(candidates, start=1):
            ids = self._ids(text)
            tokens += ids
            targets += [*ids[1:], self.yes if fits else self.no]
            judged = JUDGEMENT_WEIGHT / 2 / (1 if fits else negatives)
            # The chosen item is also learnt as text: what the scorer's likelihood reads.
            weights += [1.0 if fits else 0.0] * (len(ids) - 1) + [judged]
            positions += range(start, start + len(ids))
            segments += [number] * len(ids)
        return Encoded(*(np.array(values) for values in (tokens, targets, weights, positions, segments)))


def make_batches(examples: list[Encoded], tokens_per_batch: int, seed: int) -> list[list[int]]:
    """Length-sorted batches of one kind each, in a seeded order."""
    rng = np.random.default_rng(seed)
    batches: list[list[int]] = []
    for packed in (False, True):
        members = [i for i, e in enumerate(examples) if bool(e.segments.any()) == packed]
        members.sort(key=lambda i: (len(examples[i].tokens) // 8, rng.random()))
        batch: list[int] = []
        for index in members:
            if batch and len(examples[index].tokens) * (len(batch) + 1) > tokens_per_batch:
                batches.append(batch)
                batch = []
            batch.append(index)
        if batch:
            batches.append(batch)
    return [batches[i] for i in rng.permutation(len(batches))]


def collate(examples: list[Encoded], device: str) -> dict[str, torch.Tensor]:
    """Right-padded tensors; packed judgements get the additive mask under which branches do not see each other."""
    length = max(len(e.tokens) for e in examples)

    def padded(name: str, fill: float) -> torch.Tensor:
        rows = [np.pad(getattr(e, name), (0, length - len(e.tokens)), constant_values=fill) for e in examples]
        return torch.from_numpy(np.stack(rows))

    batch = {
        "tokens": padded("tokens", 0),
        "targets": padded("targets", 0),
        "weights": padded("weights", 0).float(),
        "positions": padded("positions", 0),
    }
    segments = padded("segments", 0)
    if segments.any():
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        visible = causal & ((segments[:, None, :] == 0) | (segments[:, None, :] == segments[:, :, None]))
        batch["mask"] = torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)[:, None]
    return {key: value.to(device) for key, value in batch.items()}
