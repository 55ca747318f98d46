"""Attention that trains: what sdpa computes, with the way back in float32, and nothing of it is saved."""

from __future__ import annotations

import json

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import BertConfig, BertModel

from pulse_hf.models.attention import TRAINED_ATTENTION, attend_for_training, trained_attention

SIZE = {"vocab_size": 32, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


def parts(dtype=torch.float32, requires_grad=True):
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(3, 4, 10, 8, generator=generator).to(torch.bfloat16).to(dtype) for _ in range(3)]
    mask = torch.zeros(3, 1, 10, 10, dtype=dtype)
    mask[..., 7:] = torch.finfo(dtype).min
    return [one.requires_grad_(requires_grad) for one in made], mask


def module():
    return BertModel(BertConfig(**SIZE)).encoder.layer[0].attention.self


def test_the_way_back_is_that_of_float32():
    exact, mask = parts()
    expected = scaled_dot_product_attention(*exact, attn_mask=mask)
    expected.sum().backward()
    rounded, mask = parts(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = trained_attention(module(), *rounded, mask)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected.transpose(1, 2).to(torch.bfloat16))  # rounded once, at the end
    found.float().sum().backward()
    for one, other in zip(rounded, exact, strict=True):
        assert torch.equal(one.grad, other.grad.to(torch.bfloat16))


def test_without_gradients_nothing_is_different():
    (query, key, value), mask = parts(torch.bfloat16, requires_grad=False)
    plain = scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2)
    assert torch.equal(trained_attention(module(), query, key, value, mask)[0], plain)


def test_a_model_that_trains_takes_it_and_does_not_save_it(tmp_path):
    model = BertModel(BertConfig(**SIZE, attn_implementation="sdpa")).eval()
    ids, mask = torch.arange(12).reshape(2, 6), torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    before = model(input_ids=ids, attention_mask=mask).last_hidden_state
    attend_for_training(model)
    assert model.config._attn_implementation == TRAINED_ATTENTION
    assert torch.equal(model(input_ids=ids, attention_mask=mask).last_hidden_state, before)
    model.save_pretrained(tmp_path)
    assert TRAINED_ATTENTION not in json.dumps(json.loads((tmp_path / "config.json").read_text()))


def test_what_is_not_sdpa_stays():
    model = BertModel(BertConfig(**SIZE, attn_implementation="eager"))
    attend_for_training(model)
    assert model.config._attn_implementation == "eager"
