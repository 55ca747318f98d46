"""``duorec`` and ``ec4srec``: known losses, true positives, which events matter, and fits that repeat themselves."""

import math
from dataclasses import replace

import pytest
import torch

from pulse_hf.models.sasrec import PulseSASRecConfig, PulseSASRecModel
from pulse_hf.training.baseline_fits.contrast import SameTarget, draw_instances, encode_views, info_nce
from pulse_hf.training.baseline_fits.duorec import DuoRecLoss
from pulse_hf.training.baseline_fits.ec4srec import EC4SRecLoss, negative_loss, utility
from pulse_hf.training.baseline_fits.explained_views import importance, negative_view, positive_view, with_mask
from pulse_hf.training.sasrec import fit_sasrec
from pulse_hf.training.sequential import SequentialSettings

SMALL = SequentialSettings(dim=16, epochs=2, dropout=0.1, batch_size=64, max_length=6)
ROWS = [[1 + (start + step) % 12 for step in range(3 + start % 6)] for start in range(40)]
LOSSES = (DuoRecLoss, EC4SRecLoss)


def a_model(**changes):
    torch.manual_seed(0)
    return PulseSASRecModel(
        PulseSASRecConfig(**{"num_items": 12, "dim": 8, "max_events": 6, "dropout": 0.0, **changes})
    )


def test_contrast_of_hand_made_vectors():
    first, second = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    # The views of one instance have dot products 2 and 3, all others 0; each view has two negatives.
    told = [math.log(1 + 2 * math.exp(-dot / 0.5)) for dot in (2, 3, 2, 3)]
    assert float(info_nce(first, second, 0.5)) == pytest.approx(sum(told) / 4, rel=1e-5)
    assert info_nce(first, second.flip(0), 0.5) > 2
    assert float(info_nce(first[:1], second[:1], 0.5)) == 0


def test_negative_views_find_each_other_and_not_the_positive_ones():
    negative = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    positive = torch.tensor([[0.0, 2.0]])
    # Dot products with the other two negative views and with the positive one:
    rows = (((1, 0), 0), ((1, 0), 0), ((0, 0), 2))
    told = [sum(math.log(sum(map(math.exp, (*alike, unlike)))) - dot for dot in alike) / 2 for alike, unlike in rows]
    assert float(negative_loss(negative, positive, 1.0)) == pytest.approx(sum(told) / 3, rel=1e-5)
    alone = negative[:1].requires_grad_()
    negative_loss(alone, positive, 1.0).backward()  # a batch of one is no NaN
    assert not alone.grad.any()


def test_instances_are_events_with_what_was_before_them():
    torch.manual_seed(0)
    seen = set()
    for _ in range(50):
        histories, targets = draw_instances([[1, 2, 3, 4], [5, 6]])
        assert (histories[1], targets[1]) == ((5,), 6)
        assert histories[0] == tuple(range(1, targets[0]))
        seen.add(targets[0])
    assert seen == {2, 3, 4}


def test_a_supervised_positive_shares_the_target_and_is_another_instance():
    same = SameTarget(ROWS, SMALL.max_length)
    instances = {(tuple(row[:cut]), row[cut]) for row in (row[-7:] for row in ROWS) for cut in range(1, len(row))}
    torch.manual_seed(0)
    histories, targets = draw_instances([row[-7:] for row in ROWS])
    for history, target in zip(histories, targets, strict=True):
        others = same.others(history, target)
        assert all((other, target) in instances for other in others)
        assert DuoRecLoss(same).positive(history, target) in others
        assert EC4SRecLoss(same).retrieved(history, [1 / len(history)] * len(history), target) in others
    unique = SameTarget([[1, 2], [3, 4], [5, 4], [6, 4]], 6)
    assert DuoRecLoss(unique).positive((1,), 2) == (1,)  # seen once: its own positive
    assert sorted(unique.others((3,), 4)) == [(5,), (6,)]


def test_a_history_that_shares_what_is_important_is_retrieved_more_often():
    history, weights = (1, 2, 3), (0.8, 0.1, 0.1)
    assert utility(history, weights, (1, 7)) == pytest.approx(0.8 / 4)
    assert utility(history, weights, (2, 7)) == pytest.approx(0.1 / 4)
    loss = EC4SRecLoss(SameTarget([[1, 2, 3, 9], [1, 2, 3, 9], [7, 9], [8, 9]], 6))
    torch.manual_seed(0)
    drawn = [loss.retrieved(history, weights, 9) for _ in range(300)]
    # softmax(1, 0, 0, 0, ...) of the utilities, the longer prefixes among (1, 2, 3)'s own user aside
    assert set(drawn) == {history, (7,), (8,)}
    assert drawn.count(history) / 300 == pytest.approx(math.e / (math.e + 2), abs=0.08)


