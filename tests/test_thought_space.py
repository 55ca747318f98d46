"""The ``thought-space`` stage: cached states are exact, only the upper layers move, and it learns the hidden word."""

import copy
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    GPT2Config,
    GPT2Model,
    PreTrainedTokenizerFast,
)

from pulse_hf import artifacts
from pulse_hf.models.thought_space import PulseThoughtSpaceModel, PulseThoughtSpaceProcessor
from pulse_hf.reasoning.shared_reasons import VECTORS
from pulse_hf.schema import Item, Sequence, fold_of
from pulse_hf.training import thought_space, thought_space_fit
from pulse_hf.training.scorer import RecommenderSettings
from pulse_hf.training.sequential import SequentialSettings
from pulse_hf.training.thought_pairs import inputs_sha256, training_pairs, with_titles
from pulse_hf.training.thought_space import ThoughtSpaceSettings, _strangers, train_thought_space
from pulse_hf.training.thought_space_fit import (
    fit,
    groups_of,
    length_batches,
    num_batches,
    retrieval_quality,
    validation_quality,
)
from pulse_hf.training.thought_space_towers import (
    SIDES,
    TextStates,
    TrainableSpace,
    length_parts,
    split_tower,
    splits_exactly,
)

MOTIVES = [f"m{number}" for number in range(24)]
FILLERS = [f"f{number}" for number in range(60)]
TITLES = [f"t{number}" for number in range(30)]
SETTINGS = ThoughtSpaceSettings(
    trained_layers=2,
    epochs=8,
    batch_size=32,
    encoder_learning_rate=1e-2,
    num_folds=2,
    validation_share=0.2,
    patience=8,
    precision="float32",
)


def tokenizer():
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "item", *MOTIVES, *FILLERS, *TITLES]
    made = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]")


def encoder(kind="bert"):
    torch.manual_seed(0)
    if kind == "bert":
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
        return BertModel(BertConfig(vocab_size=119, max_position_embeddings=64, initializer_range=0.1, **sizes))
    if kind == "distilbert":
        sizes = {"dim": 32, "n_layers": 3, "n_heads": 2, "hidden_dim": 64}
        return DistilBertModel(
            DistilBertConfig(vocab_size=119, max_position_embeddings=64, initializer_range=0.1, **sizes)
        )
    return GPT2Model(GPT2Config(vocab_size=119, n_positions=64, n_embd=32, n_layer=2, n_head=2))


@pytest.fixture(scope="module", params=["bert"])
def encoder_folder(tmp_path_factory, request):
    return save_encoder(tmp_path_factory.mktemp("encoder"), request.param)


def save_encoder(folder, kind):
    encoder(kind).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return str(folder)


def world(num_users=160, seed=0):
    """Users whose reviews and rationales share one motive word among many others; titles are noise."""
    rng = np.random.default_rng(seed)

    def words(pool, count):
        return list(rng.choice(pool, count, replace=False))

    items = {f"i{number}": Item(f"i{number}", title, f"{title}.") for number, title in enumerate(TITLES)}
    sequences, rows = {}, []
    for number in range(num_users):
        motive = str(rng.choice(MOTIVES))
        chosen = tuple(f"i{place}" for place in rng.choice(len(TITLES), 5, replace=False))
        reviews = tuple(" ".join(rng.permutation([motive, *words(FILLERS, 4)])) for _ in chosen)
        user = f"u{number}"
        sequences[user] = Sequence(user, chosen, tuple(range(5)), (5.0,) * 5, reviews)
        for position in (1, 2):
            text = " ".join([items[chosen[position]].title, *rng.permutation([motive, *words(FILLERS, 4)])])
            rows.append(rationale(user, position, text))
    return sequences, items, rows


def rationale(user, position, text, status="ok", split="train"):
    row = {"decision_id": f"{user}#{position}", "user_id": user, "position": position, "split": split}
    return {**row, "status": status, "text": text, "raw": text, "engine": "test", "seed": 0}


