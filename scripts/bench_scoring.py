"""How much packed scoring saves over scoring each candidate in a sequence of its own.

    python scripts/bench_scoring.py [--prompt 384] [--candidates 10] [--candidate-tokens 16] [--train]
    python scripts/bench_scoring.py --candidates 100 --shape phi4-mini --likelihood 0 --repeats 1

The limit counts floating-point operations: one by one, every candidate pays for the prompt again; what a candidate's
tokens pay for their likelihood (a row of the vocabulary each) is the same both ways. Both ways run one random model of
pulse-nano's size, as the product does: one pass, or chunks over the prompt's keys and values beyond ``MOST_PACKED``
candidates. The scores are compared before anything is timed. ``--train`` times a step forward and backward instead
(one pass against one sequence per candidate). Of more than 100 candidates one by one, 100 are timed and counted for
all: every sequence is as long as the others. ``--shape phi4-mini`` has that model's width and two of its 32 layers
(6 GB and minutes); give ``--likelihood 0`` with it, as 200,064 rows would outweigh two layers. The last line is one
JSON object.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence

import torch
from transformers import LlamaConfig

from pulse_hf.models.scorer.configuration_scorer import PulseScorerConfig
from pulse_hf.models.scorer.modeling_scorer import PulseScorerModel
from pulse_hf.models.scorer.processing_scorer import CHUNK_SIZE, MOST_PACKED, EncodedExample, PulseScorerProcessor

MOST_TIMED = 100
SHAPES = {
    "nano": {"vocab_size": 4096, "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4},
    "phi4-mini": {
        "vocab_size": 200064,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 2,
        "num_attention_heads": 24,
        "num_key_value_heads": 8,
    },
}


def best_seconds(functions: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """The shortest processor time of each function over several runs, taken in turns.

    Processor time and turns, so that other programs on the machine weigh on neither side.
    """
    times: list[list[float]] = [[] for _ in functions]
    for run in range(repeats + 1):
        for taken, function in zip(times, functions, strict=True):
            started = time.process_time()
            function()
            if run:  # the first run warms up
                taken.append(time.process_time() - started)
    return [min(taken) for taken in times]


def main() -> None:
    """Time both ways and print the ratio."""
    settings = arguments().parse_args()
    torch.manual_seed(0)
    shape = {"num_attention_heads": 4, "max_position_embeddings": 1024} | SHAPES[settings.shape]
    base = LlamaConfig(**shape)
    base._attn_implementation = settings.attention
    model = PulseScorerModel(PulseScorerConfig(base_config=base, likelihood_scale=settings.likelihood)).eval()
    size, whole = settings.candidate_tokens, settings.train or settings.candidates <= MOST_PACKED
    tokens = torch.randint(3, base.vocab_size, (settings.prompt + settings.candidates * size,)).tolist()
    prompt, rest = tokens[: settings.prompt], tokens[settings.prompt :]
    candidates = [rest[start : start + size] for start in range(0, len(rest), size)]
    timed = candidates if settings.train else candidates[:MOST_TIMED]
    packed = PulseScorerProcessor.pack(_Padding(), [EncodedExample(prompt, candidates)])
    singles = [PulseScorerProcessor.pack(_Padding(), [EncodedExample(prompt, [one])]) for one in candidates]

    def together() -> torch.Tensor:
        if whole:
            return model(**packed).logits[0]
        return model.score_in_chunks(prompt, candidates, chunk_size=settings.chunk)

    def apart() -> torch.Tensor:
        return torch.cat([model(**single).logits[0] for single in singles])

    def step(way: Callable[[], torch.Tensor]) -> None:
        model.zero_grad()
        torch.nn.functional.cross_entropy(way()[None], torch.tensor([0])).backward()

    with torch.inference_mode():
        difference = (together()[: len(timed)] - model.score_one_by_one(prompt, timed)).abs().max().item()
        if difference > 1e-4:
            raise SystemExit(f"packed and one-by-one scores differ by {difference}")
    ways: list[Callable[[], object]] = [lambda: model.score_one_by_one(prompt, timed), together]
    if settings.train:
        ways = [lambda: step(apart), lambda: step(together)]
    with torch.inference_mode(not settings.train):
        single_seconds, packed_seconds = best_seconds(ways, settings.repeats)
    single_seconds *= len(candidates) / len(timed)

    limit, ratio = limit_of(settings, base, whole), single_seconds / packed_seconds
    print(
        f"one by one {single_seconds * 1000:.1f} ms, packed {packed_seconds * 1000:.1f} ms, "
        f"largest difference {difference:.1e}"
    )
    print(f"{ratio:.2f} times faster; counting operations, the limit is {limit:.2f}")
    record = vars(settings) | {
        "threads": torch.get_num_threads(),
        "parameters": sum(value.numel() for value in model.parameters()),
    }
    name = "scoring-train" if settings.train else "scoring"
    print(json.dumps({"name": name, "ratio": round(ratio, 3), "limit": round(limit, 3), "settings": record}))


def arguments() -> argparse.ArgumentParser:
    """What can be asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", type=int, default=384, help="tokens of the prompt")
    parser.add_argument("--candidates", type=int, default=10)
    parser.add_argument("--candidate-tokens", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--attention", default="sdpa", choices=["sdpa", "eager"])
    parser.add_argument("--chunk", type=int, default=CHUNK_SIZE, help="candidates of a pass over the prompt's cache")
    parser.add_argument("--likelihood", type=float, default=8.0, help="likelihood_scale; 0 leaves that term out")
    parser.add_argument("--train", action="store_true", help="forward and backward")
    parser.add_argument("--shape", default="nano", choices=sorted(SHAPES), help="width and depth of the random model")
    return parser


def limit_of(settings: argparse.Namespace, base: LlamaConfig, whole: bool) -> float:
    """Operations one by one over operations packed, in one pass (``whole``) or in chunks over the prompt's cache."""
    prompt, count, size = settings.prompt, settings.candidates, settings.candidate_tokens
    apart = count * flops(base, [(prompt + size, 0)], size - 1, settings.likelihood)
    chunks = -(-count // settings.chunk)
    branch = count * size // chunks
    passes = [(prompt + count * size, 0)] if whole else [(prompt, 0), *[(branch, prompt)] * chunks]
    return apart / flops(base, passes, count * (size - 1), settings.likelihood)


def flops(base: LlamaConfig, passes: list[tuple[int, int]], judged: int, likelihood: float) -> float:
    """Operations of one or several passes.

    Args:
        base: The language model.
        passes: New tokens and cached tokens of each pass; attention runs over both in full.
        judged: Tokens whose likelihood is taken, if ``likelihood`` is not 0.
        likelihood: ``likelihood_scale``.
    """
    dim, layers = base.hidden_size, base.num_hidden_layers
    shared = base.num_key_value_heads / base.num_attention_heads  # heads of queries that share keys and values
    matrices = layers * ((2 + 2 * shared) * dim * dim + 3 * dim * base.intermediate_size)
    reading = sum(2 * new * (matrices + 2 * layers * dim * (new + cached)) for new, cached in passes)
    return reading + (2 * judged * dim * base.vocab_size if likelihood else 0)


class _Padding:
    """All that packing needs of a processor where the tokens are given."""

    class tokenizer:  # noqa: N801
        pad_token_id = 0


if __name__ == "__main__":
    main()
