"""Evil generators and evil models: failures are counted with their text kept, and no number that is none is saved."""

from __future__ import annotations

import json
import math
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_durability import same
from test_generator import engine, llama, prompts, tokenizer
from test_rationales import SEED, extractive, rows, run, spaces
from test_scorer_training import SHAPE, base_folder, settings_for, toy_examples
from test_server_engine import Flaky, flaky
from test_server_engine import prompt as server_prompt
from test_thought_space import SETTINGS, encoder_folder, some_pairs, space_on

from pulse_hf import artifacts
from pulse_hf.models.scorer.modeling_scorer import PulseScorerModel
from pulse_hf.reasoning import rationales as rationale_stage
from pulse_hf.reasoning import thoughts as thought_stage
from pulse_hf.reasoning.extractive import ExtractiveGenerator
from pulse_hf.reasoning.generator import Generation, Sampling, ScriptedGenerator
from pulse_hf.reasoning.parsing import parse_reason
from pulse_hf.reasoning.prompts import Prompt
from pulse_hf.reasoning.rationales import rationales
from pulse_hf.reasoning.server_engine import ServerGenerator
from pulse_hf.reasoning.thoughts import ThoughtSettings, thoughts
from pulse_hf.training import candidate_trainer, thought_space_fit
from pulse_hf.training.candidate_trainer import newest_checkpoint
from pulse_hf.training.scorer_fit import make_processor, train_scorer
from pulse_hf.training.thought_space_fit import fit

__all__ = ["base_folder", "encoder_folder", "flaky", "run", "spaces", "tokenizer"]  # fixtures of other rooms

BYTES = random.Random(0).randbytes(400)
GARBAGE: dict[str, tuple[str | None, str]] = {
    "nothing": ("", "empty"),
    "nothing to see": (" \n\t\u200b\u202e\x00\x07\x1b\ufeff", "empty"),
    "bytes as latin-1": (BYTES.decode("latin-1"), "no_marker"),
    "bytes as utf-8": (BYTES.decode(errors="replace"), "no_marker"),
    "controls in a reason": ("Reason: \x00\x1b\x07 \u202e\u200b", "empty"),
    "one word without end": ("quiet " * 17_000, "no_marker"),
    "a reason of one word again and again": ("Reason: " + "quiet " * 17_000, "looping"),
    "a reason of one word of 100 kB": ("Reason: " + "w" * 100_000, "too_long"),
    "the prompt": (None, "echo"),
    "the prompt as a reason": (None, "echo"),
}


class Evil(ScriptedGenerator):
    """Writes one of the texts above whatever it is asked; ``None`` stands for the prompt itself."""

    def __init__(self, name: str) -> None:
        super().__init__({})
        self.start = "Reason: " if "reason" in name else ""
        self.text = GARBAGE[name][0]

    def generate(self, prompts: Any, *, width: int, sampling: Sampling, seed: int) -> list[list[Generation]]:
        return [[Generation(self.answer(prompt), num_tokens=1)] * width for prompt in prompts]

    def answer(self, prompt: Prompt) -> str:
        return self.start + prompt.messages[0]["content"] if self.text is None else self.text


