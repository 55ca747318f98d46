"""A-LLMRec: its losses, its soft tokens, what of it trains, and that a leak into its prompts is found."""

import shutil
from dataclasses import replace

import pytest
import torch
from small_road import small_settings
from torch.nn import functional

from pulse_hf.artifacts import ArtifactError, Checkpoints, sha256_of_file
from pulse_hf.evaluation.evaluate import evaluate
from pulse_hf.models.a_llmrec import PulseALLMRecConfig, PulseALLMRecModel
from pulse_hf.models.a_llmrec.soft_prompts import SoftPromptProcessor, soft_scorer
from pulse_hf.models.embedded import NANO_ID, resolve_model
from pulse_hf.models.scorer.processing_scorer import score_encoded
from pulse_hf.reasoning.examples import PromptShape, Thought
from pulse_hf.reasoning.soft_prompts import soft_examples
from pulse_hf.schema import CandidateSet, Item, Sequence
from pulse_hf.training.baseline_fits.alignment import Aligned, align
from pulse_hf.training.baseline_fits.projections import ProjectionFit
from pulse_hf.training.baselines import BaselineSettings, baselines
from pulse_hf.training.scorer import RecommenderSettings

ITEMS = {
    name: Item(name, title, title)
    for name, title in (("a", "Green tea"), ("b", "Tea cup"), ("c", "Garden hose"), ("d", "Steel nails"))
}
USERS = {
    name: Sequence(name, tuple(chosen), (), (None,) * len(chosen), ("",) * len(chosen))
    for name, chosen in (("u", "abcd"), ("v", "dcba"), ("w", "bdac"))
}
SETS = [
    CandidateSet("u#2", "train", ("c", "d", "b"), 0),
    CandidateSet("v#1", "train", ("a", "c", "b"), 1),
    CandidateSet("w#3", "train", ("a", "c"), 1),
]


def bridge(seed: int = 0) -> PulseALLMRecModel:
    torch.manual_seed(seed)
    config = PulseALLMRecConfig(num_items=4, item_dim=6, text_dim=5, latent_dim=8, base=resolve_model(NANO_ID)[1])
    return PulseALLMRecModel(config).eval()


def aligned(seed: int = 0) -> Aligned:
    draw = torch.Generator().manual_seed(seed)
    users, items, texts = (torch.randn(rows, width, generator=draw) for rows, width in ((7, 6), (5, 6), (5, 5)))
    trained = torch.tensor([False, True, True, True, False])
    return Aligned(users, torch.tensor([1, 2, 3, 1, 2, 3, 1]), items, texts, trained)


def scored(model, users, sets=SETS, reasons=None):
    processor = SoftPromptProcessor.of(model.config)
    shape = PromptShape(use_reason=reasons is not None, use_agreement=False)
    examples = soft_examples(sets, USERS, ITEMS, reasons or {}, shape, processor.fits)
    return score_encoded(soft_scorer(model, users), processor, processor.encode_soft(examples))


def test_the_alignment_loss_is_the_sum_that_the_paper_gives():
    model = bridge()
    users, items, texts = torch.ones(1, 6), torch.full((1, 2, 6), 2.0), torch.full((1, 2, 5), 3.0)
    with torch.no_grad():
        for part in (model.item_encoder[0], model.text_encoder[0], model.item_decoder, model.text_decoder):
            part.weight.zero_()
            part.bias.zero_()
        model.text_encoder[0].bias.fill_(20.0)  # a latent of ones beside one of halves
        model.item_decoder.bias.fill_(0.5)
        losses = model(users, items, texts)
    assert losses.matching.item() == pytest.approx(2 * 0.25, rel=1e-5)
    assert losses.item.item() == pytest.approx(2 * 1.5**2)
    assert losses.text.item() == pytest.approx(2 * 9.0)
    score = torch.tensor(6 * 0.5)
    expected = functional.softplus(-score) + functional.softplus(score)
    assert losses.recommendation.item() == pytest.approx(expected.item())
    assert losses.loss.item() == pytest.approx(expected.item() + 0.5 + 0.5 * 4.5 + 0.2 * 18, rel=1e-5)


