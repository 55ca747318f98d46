"""Weights of text and votes: what they recover, and that a useless column gets none."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from pulse_hf.training.vote_weights import fit_vote_weights, weigh_votes


def decisions(number=4000, candidates=6, seed=0):
    """Choices drawn with the odds 1.5 x first column + 0.5 x second column; the third is noise, the last misleads."""
    generator = torch.Generator().manual_seed(seed)
    columns = torch.randn(number, candidates, 3, generator=generator)
    logits = columns @ torch.tensor([1.5, 0.5, 0.0])
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    return torch.cat([columns, -logits[..., None]], -1), labels


def test_the_true_weights_are_recovered_and_noise_gets_next_to_none():
    columns, labels = decisions()
    weights = fit_vote_weights(columns[..., :3], labels, l2=0.0)
    assert weights[0] == pytest.approx(1.5, abs=0.1)
    assert weights[1] == pytest.approx(0.5, abs=0.1)
    assert weights[2] < 0.05


def test_a_column_that_misleads_counts_for_nothing_at_all():
    columns, labels = decisions()
    assert fit_vote_weights(columns[..., [0, 3]], labels)[1] == 0.0


def test_absent_candidates_change_nothing():
    columns, labels = decisions(400)
    padded = torch.cat([columns, torch.full((400, 2, 4), -torch.inf)], 1)
    assert fit_vote_weights(padded, labels) == pytest.approx(fit_vote_weights(columns, labels), rel=1e-6)


def test_fewer_decisions_are_pulled_towards_nothing():
    columns, labels = decisions(30)
    strong, weak = (fit_vote_weights(columns[..., :1], labels, l2=l2)[0] for l2 in (1.0, 0.0))
    assert 0 < strong < weak


def test_a_text_scorer_takes_votes_beside_its_own_logit():
    scorer = SimpleNamespace(
        score=nn.Linear(4, 1, bias=False),
        likelihood_score=nn.Linear(1, 1, bias=False),
        feature_score=None,
        config=SimpleNamespace(num_candidate_features=0),
    )
    hidden, likelihood, votes = torch.randn(5, 4), torch.randn(5, 1), torch.randn(5, 2)
    before = scorer.score(hidden) + scorer.likelihood_score(likelihood)
    weigh_votes(scorer, [0.5, 0.7, 0.4])
    after = scorer.score(hidden) + scorer.likelihood_score(likelihood) + scorer.feature_score(votes)
    torch.testing.assert_close(after, 0.5 * before + votes @ torch.tensor([[0.7], [0.4]]))
    assert scorer.config.num_candidate_features == 2