def write_run(run, sequences, items, rows):
    def make_sequences(work):
        artifacts.write_table(work / "sequences.parquet", "sequences", sequences.values())
        artifacts.write_table(work / "items.parquet", "items", items.values())
        return {}

    def make_rationales(work):
        return {"rows": artifacts.write_table(work / "rationales.parquet", "rationales", rows)}

    artifacts.build(run / "sequences", artifacts.Fingerprint("prepare", {}, 0), make_sequences, force=True)
    artifacts.build(run / "rationales", artifacts.Fingerprint("rationales", {}, 0), make_rationales, force=True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, encoder_folder):
    """A finished stage on the little world."""
    run = tmp_path_factory.mktemp("run")
    sequences, items, rows = world()
    rows.append(rationale("u0", 1, "", status="empty"))
    write_run(run, sequences, items, rows)
    settings = replace(SETTINGS, encoder=encoder_folder)
    return run, settings, train_thought_space(run, settings, seed=7)


def space_on(folder, texts=(), *, trained_layers=1, shared=True, projection_dim=0, max_bytes=1e9, bf16=False):
    model = PulseThoughtSpaceModel.from_encoders(folder, shared_towers=shared, projection_dim=projection_dim)
    model.processor = PulseThoughtSpaceProcessor.from_encoders(folder, max_history_tokens=40, max_rationale_tokens=20)
    states = {side: TextStates(model, side, trained_layers, bf16=bf16, max_bytes=max_bytes) for side in SIDES}
    for side in SIDES:
        states[side].add(list(texts))
    return TrainableSpace(copy.deepcopy(model), states, trained_layers)


def some_pairs(num_users=60, **changes):
    sequences, items, rows = world(num_users, seed=3)
    return training_pairs(rows, sequences, items, replace(SETTINGS, **changes))


# -- the stage -----------------------------------------------------------------------------------------


def test_the_space_learns_the_word_that_histories_and_rationales_share(trained):
    run, _, folder = trained
    metrics = artifacts.read_json(folder / "metrics.json")
    assert sorted(metrics["models"]) == ["fold-0", "fold-1", "model"]
    for name, fitted in metrics["models"].items():
        before, after = (fitted["validation"][when] for when in ("before", "after"))
        for masking in ("titles", "titles_masked"):
            # Half the users teach a fold's model less.
            assert after[masking]["mrr"] > before[masking]["mrr"] + (0.2 if name == "model" else 0.03), name
            assert after[masking]["pairs"] == fitted["pairs"]["validation"]
        assert fitted["losses"][-1] < fitted["losses"][0]
    artifacts.verify(folder)
    assert (folder / "figure3.png").read_bytes().startswith(b"\x89PNG")


def test_the_artefact_says_what_went_in(trained):
    run, settings, folder = trained
    counts = artifacts.read_manifest(folder)["counts"]
    assert counts["rows"] == {"read": 321, "kept": 320, "dropped": {"empty": 1}}
    sequences, items, rows = world()
    assert counts["inputs_sha256"]["thought-space"] == inputs_sha256(training_pairs(rows, sequences, items, settings))
    changed = [{**rows[0], "text": "f1"}, *rows[1:]]
    assert inputs_sha256(training_pairs(changed, sequences, items, settings)) != inputs_sha256(
        training_pairs(rows, sequences, items, settings)
    )
    assert not artifacts.build(
        folder, artifacts.Fingerprint("thought-space", asdict(settings), 7, *fingerprint_of(run, settings)), dict
    )
    with pytest.raises(artifacts.ArtifactError, match=r"settings\.temperature"):
        train_thought_space(run, replace(settings, temperature=0.1), seed=7)


def fingerprint_of(run, settings):
    parents = {name: artifacts.content_sha256(run / name) for name in ("sequences", "rationales")}
    return parents, thought_space.resolve_model(settings.encoder)[1]


def test_the_saved_models_give_the_reported_quality(trained):
    run, settings, folder = trained
    sequences, items, rows = world()
    pairs = training_pairs(rows, sequences, items, settings)
    held_out = thought_space.validation_users(pairs, settings, 7)
    for name, fold in (("model", None), ("fold-0", 0)):
        loaded = PulseThoughtSpaceModel.from_pretrained(folder / name)
        mine = [
            pair
            for pair in pairs
            if pair.user_id in held_out and (fold is None or fold_of(pair.user_id, 2, 7) != fold)
        ]
        history = loaded.encode_histories([pair.history for pair in mine]).numpy()
        found = retrieval_quality(
            history, loaded.encode_rationales([pair.rationale for pair in mine]).numpy(), groups_of(mine)
        )
        reported = artifacts.read_json(folder / "metrics.json")["models"][name]["validation"]["after"]["titles"]
        assert found == pytest.approx(reported, abs=2e-3)