def test_alignment_learns_and_an_item_without_training_events_is_its_text():
    model, data = bridge(), aligned()
    report = align(model, data, seed=1)
    assert report["last"]["loss"] < report["first"]["loss"]
    with torch.no_grad():
        latent, said = model.item_encoder(data.item_vectors), model.text_encoder(data.text_vectors)
    torch.testing.assert_close(model.joint[4], said[4])
    torch.testing.assert_close(model.joint[3], latent[3])
    assert not torch.allclose(model.joint[3], said[3])


def test_scores_depend_on_neither_the_order_nor_the_company_of_candidates():
    model, users = bridge(), torch.randn(3, 6)
    align(model, aligned(), seed=0)
    whole = scored(model, users)
    turned = scored(model, users, [replace(one, item_ids=one.item_ids[::-1]) for one in SETS])
    alone = scored(model, users, [replace(one, item_ids=one.item_ids[:1]) for one in SETS])
    for row, backwards, single in zip(whole, turned, alone, strict=True):
        assert row == pytest.approx(backwards[::-1], abs=1e-4)
        assert row[0] == pytest.approx(single[0], abs=1e-4)


def test_a_score_is_the_mean_log_likelihood_of_the_title_in_an_ordinary_sequence():
    model, users = bridge(), torch.randn(3, 6)
    align(model, aligned(), seed=0)
    scorer, processor = soft_scorer(model, users), SoftPromptProcessor.of(model.config)
    examples = soft_examples(SETS, USERS, ITEMS, {}, PromptShape(use_reason=False), processor.fits)
    encoded = processor.encode_soft(examples)
    for one, row in zip(encoded, score_encoded(scorer, processor, encoded), strict=True):
        branch = one.candidate_ids[1]
        with torch.no_grad():
            ids = torch.tensor([[*one.prompt_ids, *branch]])
            hidden = scorer.model(input_ids=ids, use_cache=False).last_hidden_state[0]
            logits = scorer.lm_head(hidden[-len(branch) : -1]).log_softmax(-1)
        title = torch.tensor(branch[1:])
        assert processor.tokenizer.decode(title).strip() in {item.title for item in ITEMS.values()}
        expected = 8 * logits.gather(1, title[:, None]).mean()
        assert row[1] == pytest.approx(expected.item(), abs=1e-3)


def test_the_users_the_items_and_the_reasons_count():
    model, users = bridge(), torch.randn(3, 6)
    align(model, aligned(), seed=0)
    plain = torch.tensor(scored(model, users)[0])
    assert (plain - torch.tensor(scored(model, users + 1)[0])).abs().max() > 1e-3
    told = scored(model, users, reasons={"u#2": Thought("They like water in the garden.")})
    assert (plain - torch.tensor(told[0])).abs().max() > 1e-3
    model.joint[1] += 1  # an item of the first history alone
    assert (plain - torch.tensor(scored(model, users)[0])).abs().max() > 1e-3


def test_a_long_history_loses_its_oldest_titles_and_no_candidate():
    def fits(pieces):
        return sum(isinstance(piece, int) for piece in pieces) <= 2  # the user and one event

    (one,) = soft_examples(SETS[2:], USERS, ITEMS, {}, PromptShape(use_reason=False), fits)
    assert [piece for piece in one.pieces if isinstance(piece, int)] == [0, 1]  # w chose b, d, then a
    assert one.history == (2, 4, 1)
    assert [title for _, title in one.branches] == ["Green tea", "Garden hose"]


def test_titles_and_reasons_without_spaces_are_cut_by_letters():
    title, reason = "静かな水" * 40, "とても静かで気に入りました" * 30
    items = {item_id: replace(item, title=title) for item_id, item in ITEMS.items()}
    thoughts = {SETS[2].decision_id: Thought(reason)}

    def fits(pieces):
        return sum(len(piece) for piece in pieces if isinstance(piece, str)) <= 260

    (one,) = soft_examples(SETS[2:], USERS, items, thoughts, PromptShape(), fits)
    told = "".join(piece for piece in one.pieces if isinstance(piece, str))
    assert f"- {title[:40]}" in told
    assert f"Reason: {reason[:40]}" in told
    assert all(len(branch) > 100 for _, branch in one.branches)  # no candidate is cut
    with pytest.raises(ValueError, match="exceeds its token budget"):
        soft_examples(SETS[2:], USERS, items, thoughts, PromptShape(), lambda pieces: False)


