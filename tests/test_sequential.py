"""The stage ``sequential``: it learns, it repeats itself exactly, and no target or fold leaks into it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pulse_hf import artifacts
from pulse_hf.data.sequences import decisions, training_decisions
from pulse_hf.models.sasrec import PulseSASRecModel
from pulse_hf.models.text_encoder import count_cut, encode_texts
from pulse_hf.retrieval import similar_users
from pulse_hf.schema import Item, Sequence, fold_of
from pulse_hf.training import sasrec as fitting
from pulse_hf.training import sequential as stage
from pulse_hf.training.sasrec import fit_sasrec, validation_ndcg
from pulse_hf.training.sequential import SequentialSettings, inputs_sha256, sequential, training_sequences

TRIBE = 12
SMALL = SequentialSettings(dim=16, epochs=40, dropout=0.1, learning_rate=1e-2, batch_size=128, max_length=10)


def ring(num_users: int = 200, num_items: int = 25) -> list[list[int]]:
    """A world in which each item is always followed by the same one."""
    starts = np.random.default_rng(0).integers(0, num_items, num_users)
    return [
        [int((start + step) % num_items) + 1 for step in range(4 + place % 4)] for place, start in enumerate(starts)
    ]


def tribes(num_users: int = 80) -> list[Sequence]:
    """Two tribes with shops of their own; the first user of each fold 0 also owns the canary."""
    generator = np.random.default_rng(1)
    users = []
    for number in range(num_users):
        own = [f"t{number % 2}-{item}" for item in generator.choice(TRIBE, 7, replace=False)]
        if fold_of(f"u{number}", 2, 0) == 0:
            own[1] = "canary"
        times = tuple(sorted(generator.integers(0, 1000, 7).tolist()))
        users.append(Sequence(f"u{number}", tuple(own), times, (None,) * 7, ("",) * 7))
    return users


CATALOGUE = [f"t{tribe}-{item}" for tribe in range(2) for item in range(TRIBE)] + ["canary"]
TINY = replace(SMALL, epochs=8, patience=8, num_neighbours=5)


def prepared(run, sequences):
    def make(work):
        rows = [Item(item_id, item_id, f"the item {item_id}") for item_id in CATALOGUE]
        artifacts.write_table(work / "sequences.parquet", "sequences", sequences)
        artifacts.write_table(work / "items.parquet", "items", rows)
        return {}

    artifacts.build(run / "sequences", artifacts.Fingerprint("prepare", {}, 0), make)
    return run


@pytest.fixture
def no_encoder(monkeypatch):
    def fake(texts, encoder, *, max_tokens):
        vectors = np.random.default_rng(0).normal(size=(len(texts), 6)).astype(np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    monkeypatch.setattr("pulse_hf.models.text_encoder.encode_texts", fake)
    monkeypatch.setattr("pulse_hf.models.text_encoder.count_cut", lambda texts, *_, **__: len(texts) // 2)
    identity = {"id": "fake", "revision": "0", "weights_sha256": "0"}
    monkeypatch.setattr("pulse_hf.models.embedded.resolve_model", lambda name: (name, identity))


@pytest.mark.parametrize("loss", ["ce", "gbce", "bce"])
def test_a_deterministic_world_is_learnt(loss):
    rows = ring()
    validation = [(row[:-2], row[-2]) for row in rows]
    settings = replace(SMALL, loss=loss, num_negatives=8, patience=40)
    model, report = fit_sasrec([row[:-2] for row in rows], validation, 25, settings, seed=0)
    scores = model.scores([row[:-1] for row in rows])
    hits = scores.argmax(1) == torch.tensor([row[-1] for row in rows])
    assert hits.float().mean() > 0.9
    assert report.validation_ndcg[report.best_epoch - 1] == max(report.validation_ndcg) > 0.9


def test_equal_calls_give_equal_weights_and_leave_the_global_generator_alone():
    rows = ring(40)
    settings = replace(SMALL, epochs=2)
    torch.manual_seed(1)
    first, _ = fit_sasrec(rows, [], 25, settings, seed=3)
    after = torch.rand(1)
    torch.manual_seed(1)
    assert torch.rand(1) == after
    second, _ = fit_sasrec(rows, [], 25, settings, seed=3)
    other, _ = fit_sasrec(rows, [], 25, settings, seed=4)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
    assert not torch.equal(first.item_embedding.weight, other.item_embedding.weight)


def test_early_stopping_stops_and_counts_are_told():
    rows = [*ring(30), [1], list(range(1, 26))]
    validation = [([1], 9)]  # the world never does this: the longer it learns, the worse it gets
    model, report = fit_sasrec(rows, validation, 25, replace(SMALL, patience=3), seed=0)
    assert report.epochs == report.best_epoch + 3 < 40
    # The weights that were kept are the best epoch's, not the last one's.
    best, last = max(report.validation_ndcg), report.validation_ndcg[-1]
    assert validation_ndcg(model, validation) == pytest.approx(best, abs=1e-5) != pytest.approx(last, abs=1e-5)
    assert (report.users, report.skipped_users, report.cut_users) == (31, 1, 1)
    assert report.targets == sum(len(row) - 1 for row in ring(30)) + 10


def test_batches_hold_every_row_once_and_about_the_same_number_of_targets():
    rows = [[place] * (2 + place % 9) for place in range(500)]
    batches = list(fitting._batches(rows, 64, torch.Generator().manual_seed(0)))
    assert sorted(row[0] for batch in batches for row in batch) == list(range(500))
    sizes = [sum(len(row) - 1 for row in batch) for batch in batches]
    assert max(sizes) <= 64 + 9
    again = list(fitting._batches(rows, 64, torch.Generator().manual_seed(1)))
    assert batches != again


def test_sampled_negatives_are_uniform_over_the_other_items():
    targets = torch.tensor([1, 3, 5]).repeat(4_000)
    drawn = fitting.other_items(targets, 5, 1, torch.Generator().manual_seed(0))
    assert not (drawn == targets[:, None]).any()
    counts = torch.stack([torch.bincount(drawn[place::3, 0], minlength=6) for place in range(3)])
    assert counts[:, 0].tolist() == [0, 0, 0]
    assert ((counts[counts > 0] - 1000).abs() < 120).all()


def test_no_negative_is_the_item_that_it_stands_beside(monkeypatch):
    seen, forward = [], PulseSASRecModel.forward

    def noted(self, item_indices, labels=None, negatives=None, excluded=None):
        seen.append((labels, negatives))
        return forward(self, item_indices, labels, negatives, excluded)

    monkeypatch.setattr(PulseSASRecModel, "forward", noted)
    fit_sasrec(ring(40), [], 25, replace(SMALL, epochs=1, loss="gbce", num_negatives=20), seed=0)
    assert seen
    for labels, negatives in seen:
        targets = labels[labels != 0]
        assert negatives.shape == (len(targets), 20)
        assert not (negatives == targets[:, None]).any()


def test_an_item_without_training_events_is_its_text_and_is_not_pushed_away():
    # Item 26 is new and reads like item 5: where 5 is the answer, 26 must come near.
    texts = torch.randn(26, 8, generator=torch.Generator().manual_seed(0))
    texts[25] = texts[4]
    rows = ring()
    model, _ = fit_sasrec(rows, [], 26, replace(SMALL, epochs=15), seed=0, text_features=texts)
    assert model.item_embedding.weight[26].abs().max() == 0
    assert model.item_embedding.weight[5].abs().max() > 0
    ranks = model.scores([[2, 3, 4], [1, 2, 3, 4], [3, 4]])[:, 1:].argsort(descending=True).argsort()
    assert ranks[:, 25].max() < 6
    assert torch.isfinite(model.scores([[26]])[:, 1:]).all()


def test_a_loss_that_is_not_finite_raises():
    features = torch.full((25, 4), float("inf"))
    with pytest.raises(FloatingPointError, match="epoch 1, step 1"):
        fit_sasrec(ring(20), [], 25, SMALL, seed=0, text_features=features)


def test_data_without_a_next_item_is_refused():
    with pytest.raises(ValueError, match="none of 2 users has two training events"):
        fit_sasrec([[1], [2]], [], 25, SMALL, seed=0)


def swapped(sequences):
    """The same world with every validation and test target exchanged between users."""
    rolled = [*sequences[1:], sequences[0]]
    return [
        replace(
            one, item_ids=(*one.item_ids[:-2], *other.item_ids[-2:]), timestamps=(*one.timestamps[:-2], 5000, 5001)
        )
        for one, other in zip(sequences, rolled, strict=True)
    ]


def test_fits_see_training_events_only(monkeypatch):
    sequences = tribes()
    assert training_sequences(sequences) == [list(sequence.item_ids[:-2]) for sequence in sequences]
    assert inputs_sha256(sequences) == inputs_sha256(swapped(sequences))
    # The hashes notice both planted leaks.
    monkeypatch.setattr(stage, "training_sequences", lambda rows: [list(row.item_ids) for row in rows])
    assert inputs_sha256(sequences)["sequential"] != inputs_sha256(swapped(sequences))["sequential"]
    monkeypatch.setattr(similar_users, "lendable", lambda rows: {row.user_id: row for row in rows})
    assert inputs_sha256(sequences)["neighbours"] != inputs_sha256(swapped(sequences))["neighbours"]


def test_the_stage_keeps_folds_tribes_and_time_apart(tmp_path, no_encoder, monkeypatch):
    seen = {}

    def spy(histories, validation, num_items, settings, **rest):
        seen[rest["name"]] = ([*histories, *(history for history, _ in validation)], [item for _, item in validation])
        return fit_sasrec(histories, validation, num_items, settings, **rest)

    monkeypatch.setattr(fitting, "fit_sasrec", spy)
    sequences = tribes()
    run = prepared(tmp_path, sequences)
    folder = sequential(run, TINY, seed=0)
    artifacts.verify(folder)
    assert {path.name for path in folder.iterdir()} == {
        *("sasrec", "sasrec+text", "sasrec-fold-0", "sasrec-fold-1"),
        *("item_vectors.safetensors", "neighbours.parquet", "manifest.json"),
    }
    canary = CATALOGUE.index("canary") + 1
    owns = {name: any(canary in row for row in rows) for name, (rows, _) in seen.items()}
    assert owns == {"sasrec": True, "sasrec+text": True, "sasrec-fold-0": False, "sasrec-fold-1": True}
    own = [sum(fold_of(one.user_id, 2, 0) != fold for one in sequences) for fold in range(2)]
    assert [len(seen[f"sasrec-fold-{fold}"][1]) for fold in range(2)] == own

    rows = artifacts.read_table(folder / "neighbours.parquet").to_pylist()
    wanted = [*decisions(sequences, "test"), *decisions(sequences, "validation"), *training_decisions(sequences, 2)]
    assert sorted(row["decision_id"] for row in rows) == sorted(one.decision_id for one in wanted)
    check_neighbours(rows, {sequence.user_id: sequence for sequence in sequences})
    assert not sequential_again(run)


def check_neighbours(rows, by_user):
    same = []
    for row in rows:
        user = by_user[row["user_id"]]
        time = user.timestamps[row["position"]]
        assert row["user_id"] not in row["user_ids"]
        assert len(set(row["user_ids"])) == 5
        assert row["similarities"] == sorted(row["similarities"], reverse=True)
        lent = {
            item
            for other in row["user_ids"]
            for item, when in zip(by_user[other].item_ids[:-2], by_user[other].timestamps, strict=False)
            if when < time
        }
        assert set(row["item_ids"]) == lent - set(user.item_ids[: row["position"]]) or len(row["item_ids"]) == 8
        assert set(row["item_ids"]) <= lent - set(user.item_ids[: row["position"]])
        if row["split"] != "train":
            same += [int(other[1:]) % 2 == int(row["user_id"][1:]) % 2 for other in row["user_ids"]]
    assert np.mean(same) > 0.9


def sequential_again(run):
    """Whether a second call of the finished stage would write anything."""
    before = {path: path.stat().st_mtime_ns for path in (run / "sequential").rglob("*")}
    sequential(run, TINY, seed=0)
    return {path: path.stat().st_mtime_ns for path in (run / "sequential").rglob("*")} != before


def test_two_runs_give_the_same_bytes_and_training_rows_ignore_later_targets(tmp_path, no_encoder):
    settings = replace(TINY, epochs=1)  # validation has nothing to choose, so it cannot move the weights
    worlds = {"a": tribes(), "b": tribes(), "swapped": swapped(tribes())}
    for name, sequences in worlds.items():
        sequential(prepared(tmp_path / name, sequences), settings, seed=0)
    manifests = {name: artifacts.read_manifest(tmp_path / name / "sequential") for name in worlds}
    assert manifests["a"]["files"] == manifests["b"]["files"]
    assert manifests["a"]["counts"]["inputs_sha256"] == manifests["swapped"]["counts"]["inputs_sha256"]
    tables = [
        artifacts.read_table(tmp_path / name / "sequential" / "neighbours.parquet").to_pylist()
        for name in ("a", "swapped")
    ]
    assert tables[0] != tables[1]
    first, second = ([row for row in table if row["split"] == "train"] for table in tables)
    assert first
    assert first == second


def test_saved_models_score_the_catalogue(tmp_path, no_encoder):
    run = prepared(tmp_path, tribes())
    folder = sequential(run, replace(TINY, epochs=1), seed=0)
    for name, text_dim in (("sasrec", 0), ("sasrec+text", 6), ("sasrec-fold-1", 0)):
        model = PulseSASRecModel.from_pretrained(folder / name)
        assert model.config.text_dim == text_dim
        assert model.scores([[1, 2]]).shape == (1, len(CATALOGUE) + 1)
    vectors = artifacts.read_tensors(folder / "item_vectors.safetensors")["item_vectors"]
    features = PulseSASRecModel.from_pretrained(folder / "sasrec+text").text_features[1:]
    spread = vectors - vectors.mean(0)
    assert torch.cosine_similarity(features, spread).min() > 0.999


def test_one_fold_is_refused(tmp_path, no_encoder):
    with pytest.raises(ValueError, match="at least 2"):
        sequential(prepared(tmp_path, tribes()), replace(TINY, num_folds=1), seed=0)


def test_item_texts_that_are_cut_are_counted_and_warned_of(tmp_path, no_encoder, caplog):
    run = prepared(tmp_path, tribes())
    sequential(run, TINY, seed=0)
    counts = artifacts.read_manifest(run / "sequential")["counts"]
    assert counts["item_texts_cut"] == counts["items"] // 2 > 0
    assert f"of {counts['item_texts_cut']} of {counts['items']} item texts only the first" in caplog.text


def test_a_text_is_cut_that_has_more_tokens_than_are_read():
    encoder = "sentence-transformers/all-MiniLM-L6-v2"
    texts = ["one", "one two three four", ""]  # and two tokens around each
    assert [count_cut(texts, encoder, max_tokens=most) for most in (1, 2, 3, 5, 6)] == [3, 2, 1, 1, 0]


def test_the_encoder_gives_unit_vectors_in_the_order_given():
    texts = ["a red lipstick", "", "a gift card for coffee and cake", "a red lipstick"]
    vectors = encode_texts(texts, "sentence-transformers/all-MiniLM-L6-v2")
    assert vectors.shape == (4, 384)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert np.array_equal(vectors[0], vectors[3])
    lip, gift = encode_texts(["crimson lip colour", "voucher for a cafe"], "sentence-transformers/all-MiniLM-L6-v2")
    assert vectors[0] @ lip > vectors[2] @ lip
    assert vectors[2] @ gift > vectors[0] @ gift
