"""How much one packed pass saves over scoring each candidate in a sequence of its own.

    python scripts/bench_scoring.py [--prompt 384] [--candidates 10] [--candidate-tokens 16]

The arithmetic limit counts tokens: one by one, every candidate pays for the prompt again. Both ways run
the same random model of pulse-nano's size; the scores are compared before anything is timed. The last
line is one JSON object.
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
from pulse_hf.models.scorer.processing_scorer import EncodedExample, PulseScorerProcessor


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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", type=int, default=384, help="tokens of the prompt")
    parser.add_argument("--candidates", type=int, default=10)
    parser.add_argument("--candidate-tokens", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--attention", default="sdpa", choices=["sdpa", "eager"])
    settings = parser.parse_args()

    torch.manual_seed(0)
    base = LlamaConfig(
        vocab_size=4096,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=1024,
    )
    base._attn_implementation = settings.attention
    model = PulseScorerModel(PulseScorerConfig(base_config=base)).eval()
    tokens = torch.randint(
        3, base.vocab_size, (settings.prompt + settings.candidates * settings.candidate_tokens,)
    ).tolist()
    prompt, rest = tokens[: settings.prompt], tokens[settings.prompt :]
    size = settings.candidate_tokens
    candidates = [rest[start : start + size] for start in range(0, len(rest), size)]
    packed = PulseScorerProcessor.pack(_Padding(), [EncodedExample(prompt, candidates)])

    with torch.inference_mode():
        difference = (model(**packed).logits[0] - model.score_one_by_one(prompt, candidates)).abs().max().item()
        if difference > 1e-4:
            raise SystemExit(f"packed and one-by-one scores differ by {difference}")
        ways = [lambda: model.score_one_by_one(prompt, candidates), lambda: model(**packed)]
        single_seconds, packed_seconds = best_seconds(ways, settings.repeats)

    limit = (settings.prompt + size) * settings.candidates / (settings.prompt + size * settings.candidates)
    ratio = single_seconds / packed_seconds
    print(
        f"one by one {single_seconds * 1000:.1f} ms, packed {packed_seconds * 1000:.1f} ms, "
        f"largest difference {difference:.1e}"
    )
    print(f"{ratio:.2f} times faster; counting tokens, the limit is {limit:.2f}")
    record = vars(settings) | {
        "threads": torch.get_num_threads(),
        "parameters": sum(value.numel() for value in model.parameters()),
    }
    print(json.dumps({"name": "scoring", "ratio": round(ratio, 3), "limit": round(limit, 3), "settings": record}))


class _Padding:
    """All that packing needs of a processor where the tokens are given."""

    class tokenizer:  # noqa: N801
        pad_token_id = 0


if __name__ == "__main__":
    main()
