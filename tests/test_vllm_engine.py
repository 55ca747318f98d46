"""The vLLM engine against a stand-in with vLLM's offline interface, written by a real model; no vLLM, no GPU here."""

import sys
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import pytest
import torch

from pulse_hf.composition import open_writer
from pulse_hf.models.embedded import NANO_ID, resolve_model
from pulse_hf.reasoning.generator import Sampling, engine_identity, open_generator
from pulse_hf.reasoning.prompts import Evidence, Prompt
from pulse_hf.reasoning.transformers_engine import TransformersGenerator
from pulse_hf.reasoning.vllm_engine import VllmGenerator

PROMPTS = [
    Prompt(f"u{number}#3", ({"role": "user", "content": f"Why does a person want {what}?"},), Evidence(()))
    for number, what in enumerate(("a kettle", "a very quiet fan", "rain boots"))
]


@dataclass
class SamplingParams:
    max_tokens: int
    temperature: float
    top_p: float
    seed: int
    logprobs: int


class LLM:
    """What is documented of ``vllm.LLM`` and used here; greedy by pulse-nano, the seed told at the end otherwise."""

    def __init__(self, model, enable_prefix_caching, trust_remote_code, revision):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        assert enable_prefix_caching
        assert not trust_remote_code
        assert revision is None  # of a folder
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self.llm_engine = SimpleNamespace(model_config=SimpleNamespace(max_model_len=200))

    def get_tokenizer(self):
        return self.tokenizer

    def generate(self, prompts, sampling_params, use_tqdm):
        assert not use_tqdm
        return [self._one(one["prompt_token_ids"], how) for one, how in zip(prompts, sampling_params, strict=True)]

    def _one(self, ids, how):
        written = self.model.generate(
            torch.tensor([ids]), max_new_tokens=how.max_tokens, do_sample=False, output_scores=True,
            return_dict_in_generate=True,
        )  # fmt: skip
        tokens = written.sequences[0, len(ids) :].tolist()
        logs = [float(scores[0].log_softmax(-1)[token]) for scores, token in zip(written.scores, tokens, strict=True)]
        text = self.tokenizer.decode(tokens, skip_special_tokens=True)
        text += "" if how.temperature == 0 else f" seed {how.seed}"
        finish = "stop" if tokens[-1] == self.tokenizer.eos_token_id else "length"
        output = SimpleNamespace(text=text, token_ids=tokens, cumulative_logprob=sum(logs), finish_reason=finish)
        return SimpleNamespace(outputs=[output], prompt_token_ids=ids, num_cached_tokens=None)


@pytest.fixture
def vllm(monkeypatch):
    module = ModuleType("vllm")
    module.__spec__ = ModuleSpec("vllm", None)
    module.LLM, module.SamplingParams = LLM, SamplingParams
    monkeypatch.setitem(sys.modules, "vllm", module)


def test_greedy_texts_and_likelihoods_are_those_of_the_in_process_engine(vllm):
    made = open_generator("vllm", NANO_ID, batch_size=1)
    ours = TransformersGenerator.from_pretrained(NANO_ID)
    ours.model.float()
    found, expected = (one.generate(PROMPTS, width=1, sampling=Sampling(24), seed=0) for one in (made, ours))
    for (theirs,), (reply,) in zip(found, expected, strict=True):
        assert (theirs.text, theirs.num_tokens, theirs.finish) == (reply.text, reply.num_tokens, reply.finish)
        assert theirs.log_likelihood == pytest.approx(reply.log_likelihood, abs=1e-3)
    assert made.usage.generated_tokens == sum(reply.num_tokens for (reply,) in expected)
    assert engine_identity("vllm", NANO_ID) == resolve_model(NANO_ID)[1]


def test_every_sample_has_a_seed_of_its_own_that_no_order_changes(vllm):
    made = open_generator("vllm", NANO_ID, batch_size=1)
    sampling = Sampling(4, temperature=0.7)
    once = made.generate(PROMPTS, width=2, sampling=sampling, seed=1)
    seeds = [reply.text.split(" seed ")[1] for replies in once for reply in replies]
    assert len(set(seeds)) == 6
    assert made.generate(PROMPTS[::-1], width=2, sampling=sampling, seed=1)[::-1] == once
    assert made.generate(PROMPTS, width=2, sampling=sampling, seed=2) != once


def test_a_prompt_without_room_is_a_failure_of_its_own_and_a_missing_vllm_is_said(vllm, monkeypatch):
    made = open_generator("vllm", NANO_ID, batch_size=1)
    long = Prompt("long#1", ({"role": "user", "content": "soft cloth " * 300},), Evidence(()))
    (empty,), (full,) = made.generate([long, PROMPTS[0]], width=1, sampling=Sampling(8), seed=0)
    assert (empty.text, empty.finish) == ("", "length")
    assert full.num_tokens > 0
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ValueError, match="vllm is not installed"):
        open_generator("vllm", NANO_ID, batch_size=1)


def test_a_recommender_whose_reasons_vllm_wrote_opens_without_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    record = {"base_model": "owner/base", "thoughts": {"engine": "vllm", "model": NANO_ID, "batch_size": 2}}
    writer = open_writer(record, "owner/base")
    assert isinstance(writer, TransformersGenerator)
    assert (writer.model_id, writer.batch_size) == (NANO_ID, 2)


def test_a_recommender_whose_reasons_vllm_wrote_opens_with_it_where_it_is(vllm):
    record = {"base_model": NANO_ID, "thoughts": {"engine": "vllm", "model": NANO_ID, "batch_size": 2}}
    assert isinstance(open_writer(record, NANO_ID), VllmGenerator)