def fitted(folder, seed=3, validate=True):
    model, users = bridge(), torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    align(model, aligned(), seed=seed)
    model.requires_grad_(False)
    for part in (model.user_projection, model.item_projection):
        part.requires_grad_(True)
    processor, scorer = SoftPromptProcessor.of(model.config), soft_scorer(model, users)
    before = {name: value.clone() for name, value in scorer.state_dict().items()}
    examples = soft_examples(SETS, USERS, ITEMS, {}, PromptShape(use_reason=False), processor.fits)
    settings = RecommenderSettings(epochs=4, batch_size=2, patience=9)
    encoded = processor.encode_soft(examples, [one.target_index for one in examples])
    checkpoints = Checkpoints(folder, "fit", every_seconds=0)
    fit = ProjectionFit(scorer, processor, settings, seed)
    report = fit.fit(encoded * 2, encoded if validate else [], checkpoints)
    model.save_pretrained(folder / "model")
    return report, before, scorer.state_dict()


def test_training_moves_the_projections_alone_and_the_same_seed_gives_the_same_bytes(tmp_path):
    report, before, after = fitted(tmp_path / "one")
    assert len(report["validation_hr@1"]) == 4
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed
    assert all(".bridge.user_projection." in name or ".bridge.item_projection." in name for name in changed)
    fitted(tmp_path / "two")
    files = [tmp_path / name / "model" / "model.safetensors" for name in ("one", "two")]
    assert sha256_of_file(files[0]) == sha256_of_file(files[1])


def test_a_killed_fit_goes_on_to_the_same_bytes(tmp_path, monkeypatch):
    fitted(tmp_path / "whole", validate=False)
    epoch_of = ProjectionFit._epoch

    def killed(self, train, optimizer, schedule, epoch):
        if epoch == 3:
            raise KeyboardInterrupt
        epoch_of(self, train, optimizer, schedule, epoch)

    monkeypatch.setattr(ProjectionFit, "_epoch", killed)
    with pytest.raises(KeyboardInterrupt):
        fitted(tmp_path / "killed", validate=False)
    monkeypatch.undo()
    assert fitted(tmp_path / "killed", validate=False)[0]["batches"] == 4 * 3
    files = [tmp_path / name / "model" / "model.safetensors" for name in ("whole", "killed")]
    assert sha256_of_file(files[0]) == sha256_of_file(files[1])


def test_another_language_model_is_refused():
    model = bridge()
    model.config.base = {**model.config.base, "weights_sha256": "0" * 64}
    with pytest.raises(ArtifactError, match="were fitted for pulse-hf/pulse-nano"):
        soft_scorer(model, torch.zeros(1, 6))


def test_a_leak_into_the_prompts_is_found(small_run, tmp_path, monkeypatch):
    settings = small_settings()
    run = tmp_path / "leaky"
    shutil.copytree(small_run, run, ignore=shutil.ignore_patterns("evaluate"))

    def leaky(sets, *reading):
        later = [one.decision_id.rpartition("#") for one in sets]
        moved = [
            replace(one, decision_id=f"{user}#{int(place) + 1}")
            for one, (user, _, place) in zip(sets, later, strict=True)
        ]
        return soft_examples(moved, *reading)

    monkeypatch.setattr("pulse_hf.training.baseline_fits.a_llmrec.soft_examples", leaky)
    baselines(run, BaselineSettings(systems=("a-llmrec",)), seed=settings.seed)
    monkeypatch.undo()
    told = replace(settings.evaluate, systems=("random", "a-llmrec"), worth_of_a_reason=False)
    with pytest.raises(ArtifactError, match="baselines read another a-llmrec than its sequences allow"):
        evaluate(run, told, seed=settings.seed)
