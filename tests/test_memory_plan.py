"""The memory plan against real modules (on the meta device where they are large), and the FSDP settings beside it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from test_families import JOINED, phi_4_mini
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Phi3Config, PreTrainedConfig, Qwen2Config

from pulse_hf.models.scorer.configuration_scorer import PulseScorerConfig
from pulse_hf.models.scorer.modeling_scorer import PulseScorerModel
from pulse_hf.training.scorer_fit import _target_modules

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
sys.path.insert(0, str(SCRIPTS))
import memory_plan  # noqa: E402
from memory_arithmetic import (  # noqa: E402
    adapter_parameters,
    cache_bytes_per_token,
    generation_plan,
    layer_activation_bytes_per_token,
    parameters,
    training_plan,
    weight_bytes,
)

SMALL: dict[str, Any] = {
    "vocab_size": 500,
    "hidden_size": 96,
    "intermediate_size": 260,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CONFIGS = {
    "llama, tied": LlamaConfig(**SMALL, tie_word_embeddings=True),
    "llama, head_dim of its own": LlamaConfig(**SMALL, head_dim=32, tie_word_embeddings=False),
    "mistral": MistralConfig(**SMALL),
    "phi3": Phi3Config(**SMALL),
    "Phi-4-mini": phi_4_mini(32),
}


def count(model: torch.nn.Module, what: str = "") -> int:
    return sum(value.numel() for name, value in model.named_parameters() if what in name)


@pytest.mark.parametrize("name", CONFIGS)
def test_counts_equal_those_of_the_modules(name: str) -> None:
    config = CONFIGS[name]
    with torch.device("meta"):
        causal = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        scorer = PulseScorerModel(PulseScorerConfig(base_config=config))
        adapted = get_peft_model(scorer, LoraConfig(r=16, target_modules=_target_modules(scorer, None)))
    assert count(causal) == parameters(config)
    assert sum(value.numel() * value.element_size() for value in causal.parameters()) == weight_bytes(config, 16)
    assert count(adapted, "lora_") == adapter_parameters(config, 16)


def test_phi_4_mini_has_the_published_number_of_parameters() -> None:
    config = phi_4_mini(32)
    assert parameters(config) == 3_836_021_760
    # Embeddings and norms stay as they are; 4 bits and their scales take 0.516 byte a weight.
    rest = (200_064 + 65) * 3072
    assert weight_bytes(config, 4) == 2 * rest + round((parameters(config) - rest) * 0.515869140625)
    with pytest.raises(ValueError, match="bits is 8; expected 16"):
        weight_bytes(config, 8)


def test_a_family_with_biases_is_off_by_less_than_one_in_a_thousand() -> None:
    config = Qwen2Config(hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12)
    config.num_key_value_heads = 2
    with torch.device("meta"):
        found = count(AutoModelForCausalLM.from_config(config))
    assert found != parameters(config)
    assert parameters(config) == pytest.approx(found, rel=1e-3)


@pytest.mark.parametrize("name", ["llama, head_dim of its own", "phi3"])
def test_the_cache_is_as_large_as_planned(name: str) -> None:
    model = AutoModelForCausalLM.from_config(CONFIGS[name], dtype=torch.bfloat16).eval()
    with torch.inference_mode():
        cache = model(torch.ones(2, 7, dtype=torch.long), use_cache=True).past_key_values
    held = sum(one.nbytes for layer in cache.layers for one in (layer.keys, layer.values))
    assert held == 2 * 7 * cache_bytes_per_token(CONFIGS[name])


@pytest.mark.parametrize("name", ["llama, tied", "phi3"])
def test_what_autograd_keeps_of_a_layer_is_as_large_as_planned(name: str) -> None:
    """Counted on a CPU: each storage once, parameters left out; the difference of two depths is one layer."""
    kept = [_kept_bytes(CONFIGS[name], layers) for layers in (1, 3)]
    planned = 8 * 64 * layer_activation_bytes_per_token(CONFIGS[name], dropout=False)
    assert (kept[1] - kept[0]) / 2 == pytest.approx(planned, rel=0.1)


def _kept_bytes(config: PreTrainedConfig, layers: int) -> int:
    shape = {**config.to_dict(), "num_hidden_layers": layers}
    shape.pop("layer_types", None)
    config = type(config)(**shape)
    config._attn_implementation = "sdpa"
    scorer = PulseScorerModel(PulseScorerConfig(base_config=config)).to(torch.bfloat16)
    model = get_peft_model(scorer, LoraConfig(r=1, target_modules=_target_modules(scorer, None), lora_dropout=0.0))
    model.train()
    owned = {value.untyped_storage().data_ptr() for value in model.parameters()}
    storages: dict[int, torch.UntypedStorage] = {}  # held, so that no address is given out twice

    def pack(value: torch.Tensor) -> torch.Tensor:
        storages[value.untyped_storage().data_ptr()] = value.untyped_storage()
        return value

    length = torch.arange(64).expand(8, 64)
    mask = torch.zeros(8, 1, 64, 64, dtype=torch.bfloat16)
    with (
        torch.autocast("cpu", torch.bfloat16),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value),
    ):
        model.get_base_model().model(
            input_ids=length, position_ids=length, attention_mask=mask, use_cache=False
        ).last_hidden_state.sum()
    return sum(storage.nbytes() for place, storage in storages.items() if place not in owned)


def test_plans_grow_with_what_they_are_asked() -> None:
    config = phi_4_mini(32)
    plan, twice = (training_plan(config, batch_size=size) for size in (2, 4))
    assert {name for name in plan if twice[name] != plan[name]} == {"activations", "head"}
    assert twice["head"] == 2 * plan["head"]
    assert training_plan(config, likelihood=False)["head"] == 0
    assert sum(training_plan(config, bits=4).values()) < sum(training_plan(config).values())
    one, two = (generation_plan(config, batch_size=4, width=width)["cache"] for width in (1, 2))
    assert one - two == 2 * 1024 * cache_bytes_per_token(config), "a prompt is stored once for all of its texts"


def test_the_script_prints_a_line_for_every_task(capsys: pytest.CaptureFixture[str]) -> None:
    assert parameters(memory_plan.PHI_4_MINI) == parameters(phi_4_mini(32))
    memory_plan.main()
    lines = [line for line in capsys.readouterr().out.splitlines() if "bits:" in line]
    assert len(lines) == 8
    _, plan = memory_plan.tasks(16)[0]
    size = memory_plan.largest(plan, 15 * 2**30)
    assert sum(plan(size).values()) <= 15 * 2**30 < sum(plan(size + 1).values())
    assert lines[0].split()[-2:][0] == str(size)


def test_accelerate_takes_the_fsdp_settings_and_finds_the_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils import FullyShardedDataParallelPlugin
    from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy
    from accelerate.utils.launch import prepare_multi_gpu_env
    from transformers.models.phi3.modeling_phi3 import Phi3DecoderLayer

    asked = launch_command_parser().parse_args(["--config_file", str(SCRIPTS / "fsdp_phi4_mini.yaml"), "train.py"])
    arguments = _validate_launch_command(asked)[0]
    assert (arguments.use_fsdp, arguments.mixed_precision, arguments.num_processes) == (True, "bf16", 2)
    for name, value in prepare_multi_gpu_env(arguments).items():
        if name.startswith("FSDP_"):
            monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    assert (plugin.fsdp_version, plugin.reshard_after_forward, plugin.use_orig_params) == (2, True, None)
    assert not plugin.activation_checkpointing
    scorer = PulseScorerModel(PulseScorerConfig(base_config=CONFIGS["phi3"]))
    adapted = get_peft_model(scorer, LoraConfig(r=2, target_modules=JOINED))
    policy = fsdp2_prepare_auto_wrap_policy(plugin, adapted)
    wrapped = [module for module in adapted.modules() if policy(module)]
    assert len(wrapped) == 3
    assert all(isinstance(module, Phi3DecoderLayer) for module in wrapped)
