"""InfoNCE: known answers, invariances, and finiteness where naive code overflows."""

import math

import pytest
import torch

from pulse_hf.training.losses import info_nce_loss


def vectors(rows=6, dim=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, dim, generator=generator), torch.randn(rows, dim, generator=generator)


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("symmetric", [False, True])
def test_zero_vectors_give_the_log_of_the_choices(symmetric):
    zeros = torch.zeros(8, 4)
    assert info_nce_loss(zeros, zeros, 0.05, symmetric=symmetric).item() == pytest.approx(math.log(8))
    sampled = info_nce_loss(zeros, zeros, 0.05, num_negatives=3, generator=draw(), symmetric=symmetric)
    assert sampled.item() == pytest.approx(math.log(1 + 3))


def test_two_pairs_by_hand():
    history = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    rationale = torch.tensor([[3.0, 0.0], [1.0, 1.0]])  # cosines [[1, s], [0, s]], s = 1/sqrt(2)
    s, t = 1 / math.sqrt(2), 0.5
    first = -math.log(math.exp(1 / t) / (math.exp(1 / t) + math.exp(s / t)))
    second = -math.log(math.exp(s / t) / (math.exp(s / t) + 1))
    assert info_nce_loss(history, rationale, t).item() == pytest.approx((first + second) / 2)
    backward = (math.log(1 + math.exp(-1 / t)) + math.log(1 + math.exp(0))) / 2
    expected = ((first + second) / 2 + backward) / 2
    assert info_nce_loss(history, rationale, t, symmetric=True).item() == pytest.approx(expected)


def test_perfect_pairs_cost_nearly_nothing_and_all_negatives_equal_cross_entropy():
    assert info_nce_loss(torch.eye(5), torch.eye(5), 0.05).item() < 1e-6
    history, rationale = vectors()
    cosines = torch.cosine_similarity(history[:, None], rationale[None], dim=-1)
    expected = torch.nn.functional.cross_entropy(cosines / 0.2, torch.arange(6))
    assert info_nce_loss(history, rationale, 0.2).item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_order_of_the_pairs_does_not_matter():
    history, rationale = vectors()
    same = torch.tensor([0, 0, 1, 2, 3, 3])
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    whole = info_nce_loss(history, rationale, 0.1, same=same)
    assert info_nce_loss(history[order], rationale[order], 0.1, same=same[order]).item() == pytest.approx(
        whole.item(), rel=1e-5
    )


def test_more_negatives_than_there_are_means_all_and_a_draw_takes_as_many_as_asked():
    history, rationale = vectors()
    everything = info_nce_loss(history, rationale, 0.1)
    assert info_nce_loss(history, rationale, 0.1, num_negatives=10, generator=draw()).item() == pytest.approx(
        everything.item()
    )
    # The gradient reaches exactly the drawn rationales: 2 per row beside the row's own.
    for seed in range(5):
        leaf = rationale.clone().requires_grad_(True)
        row = torch.zeros(6, 16)
        row[0] = history[0]
        info_nce_loss(row, leaf, 0.1, num_negatives=2, generator=draw(seed)).backward()
        assert int((leaf.grad.abs().sum(1) > 0).sum()) == 3


def test_false_negatives_are_left_out():
    history, rationale = vectors(4)
    same = torch.tensor([[0, 7], [0, 8], [1, 8], [2, 9]])  # 0 and 1 share the user, 1 and 2 the item
    cosines = torch.cosine_similarity(history[:, None], rationale[None], dim=-1) / 0.1
    for first, second in ((0, 1), (1, 2)):
        cosines[first, second] = cosines[second, first] = -math.inf
    expected = torch.nn.functional.cross_entropy(cosines, torch.arange(4))
    assert info_nce_loss(history, rationale, 0.1, same=same).item() == pytest.approx(expected.item(), rel=1e-5)
    # Sampling never reaches them either, however many are asked for.
    zeros = torch.zeros(4, 8)
    expected = sum(math.log(1 + allowed) for allowed in (2, 1, 2, 2)) / 4
    assert info_nce_loss(zeros, zeros, 1.0, num_negatives=2, generator=draw(), same=same).item() == pytest.approx(
        expected
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("temperature", [0.01, 0.05, 1.0])
@pytest.mark.parametrize("case", ["random", "zero", "duplicates", "opposite"])
def test_loss_and_gradient_are_finite(dtype, temperature, case):
    history, rationale = vectors()
    if case == "zero":
        history, rationale = torch.zeros_like(history), torch.zeros_like(rationale)
    elif case == "duplicates":
        rationale = rationale[:1].expand(6, -1).clone()
    elif case == "opposite":
        rationale = -history
    history, rationale = history.to(dtype).requires_grad_(True), rationale.to(dtype).requires_grad_(True)
    loss = info_nce_loss(history, rationale, temperature, num_negatives=3, generator=draw())
    loss.backward()
    assert torch.isfinite(loss)
    if not (case == "zero" and dtype == torch.float16):  # 1/eps is beyond float16
        assert torch.isfinite(history.grad).all()
        assert torch.isfinite(rationale.grad).all()


def test_autocast_does_not_round_the_cosines():
    history, rationale = vectors()
    plain = info_nce_loss(history, rationale, 0.01)
    with torch.autocast("cpu", torch.bfloat16):
        assert info_nce_loss(history, rationale, 0.01).item() == pytest.approx(plain.item(), rel=1e-6)


def test_the_draw_is_the_generators():
    history, rationale = vectors(16)

    def loss(seed):
        return info_nce_loss(history, rationale, 0.05, num_negatives=2, generator=draw(seed)).item()

    assert loss(1) == loss(1)
    assert loss(1) != loss(2)


def test_what_cannot_work_is_refused():
    history, rationale = vectors()
    with pytest.raises(ValueError, match="batch of 1"):
        info_nce_loss(history[:1], rationale[:1], 0.05)
    with pytest.raises(ValueError, match="temperature"):
        info_nce_loss(history, rationale, 0.0)
    with pytest.raises(ValueError, match="shapes"):
        info_nce_loss(history, rationale[:3], 0.05)
    with pytest.raises(ValueError, match="Generator"):
        info_nce_loss(history, rationale, 0.05, num_negatives=2)
    with pytest.raises(ValueError, match="share a group"):
        info_nce_loss(history, rationale, 0.05, same=torch.zeros(6))
