"""vLLM in this process, for one machine with GPUs: its scheduler batches, its prefix cache shares prompts.

Written to vLLM's documented offline interface (``LLM.generate`` on token ids, one ``SamplingParams`` per request).
vLLM needs CUDA and could not be run where this package is tested: the tests drive it through a stand-in with that
interface.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence as Series
from typing import TYPE_CHECKING, Any

from pulse_hf.reasoning.chat_tokens import ChatTokens
from pulse_hf.reasoning.generator import Finish, Generation, Sampling, Usage
from pulse_hf.schema import stable_hash

if TYPE_CHECKING:
    from pulse_hf.reasoning.prompts import Prompt

logger = logging.getLogger(__name__)


class VllmGenerator:
    """Generates with ``vllm.LLM``.

    Each sample is a request of its own with a seed of its own, so a text does not depend on which others were asked
    for (as far as the kernels' batch invariance goes). Texts that go in circles are not rewound here.

    Args:
        llm: A ``vllm.LLM``.
        model_id: The model's id, recorded in every row.
        revision: Its revision.
    """

    engine = "vllm"

    def __init__(self, llm: Any, *, model_id: str, revision: str) -> None:
        self.llm, self.model_id, self.revision = llm, model_id, revision
        self.chat = ChatTokens(llm.get_tokenizer())
        self.usage = Usage()
        self._longest = int(llm.llm_engine.model_config.max_model_len)

    @classmethod
    def from_pretrained(cls, model_id: str) -> VllmGenerator:
        """Load a model by Hub id (``owner/name[@revision]``), folder, or the embedded model's name.

        Raises:
            ValueError: vLLM is not installed.
        """
        try:
            from vllm import LLM
        except ImportError as error:
            raise ValueError(
                "engine is 'vllm', and vllm is not installed (pip install 'pulse-hf[vllm]', needs CUDA); "
                "'transformers' runs everywhere"
            ) from error
        from pulse_hf.models.embedded import commit_of, resolve_model

        source, identity = resolve_model(model_id)
        commit = commit_of(identity)
        llm = LLM(model=source, enable_prefix_caching=True, trust_remote_code=False, revision=commit)
        return cls(llm, model_id=identity["id"], revision=identity["revision"])

    def fits(self, prompt: Prompt, new_tokens: int) -> bool:
        """Whether the model has positions for a prompt and a reply of so many tokens."""
        return len(self.chat.encode([prompt.messages])[0]) + new_tokens <= self._longest

    def generate(
        self, prompts: Series[Prompt], *, width: int, sampling: Sampling, seed: int
    ) -> list[list[Generation]]:
        """Write ``width`` continuations of every prompt; see :class:`pulse_hf.reasoning.generator.Generator`.

        A prompt that leaves no room for the reply gets an empty text with finish ``"length"``.
        """
        from vllm import SamplingParams

        started = time.perf_counter()
        made = [[Generation("", finish="length")] * width for _ in prompts]
        places, inputs, parameters = [], [], []
        for number, ids in enumerate(self.chat.encode([prompt.messages for prompt in prompts])):
            if len(ids) + sampling.max_new_tokens > self._longest:
                logger.warning("%s: %d prompt tokens leave no room for a reply", prompts[number].key, len(ids))
                continue
            for sample in range(width):
                places.append((number, sample))
                inputs.append({"prompt_token_ids": ids})
                parameters.append(
                    SamplingParams(
                        max_tokens=sampling.max_new_tokens,
                        temperature=sampling.temperature,
                        top_p=sampling.top_p,
                        seed=stable_hash("vllm", seed, prompts[number].key, sample) % 2**31,
                        logprobs=0,  # the chosen token's alone: cumulative_logprob is filled in
                    )
                )
        answers = self.llm.generate(inputs, parameters, use_tqdm=False) if inputs else []
        for (number, sample), answer in zip(places, answers, strict=True):
            made[number][sample] = self._read(answer)
        self.usage.seconds += time.perf_counter() - started
        return made

    def _read(self, answer: Any) -> Generation:
        (written,) = answer.outputs
        length = len(written.token_ids)
        self.usage.prompt_tokens += len(answer.prompt_token_ids)
        self.usage.reused_tokens += answer.num_cached_tokens or 0
        self.usage.generated_tokens += length
        likelihood = (written.cumulative_logprob or 0.0) / max(1, length)
        finish: Finish = "length" if written.finish_reason == "length" else "stop"
        # Rounding may give a little more than 0; what is no number stays one, and Generation refuses it.
        return Generation(written.text, 0.0 if 0 < likelihood < 1e-3 else likelihood, length, finish)
