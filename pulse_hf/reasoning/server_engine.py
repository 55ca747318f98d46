"""The engine behind a server: any OpenAI-compatible one (vLLM, TGI, llama.cpp, ``transformers serve``, Providers).

Many requests are under way at once, so that the server can batch them; each sample is a request of its own with a seed
of its own, so a text does not depend on which others were asked for.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Sequence as Series
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from pulse_hf.network_faults import lost_on_the_way
from pulse_hf.reasoning.generator import Generation, Sampling, Usage
from pulse_hf.schema import stable_hash

if TYPE_CHECKING:
    from huggingface_hub import InferenceClient

    from pulse_hf.reasoning.prompts import Prompt

logger = logging.getLogger(__name__)

_AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504})  # answers that another try may change
_REFUSED = frozenset({400, 413, 422})  # of one request: too long for this server, or filtered
KEY = "PULSE_SERVER_KEY"
_MAX_WAIT_S = 60.0
_TIMEOUT_S = 600.0  # one answer
_NOTHING = Generation("", finish="length")


def split_address(model: str) -> tuple[str, str | None]:
    """A ``model`` setting as the model's name and the server's address.

    >>> split_address("Qwen/Qwen3-4B@http://localhost:8000/v1")
    ('Qwen/Qwen3-4B', 'http://localhost:8000/v1')
    >>> split_address("Qwen/Qwen3-4B")
    ('Qwen/Qwen3-4B', None)
    """
    name, separator, address = model.partition("@http")
    return name, f"http{address}" if separator else None


class ServerGenerator:
    """Generates through ``huggingface_hub.InferenceClient``.

    Args:
        model: ``NAME@http://HOST:PORT/v1``, or ``NAME`` alone for Inference Providers (with the token of the machine).
            A server of an address is never sent that token, only what the variable ``PULSE_SERVER_KEY`` holds.
        concurrency: Requests under way at once.
        tries: How often a request is sent before the run stops; waits double from one second.

    Raises:
        ValueError: The concurrency or the number of tries is not positive.
    """

    engine = "server"
    revision = "as served"

    def __init__(self, model: str, *, concurrency: int = 32, tries: int = 6) -> None:
        if concurrency < 1 or tries < 1:
            raise ValueError(f"concurrency is {concurrency} and tries {tries}; expected at least 1")
        from huggingface_hub import InferenceClient

        self.model_id, self.address = split_address(model)
        self.concurrency, self.tries = concurrency, tries
        self.usage = Usage()
        # Without a key of its own the client would send the machine's Hugging Face token to any address.
        key = os.environ.get(KEY, "").strip() or "none"
        known: dict[str, Any] = {"base_url": self.address, "api_key": key} if self.address else {}
        self._client: InferenceClient = InferenceClient(timeout=_TIMEOUT_S, **known)
        self._warned = self._answered = False

    def generate(
        self, prompts: Series[Prompt], *, width: int, sampling: Sampling, seed: int
    ) -> list[list[Generation]]:
        """Write ``width`` continuations of every prompt; see :class:`pulse_hf.reasoning.generator.Generator`.

        A prompt that the server refuses, but not all others, gets an empty text and a warning.

        Raises:
            ConnectionError: The server gave no answer, or none that can be used, after all tries, or refused all.
        """
        started = time.perf_counter()
        asked = [(prompt, sample) for prompt in prompts for sample in range(width)]
        pool, stop = ThreadPoolExecutor(min(self.concurrency, max(1, len(asked)))), threading.Event()
        try:
            replies = list(pool.map(lambda one: self._ask(one[0], one[1], sampling, seed, stop), asked))
        finally:  # who stops the run waits for answers that are under way, and for no further try
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
        refused = [reply for reply in replies if isinstance(reply, ConnectionError)]
        self._answered = self._answered or len(refused) < len(replies)
        if refused and not self._answered:
            raise refused[0]
        for refusal in refused:
            logger.warning("%s It gets no text.", refusal)
        made = [_NOTHING if isinstance(reply, ConnectionError) else self._read(reply) for reply in replies]
        self.usage.seconds += time.perf_counter() - started
        return [made[start : start + width] for start in range(0, len(made), width)]

    @property
    def _server(self) -> str:
        return self.address or "Inference Providers"

    def _read(self, reply: Any) -> Generation:
        choice = reply.choices[0]
        told = (choice.logprobs.content if choice.logprobs else None) or []
        tokens = [token for token in told if token.logprob is not None]
        usage = reply.usage
        written = usage.completion_tokens if usage else len(tokens)
        self.usage.prompt_tokens += usage.prompt_tokens if usage else 0
        self.usage.generated_tokens += written
        if not tokens and not self._warned:
            self._warned = True
            logger.warning("%s gives no log-probabilities: trees cannot be judged by likelihood", self.model_id)
        likelihood = sum(token.logprob for token in tokens) / len(tokens) if tokens else 0.0
        finish = "length" if choice.finish_reason == "length" else "stop"
        text = (choice.message.content or "").encode(errors="replace").decode()  # JSON can hold half a surrogate pair
        return Generation(text, min(likelihood, 0.0), written, finish)  # type: ignore[arg-type]

    def _ask(self, prompt: Prompt, sample: int, sampling: Sampling, seed: int, stop: threading.Event) -> Any:
        """One request, sent again after growing waits where that may help; the error itself where it is refused."""
        from huggingface_hub.errors import HfHubHTTPError, InferenceTimeoutError

        problem, wait = "", 0.0
        for attempt in range(self.tries):
            _pause(stop, min(_MAX_WAIT_S, wait))
            if stop.is_set():
                break
            wait = 2.0**attempt
            try:
                reply = self._client.chat_completion(
                    [dict(message) for message in prompt.messages],
                    model=self.model_id,
                    max_tokens=sampling.max_new_tokens,
                    temperature=sampling.temperature,
                    top_p=sampling.top_p,
                    seed=stable_hash("server", seed, prompt.key, sample) % 2**31,
                    logprobs=True,
                )
                # A gateway may answer an upstream's failure with status 200.
                if reply.choices and reply.choices[0].message:
                    return reply
                problem = f"an answer without a choice: {_one_line(reply)}"
            except HfHubHTTPError as error:
                status = error.response.status_code
                problem = f"status {status}: {_one_line(error)}"
                if status in _REFUSED:
                    return ConnectionError(f"{self._server} refused {prompt.key} ({problem}).")
                if status not in _AGAIN:
                    break
                wait = _seconds(error.response.headers.get("retry-after"), wait)
            except Exception as error:
                # ValueError: what came is no JSON, such as a proxy's page.
                known = isinstance(error, InferenceTimeoutError | OSError | ValueError)
                if not known and not lost_on_the_way(error):
                    raise
                problem = f"{type(error).__name__}: {_one_line(error)}"
        raise ConnectionError(
            f"{self._server} gave no answer for {prompt.key} in {attempt + 1} tries ({problem}). "
            f"Check that the server runs and serves {self.model_id!r}; the same command goes on from here."
        )


def _pause(stop: threading.Event, seconds: float) -> None:
    stop.wait(seconds)


def _seconds(header: str | None, otherwise: float) -> float:
    try:
        return float(header) if header else otherwise
    except ValueError:
        return otherwise


def _one_line(error: Any) -> str:
    return " ".join(str(error).split())[:200]