def test_a_fold_model_never_sees_the_users_it_serves(encoder_folder, tmp_path, monkeypatch):
    seen = []

    def spy(space, pairs, validation, settings, *, seed, checkpoints):
        seen.append({pair.user_id for pair in (*pairs, *validation)})
        return fit(space, pairs, validation, settings, seed=seed, checkpoints=checkpoints)

    monkeypatch.setattr(thought_space_fit, "fit", spy)
    write_run(tmp_path, *world(24))
    train_thought_space(tmp_path, replace(SETTINGS, encoder=encoder_folder, epochs=1), seed=7)
    everybody, without_0, without_1 = seen
    assert len(everybody) == 24
    assert without_0 == {user for user in everybody if fold_of(user, 2, 7) == 1}
    assert without_1 == {user for user in everybody if fold_of(user, 2, 7) == 0}


@pytest.fixture
def fits_seen(monkeypatch):
    """Of every fit the pairs that train and those that validate."""
    seen = []

    def spy(space, pairs, validation, settings, *, seed, checkpoints):
        seen.append((pairs, validation))
        return fit(space, pairs, validation, settings, seed=seed, checkpoints=checkpoints)

    monkeypatch.setattr(thought_space_fit, "fit", spy)
    return seen


def test_titles_are_fitted_on_beside_rationales_and_never_validate(encoder_folder, tmp_path, fits_seen):
    sequences, items, rows = world(24)
    write_run(tmp_path, sequences, items, rows)
    settings = replace(SETTINGS, encoder=encoder_folder, epochs=1, titles=True)
    folder = train_thought_space(tmp_path, settings, seed=7)
    assert len(fits_seen) == 3  # the whole space and two folds
    for pairs, validation in fits_seen:
        assert pairs
        assert validation
        told, twins = pairs[: len(pairs) // 2], pairs[len(pairs) // 2 :]
        assert [twin.rationale for twin in twins] == [items[pair.target_id].title for pair in told]
        assert [twin.training_history for twin in twins] == [pair.training_history for pair in told]
        assert {pair.rationale for pair in validation} <= {row["text"] for row in rows}
        assert not {pair.user_id for pair in pairs} & {pair.user_id for pair in validation}
    assert len(artifacts.read_tensors(folder / VECTORS)["vectors"]) == len(rows)  # rationales vote, titles do not
    counts = artifacts.read_manifest(folder)["counts"]
    plain = training_pairs(rows, sequences, items, settings)
    assert counts["inputs_sha256"]["thought-space"] == inputs_sha256(with_titles(plain, sequences, items, settings))
    assert with_titles(plain, sequences, items, SETTINGS) == plain


def test_titles_of_all_training_choices_are_fitted_on_if_asked_for(encoder_folder, tmp_path, fits_seen):
    sequences, items, rows = world(24)
    explained = rows[: len(rows) // 2]
    write_run(tmp_path, sequences, items, explained)
    settings = replace(SETTINGS, encoder=encoder_folder, epochs=1, titles=True, all_titles=True)
    train_thought_space(tmp_path, settings, seed=7)
    texts = {row["text"] for row in explained}
    for fold, (pairs, validation) in zip((None, 0, 1), fits_seen, strict=True):
        held_out = {pair.user_id for pair in validation}
        assert held_out
        fitting = {user for user in sequences if fold is None or fold_of(user, 2, 7) != fold} - held_out
        twins = [pair for pair in pairs if pair.rationale not in texts]
        expected = {f"{user}#{place}" for user in fitting for place in range(1, sequences[user].num_train)}
        assert {twin.decision_id for twin in twins} == expected
        assert len(twins) == len(expected) > len(pairs) - len(twins)
        for twin in twins:
            place = int(twin.decision_id.rpartition("#")[2])
            assert twin.rationale == items[sequences[twin.user_id].item_ids[place]].title
    one_each = with_titles([], sequences, items, replace(settings, training_pairs_per_user=1))
    assert [one.decision_id for one in one_each] == [f"{user}#{one.num_train - 1}" for user, one in sequences.items()]
    with pytest.raises(ValueError, match="needs titles=true"):
        replace(settings, titles=False)


def test_the_same_seed_gives_the_same_artefact(encoder_folder, tmp_path):
    hashes = []
    for name in ("a", "b"):
        write_run(tmp_path / name, *world(24))
        folder = train_thought_space(tmp_path / name, replace(SETTINGS, encoder=encoder_folder, epochs=1), seed=7)
        hashes.append(artifacts.content_sha256(folder))
    assert hashes[0] == hashes[1]


def test_many_texts_that_lose_their_ends_are_warned_of(encoder_folder, tmp_path, caplog):
    write_run(tmp_path, *world(24))
    changes = {"encoder": encoder_folder, "epochs": 1, "num_folds": 0, "max_rationale_tokens": 5}
    train_thought_space(tmp_path, replace(SETTINGS, **changes), seed=7)
    (told,) = (record.getMessage() for record in caplog.records if "lose their ends" in record.getMessage())
    assert "more than 5 tokens" in told
    assert "raise thought_space.max_rationale_tokens" in told


# -- pairs ---------------------------------------------------------------------------------------------


def test_the_figures_red_points_are_of_other_users():
    pairs = [replace(pair, user_id=f"u{place // 5}") for place, pair in enumerate(some_pairs(12))]
    own, others = _strangers(pairs)
    assert own == pairs
    assert all(one.user_id != other.user_id for one, other in zip(own, others, strict=True))
    assert _strangers(pairs[:5]) == ([], [])  # nobody else is there


def test_a_share_of_a_batch_may_be_empty_and_pooled_states_are_counted_whole(encoder_folder):
    space = space_on(encoder_folder, ["one text"])
    nothing = space.embed("history", [])
    assert nothing.shape == (0, space.embed("history", ["one text"]).shape[1])
    (nothing.sum() + space.embed("history", ["one text"]).sum()).backward()
    width = space.model.tower("history").config.hidden_size
    for room, kept in ((4 * width, True), (4 * width - 1, False)):
        pooled = space_on(encoder_folder, ["one text"], trained_layers=0, projection_dim=4, max_bytes=room, bf16=True)
        assert bool(pooled.states["history"]._kept) == kept


def test_only_the_paper_behaviour_shows_the_target_and_only_in_training():
    sequences, items, rows = world(10)
    free = training_pairs(rows, sequences, items, SETTINGS)
    paper = training_pairs(rows, sequences, items, replace(SETTINGS, behaviour="paper"))
    for one, other in zip(free, paper, strict=True):
        title = items[one.target_id].title
        assert title not in one.training_history.replace(":", " ").replace(".", " ").split()
        assert title in other.training_history.replace(".", " ").split()
        assert one.training_history == one.history == other.history


def test_masked_texts_hold_no_word_of_the_titles():
    for pair in some_pairs(10):
        for text in (pair.masked_history, pair.masked_rationale):
            words = set(text.replace(":", " ").replace(".", " ").split())
            assert words & {*MOTIVES}  # the other words stay
            assert not words & {title for title in TITLES if len(title) > 2}


def test_masking_itself_gives_no_pair_away():
    sequences, items, rows = world(10)
    silent = {user: replace(one, reviews=("",) * 5) for user, one in sequences.items()}
    told = [{**row, "text": f"They like {items[silent[row['user_id']].item_ids[0]].title}."} for row in rows]
    pairs = training_pairs(told, silent, items, SETTINGS)
    # Nothing but titles tells these pairs apart; without them any history fits any rationale.
    assert len({pair.history for pair in pairs}) > 1
    assert {pair.masked_history for pair in pairs} == {"item"}
    long = [pair.masked_rationale for pair in pairs if len(items[silent[pair.user_id].item_ids[0]].title) > 2]
    assert set(long) == {"They like"}


def test_a_rationale_of_a_later_target_is_refused():
    sequences, items, _ = world(3)
    for position in (0, 3, 4):  # no history, validation, test
        with pytest.raises(ValueError, match=f"u1#{position}"):
            training_pairs([rationale("u1", position, "f1", split="test")], sequences, items, SETTINGS)
    with pytest.raises(ValueError, match="no sequence"):
        training_pairs([rationale("nobody", 1, "f1")], sequences, items, SETTINGS)


def test_settings_that_cannot_work_are_refused():
    wrong = [
        ("behaviour", "both"),
        ("num_folds", 1),
        ("validation_share", 0.0),
        ("batch_size", 1),
        ("trained_layers", 0),
        ("max_events", 0),
        ("patience", 0),
    ]
    for name, value in [*wrong, ("precision", "fp8")]:
        with pytest.raises(ValueError, match=name):
            replace(SETTINGS, **{name: value})
    for settings in (RecommenderSettings(), SequentialSettings()):
        for name in ("epochs", "patience"):
            with pytest.raises(ValueError, match=f"{name} is 0, expected at least 1"):
                replace(settings, **{name: 0})


# -- frozen lower states -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
@pytest.mark.parametrize("trained_layers", [0, 1, 2])
@pytest.mark.parametrize("max_bytes", [1e9, 0])
def test_kept_states_and_upper_layers_equal_the_whole_encoder(tmp_path, kind, trained_layers, max_bytes):
    folder = save_encoder(tmp_path, kind)
    texts = [" ".join(FILLERS[start : start + 1 + start % 9]) for start in range(12)]
    space = space_on(folder, texts, trained_layers=trained_layers, projection_dim=32, max_bytes=max_bytes)
    whole = space.model.encode_histories(texts)
    np.testing.assert_allclose(space.vectors("history", texts), whole.numpy(), atol=1e-5)
    assert splits_exactly(space.model, "history", texts, trained_layers)


def test_the_gradient_is_that_of_the_whole_encoder(encoder_folder):
    texts = ["f1 f2 m3", "f4", "f5 f6 f7 f8 f9 m1"]
    space = space_on(encoder_folder, texts)
    target = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    (space.embed("history", texts) * target).sum().backward()
    whole = copy.deepcopy(space.model)
    whole.requires_grad_(True).zero_grad()
    batch = whole.processor.pad("history", whole.processor.token_ids("history", texts))
    (whole.embed("history", **batch) * target).sum().backward()
    expected = dict(whole.named_parameters())
    assert space.trained()
    for name, value in space.trained().items():
        torch.testing.assert_close(value.grad, expected[name].grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("trained_layers", [0, 1, None])
def test_a_batch_of_unlike_lengths_embeds_each_text_as_alone(encoder_folder, trained_layers):
    texts = [" ".join(FILLERS[place : place + words]) for place, words in enumerate([2, 40, 3, 20, 1] * 6)]
    space = space_on(encoder_folder, texts, trained_layers=trained_layers)
    for side in SIDES:
        with torch.no_grad():
            together = space.embed(side, texts)
            alone = torch.cat([space.embed(side, [text]) for text in texts])
        assert torch.allclose(together, alone, atol=1e-5)
    if trained_layers:
        lengths = [space.states["history"].length(text) for text in texts]
        parts = length_parts(lengths)
        assert sorted(row for rows in parts for row in rows) == list(range(len(texts)))
        assert len(parts) > 1
        padded = sum(len(rows) * max(lengths[row] for row in rows) for rows in parts)
        assert padded < 0.6 * len(texts) * max(lengths)


def test_an_encoder_without_a_list_of_layers_trains_as_a_whole(tmp_path):
    folder = save_encoder(tmp_path, "gpt2")
    space = space_on(folder, ["f1 f2"], trained_layers=1)
    assert split_tower(space.model.tower("history"), 1) is None
    assert not splits_exactly(space.model, "history", ["f1 f2", "f3"], 1)
    assert len(space.trained()) == len(list(space.model.parameters()))
    np.testing.assert_allclose(
        space.vectors("history", ["f1 f2"]), space.model.encode_histories(["f1 f2"]).numpy(), atol=1e-5
    )


def test_bfloat16_is_near_float32(encoder_folder):
    texts = ["f1 f2 m3", "f4 f4"]
    exact, rough = (space_on(encoder_folder, texts, bf16=bf16).vectors("history", texts) for bf16 in (False, True))
    assert 0 < np.abs(exact - rough).max() < 0.02


# -- the loop ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("projection_dim", [0, 32])
def test_trained_parameters_move_and_frozen_ones_do_not(encoder_folder, shared, projection_dim, monkeypatch):
    quality = iter([0.1, 0.2, 0.3])
    monkeypatch.setattr(thought_space_fit, "validation_quality", lambda *_: {"mrr": next(quality)})
    pairs = some_pairs(20)
    space = space_on(encoder_folder, shared=shared, projection_dim=projection_dim)
    before = {name: value.clone() for name, value in space.model.named_parameters()}
    fit(space, pairs[10:], pairs[:10], replace(SETTINGS, epochs=2), seed=0)
    trained = set(space.trained())
    towers = {"history_tower."} if shared else {"history_tower.", "rationale_tower."}
    assert {name.split("encoder")[0] for name in trained if "tower" in name} == towers
    assert all(".layer.1." in name or "projection" in name for name in trained)
    for name, value in space.model.named_parameters():
        # A key's bias shifts all scores of a query alike: softmax ignores it, so its gradient is rounding.
        if not name.endswith("key.bias"):
            assert torch.equal(before[name], value) == (name not in trained), name


def test_the_best_epoch_is_what_remains(encoder_folder, monkeypatch):
    pairs = some_pairs(20)
    space = space_on(encoder_folder)
    snapshots = []
    quality = iter([0.1, 0.3, 0.9, 0.5, 0.4, 0.3])

    def scripted(space, validation):
        snapshots.append({name: value.detach().clone() for name, value in space.trained().items()})
        return {"mrr": next(quality)}

    monkeypatch.setattr(thought_space_fit, "validation_quality", scripted)
    report = fit(space, pairs[10:], pairs[:10], replace(SETTINGS, patience=2, epochs=9), seed=0)
    assert (report.best_epoch, len(report.epochs)) == (2, 5)
    for name, value in space.trained().items():
        torch.testing.assert_close(value, snapshots[2][name], atol=0, rtol=0)
        assert not torch.equal(value, snapshots[4][name]) or name.endswith("key.bias")


def test_the_loss_is_asked_for_as_the_settings_say(encoder_folder, monkeypatch):
    asked, honest = [], thought_space_fit.info_nce_loss

    def noted(history, rationale, temperature, **how):
        asked.append({**how, "temperature": temperature, "rows": len(history)})
        return honest(history, rationale, temperature, **how)

    monkeypatch.setattr(thought_space_fit, "info_nce_loss", noted)
    pairs = some_pairs(24)
    changes = {"epochs": 1, "batch_size": 16, "num_negatives": 3, "temperature": 0.07, "symmetric": True}
    fit(space_on(encoder_folder), pairs[8:], pairs[:8], replace(SETTINGS, **changes), seed=1)
    for one in asked:
        assert (one["temperature"], one["num_negatives"], one["symmetric"]) == (0.07, 3, True)
        assert len(one["same"]) == one["rows"]  # who shares an id is no negative
    told = [row for one in asked for row in one["same"].tolist()]
    assert sorted(told) == sorted(groups_of(pairs[8:]).tolist())


def test_a_batch_without_negatives_is_passed_over_and_counted(encoder_folder, tmp_path, monkeypatch):
    sequences, items, rows = world(16, seed=3)
    settings = replace(SETTINGS, titles=True, batch_size=2, epochs=2)
    pairs = some_pairs(16)
    fitted_on = with_titles(pairs[8:], sequences, items, settings)  # a pair and its twin share all three groups
    report = fit(space_on(encoder_folder), fitted_on, pairs[:8], settings, seed=0)
    assert report.skipped_batches > 0
    assert len(report.losses) + report.skipped_batches == 2 * num_batches(len(fitted_on), 2)
    monkeypatch.setattr(artifacts.Checkpoints, "due", lambda _: True)
    honest = thought_space_fit.info_nce_loss
    steps = iter(range(9))
    monkeypatch.setattr(
        thought_space_fit, "info_nce_loss", lambda *given, **how: (next(steps), honest(*given, **how))[1]
    )
    kept = {"seed": 0, "checkpoints": artifacts.Checkpoints(tmp_path, "fit")}
    with pytest.raises(StopIteration):  # killed in its tenth step
        fit(space_on(encoder_folder), fitted_on, pairs[:8], settings, **kept)
    monkeypatch.setattr(thought_space_fit, "info_nce_loss", honest)
    assert fit(space_on(encoder_folder), fitted_on, pairs[:8], settings, **kept) == report
    with pytest.raises(ValueError, match="none of the 2 batches of epoch 1 has two pairs that are negatives"):
        fit(space_on(encoder_folder), fitted_on[:2] + fitted_on[24:26], pairs[8:], settings, seed=0)


def test_projections_and_encoders_learn_at_their_own_rates_and_vectors_do_not_decay(encoder_folder):
    space = space_on(encoder_folder)
    rates = {"encoder_learning_rate": 1e-5, "projection_learning_rate": 1e-3, "weight_decay": 0.1}
    optimizer = thought_space_fit._optimizer(space, replace(SETTINGS, **rates))
    told = {id(one): group for group in optimizer.param_groups for one in group["params"]}
    assert len(told) == len(space.trained())
    for name, value in space.trained().items():
        assert told[id(value)]["lr"] == (1e-3 if "_projection." in name else 1e-5), name
        assert told[id(value)]["weight_decay"] == (0.1 if value.dim() > 1 else 0.0), name


def test_a_loss_that_is_not_finite_names_the_step(encoder_folder, monkeypatch):
    monkeypatch.setattr(
        thought_space_fit, "info_nce_loss", lambda *_, **__: torch.tensor(float("nan"), requires_grad=True)
    )
    pairs = some_pairs(10)
    with pytest.raises(FloatingPointError, match="epoch 1, step 1: loss"):
        fit(space_on(encoder_folder), pairs[10:], pairs[:10], SETTINGS, seed=0)
    with pytest.raises(ValueError, match="1 pairs to fit"):
        fit(space_on(encoder_folder), pairs[:1], pairs[10:], SETTINGS, seed=0)


@pytest.mark.parametrize(("rows", "batch_size"), [(2, 2), (3, 2), (5, 4), (64, 64), (65, 64), (500, 7)])
def test_batches_hold_every_row_once_and_never_one_alone(rows, batch_size):
    lengths = np.random.default_rng(1).integers(1, 50, rows)
    batches = list(length_batches(lengths, batch_size, np.random.default_rng(0)))
    assert len(batches) == num_batches(rows, batch_size)
    assert sorted(np.concatenate(batches).tolist()) == list(range(rows))
    assert min(len(batch) for batch in batches) >= 2
    assert max(len(batch) for batch in batches) <= max(batch_size, 3)


def test_retrieval_quality_by_hand():
    history = np.eye(3, dtype=np.float32)
    rationale = history[[0, 2, 1]]
    apart = torch.arange(3).unsqueeze(1)
    # Row 0 finds its own; rows 1 and 2 see the other's at cosine 1, and their own tied with one more at 0.
    found = retrieval_quality(history, rationale, apart)
    assert found["r@1"] == pytest.approx(1 / 3)
    assert found["mrr"] == pytest.approx((1 + 2 * (1 / 2 + 1 / 3) / 2) / 3)
    # Rows 1 and 2 belong to one user: no candidates of each other.
    found = retrieval_quality(history, rationale, torch.tensor([[0], [1], [1]]))
    assert found["candidates"] == pytest.approx((3 + 2 + 2) / 3)
    assert found["mrr"] == pytest.approx((1 + 2 * (1 + 1 / 2) / 2) / 3)


def test_validation_sees_target_free_texts_only(encoder_folder):
    pairs = some_pairs(10, behaviour="paper")
    space = space_on(encoder_folder)
    plain, masked = validation_quality(space, pairs), validation_quality(space, pairs, masked=True)
    poisoned = [replace(pair, training_history="f1") for pair in pairs]
    assert validation_quality(space, poisoned) == plain
    assert validation_quality(space, poisoned, masked=True) == masked