def test_the_most_important_event_is_the_one_that_the_model_depends_on():
    model = a_model(num_layers=1, num_heads=1)
    with torch.no_grad():
        for parameter in model.blocks.parameters():
            parameter.zero_()
        model.position_embedding.weight.zero_()
    # Without blocks a user is the last event alone.
    told = importance(model, [(1, 2, 3), (4, 4)], [5, 6])
    assert told == (pytest.approx((0, 0, 1)), pytest.approx((0, 1)))
    with torch.no_grad():  # attention that looks at nothing but item 2, and passes its vector on
        block, vector = model.blocks[0], torch.zeros(8)
        vector[0] = 50.0
        block.attention_norm.weight.fill_(1)
        model.item_embedding.weight[2] += vector
        block.query_key_value.bias[0] = 1.0
        block.query_key_value.weight[8, 0] = 30.0  # keys: the direction that item 2 has most of
        block.query_key_value.weight[16:] = torch.eye(8)
        block.attention_output.weight.copy_(torch.eye(8) * 500)
    told = importance(model, [(7, 2, 9, 8), (2, 1, 3)], [5, 5])
    assert [max(range(len(weights)), key=weights.__getitem__) for weights in told] == [1, 0]
    assert [sum(weights) for weights in told] == pytest.approx([1, 1], rel=1e-5)


def test_importance_leaves_no_gradients_no_mode_and_no_draws_behind():
    model = a_model(dropout=0.5).train()
    before = torch.get_rng_state()
    told = importance(model, [(1, 2, 3), (4,)], [5, 6])
    assert torch.equal(before, torch.get_rng_state())
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert told == importance(model, [(1, 2, 3), (4,)], [5, 6])  # no dropout in it
    assert importance(model, [(4,)], [6])[0] == pytest.approx(told[1])  # padding counts nothing


def test_positive_views_alter_unimportant_events_only_and_negative_ones_lose_the_important():
    history, weights, mask = (1, 2, 3, 4, 5, 6, 7), (0.3, 0.01, 0.2, 0.03, 0.02, 0.24, 0.2), 13
    torch.manual_seed(0)
    positives = {positive_view(history, weights, mask) for _ in range(200)}
    kept = (1, 3, 4, 6, 7)  # 2 of 7 are unimportant: 2 and 5
    assert all(tuple(item for item in view if item in kept) == kept for view in positives)
    assert {kept, (1, 13, 3, 4, 13, 6, 7)} <= positives
    assert {view for view in positives if sorted(view) == list(history)} > {history}  # reordered
    assert {negative_view(history, weights, mask) for _ in range(50)} == {(2, 4, 5), (13, 2, 13, 4, 5, 13, 13)}
    assert {positive_view((4, 5, 6), (0.2, 0.3, 0.5), mask) for _ in range(20)} == {(4, 5, 6)}
    assert {negative_view((4,), (1.0,), mask) for _ in range(20)} == {(13,)}


def test_views_of_any_length_keep_their_order():
    model, views = a_model().eval(), [(1, 2, 3, 4, 5), (6,), (7, 8), (9,), (1, 2, 3)]
    assert torch.allclose(encode_views(model, views), model.user_vectors(views), atol=1e-5)


def test_a_masked_event_is_nothing_at_its_place():
    model = a_model().eval()
    table, mask = with_mask(model)
    assert torch.equal(table[:-1], model.item_vectors())
    assert not table[mask].any()
    assert model.encode(torch.tensor([[1, mask, 3]]), table).isfinite().all()


@pytest.mark.parametrize("make", LOSSES)
def test_a_loss_leaves_the_fits_generator_alone_and_trains_items(make):
    loss, generator = make(SameTarget(ROWS, SMALL.max_length)), torch.Generator().manual_seed(3)
    before = generator.get_state()
    model = a_model().train()
    value = loss(model, [row[-7:] for row in ROWS], generator)
    assert value.dim() == 0
    assert value > 0
    assert all(parameter.grad is None for parameter in model.parameters())
    value.backward()
    assert model.item_embedding.weight.grad.any()
    assert torch.equal(before, generator.get_state())


@pytest.mark.parametrize("make", LOSSES)
def test_same_seed_same_bytes_and_not_sasrecs(make):
    def fit(seed, auxiliary):
        return fit_sasrec(ROWS, [], 12, SMALL, seed=seed, auxiliary=auxiliary)[0].state_dict()

    loss = make(SameTarget(ROWS, SMALL.max_length))
    first = fit(1, loss)
    torch.manual_seed(99)  # whatever was drawn before
    second, plain = fit(1, loss), fit(1, None)
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert not torch.equal(first["item_embedding.weight"], plain["item_embedding.weight"])


def test_a_killed_fit_goes_on_bit_by_bit(tmp_path, monkeypatch):
    from pulse_hf import artifacts

    loss, settings = EC4SRecLoss(SameTarget(ROWS, SMALL.max_length)), replace(SMALL, epochs=3)
    whole, _ = fit_sasrec(ROWS, [], 12, settings, seed=1, auxiliary=loss)

    class KilledError(Exception):
        pass

    checkpoints = artifacts.Checkpoints(tmp_path, "ec4srec")
    monkeypatch.setattr(type(checkpoints), "due", lambda self: True)
    save = type(checkpoints).save

    def save_and_die(self, *told):
        save(self, *told)
        raise KilledError

    monkeypatch.setattr(type(checkpoints), "save", save_and_die)
    with pytest.raises(KilledError):
        fit_sasrec(ROWS, [], 12, settings, seed=1, auxiliary=loss, checkpoints=checkpoints)
    monkeypatch.setattr(type(checkpoints), "save", save)
    resumed, _ = fit_sasrec(ROWS, [], 12, settings, seed=1, auxiliary=loss, checkpoints=checkpoints)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
