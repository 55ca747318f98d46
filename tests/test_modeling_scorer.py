"""The scorer: branches are exact, order and company cannot matter, adapters travel."""

from __future__ import annotations

import itertools
import shutil
from dataclasses import dataclass, fields
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from pulse_hf.artifacts import ArtifactError, read_json, read_tensors, write_json, write_tensors
from pulse_hf.composition import Parts
from pulse_hf.models.scorer import modeling_scorer
from pulse_hf.models.scorer.adapter import files_sha256, load_scorer, save_adapter
from pulse_hf.models.scorer.configuration_scorer import PulseScorerConfig
from pulse_hf.models.scorer.modeling_branches import branch_mask
from pulse_hf.models.scorer.modeling_scorer import PulseScorerModel
from pulse_hf.models.scorer.processing_scorer import EncodedExample, PulseScorerProcessor, score_sets
from pulse_hf.saving import save_parts, save_published

WORDS = [f"w{number}" for number in range(50)]
SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
SIZES |= {
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WINDOW = 5  # shorter than the prompts below
FAMILIES = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "mistral": {"sliding_window": None},
    "phi3": {},
    "smollm3": {"no_rope_layers": [1, 1, 0]},
    "phi3-window": {"sliding_window": WINDOW},
    "mistral-window": {"sliding_window": WINDOW},
    "qwen2-window": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    "qwen3-window": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1, "head_dim": 8},
    "gemma2-window": {"sliding_window": WINDOW, "head_dim": 8, "query_pre_attn_scalar": 8},
    "gemma3_text-window": {
        "sliding_window": WINDOW,
        "head_dim": 8,
        "query_pre_attn_scalar": 8,
        "sliding_window_pattern": 2,
    },
}


@dataclass
class Example:
    prompt: str
    candidates: list[str]
    features: tuple = ()


def tiny_base_config(family: str):
    return CONFIG_MAPPING[family.split("-")[0]](**SIZES, **FAMILIES[family])


BEHIND_THE_HEAD = {  # families that do something to the logits
    "llama": {},
    "granite": {"logits_scaling": 8.0},
    "cohere": {"logit_scale": 0.25},
    "hyperclovax": {"logits_scaling": 0.125},
    "gemma2": {"final_logit_softcapping": 0.5, "head_dim": 8},
}


