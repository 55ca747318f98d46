"""Growing trees of thought with shared prompts and kept caches, beside re-encoding and plain ``generate``.

    python scripts/bench_trees.py [--users 48] [--depth 2] [--width 2] [--tokens 44]

Three engines grow the same trees with pulse-nano over people of the embedded shop: ours, ours without its cache (every
branch of every level encodes its whole conversation), and transformers' own ``generate`` in batches sorted by length.
Tokens per second count written tokens. The limit is by tokens read and written alone: plain ``generate`` over ours. It
is a yardstick and can be passed, because padding and the cost of a step also differ. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pulse_hf.artifacts import read_table
from pulse_hf.data.sequences import items_by_id, sequences_by_user
from pulse_hf.models.embedded import resolve_model
from pulse_hf.reasoning.generator import Generation, Sampling, Usage
from pulse_hf.reasoning.prompts import Prompt
from pulse_hf.reasoning.transformers_engine import TransformersGenerator
from pulse_hf.reasoning.tree_of_thought import TreeSettings, grow_trees


class PlainGenerate:
    """What most would write: the chat template, left padding, ``model.generate``."""

    engine, revision = "generate", "1"

    def __init__(self, ours: TransformersGenerator) -> None:
        self.model, self.chat, self.model_id = ours.model, ours.chat, ours.model_id
        self.usage = Usage()

    @torch.inference_mode()
    def generate(
        self, prompts: Sequence[Prompt], *, width: int, sampling: Sampling, seed: int
    ) -> list[list[Generation]]:
        """One batch after another, rows of like length together."""
        torch.manual_seed(seed)
        ids = self.chat.encode([prompt.messages for prompt in prompts])
        order = sorted(range(len(ids)), key=lambda place: len(ids[place]))
        made: list[list[Generation]] = [[] for _ in prompts]
        for start in range(0, len(order), 192 // width):
            rows = order[start : start + 192 // width]
            longest = max(len(ids[row]) for row in rows)
            batch = torch.tensor([[0] * (longest - len(ids[row])) + ids[row] for row in rows])
            mask = torch.tensor([[0] * (longest - len(ids[row])) + [1] * len(ids[row]) for row in rows])
            drawn: dict[str, Any] = {"do_sample": False}
            if sampling.temperature:
                drawn = {"do_sample": True, "temperature": sampling.temperature, "num_return_sequences": width}
            stop = self.model.generation_config.eos_token_id
            out = self.model.generate(
                input_ids=batch, attention_mask=mask, max_new_tokens=sampling.max_new_tokens, pad_token_id=0, **drawn
            )
            for place, reply in enumerate(out[:, longest:].tolist()):
                end = reply.index(stop) + 1 if stop in reply else len(reply)
                made[rows[place * len(rows) // len(out)]].append(Generation(self.chat.decode(reply[:end]), 0.0, end))
                self.usage.generated_tokens += end
            self.usage.prompt_tokens += int(mask.sum()) * width
        return made


def prompts_of_the_shop(users: int) -> list[Prompt]:
    """The demo's own prompts."""
    from dataclasses import replace

    from pulse_hf.data.sequences import decisions
    from pulse_hf.pipeline import run_road
    from pulse_hf.presets import preset_named
    from pulse_hf.reasoning.prompts import reason_prompt

    preset = preset_named("demo")
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder)
        run_road(run, replace(preset, world=replace(preset.world, num_users=max(300, users))), until="sequential")
        sequences = sequences_by_user(run)
        items = items_by_id(run)
        lent = read_table(run / "sequential" / "neighbours.parquet").select(["decision_id", "item_ids"]).to_pylist()
    lends = {row["decision_id"]: row["item_ids"] for row in lent}
    chosen = decisions(list(sequences.values()), "test")[:users]
    budget = preset.thoughts.budget
    return [reason_prompt(one, sequences[one.user_id], items, lends[one.decision_id], budget) for one in chosen]


def main() -> None:
    """Grow the trees three ways and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=48)
    parser.add_argument("--depth", type=int, default=2)
    parser.add_argument("--width", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=44)
    parser.add_argument("--repeats", type=int, default=2)
    settings = parser.parse_args()
    prompts = prompts_of_the_shop(settings.users)
    path = resolve_model("pulse-hf/pulse-nano")[0]
    tree = TreeSettings(settings.depth, settings.width)
    sampling = Sampling(settings.tokens, 0.8)

    def measure(way: str) -> dict[str, float]:
        ours = TransformersGenerator.from_pretrained(str(path))
        if way == "re-encoding":
            ours._window = 0  # the engine's own plain loop
        generator: Any = PlainGenerate(ours) if way == "generate" else ours
        started = time.perf_counter()
        grow_trees(prompts, generator, lambda pairs: [0.0] * len(pairs), tree, sampling, 0)
        seconds = time.perf_counter() - started
        usage = generator.usage
        return {
            "tokens_per_second": usage.generated_tokens / seconds,
            "read": usage.prompt_tokens,
            "written": usage.generated_tokens,
        }

    ways = ("ours", "re-encoding", "generate")
    runs = [{way: measure(way) for way in ways} for _ in range(settings.repeats + 1)][1:]  # the first warms up
    speed = {way: max(run[way]["tokens_per_second"] for run in runs) for way in ways}
    counts = runs[0]
    # Where every branch reads its conversation: the engine counts prompts once per row, a branch pays for its own.
    again = counts["generate"]["read"] + counts["generate"]["written"]
    once = counts["ours"]["read"] + counts["ours"]["written"]
    ratio, limit = speed["ours"] / speed["re-encoding"], again / once
    for way in ways:
        print(f"{way}: {speed[way]:,.0f} tokens/s ({counts[way]['read']:,} read, {counts[way]['written']:,} written)")
    print(
        f"{ratio:.2f} times re-encoding (tokens read and written alone: {limit:.2f}), "
        f"{speed['ours'] / speed['generate']:.2f} times plain generate"
    )
    record = vars(settings) | {
        "threads": torch.get_num_threads(),
        "against_generate": round(speed["ours"] / speed["generate"], 3),
        "tokens_per_second": {way: round(value) for way, value in speed.items()},
    }
    print(json.dumps({"name": "trees", "ratio": round(ratio, 3), "limit": round(limit, 3), "settings": record}))


if __name__ == "__main__":
    main()
