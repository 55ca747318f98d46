"""Train pulse-nano, the small language model that makes the embedded demo run anywhere.

    python scripts/nano_corpus.py --data ../shared/data --out runs/nano
    python scripts/train_nano.py  --out runs/nano --tokens 30e6
    python scripts/nano_corpus.py --data ../shared/data --out runs/nano-plain --plain --worlds 200 --seed 20261123
    python scripts/train_nano.py  --out runs/nano-plain --start EXPORTED --tokens 2e6 --learning-rate 8e-4
    python scripts/train_nano.py  --out runs/nano-plain --export pulse_hf/models/nano

The shipped weights had seen 28.7 million tokens of earlier versions of the corpus (the first 20.3 million at commit
cb45a0b), then 18 million of the present one and the last two million as above: these calls do not give the same bytes.

A Llama of 4 layers learns by next-token prediction, with full weight on answers and judgements and a
small one on prompts. Runs on CPU (bf16 autocast) or one GPU, keeps a checkpoint every few minutes as
safetensors, resumes from it exactly where the data order stood, and writes its loss curve.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nano_batches import PROMPT_WEIGHT, Encoder, collate, make_batches, train_tokenizer
from safetensors.torch import load_file, save_file
from tqdm import tqdm
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from pulse_hf.models.device import default_device
from pulse_hf.reasoning.prompts import prompt_hashes

TOKENS_PER_STEP = 4096
CORPUS = "corpus.jsonl"


def loss_of(model: LlamaForCausalLM, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, float]:
    """Weighted next-token loss, and the plain loss of answers and judgements alone.

    The head runs only where a weight is positive.
    """
    hidden = model.model(
        input_ids=batch["tokens"], attention_mask=batch.get("mask"), position_ids=batch["positions"], use_cache=False
    ).last_hidden_state
    wanted = batch["weights"] > 0
    losses = torch.nn.functional.cross_entropy(
        model.lm_head(hidden[wanted]).float(), batch["targets"][wanted], reduction="none"
    )
    weights = batch["weights"][wanted]
    answers = losses.detach()[weights != PROMPT_WEIGHT]
    return (losses * weights).sum() / weights.sum(), answers.mean().item()


def new_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """3.8 M parameters: 4 layers of width 256; 2 key-value heads keep decoding fast on CPU."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    model = LlamaForCausalLM(config)
    start_with_induction(model)
    return model


@torch.no_grad()
def start_with_induction(model: LlamaForCausalLM, scale: float = 0.03) -> None:
    """Begin with the two heads that copying needs, instead of waiting for them to form.

    Layer 1, head 1 attends to the previous token (a constant direction of the embeddings, turned by one
    position, matches best at distance one) and notes it down in dimensions 128-191. Layer 2, head 1 looks
    for a place whose note equals the current token, and copies the token there. Only slowly turning
    rotary pairs carry that comparison, so distance hardly matters. On random repeated tokens the fresh
    model continues 8 of 10 correctly; without this it still could not copy after 3 million tokens.
    """
    head = model.config.head_dim
    half, fast, slow_from = head // 2, 10, 20
    embedding = model.model.embed_tokens.weight
    embedding.normal_(0, scale / 10)
    embedding[:, :128].normal_(0, scale)
    embedding[:, 255] = 4 * scale
    for layer in model.model.layers:  # everything else starts quiet
        layer.self_attn.o_proj.weight.mul_(0.05)
        layer.mlp.down_proj.weight.mul_(0.05)
    first, second = (layer.self_attn for layer in model.model.layers[:2])
    for attention in (first, second):
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
            projection.weight[:head].mul_(0.1)
    turn = model.config.rope_parameters["rope_theta"] ** (-torch.arange(fast) / half)
    every = torch.arange(head)
    first.q_proj.weight[:fast, 255] = 1.5
    first.k_proj.weight[:fast, 255] = 1.5 * torch.cos(turn)
    first.k_proj.weight[half : half + fast, 255] = 1.5 * torch.sin(turn)
    first.v_proj.weight[every, every] = 1.0
    first.o_proj.weight[128 + every, every] = scale
    slow = torch.cat([torch.arange(slow_from, half), torch.arange(slow_from + half, head)])
    compared = torch.arange(len(slow))
    second.q_proj.weight[slow, compared] = 2.5
    second.k_proj.weight[slow, 128 + compared] = 2.5
    second.v_proj.weight[every, 64 + every] = 1.0
    second.o_proj.weight[64 + every, every] = 6 * scale


def save_checkpoint(
    folder: Path, model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, state: dict[str, Any]
) -> None:
    """Weights and Adam's moments as safetensors, the step last; each file by rename."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items() if name != "lm_head.weight"}
    for number, parameter in enumerate(optimizer.param_groups[0]["params"]):
        tensors |= {
            f"optimizer.{number}.{key}": value
            for key, value in optimizer.state[parameter].items()
            if torch.is_tensor(value)
        }
    save_file(
        {key: value.detach().cpu().contiguous() for key, value in tensors.items()}, str(folder / "checkpoint.tmp")
    )
    os.replace(folder / "checkpoint.tmp", folder / f"checkpoint-{state['step']}.safetensors")
    (folder / "state.tmp").write_text(json.dumps(state))
    os.replace(folder / "state.tmp", folder / "state.json")
    for old in folder.glob("checkpoint-*.safetensors"):
        if old.name != f"checkpoint-{state['step']}.safetensors":
            old.unlink()


def load_checkpoint(folder: Path, model: LlamaForCausalLM, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The state to go on from; a fresh one where there is no checkpoint."""
    if not (folder / "state.json").exists():
        return {"step": 0, "tokens": 0, "curve": []}
    state: dict[str, Any] = json.loads((folder / "state.json").read_text())
    tensors = load_file(str(folder / f"checkpoint-{state['step']}.safetensors"))
    model.load_state_dict({key[6:]: value for key, value in tensors.items() if key.startswith("model.")}, strict=False)
    for number, parameter in enumerate(optimizer.param_groups[0]["params"]):
        prefix = f"optimizer.{number}."
        optimizer.state[parameter] = {
            key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)
        }
    return state