def tiny_scorer(family: str = "llama", attention: str = "sdpa", **settings) -> PulseScorerModel:
    torch.manual_seed(0)
    config = tiny_base_config(family)
    config._attn_implementation = attention
    model = PulseScorerModel(PulseScorerConfig(base_config=config, initializer_range=0.3, **settings))
    with torch.no_grad():  # weights large enough that a wrong mask shows
        for parameter in model.parameters():
            parameter.mul_(1.0).add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    specials = ["<pad>", "<s>", "</s>", "<unk>", "yes", "no", "Fits:"]
    vocabulary = {word: index for index, word in enumerate([*specials, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def tiny_processor(**budgets) -> PulseScorerProcessor:
    return PulseScorerProcessor(tiny_tokenizer(), **budgets)


def some_examples() -> list[Example]:
    """Prompts and candidates of different lengths and numbers."""
    generator = torch.Generator().manual_seed(3)

    def text(length: int) -> str:
        return " ".join(WORDS[i] for i in torch.randint(len(WORDS), (length,), generator=generator))

    return [Example(text(p), [text(1 + j % 3) for j in range(c)]) for p, c in [(9, 4), (17, 2), (3, 6)]]


@pytest.mark.parametrize("family", BEHIND_THE_HEAD)
def test_likelihoods_are_the_language_models_own(family):
    torch.manual_seed(0)
    config = CONFIG_MAPPING[family](**SIZES, **BEHIND_THE_HEAD[family])
    config._attn_implementation = "eager"  # Gemma 2 has no other
    whole = AutoModelForCausalLM.from_config(config).eval()
    for parameter in whole.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    scorer = PulseScorerModel(PulseScorerConfig(base_config=config, likelihood_scale=1.0)).eval()
    scorer.model, scorer.lm_head = whole.model, whole.lm_head
    torch.nn.init.zeros_(scorer.score.weight)
    torch.nn.init.ones_(scorer.likelihood_score.weight)
    processor = tiny_processor()
    example = some_examples()[0]
    encoded = processor.encode([example])[0]
    expected = []
    for ids in encoded.candidate_ids:
        tokens = torch.tensor([[*encoded.prompt_ids, *ids]])
        with torch.inference_mode():
            said = whole(input_ids=tokens).logits[0, len(encoded.prompt_ids) : -1].log_softmax(1)
        expected.append(said.gather(1, tokens[0, len(encoded.prompt_ids) + 1 :, None]).mean().item())
    assert one_by_one(scorer, processor, example).tolist() == pytest.approx(expected, abs=1e-4)
    assert score_sets(scorer, processor, [example])[0] == pytest.approx(expected, abs=1e-4)


def test_features_alone_are_checked_like_texts():
    model = tiny_scorer(num_candidate_features=1)
    torch.nn.init.zeros_(model.score.weight)
    torch.nn.init.zeros_(model.likelihood_score.weight)
    assert not model.reads_text
    with pytest.raises(ValueError, match="1 of 2 examples have a score that is not finite, the first is number 1"):
        score_sets(model, None, [Example("", ["a"], ((1.0,),)), Example("", ["a"], ((float("nan"),),))])


def one_by_one(model, processor, example) -> torch.Tensor:
    encoded = processor.encode([example])[0]
    return model.score_one_by_one(encoded.prompt_ids, encoded.candidate_ids)


@pytest.mark.parametrize(("family", "attention"), itertools.product(FAMILIES, ["sdpa", "eager"]))
def test_packed_batched_and_chunked_scores_equal_one_by_one(family, attention):
    model, processor, examples = tiny_scorer(family, attention), tiny_processor(), some_examples()
    logits = model(**processor(examples)).logits.detach()
    for row, example in enumerate(examples):
        expected = one_by_one(model, processor, example)
        number = len(example.candidates)
        assert expected.std() > 0.01  # they differ, so equality says something
        torch.testing.assert_close(logits[row, :number], expected, atol=1e-4, rtol=1e-4)
        assert (logits[row, number:] == -torch.inf).all()
        encoded = processor.encode([example])[0]
        for chunk_size in (1, 3, 64):
            chunked = model.score_in_chunks(encoded.prompt_ids, encoded.candidate_ids, chunk_size=chunk_size)
            torch.testing.assert_close(chunked, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_neither_order_nor_company_changes_a_score(attention):
    model, processor, example = tiny_scorer(attention=attention), tiny_processor(), some_examples()[2]
    scores = model(**processor([example])).logits[0]
    order = [3, 0, 5, 1, 4, 2]
    shuffled = model(**processor([Example(example.prompt, [example.candidates[i] for i in order])])).logits[0]
    torch.testing.assert_close(shuffled, scores[order], atol=1e-5, rtol=1e-5)
    alone = model(**processor([Example(example.prompt, example.candidates[2:3])])).logits[0]
    torch.testing.assert_close(alone, scores[2:3], atol=1e-5, rtol=1e-5)


def test_a_row_of_padding_sees_itself():
    segments = torch.tensor([[-1, -1, 0]])
    mask = branch_mask(segments, torch.zeros(1, 3, dtype=torch.long), 3, torch.float32)[0, 0]
    assert (mask.diagonal() == 0).all()
    assert torch.isfinite(mask.softmax(-1)).all()


def test_score_sets_keeps_the_order_and_takes_large_sets():
    model, processor = tiny_scorer(), tiny_processor()
    examples = [*some_examples(), Example("w1 w2 w3", [f"w{i % 50}" for i in range(70)])]
    scores = score_sets(model, processor, examples, batch_size=2)
    for example, found in zip(examples, scores, strict=True):
        torch.testing.assert_close(torch.tensor(found), one_by_one(model, processor, example), atol=1e-4, rtol=1e-4)
    assert score_sets(model, processor, [], batch_size=2) == []


def test_scoring_holds_so_many_logits_at_most_and_training_all(monkeypatch):
    model, processor, seen = tiny_scorer(), tiny_processor(), []
    monkeypatch.setattr(modeling_scorer, "_LOGITS_AT_ONCE", 700 * model.lm_head.out_features)
    examples = [Example("w1 w2", [" ".join(WORDS[first : first + 20]) for first in range(30)]) for _ in range(3)]
    model.lm_head.register_forward_hook(lambda _, given, __: seen.append(len(given[0])))
    batch = processor(examples)
    whole = model(**batch).logits.detach()
    with torch.inference_mode():
        parts = model(**batch).logits
    assert seen[0] == sum(seen[1:]) == 3 * 30 * 20
    assert max(seen[1:]) <= 700
    torch.testing.assert_close(parts, whole)


def test_memory_errors_halve_the_batch_and_change_no_score(monkeypatch, caplog):
    model, processor, examples = tiny_scorer(), tiny_processor(), some_examples() * 2
    expected = score_sets(model, processor, examples, batch_size=6)
    forward, fits = model.forward, [2]

    def small_memory(**batch):
        if len(batch["input_ids"]) > fits[0]:
            raise torch.OutOfMemoryError
        return forward(**batch)

    monkeypatch.setattr(model, "forward", small_memory)
    for found, wanted in zip(score_sets(model, processor, examples, batch_size=6), expected, strict=True):
        assert found == pytest.approx(wanted, abs=1e-5)
    assert "out of memory with 6 decisions" in caplog.text
    fits[0] = 0
    with pytest.raises(torch.OutOfMemoryError):
        score_sets(model, processor, examples[:1])


def test_a_text_that_counts_for_nothing_is_not_read_and_changes_nothing():
    model, processor, example = tiny_scorer(num_candidate_features=2), tiny_processor(), some_examples()[0]
    example.features = tuple((float(i), -0.5) for i in range(4))
    with torch.no_grad():
        model.feature_score.weight.copy_(torch.tensor([[2.0, 3.0]]))
        model.likelihood_score.weight.zero_()
    assert model.reads_text
    with torch.no_grad():
        model.score.weight.zero_()
    assert not model.reads_text
    whole = model(**processor([example])).logits[0]
    assert score_sets(model, processor, [example])[0] == pytest.approx(whole.tolist())
    assert score_sets(model, processor, [example])[0] == pytest.approx([-1.5, 0.5, 2.5, 4.5])


def test_candidate_features_enter_by_a_linear_weight_that_starts_at_one():
    model, processor, example = tiny_scorer(num_candidate_features=2), tiny_processor(), some_examples()[0]
    assert PulseScorerModel(model.config).feature_score.weight.tolist() == [[1.0, 1.0]]
    with torch.no_grad():
        model.feature_score.weight.zero_()
    example.features = tuple((float(i), 1.0) for i in range(4))
    without = torch.tensor(score_sets(model, processor, [example])[0])
    with torch.no_grad():
        model.feature_score.weight[0, 0] = 2.0
    added = torch.tensor(score_sets(model, processor, [example])[0]) - without
    torch.testing.assert_close(added, torch.tensor([0.0, 2.0, 4.0, 6.0]), atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="num_candidate_features=2"):
        model(**processor([some_examples()[0]]))


def test_a_target_last_or_first_gives_the_same_loss():
    model, processor, example = tiny_scorer(), tiny_processor(), some_examples()[0]
    first = processor.pack([EncodedExample(*_ids(processor, example, [2, 0, 1, 3]), label=0)])
    last = processor.pack([EncodedExample(*_ids(processor, example, [0, 1, 3, 2]), label=3)])
    torch.testing.assert_close(model(**first).loss, model(**last).loss)
    logits = model(**first).logits[0]
    torch.testing.assert_close(model(**first).loss, logits.logsumexp(0) - logits[0])  # Eq. 3 written out


def _ids(processor, example, order):
    encoded = processor.encode([example])[0]
    return encoded.prompt_ids, [encoded.candidate_ids[i] for i in order]


def test_candidates_are_cut_before_the_judge_text_and_counted():
    processor = tiny_processor(max_candidate_tokens=4)
    long, short = processor.encode([Example("w1", ["w1 w2 w3 w4 w5 w6", "w7"])])[0].candidate_ids
    judge = processor.tokenizer("Fits:")["input_ids"]
    words = processor.tokenizer("w1 w2 w3")["input_ids"]
    assert long == words + judge
    assert short[-1:] == judge
    assert processor.truncated_candidates == 1


def test_prompts_beyond_the_budget_are_refused_not_cut():
    processor = tiny_processor(max_prompt_tokens=3)
    assert processor.prompt_fits("w1 w2 w3")
    assert not processor.prompt_fits("w1 w2 w3 w4")
    with pytest.raises(ValueError, match="max_prompt_tokens=3"):
        processor.encode([Example("w1 w2 w3 w4", ["w5"])])


def test_unknown_attention_and_layers_are_refused_by_name():
    model, processor = tiny_scorer(), tiny_processor()
    model.model.config._attn_implementation = "flex_attention"
    with pytest.raises(ValueError, match="flex_attention"):
        model(**processor(some_examples()))
    config = tiny_base_config("qwen2")
    config.layer_types = ["full_attention", "linear_attention", "full_attention"]
    with pytest.raises(ValueError, match="linear_attention"):
        PulseScorerModel(PulseScorerConfig(base_config=config))


# -- the base model and adapters -------------------------------------------------------------------


@pytest.fixture
def base_folder(tmp_path) -> Path:
    torch.manual_seed(0)
    causal = AutoModelForCausalLM.from_config(tiny_base_config("llama"))
    with torch.no_grad():
        for parameter in causal.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    causal.save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


IDENTITY = {"id": "someone/tiny", "revision": "local"}


def adapted_scorer(base_folder: Path) -> PeftModel:
    scorer = PulseScorerModel.from_base(str(base_folder), head_token_ids=(4, 5), likelihood_scale=0.0)
    model = get_peft_model(scorer, LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"]))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn_like(parameter) * 0.3)
    return model.eval()


def saved(base_folder: Path, folder: Path) -> PeftModel:
    from pulse_hf.models.embedded import resolve_model

    model = adapted_scorer(base_folder)
    save_adapter(
        model, folder, processor=tiny_processor(), base=resolve_model(str(base_folder))[1] | {"id": IDENTITY["id"]}
    )
    return model


def test_a_head_from_two_tokens_is_the_base_models_own_judgement(base_folder):
    scorer = PulseScorerModel.from_base(str(base_folder), head_token_ids=(4, 5), likelihood_scale=0.0)
    causal = AutoModelForCausalLM.from_pretrained(base_folder)
    processor, example = tiny_processor(), some_examples()[0]
    encoded = processor.encode([example])[0]
    for score, ids in zip(score_sets(scorer, processor, [example])[0], encoded.candidate_ids, strict=True):
        logits = causal(torch.tensor([encoded.prompt_ids + ids])).logits[0, -1]
        assert score == pytest.approx((logits[4] - logits[5]).item(), abs=1e-4)


def test_the_adapter_also_changes_the_plain_base_model_by_the_same_deltas(base_folder, tmp_path):
    ours = saved(base_folder, tmp_path / "scorer")
    plain = AutoModelForCausalLM.from_pretrained(base_folder)
    tokens = torch.arange(3, 20)[None]
    before = plain(tokens).logits.detach()
    theirs = PeftModel.from_pretrained(plain, tmp_path / "scorer" / "adapter")
    assert (theirs(tokens).logits - before).abs().max() > 0.1
    merged_theirs = theirs.merge_and_unload().state_dict()
    merged_ours = ours.merge_and_unload().state_dict()
    compared = [name for name in merged_ours if name.startswith("model.")]
    assert len(compared) > 20
    for name in compared:
        torch.testing.assert_close(merged_ours[name], merged_theirs[name])


@pytest.mark.parametrize("merge", [False, True])
def test_a_loaded_scorer_scores_as_the_saved_one(base_folder, tmp_path, merge):
    ours = saved(base_folder, tmp_path / "scorer")
    expected = score_sets(ours, tiny_processor(), some_examples())
    model, processor = load_scorer(str(base_folder), tmp_path / "scorer", merge=merge)
    assert isinstance(model, PulseScorerModel)
    assert any("lora_" in name for name, _ in model.named_parameters()) != merge
    for found, wanted in zip(score_sets(model, processor, some_examples()), expected, strict=True):
        assert found == pytest.approx(wanted, abs=1e-4)
    assert (
        read_json(tmp_path / "scorer" / "adapter" / "adapter_config.json")["base_model_name_or_path"] == IDENTITY["id"]
    )


def test_another_base_model_is_refused_with_both_named(base_folder, tmp_path):
    saved(base_folder, tmp_path / "scorer")
    record = read_json(tmp_path / "scorer" / "scorer.json")
    record["base"]["weights_sha256"] = "0" * 64
    write_json(tmp_path / "scorer" / "scorer.json", record)
    with pytest.raises(ArtifactError, match=f"{IDENTITY['id']}.*{'0' * 64}.*base"):
        load_scorer(str(base_folder), tmp_path / "scorer")


@pytest.mark.parametrize("change", ["changed", "gone"])
def test_files_that_are_not_the_loaded_ones_are_not_saved(base_folder, tmp_path, change):
    saved(base_folder, tmp_path / "scorer")
    rest = dict.fromkeys(field.name for field in fields(Parts))
    parts = Parts(**rest | {"folder": tmp_path / "scorer", "scorer_sha256": files_sha256(tmp_path / "scorer")})
    if change == "gone":
        shutil.rmtree(tmp_path / "scorer")
    else:  # the stage was made anew
        weights = tmp_path / "scorer" / "adapter" / "adapter_model.safetensors"
        write_tensors(weights, {name: 2 * value for name, value in read_tensors(weights).items()})
    for save in (save_parts, lambda *given: save_published(*given, None)):
        with pytest.raises(ArtifactError, match=r"adapter/adapter_model\.safetensors.*[Ll]oad"):
            save(parts, tmp_path / "shop")
    assert not (tmp_path / "shop").exists()


def test_save_and_load_of_the_whole_model_and_its_processor(tmp_path):
    model, processor = tiny_scorer("qwen2-window"), tiny_processor(max_candidate_tokens=9)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = PulseScorerModel.from_pretrained(tmp_path)
    loaded = PulseScorerProcessor.from_pretrained(tmp_path)
    assert loaded.max_candidate_tokens == 9
    assert score_sets(again, loaded, some_examples()) == score_sets(model, processor, some_examples())