def use(monkeypatch: pytest.MonkeyPatch, generator: Any) -> None:
    for stage in (rationale_stage, thought_stage):
        monkeypatch.setattr(stage, "open_generator", lambda *_, **__: generator)


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_is_a_counted_failure_with_its_text_kept(
    run: Path, spaces: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    evil, status = Evil(name), GARBAGE[name][1]
    use(monkeypatch, evil)
    rationales(run, extractive(), seed=SEED)
    made = rows(run, "rationales/rationales.parquet")
    assert {(row["status"], row["text"]) for row in made} == {(status, "")}
    assert all(row["raw"] == evil.text or evil.text is None for row in made)
    assert all(row["raw"].startswith(evil.start) and len(row["raw"]) > 100 for row in made if evil.text is None)
    counts = artifacts.read_manifest(run / "rationales")["counts"]
    assert counts["rows"] == {"read": 24, "kept": 0, "dropped": {status: 24}}
    assert f"24 of 24 rationales failed ({status} 24)" in caplog.text

    thoughts(run, extractive(ThoughtSettings, depth=1), seed=SEED)
    nodes = rows(run, "thoughts/trees.parquet")
    assert Counter(node["status"] for node in nodes) == {status: 48 * 3}
    assert {node["raw"] for node in nodes} == {evil.text} or evil.text is None
    assert {(row["reason"], row["agreement"]) for row in rows(run, "thoughts/thoughts.parquet")} == {("", None)}
    # Strict JSON: a NaN among the counts would be an error here.
    for stage in ("rationales", "thoughts"):
        json.loads((run / stage / "manifest.json").read_text(), parse_constant=pytest.fail)


def test_garbage_of_some_does_not_touch_the_others(run: Path, spaces: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    thoughts(run, extractive(ThoughtSettings), seed=SEED)
    expected = {row["decision_id"]: row for row in rows(run, "thoughts/thoughts.parquet")}

    class Half(ExtractiveGenerator):
        def generate(self, prompts: Any, *, width: int, sampling: Sampling, seed: int) -> list[list[Generation]]:
            honest = super().generate(prompts, width=width, sampling=sampling, seed=seed)
            odd = [int(one.key.split("#")[0][1:]) % 2 for one in prompts]
            garbage = [Generation(BYTES.decode("latin-1"))] * width
            return [garbage if bad else good for bad, good in zip(odd, honest, strict=True)]

    (run / "thoughts").rename(run / "aside")
    use(monkeypatch, Half())
    thoughts(run, extractive(ThoughtSettings), seed=SEED)
    for row in rows(run, "thoughts/thoughts.parquet"):
        assert row == expected[row["decision_id"]] or (int(row["user_id"][1:]) % 2 and row["reason"] == "")
    counts = artifacts.read_manifest(run / "thoughts")["counts"]
    assert counts["rows"] == {"read": 48, "kept": 24, "dropped": {"all_reasons_failed": 24}}


@pytest.mark.parametrize(
    "text",
    [
        "<think>" * 15_000,
        "Reason: x" + "*" * 100_000 + "y",
        "Reason: x" + " " * 100_000 + "y",
        "Reason: " + ".'" * 50_000,
    ],
)
def test_reading_a_hostile_text_takes_time_by_its_length_only(text: str) -> None:
    started = time.perf_counter()
    for finish in ("stop", "length"):
        parse_reason(Generation(text, finish=finish))  # type: ignore[arg-type]
    assert time.perf_counter() - started < 2  # by its square: minutes


class Exhausted(ExtractiveGenerator):
    """Runs out of memory in its n-th call."""

    def __init__(self, call: int, error: type[BaseException]) -> None:
        super().__init__()
        self.left, self.error = call, error

    def generate(self, prompts: Any, *, width: int, sampling: Sampling, seed: int) -> list[list[Generation]]:
        self.left -= 1
        if not self.left:
            raise self.error("out of memory")
        return super().generate(prompts, width=width, sampling=sampling, seed=seed)


@pytest.mark.parametrize(
    ("stage", "call", "error"),
    [
        ("rationales", 1, MemoryError),
        ("rationales", 3, torch.OutOfMemoryError),
        ("thoughts", 1, torch.OutOfMemoryError),
        ("thoughts", 8, MemoryError),
    ],
)
def test_a_stage_that_ran_out_of_memory_goes_on_with_equal_results(
    run: Path, spaces: Any, monkeypatch: pytest.MonkeyPatch, stage: str, call: int, error: type[BaseException]
) -> None:
    def make() -> list[list[dict[str, Any]]]:
        if stage == "rationales":
            rationales(run, extractive(), seed=SEED)
            return [rows(run, "rationales/rationales.parquet")]
        # 48 decisions, 7 at a time, three levels each: the eighth call is in the middle of the third batch's tree.
        thoughts(run, extractive(ThoughtSettings, users_per_batch=7), seed=SEED)
        return [rows(run, f"thoughts/{name}.parquet") for name in ("thoughts", "trees")]

    expected = make()
    (run / stage).rename(run / "aside")
    use(monkeypatch, Exhausted(call, error))
    with pytest.raises(error):
        make()
    assert not (run / stage).exists()
    use(monkeypatch, ExtractiveGenerator())
    assert make() == expected
    counts = artifacts.read_manifest(run / stage)["counts"]["written_by_this_process"]
    whole_batches = (call - 1) * 8 if stage == "rationales" else (call - 1) // 3 * 7
    assert counts["rows" if stage == "rationales" else "trees"] == sum(map(len, expected[:1])) - whole_batches


@pytest.mark.parametrize("number", [math.nan, -math.inf])
def test_a_likelihood_that_is_no_number_stops_the_stage(
    run: Path, spaces: Any, monkeypatch: pytest.MonkeyPatch, number: float
) -> None:
    expected = thoughts(run, extractive(ThoughtSettings, users_per_batch=7), seed=SEED)
    trees = rows(run, "thoughts/trees.parquet")
    expected.rename(run / "aside")

    class Broken(ExtractiveGenerator):
        calls = 0

        def generate(self, prompts: Any, **more: Any) -> list[list[Generation]]:
            self.calls += 1
            made = super().generate(prompts, **more)
            return [[replace(one, log_likelihood=number) for one in row] for row in made] if self.calls == 8 else made

    use(monkeypatch, Broken())
    with pytest.raises(FloatingPointError, match=f"log-probability {number}, expected a finite number"):
        thoughts(run, extractive(ThoughtSettings, users_per_batch=7), seed=SEED)
    assert not (run / "thoughts").exists()
    kept = artifacts.Shards(run / "thoughts.partial", "grown", "trees").read()["log_likelihood"].to_pylist()
    assert len(kept) == 14 * 7
    assert all(math.isfinite(value) for value in kept)
    use(monkeypatch, ExtractiveGenerator())
    thoughts(run, extractive(ThoughtSettings, users_per_batch=7), seed=SEED)
    assert rows(run, "thoughts/trees.parquet") == trees


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_language_model_with_a_weight_that_is_no_number_is_not_believed(tokenizer: Any, temperature: float) -> None:
    model = llama(len(tokenizer))
    model.lm_head.weight.data[7, 3] = math.nan  # greedy decoding would go on with token 7, or 0, for ever
    with pytest.raises(FloatingPointError, match="weights are damaged"):
        engine(model, tokenizer).generate(prompts(2), width=1, sampling=Sampling(4, temperature), seed=0)


def test_a_servers_infinity_and_half_a_surrogate_pair(flaky: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [server_prompt("u#1", "why")]
    Flaky.script = ["Reason: half \ud83d a pair, whole \U0001f600."]
    ((made,),) = ServerGenerator(flaky).generate(asked, width=1, sampling=Sampling(), seed=0)
    assert made.text == "Reason: half ? a pair, whole \U0001f600."
    made.text.encode()  # what cannot be encoded cannot be stored
    monkeypatch.setattr(Flaky, "logprobs", (-0.5, -math.inf))
    with pytest.raises(FloatingPointError, match="log-probability -inf"):
        ServerGenerator(flaky).generate(asked, width=1, sampling=Sampling(), seed=0)


def nothing_with_a_gradient_of_nan(value: torch.Tensor) -> torch.Tensor:
    return (value.sum() * 0).abs().sqrt() * 0


def spoil(loss: torch.Tensor, what: str, value: torch.Tensor) -> torch.Tensor:
    return loss * math.nan if what == "loss" else loss + nothing_with_a_gradient_of_nan(value)


def all_finite(tensors: dict[str, torch.Tensor]) -> bool:
    return all(bool(torch.isfinite(value).all()) for value in tensors.values() if value.is_floating_point())


@pytest.mark.parametrize(("what", "step"), [("loss", 1), ("loss", 15), ("gradient", 15), ("loss", 30)])
def test_an_evil_step_stops_the_thought_space(
    encoder_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, step: int
) -> None:
    """At the first, a middle and the last of 3 epochs of 10 steps; what was kept before goes on as if nothing was."""
    pairs = some_pairs(24)
    settings = replace(SETTINGS, epochs=3, patience=3, batch_size=4, num_negatives=3)
    honest, calls = thought_space_fit.info_nce_loss, [0]

    def train(name: str) -> tuple[Any, Any]:
        space = space_on(encoder_folder)
        checkpoints = artifacts.Checkpoints(tmp_path / name, "fit", every_seconds=0)
        return fit(space, pairs[8:], pairs[:8], settings, seed=1, checkpoints=checkpoints), space

    def evil(history: torch.Tensor, *args: Any, **more: Any) -> torch.Tensor:
        loss = honest(history, *args, **more)
        calls[0] += 1
        return spoil(loss, what, history) if calls[0] == step else loss

    report, space = train("clean")
    assert len(report.losses) == 30
    monkeypatch.setattr(thought_space_fit, "info_nce_loss", evil)
    with pytest.raises(FloatingPointError, match=rf"epoch {(step - 1) // 10 + 1}, step {step}: {what} "):
        train("evil")
    assert calls[0] == step
    kept = artifacts.Checkpoints(tmp_path / "evil", "fit").newest()
    assert (kept[0] if kept else 0) == (step + (step - 1) // 10 if step > 1 else 0)  # one for each step and epoch
    assert kept is None or all_finite(kept[1])
    monkeypatch.setattr(thought_space_fit, "info_nce_loss", honest)
    again, same_space = train("evil")
    assert again == report
    assert same(same_space.trained(), space.trained())


@pytest.mark.parametrize(("what", "step"), [("loss", 1), ("loss", 8), ("gradient", 8), ("loss", 18)])
def test_an_evil_step_stops_the_recommender(
    base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, step: int
) -> None:
    """At the first, a middle and the last of 3 epochs of 6 steps; what was kept before goes on as if nothing was."""
    settings = settings_for(base_folder, epochs=3, patience=9, batch_size=4)
    train, validation = toy_examples(24, 1), toy_examples(8, 2)
    forward, calls = PulseScorerModel.forward, [0]

    def fitted(name: str) -> dict[str, torch.Tensor]:
        folder = tmp_path / name / "pulse"
        train_scorer(train, validation, settings, make_processor(settings), SHAPE, seed=5, folder=folder)
        return {
            **artifacts.read_tensors(folder / "adapter" / "adapter_model.safetensors"),
            **artifacts.read_tensors(folder / "score_head.safetensors"),
        }

    def evil(self: PulseScorerModel, *args: Any, **more: Any) -> Any:
        output = forward(self, *args, **more)
        calls[0] += self.training
        if self.training and calls[0] == step:
            output.loss = spoil(output.loss, what, self.score.weight)
        return output

    expected = fitted("clean")
    monkeypatch.setattr(PulseScorerModel, "forward", evil)
    with pytest.raises(FloatingPointError, match=f"scorer, step {step}: {what} "):
        fitted("evil")
    assert calls[0] == step
    assert not (tmp_path / "evil" / "pulse").exists()
    checkpoint = newest_checkpoint(tmp_path / "evil" / ".checkpoints" / "pulse")
    assert (checkpoint is None) == (step == 1)
    for file in checkpoint.rglob("*.safetensors") if checkpoint else ():
        assert all_finite(artifacts.read_tensors(file)), file
    monkeypatch.setattr(PulseScorerModel, "forward", forward)
    assert same(fitted("evil"), expected)


@pytest.mark.parametrize("step", [2, 6, 7, 10, 18])
def test_a_fit_goes_on_from_the_middle_of_an_epoch(
    base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """With a checkpoint at every of 3 x 6 steps: the same order, the same dropout, no step twice."""
    settings = settings_for(base_folder, epochs=3, patience=9, batch_size=4, lora_dropout=0.3)
    train, validation = toy_examples(24, 1), toy_examples(8, 2)
    forward, calls = PulseScorerModel.forward, [0]

    def fitted(name: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        folder = tmp_path / name / "pulse"
        report = train_scorer(train, validation, settings, make_processor(settings), SHAPE, seed=5, folder=folder)
        return report, artifacts.read_tensors(folder / "adapter" / "adapter_model.safetensors")

    def counted(self: PulseScorerModel, *args: Any, **more: Any) -> Any:
        calls[0] += self.training
        if self.training and calls[0] == step:
            raise KeyboardInterrupt
        return forward(self, *args, **more)

    expected, weights = fitted("clean")
    monkeypatch.setattr(candidate_trainer, "_WITHIN_EPOCH_S", 0)
    monkeypatch.setattr(PulseScorerModel, "forward", counted)
    with pytest.raises(KeyboardInterrupt):
        fitted("killed")
    checkpoint = newest_checkpoint(tmp_path / "killed" / ".checkpoints" / "pulse")
    assert checkpoint is not None
    assert checkpoint.name == f"checkpoint-{step - 1}"
    found, same_weights = fitted("killed")
    assert calls[0] == 18 + 1  # the step at which it was killed is the only one made twice
    assert {**found, "seconds": 0} == {**expected, "seconds": 0}
    assert same(same_weights, weights)


def test_a_recommender_that_is_evil_only_in_validation_stops_too(
    base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_for(base_folder, epochs=1, batch_size=8)
    judge: Callable[..., torch.Tensor] = PulseScorerModel._judge
    monkeypatch.setattr(
        PulseScorerModel, "_judge", lambda self, *args: judge(self, *args) * (1.0 if self.training else math.nan)
    )
    with pytest.raises(FloatingPointError, match="loss of the batch is not finite"):
        train_scorer(
            toy_examples(16, 1), toy_examples(8, 2), settings, make_processor(settings), SHAPE, seed=0, folder=tmp_path
        )
    assert not list(tmp_path.glob("*.safetensors"))
