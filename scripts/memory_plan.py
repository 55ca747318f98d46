"""What fits a 16 GB and a 24 GB GPU with Phi-4-mini, the language model of the paper, by arithmetic.

    python scripts/memory_plan.py

One line per task: gigabytes (2**30) of a batch of 4 by what they hold, and the largest batch that fits each card (in
decisions, or in texts). One gigabyte of a card is left to CUDA itself and to what the allocator loses. Nothing here
was measured on a GPU, and 4 bits are arithmetic only: the package loads weights in 16.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from functools import partial

from memory_arithmetic import generation_plan, parameters, training_plan
from transformers import Phi3Config

from pulse_hf.presets import paper

CARDS = (16, 24)
LEFT_TO_CUDA = 1
GB = 2**30
MOST = 1024
TYPICAL = {"prompt_tokens": 160, "candidate_tokens": 14}  # three events and a reason, titles of some ten tokens

# microsoft/Phi-4-mini-instruct as published; positions do not matter for memory.
PHI_4_MINI = Phi3Config(
    vocab_size=200_064,
    hidden_size=3072,
    intermediate_size=8192,
    num_hidden_layers=32,
    num_attention_heads=24,
    num_key_value_heads=8,
    tie_word_embeddings=True,
    pad_token_id=199_999,
    bos_token_id=199_999,
    eos_token_id=199_999,
)


Plan = Callable[[int], dict[str, int]]


def tasks(bits: int) -> list[tuple[str, Plan]]:
    """Each task of the ``paper`` preset as a plan by size of batch: at its limits, and with texts of usual length."""
    recommender, thoughts = paper().recommender, paper().thoughts
    longest = {
        "prompt_tokens": recommender.max_length - recommender.max_candidate_tokens,
        "candidate_tokens": recommender.max_candidate_tokens,
    }
    rank, likelihood = recommender.lora_rank, bool(recommender.likelihood_scale)
    train = partial(training_plan, PHI_4_MINI, bits=bits, rank=rank, likelihood=likelihood)
    write = partial(generation_plan, PHI_4_MINI, bits=bits, width=thoughts.width, new_tokens=thoughts.max_new_tokens)
    return [
        ("train, usual texts", lambda size: train(batch_size=size, **TYPICAL)),
        ("train, longest texts", lambda size: train(batch_size=size, **longest)),
        ("write, prompts of 300 tokens", lambda size: write(batch_size=size, prompt_tokens=300)),
        ("write, prompts of 1,024 tokens", lambda size: write(batch_size=size, prompt_tokens=1024)),
    ]


def largest(plan: Plan, room: int) -> int:
    """The largest batch that fits into ``room`` bytes; 0 if not even one does."""
    return bisect_right(range(1, MOST + 1), room, key=lambda size: sum(plan(size).values()))


def main() -> None:
    """Print the table."""
    print(f"Phi-4-mini: {parameters(PHI_4_MINI):,} parameters; GB of a batch of 4, and the largest batch that fits\n")
    names = ("weights", "training", "passing", "total", *(f"{card} GB card" for card in CARDS))
    print(" " * 41 + "".join(f"{name:>12}" for name in names))
    for bits in (16, 4):
        for task, plan in tasks(bits):
            parts = plan(4)
            weights, total = parts["weights"], sum(parts.values())
            training = sum(parts.get(name, 0) for name in ("adapter", "gradients", "optimizer"))
            columns = (weights, training, total - weights - training, total)
            row = "".join(f"{value / GB:12.2f}" for value in columns)
            row += "".join(f"{largest(plan, (card - LEFT_TO_CUDA) * GB):12}" for card in CARDS)
            print(f"{bits:2} bits: {task:32}{row}")


if __name__ == "__main__":
    main()
