"""What every engine of rationales and thoughts offers, and the way from a settings word to an engine.

Stages and the tree search know only the :class:`Generator` protocol, so tests drive them with scripted
texts and users choose the engine by one setting.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from collections.abc import Sequence as Series
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from pulse_hf.reasoning.prompts import Prompt, without_oldest

if TYPE_CHECKING:
    import torch

Engine = Literal["transformers", "vllm", "server", "extractive"]
Finish = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Generation:
    """One text an engine wrote.

    Args:
        text: What was written, without control tokens, otherwise untouched.
        log_likelihood: Mean log-probability of the written tokens (the closing one included) under the
            model's own distribution, at most 0; 0 for engines that have none.
        num_tokens: Tokens written, the closing one included.
        finish: ``"stop"`` if the engine ended by itself, ``"length"`` if it was cut off.
        quoted: The words are people's own, so that words which come again and again are no sign of a loop.

    Raises:
        FloatingPointError: The likelihood is not finite: whatever a model with such numbers writes means nothing.
    """

    text: str
    log_likelihood: float = 0.0
    num_tokens: int = 0
    finish: Finish = "stop"
    quoted: bool = False

    def __post_init__(self) -> None:
        if not math.isfinite(self.log_likelihood):
            raise FloatingPointError(
                f"a text has the mean log-probability {self.log_likelihood}, expected a finite number. The language "
                "model's weights are damaged, or overflow in its precision; load it anew or take another."
            )


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Args:
        max_new_tokens: Longest text, in tokens.
        temperature: Divides the logits; 0 takes the most likely token.
        top_p: Draw only from the smallest set of tokens with this much probability, in (0, 1].
        rewinds: How often a text that goes in circles is cut before its second copy and written on with another
            token. The in-process engine does it; servers have penalties of their own.

    Raises:
        ValueError: A value is outside its range.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    rewinds: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}; expected at least 1")
        if not self.temperature >= 0:
            raise ValueError(f"temperature is {self.temperature}; expected 0 (greedy) or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; expected a value in (0, 1]")
        if self.rewinds < 0:
            raise ValueError(f"rewinds is {self.rewinds}; expected 0 (none) or more")


@dataclass
class Usage:
    """What an engine has spent since it was made; stages put it into manifests and progress bars.

    Args:
        prompt_tokens: Tokens encoded.
        reused_tokens: Tokens that did not have to be encoded because their cache was still there.
        generated_tokens: Tokens written.
        seconds: Time inside ``generate``, by the monotonic clock.
    """

    prompt_tokens: int = 0
    reused_tokens: int = 0
    generated_tokens: int = 0
    seconds: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens per second, the encoding of prompts included in the time."""
        return self.generated_tokens / self.seconds if self.seconds else 0.0

    def as_counts(self) -> dict[str, float]:
        """Plain JSON values for a manifest."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "reused_tokens": self.reused_tokens,
            "generated_tokens": self.generated_tokens,
            "generation_seconds": round(self.seconds, 3),
            "tokens_per_second": round(self.tokens_per_second, 1),
        }


class Generator(Protocol):
    """An engine that continues conversations.

    Args:
        engine: The engine's word, recorded in every row.
        model_id: Which model writes.
        revision: Which version of it.
        usage: What was spent so far.
    """

    engine: str
    model_id: str
    revision: str
    usage: Usage

    def generate(
        self, prompts: Series[Prompt], *, width: int, sampling: Sampling, seed: int
    ) -> list[list[Generation]]:
        """Write ``width`` continuations of every prompt.

        A sample is drawn with a seed made of ``(seed, prompt.key, sample number)``: it depends neither
        on the order of the prompts nor on which others are in the batch.

        Returns:
            One list of ``width`` generations per prompt, in the order of the prompts.
        """
        ...


def with_room(prompts: Series[Prompt], generator: Generator, max_new_tokens: int) -> list[Prompt]:
    """Prompts without their oldest events where the generator's model has no room for a reply else.

    The newest event always stays. Generators that do not tell what fits (a server, an engine without a language model)
    get the prompts as they are.

    Args:
        prompts: As :mod:`pulse_hf.reasoning.prompts` makes them.
        generator: Who will be asked.
        max_new_tokens: The longest reply.
    """
    fits = getattr(generator, "fits", None)
    if fits is None:
        return list(prompts)
    shown = []
    for prompt in prompts:
        while len(prompt.evidence.events) > 1 and not fits(prompt, max_new_tokens):
            prompt = without_oldest(prompt)
        shown.append(prompt)
    return shown


@dataclass
class ScriptedGenerator:
    """Replies from a table: the engine of tests and of dry runs.

    Args:
        replies: Prompt key to the texts or generations of its samples; missing samples repeat the last.
        default: The reply to a key that is not in the table.

    Example:
        >>> from pulse_hf.reasoning.prompts import Evidence, Prompt
        >>> prompt = Prompt("u#3", ({"role": "user", "content": "why?"},), Evidence(()))
        >>> replies = ScriptedGenerator({"u#3": ["Reason: soft."]})
        >>> replies.generate([prompt], width=1, sampling=Sampling(), seed=0)[0][0].text
        'Reason: soft.'
    """

    replies: Mapping[str, Series[str | Generation]]
    default: str = ""
    engine: str = "scripted"
    model_id: str = "scripted"
    revision: str = "1"
    usage: Usage = field(default_factory=Usage)

    def generate(
        self, prompts: Series[Prompt], *, width: int, sampling: Sampling, seed: int
    ) -> list[list[Generation]]:
        """Look every prompt's samples up."""
        return [[self._reply(prompt.key, sample) for sample in range(width)] for prompt in prompts]

    def _reply(self, key: str, sample: int) -> Generation:
        texts = self.replies.get(key) or [self.default]
        reply = texts[min(sample, len(texts) - 1)]
        made = reply if isinstance(reply, Generation) else Generation(reply, num_tokens=len(reply.split()))
        self.usage.generated_tokens += made.num_tokens
        return made