def train(out: Path, start: Path | None, tokens: float, until: float, learning_rate: float, seed: int) -> None:
    """Train to the token budget, resuming if a checkpoint lies in ``out``."""
    device = default_device()
    if not (out / "tokenizer").exists():
        tokenizer = PreTrainedTokenizerFast.from_pretrained(start) if start else train_tokenizer(out / CORPUS)
        tokenizer.save_pretrained(out / "tokenizer")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(out / "tokenizer")
    encode = Encoder(tokenizer)
    with (out / CORPUS).open(encoding="utf-8") as stream:
        examples = [
            e
            for e in (encode(json.loads(line)) for line in tqdm(stream, desc="encode", mininterval=5))
            if len(e.tokens) <= 640
        ]
    model = LlamaForCausalLM.from_pretrained(start, dtype=torch.float32) if start else new_model(tokenizer, seed)
    model = model.to(device).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.05, fused=True
    )
    state = load_checkpoint(out, model, optimizer)
    per_epoch = sum(len(e.tokens) for e in examples)
    print(f"{len(examples)} examples, {per_epoch:,} tokens an epoch, {model.num_parameters():,} parameters")
    order: list[list[int]] = []
    for epoch in range(math.ceil(tokens / per_epoch) + 1):
        order += make_batches(examples, TOKENS_PER_STEP, seed + epoch)
    began = saved = time.time()
    with tqdm(total=int(tokens), initial=state["tokens"], unit="tok", mininterval=10) as bar:
        while state["tokens"] < min(tokens, until):
            rows = [examples[i] for i in order[state["step"]]]
            progress = state["tokens"] / tokens
            for group in optimizer.param_groups:
                group["lr"] = (
                    learning_rate
                    * min(1.0, (state["step"] + 1) / 100)
                    * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))
                )
            with torch.autocast(device, torch.bfloat16):
                loss, answers = loss_of(model, collate(rows, device))
            if not torch.isfinite(loss):
                raise RuntimeError(
                    f"loss {loss.item()} at step {state['step']}; nothing was saved after step {state['step'] - 1}"
                )
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            count = sum(len(e.tokens) for e in rows)
            state["step"] += 1
            state["tokens"] += count
            state["curve"].append(
                [
                    state["tokens"],
                    int(rows[0].segments.any()),
                    round(answers if not rows[0].segments.any() else loss.item(), 4),
                ]
            )
            bar.update(count)
            if time.time() - saved > 180:
                save_checkpoint(out, model, optimizer, state)
                saved = time.time()
                recent = {
                    kind: np.mean([loss for _, k, loss in state["curve"][-100:] if k == kind] or [0])
                    for kind in (0, 1)
                }
                bar.set_postfix(text=f"{recent[0]:.3f}", judge=f"{recent[1]:.3f}")
    save_checkpoint(out, model, optimizer, state)
    print(f"done in {time.time() - began:.0f} s of this process")


def export(out: Path, folder: Path, tokens_before: int) -> None:
    """Write the package data: bf16 weights, tokenizer, loss curve and what decided them."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(out / "tokenizer")
    model = new_model(tokenizer, 0)
    state = json.loads((out / "state.json").read_text())
    tensors = load_file(str(out / f"checkpoint-{state['step']}.safetensors"))
    model.load_state_dict({key[6:]: value for key, value in tensors.items() if key.startswith("model.")}, strict=False)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.to(torch.bfloat16).save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    tokenizer.save_pretrained(folder)
    kinds = {"text": 0, "judgements": 1}
    training = {
        "tokens": state["tokens"],
        "tokens_before": tokens_before,
        "steps": state["step"],
        "corpus_sha256": {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(out.glob("corpus*.jsonl"))
        },
        "prompt_sha256": prompt_hashes(),
        "loss_curve": {
            name: [[t, loss] for t, k, loss in state["curve"] if k == kind][::20] for name, kind in kinds.items()
        },
    }
    (folder / "training.json").write_text(json.dumps(training, indent=1) + "\n")


def main() -> None:
    """Train or export."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--start", type=Path, help="folder of weights to go on from, with their tokenizer")
    parser.add_argument("--tokens", type=float, default=14e6, help="where the learning rate reaches its end")
    parser.add_argument("--until", type=float, default=math.inf, help="stop here; another call goes on")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--export", type=Path)
    parser.add_argument("--tokens-before", type=float, default=0, help="what the --start weights had seen")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.export:
        export(arguments.out, arguments.export, int(arguments.tokens_before))
    else:
        train(
            arguments.out, arguments.start, arguments.tokens, arguments.until, arguments.learning_rate, arguments.seed
        )


if __name__ == "__main__":
    main()
