"""The stage ``recommender``: it learns, moves only what it may, and leaves nothing behind."""

from __future__ import annotations

import random
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BloomConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.trainer_pt_utils import LengthGroupedSampler
from trl import SFTConfig, SFTTrainer

from pulse_hf.artifacts import Fingerprint, build, read_json, read_manifest, read_tensors, write_table
from pulse_hf.models.scorer.adapter import load_scorer, read_record
from pulse_hf.models.scorer.modeling_scorer import PulseScorerModel
from pulse_hf.models.scorer.processing_scorer import score_sets
from pulse_hf.reasoning.examples import NO_THOUGHT, PromptShape, ScorerExample, Thought, example_of_set, scorer_example
from pulse_hf.reasoning.prompts import PromptBudget
from pulse_hf.schema import CandidateSet, Item, Sequence
from pulse_hf.training import candidate_trainer
from pulse_hf.training.candidate_trainer import KeepBest, _parameter_groups
from pulse_hf.training.scorer import RecommenderSettings, _left_out, read_sets, recommender
from pulse_hf.training.scorer_fit import adapted_scorer, make_processor, train_scorer

WORDS = [f"w{number}" for number in range(12)]
SHAPE = PromptShape()


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory) -> Path:
    """A small random Llama whose tokenizer knows every word of the prompts."""
    folder = tmp_path_factory.mktemp("base")
    specials = ["<pad>", "<s>", "</s>", "<unk>", "yes", "no", "Fits:", "Item:", "Reason:", "none", "5/5", "-"]
    vocabulary = {word: index for index, word in enumerate([*specials, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=256,
        initializer_range=0.1,
        pad_token_id=0,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def settings_for(base_folder: Path, **changes) -> RecommenderSettings:
    settings = RecommenderSettings(
        base_model=str(base_folder),
        learning_rate=5e-3,
        head_learning_rate=5e-3,
        lora_dropout=0.0,
        bf16=False,
        max_length=128,
    )
    return replace(settings, **changes)


def test_adapter_and_head_learn_at_their_own_rates_and_the_head_does_not_decay(base_folder, tmp_path):
    settings = settings_for(base_folder, learning_rate=1e-4, head_learning_rate=1e-2, lora_alpha=7, epochs=1)
    model, _ = adapted_scorer(settings, make_processor(settings), 0)
    config = SFTConfig(output_dir=str(tmp_path), learning_rate=1e-4, weight_decay=0.3, report_to="none", bf16=False)
    adapter, head = _parameter_groups(model, config, settings.head_learning_rate)
    assert (adapter["lr"], adapter["weight_decay"]) == (1e-4, 0.3)
    assert (head["lr"], head["weight_decay"]) == (1e-2, 0.0)
    names = {id(value): name for name, value in model.named_parameters()}
    assert adapter["params"]
    assert all("lora_" in names[id(one)] for one in adapter["params"])
    assert head["params"]
    assert not any("lora_" in names[id(one)] for one in head["params"])
    assert model.peft_config["default"].lora_alpha == 7


def toy_examples(number: int, seed: int) -> list[ScorerExample]:
    """The chosen candidate is the word that the prompt names."""
    generator = random.Random(seed)
    examples = []
    for row in range(number):
        shown = generator.sample(WORDS, 4)
        target = generator.randrange(4)
        candidates = tuple(f"Item: {word}\nFits:" for word in shown)
        examples.append(ScorerExample(f"Reason: {shown[target]}", candidates, target, f"u{row}#1"))
    return examples


def hit_rate(model, processor, examples) -> float:
    scores = score_sets(model, processor, examples)
    return sum(row.index(max(row)) == one.target_index for row, one in zip(scores, examples, strict=True)) / len(
        examples
    )


def test_a_toy_task_is_learnt_and_only_adapter_and_head_move(base_folder, tmp_path):
    settings = settings_for(base_folder, epochs=8, patience=8)
    processor = make_processor(settings)
    train, validation = toy_examples(256, 1), toy_examples(40, 2)
    fitted = train_scorer(train, validation, settings, processor, SHAPE, seed=0, folder=tmp_path / "pulse")
    assert fitted["validation_hr@1"][-1] > 0.9
    assert max(fitted["validation_hr@1"]) == fitted["validation_hr@1"][fitted["best_epoch"] - 1]

    model, loaded = load_scorer(str(base_folder), tmp_path / "pulse")
    assert hit_rate(model, loaded, toy_examples(60, 3)) > 0.9
    untouched = PulseScorerModel.from_base(str(base_folder), head_token_ids=(4, 5)).state_dict()
    assert (
        hit_rate(PulseScorerModel.from_base(str(base_folder), head_token_ids=(4, 5)), loaded, toy_examples(60, 3))
        < 0.6
    )
    moved = {name.replace(".base_layer", ""): value for name, value in model.state_dict().items()}
    for name, value in untouched.items():
        assert torch.equal(moved[name], value) == (name not in ("score.weight", "likelihood_score.weight")), name
    second = [value for name, value in moved.items() if "lora_B" in name]
    assert len(second) == 14
    assert all(value.abs().max() > 0 for value in second)
    assert not (tmp_path / "pulse" / "trainer").exists()
    assert PromptShape.from_dict(read_record(tmp_path / "pulse").prompt) == SHAPE


def test_training_twice_with_one_seed_gives_the_same_weights(base_folder, tmp_path):
    settings = settings_for(base_folder, epochs=1, lora_layers=1, lora_dropout=0.1)
    heads = []
    for name in ("first", "second"):
        processor = make_processor(settings)
        train_scorer(toy_examples(48, 1), [], settings, processor, SHAPE, seed=5, folder=tmp_path / name)
        heads.append(read_tensors(tmp_path / name / "score_head.safetensors")["score.weight"])
    assert torch.equal(*heads)
    layers = {
        name
        for name in read_tensors(tmp_path / "first" / "adapter" / "adapter_model.safetensors")
        if "layers.0." in name
    }
    assert not layers  # lora_layers=1 adapts the last layer alone
    modules = read_json(tmp_path / "first" / "adapter" / "adapter_config.json")["target_modules"]
    assert modules == sorted(modules), "a set's order differs from process to process"
    assert len(modules) == 7


def test_a_loss_that_is_not_finite_stops(base_folder, tmp_path, monkeypatch):
    settings = settings_for(base_folder, epochs=1)
    monkeypatch.setattr(
        PulseScorerModel,
        "_judge",
        lambda self, ends, likelihoods, features: ends.float().sum(-1) * self.score.weight.sum() * float("nan"),
    )
    with pytest.raises(FloatingPointError, match="step 1: loss .* Lower the learning rate"):
        train_scorer(toy_examples(16, 1), [], settings, make_processor(settings), SHAPE, seed=0, folder=tmp_path / "x")


def test_keep_best_restores_the_best_weights_and_stops():
    model = torch.nn.Linear(1, 1)
    keep = KeepBest(model, patience=2)
    control = type("Control", (), {"should_training_stop": False})()
    for value in (0.2, 0.5, 0.4, 0.3):
        assert not control.should_training_stop
        torch.nn.init.constant_(model.weight, value)
        keep.on_evaluate(None, None, control, {"eval_hr@1": value})
    assert control.should_training_stop
    keep.restore()
    assert model.weight.item() == 0.5
    assert keep.best_epoch == 2


def test_accumulated_batches_equal_one_large_batch(base_folder, tmp_path):
    heads, losses = [], []
    for name, size, accumulated in (("one", 16, 1), ("two", 8, 2)):
        settings = settings_for(base_folder, epochs=1, batch_size=size, gradient_accumulation=accumulated, warmup=0.0)
        processor, folder = make_processor(settings), tmp_path / name
        fitted = train_scorer(toy_examples(16, 1), [], settings, processor, SHAPE, seed=0, folder=folder)
        losses.append(fitted["training_loss"])
        heads.append(read_tensors(folder / "score_head.safetensors")["score.weight"])
    torch.testing.assert_close(*heads, atol=1e-5, rtol=1e-4)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


# -- examples --------------------------------------------------------------------------------------

ITEMS = {word: Item(word, word, word) for word in WORDS}
HISTORY = Sequence("u", tuple(WORDS[:6]), (), (5.0,) * 6, ("",) * 6)


def test_an_example_loses_its_oldest_events_first_and_never_a_candidate():
    thought = Thought("because of it", 0.5)
    whole = scorer_example(HISTORY, ITEMS, WORDS, thought, SHAPE, lambda prompt: True)
    assert whole.num_events == 6
    limit = len(whole.prompt) - 10
    cut = scorer_example(HISTORY, ITEMS, WORDS, thought, SHAPE, lambda prompt: len(prompt) <= limit)
    assert 1 <= cut.num_events < 6
    assert not cut.shortened
    assert "w5" in cut.prompt
    assert "w0" not in cut.prompt
    assert cut.candidates == whole.candidates
    with pytest.raises(ValueError, match="token budget"):
        scorer_example(HISTORY, ITEMS, WORDS, thought, SHAPE, lambda prompt: False)


def test_a_long_reason_loses_words_once_one_event_is_left():
    long = Thought(" ".join(f"r{number}" for number in range(90)), None)
    shortest = len(scorer_example(HISTORY, ITEMS, WORDS, NO_THOUGHT, SHAPE, lambda prompt: True).prompt)
    example = scorer_example(HISTORY, ITEMS, WORDS, long, SHAPE, lambda prompt: len(prompt) <= shortest + 60)
    assert example.num_events == 1
    assert "r0 r1" in example.prompt
    assert "r89" not in example.prompt
    assert example.shortened
    assert not scorer_example(HISTORY, ITEMS, WORDS, long, SHAPE, lambda prompt: True).shortened


def test_what_a_scorers_prompts_leave_out_is_counted_by_decision():
    rows = [("u#6", 6, False), ("u#6", 4, False), ("v#9", 1, True), ("a#b#2", 2, False)]
    examples = [ScorerExample("", (), decision_id=key, num_events=shown, shortened=cut) for key, shown, cut in rows]
    assert _left_out(examples) == {"decisions": 4, "older_events": 2, "reasons_or_titles": 1}


def test_shapes_show_reason_and_agreement_only_where_asked():
    thought, always = Thought("liking quiet", 0.4), lambda prompt: True
    full = scorer_example(HISTORY, ITEMS, WORDS, thought, SHAPE, always).prompt
    silent = scorer_example(HISTORY, ITEMS, WORDS, thought, PromptShape(use_agreement=False), always).prompt
    plain = scorer_example(HISTORY, ITEMS, WORDS, thought, PromptShape(use_reason=False), always).prompt
    assert "liking quiet" in full
    assert "0.4" in full
    assert "liking quiet" in silent
    assert "0.4" not in silent
    assert plain == scorer_example(HISTORY, ITEMS, WORDS, NO_THOUGHT, SHAPE, always).prompt
    assert PromptShape.from_dict(asdict(PromptShape(budget=PromptBudget(score_events=3)))).budget.score_events == 3


def test_a_decision_sees_only_what_came_before_it():
    chosen = CandidateSet("u#3", "train", ("w9", "w3"), 1)
    example = example_of_set(chosen, HISTORY, ITEMS, NO_THOUGHT, SHAPE, lambda prompt: True)
    assert example.num_events == 3
    assert example.target_index == 1
    assert "w2" in example.prompt
    assert not any(word in example.prompt for word in ("w3", "w4", "w5"))
    with pytest.raises(ValueError, match="paired with"):
        example_of_set(replace(chosen, decision_id="v#3"), HISTORY, ITEMS, NO_THOUGHT, SHAPE, lambda prompt: True)


# -- the stage -------------------------------------------------------------------------------------


def write_run(run: Path) -> None:
    """Artefacts of eight users with five events each; one train decision has no thought."""
    generator = random.Random(0)
    sequences, sets, thoughts = [], [], []
    for user in (f"user-{number}" for number in range(8)):
        events = generator.sample(WORDS, 5)
        sequences.append(
            {
                "user_id": user,
                "item_ids": events,
                "timestamps": [1, 2, 3, 4, 5],
                "ratings": [5.0] * 5,
                "reviews": [""] * 5,
            }
        )
        for position, split in ((1, "train"), (2, "train"), (3, "validation"), (4, "test")):
            key = {"decision_id": f"{user}#{position}", "user_id": user, "position": position, "split": split}
            others = [word for word in WORDS if word not in events][:3]
            sets.append(key | {"item_ids": [others[0], events[position], *others[1:]], "target_index": 1})
            if key["decision_id"] != "user-0#1":
                row = {
                    "reason": f"about {events[position - 1]}",
                    "agreement": 0.5,
                    "base_reason": "",
                    "leaf": 0,
                    "engine": "none",
                }
                thoughts.append(key | row | {"model_id": "", "revision": "", "prompt_sha256": "", "seed": 0})

    def artefact(name: str, tables: dict[str, list]) -> None:
        def make(work: Path) -> dict:
            for table, rows in tables.items():
                write_table(work / f"{table}.parquet", table, rows)
            return {}

        build(run / name, Fingerprint(name, {}, 0), make)

    items = [{"item_id": word, "title": word, "item_text": word} for word in WORDS]
    artefact("sequences", {"sequences": sequences, "items": items})
    artefact("candidates", {"candidates": sets})
    artefact("thoughts", {"thoughts": thoughts})


def test_the_stage_trains_its_systems_counts_rows_and_resumes(base_folder, tmp_path, monkeypatch):
    write_run(tmp_path)
    settings = settings_for(base_folder, epochs=1, shared_temperature=None)
    folder = recommender(tmp_path, settings, seed=0)
    counts = read_manifest(folder)["counts"]
    assert counts["train"] == {"read": 16, "kept": 15, "dropped": {"no thought": 1}}
    assert counts["systems"]["pulse"]["rows"] == counts["systems"]["slm+sft"]["rows"] == 15
    assert counts["systems"]["pulse"]["validation_rows"] == 8
    assert counts["candidate_titles_cut"] == 0
    assert counts["systems"]["pulse"]["tokens_per_epoch"] > counts["systems"]["slm+sft"]["tokens_per_epoch"]
    assert len(counts["inputs_sha256"]["recommender"]) == 64
    for name, reasoned in (("pulse", True), ("pulse-text", True), ("slm+sft", False)):
        assert read_json(folder / name / "scorer.json")["prompt"]["use_reason"] is reasoned
        load_scorer(str(base_folder), folder / name, merge=True)
    monkeypatch.setattr(candidate_trainer, "train_candidates", None)  # a finished stage must not train again
    assert recommender(tmp_path, settings, seed=0) == folder


def test_fewer_negatives_are_read_while_training_only(base_folder, tmp_path):
    write_run(tmp_path)
    settings = settings_for(base_folder, epochs=1, shared_temperature=None, systems=("pulse",))
    whole, (train, validation, _) = [
        (read_sets(tmp_path, replace(settings, training_negatives=number), 0)) for number in (None, 1)
    ]
    assert {len(one.item_ids) for one in train} == {2}
    assert {len(one.item_ids) for one in validation} == {4}
    for few, all_of_it in zip(train, whole[0], strict=True):
        assert few.item_ids[few.target_index] == all_of_it.item_ids[all_of_it.target_index]
        assert set(few.item_ids) < set(all_of_it.item_ids)
    with pytest.raises(ValueError, match="training_negatives is 0"):
        recommender(tmp_path, replace(settings, training_negatives=0), seed=0)


def test_an_unknown_system_is_refused(base_folder, tmp_path):
    with pytest.raises(ValueError, match="pulze"):
        recommender(tmp_path, settings_for(base_folder, systems=("pulze",)), seed=0)


def test_more_tokens_than_the_base_model_has_positions_are_refused(base_folder, tmp_path):
    assert make_processor(settings_for(base_folder, max_length=256)).max_prompt_tokens == 208
    with pytest.raises(ValueError, match=r"max_length is 257.*256 positions.*recommender\.max_length"):
        make_processor(settings_for(base_folder, max_length=257))
    shutil.copytree(base_folder, tmp_path / "alibi", ignore=shutil.ignore_patterns("config.json"))
    BloomConfig().save_pretrained(tmp_path / "alibi")  # distances only: it has no last position
    assert make_processor(settings_for(tmp_path / "alibi", max_length=257)).max_prompt_tokens == 209


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_rows_are_grouped_by_whole_steps_whatever_the_number_of_processes(monkeypatch, processes):
    lengths = [random.Random(row).randrange(10, 90) for row in range(120)]
    part = LengthGroupedSampler(16 // processes, lengths=lengths, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(SFTTrainer, "_get_train_sampler", lambda self, rows=None: part)
    monkeypatch.setattr(candidate_trainer, "num_processes", lambda: processes)
    trainer = object.__new__(candidate_trainer.CandidateTrainer)
    trainer.order = candidate_trainer.RepeatableOrder()
    found = trainer._get_train_sampler()
    alone = LengthGroupedSampler(16, lengths=lengths, generator=torch.Generator().manual_seed(0))
    assert list(found) == list(alone)