def engine_identity(engine: Engine, model: str) -> dict[str, str]:
    """The model identity that a stage records and compares; cheap, loads nothing.

    Raises:
        ValueError: There is no such engine, or the model cannot be resolved.
    """
    if engine == "extractive":
        from pulse_hf.reasoning.extractive import ExtractiveGenerator

        return {"id": ExtractiveGenerator.model_id, "revision": ExtractiveGenerator.revision, "weights_sha256": "none"}
    if engine in ("transformers", "vllm"):
        from pulse_hf.models.embedded import resolve_model

        return resolve_model(model)[1]
    if engine == "server":
        from pulse_hf.reasoning.server_engine import ServerGenerator, split_address

        # Where it is served is a setting of the stage, not what the model is.
        return {"id": split_address(model)[0], "revision": ServerGenerator.revision, "weights_sha256": "unknown"}
    raise ValueError(f"engine is {engine!r}; expected 'transformers', 'vllm', 'server' or 'extractive'")


def open_generator(
    engine: Engine,
    model: str,
    *,
    batch_size: int,
    device: str | None = None,
    dtype: torch.dtype | None = None,
) -> Generator:
    """Make the engine that a settings file names.

    Args:
        engine: The engine's word.
        model: Model id or folder; ``NAME@http://HOST:PORT/v1`` for a server; the extractive engine ignores it.
        batch_size: Texts written at once; vLLM has a scheduler of its own.
        device: Of a model in this process (engine ``transformers``); by default a GPU if there is one.
        dtype: Of its weights; by default bfloat16 where the hardware computes in it, else float32.
    """
    if engine == "server":
        from pulse_hf.reasoning.server_engine import ServerGenerator

        return ServerGenerator(model, concurrency=batch_size)
    if engine == "extractive":
        from pulse_hf.reasoning.extractive import ExtractiveGenerator

        return ExtractiveGenerator()
    if engine == "vllm":
        from pulse_hf.reasoning.vllm_engine import VllmGenerator

        return VllmGenerator.from_pretrained(model)
    from pulse_hf.reasoning.transformers_engine import TransformersGenerator

    return TransformersGenerator.from_pretrained(model, batch_size=batch_size, device=device, dtype=dtype)
