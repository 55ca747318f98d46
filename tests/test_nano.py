"""pulse-nano: small, honest about what it saw, and not a parrot."""

import gzip
import json
import re
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from pulse_hf.data.world.shop import full_lexicon, training_lexicon
from pulse_hf.models.embedded import NANO_ID, resolve_model
from pulse_hf.reasoning import prompts

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"
sys.path.insert(0, str(ROOT / "scripts"))

import nano_corpus  # noqa: E402
import nano_worlds  # noqa: E402

NANO = Path(resolve_model(NANO_ID)[0])


def test_size_and_architecture():
    from safetensors import safe_open

    assert (NANO / "model.safetensors").stat().st_size <= 16 * 2**20
    with safe_open(NANO / "model.safetensors", "pt") as tensors:
        slices = [tensors.get_slice(name) for name in tensors.keys()]  # noqa: SIM118
        assert {part.get_dtype() for part in slices} == {"BF16"}
        count = sum(int(__import__("math").prod(part.get_shape())) for part in slices)
    assert 3e6 <= count <= 8e6
    assert json.loads((NANO / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]


def test_it_was_trained_on_the_prompts_it_is_asked():
    assert json.loads((NANO / "training.json").read_text())["prompt_sha256"] == prompts.prompt_hashes()


def examples_text(examples):
    for example in examples:
        yield "\n".join([*example.turns, example.prompt, *(text for text, _ in example.candidates)])


def words_with_everything():
    """Words as they might be read from anywhere: the held-out ones among them, to be kept out."""
    full = full_lexicon()
    phrases = {phrase for group in full.phrases for phrase in group} | {"a warm welcome", "learning new songs"}
    plain = {word.lower() for group in full.features for word in group} | {"keyboard", "songs", "learning", "warm"}
    return nano_worlds.clean_words(phrases, plain | {part for phrase in phrases for part in phrase.split()})


def test_generated_worlds_hold_none_of_the_held_out_part():
    full, seen = full_lexicon(), training_lexicon()
    hidden_phrases = {p for group in full.phrases for p in group} - {p for group in seen.phrases for p in group}
    hidden_features = {f for group in full.features for f in group} - {f for group in seen.features for f in group}
    hidden_kinds = {k for _, kinds in full.domains for k in kinds} - {k for _, kinds in seen.domains for k in kinds}
    hidden_sentences = {t for kind in ("own", "other", "plain") for t in getattr(full, kind)} - {
        t for kind in ("own", "other", "plain") for t in getattr(seen, kind)
    }
    assert hidden_phrases
    assert hidden_features
    assert hidden_kinds
    assert hidden_sentences
    words = words_with_everything()
    texts = [line for seed in range(30) for line in examples_text(nano_worlds.world_examples(seed, words, 25))]
    text = "\n".join(texts)
    assert any(kind.lower() in text.lower() for _, kinds in seen.domains for kind in kinds)  # what is seen is found
    for phrase in hidden_phrases | hidden_kinds:
        assert phrase.lower() not in text.lower(), phrase
    for word in hidden_features:
        assert not re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", text), word
    for sentence in hidden_sentences:
        pattern = re.escape(sentence).replace(r"\{phrase\}", r"[^.\n]+")
        assert not re.search(pattern, text, re.IGNORECASE), sentence


def test_held_out_prompts_and_the_google_part_are_never_read(tmp_path, monkeypatch):
    def put(name, rows):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        with gzip.open(tmp_path / name, "wt") as stream:
            stream.writelines(json.dumps(row) + "\n" for row in rows)

    prompts = [
        {
            "id": n,
            "target_title": f"T{n}",
            "user_history": [{"title": "H", "User Preference Elements": f"elements{n}"}] * 3,
        }
        for n in range(300)
    ]
    put("reason4rec_rollouts/prompts.jsonl.gz", prompts)
    put(
        "reason4rec_rollouts/completions.jsonl.gz",
        [{"prompt_id": n, "reward": 0.0, "completion": f"Likes T{n} for x{n}x."} for n in range(300)],
    )
    put("xrec/amazon.jsonl.gz", [{"title": "Book", "user_summary": "likes books", "explanation": "They like Book."}])
    read = []
    original = nano_corpus._rows
    monkeypatch.setattr(nano_corpus, "_rows", lambda path: (read.append(path.name), original(path))[1])
    text = "\n".join(
        examples_text([*nano_corpus.rollout_examples(tmp_path, 0), *nano_corpus.xrec_examples(tmp_path, 0)])
    )
    held = [n for n in range(300) if nano_corpus.held_out_rollout(n)]
    assert 35 <= len(held) <= 85
    for n in range(300):
        assert (f"x{n}x." in text) == (n not in held)
    assert sorted(set(read)) == ["amazon.jsonl.gz", "completions.jsonl.gz", "prompts.jsonl.gz"]


def runs_of(text, length):
    words = text.split()
    return {" ".join(words[start : start + length]) for start in range(len(words) - length + 1)}


@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared/data (the real rationales nano was trained on)")
def test_it_does_not_recite_its_training_text():
    """Long runs that only one training prompt has are no commoner in its texts than in genuine unseen rationales.

    The rationales are full of stock phrases, so the control is what real ones of held-out prompts share with
    the training text by style alone.
    """
    from pulse_hf.reasoning.generator import Sampling, open_generator

    owners = defaultdict(set)
    for example in nano_corpus.rollout_examples(SHARED, 20261120):
        for run in runs_of(example.turns[-1], 16) | runs_of(example.turns[-1], 20):
            owners[run].add(example.turns[0])
    asked = []
    for row in nano_corpus._rows(SHARED / "reason4rec_rollouts" / "prompts.jsonl.gz"):
        if nano_corpus.held_out_rollout(row["id"]) and len(asked) < 150:
            lines = [
                f"- {event['title']} | 5/5 | " + prompts.inert(str(event.get("User Preference Elements", "")), 20)
                for event in row["user_history"][-4:]
            ]
            content = prompts.fill("rationale", history="\n".join(lines), target=row["target_title"])
            message = {"role": "user", "content": content}
            asked.append(prompts.Prompt(f"r#{row['id']}", (message,), prompts.Evidence(())))
    genuine = {}
    wanted = {prompt.key for prompt in asked}
    for row in nano_corpus._rows(SHARED / "reason4rec_rollouts" / "completions.jsonl.gz"):
        if f"r#{row['prompt_id']}" in wanted:
            genuine.setdefault(row["prompt_id"], nano_corpus._first_sentences(row["completion"]))
    engine = open_generator("transformers", NANO_ID, batch_size=64)
    written = engine.generate(asked, width=1, sampling=Sampling(max_new_tokens=90), seed=0)
    texts = [generations[0].text for generations in written]

    def recited(text, length):
        return any(len(owners.get(run, ())) == 1 for run in runs_of(text, length))

    control = sum(recited(text, 16) for text in genuine.values()) / len(genuine)
    assert sum(recited(text, 16) for text in texts) / len(texts) <= max(control, 0.02)
    assert not any(recited(text, 20) for text in texts)
