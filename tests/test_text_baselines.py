"""``morec`` and ``ctrl``: text is all that a MoRec item is, and CTRL's models are alike before SASRec is tuned."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_road import small_settings

from pulse_hf.artifacts import sha256_of_file
from pulse_hf.data.sequences import load_items, load_sequences
from pulse_hf.models.sasrec import PulseSASRecConfig, PulseSASRecModel
from pulse_hf.pipeline import run_road
from pulse_hf.training.baseline_fits import ctrl as ctrl_file
from pulse_hf.training.baseline_fits import morec as morec_file
from pulse_hf.training.baseline_fits.ctrl import align, contrastive_loss, ctrl, fine_grained
from pulse_hf.training.baseline_fits.material import Material
from pulse_hf.training.baseline_fits.morec import end_to_end_loss, morec
from pulse_hf.training.baseline_fits.text_tower import TextTower
from pulse_hf.training.sequential import Fits
from pulse_hf.training.thought_space import ThoughtSpaceSettings

SETTINGS = small_settings()
SPACE = ThoughtSpaceSettings(trained_layers=1, epochs=3, batch_size=16, max_validation_pairs=80, precision="float32")


def material(run: Path, work: Path, **changes: object) -> Material:
    items = load_items(run)
    items[1] = replace(items[1], title=items[0].title)
    sequential = replace(SETTINGS.sequential, epochs=2, patience=2)
    whole = Material(run, work, load_sequences(run), items, SPACE, sequential, 5, SETTINGS.seed)
    return replace(whole, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of which only the sequences are there: the fits read nothing else."""
    return run_road(tmp_path_factory.mktemp("runs") / "prepared", SETTINGS, until="prepare")


@pytest.fixture(scope="module")
def fitted(
    prepared: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TextTower, dict[str, torch.Tensor], Path]:
    """A fitted ``morec``: its encoder, the encoder's weights before, and the folder."""
    work, kept = tmp_path_factory.mktemp("morec"), []

    class Kept(TextTower):
        def __init__(self, space: ThoughtSpaceSettings, texts: Sequence[str]) -> None:
            super().__init__(space, texts)
            kept.append((self, {name: one.detach().clone() for name, one in self.model.named_parameters()}))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(morec_file, "TextTower", Kept)
        morec(material(prepared, work))
    return *kept[0], work / "morec"


def test_a_morec_item_is_its_text_alone(fitted):
    model = PulseSASRecModel.from_pretrained(str(fitted[2]))
    assert not model.item_embedding.weight.any()
    vectors = model.item_vectors()
    torch.testing.assert_close(vectors[1], vectors[2], atol=1e-5, rtol=1e-4)  # one title, two items
    assert (vectors[1] - vectors[3]).norm() > 1e-2


def test_the_upper_layers_train_and_their_vectors_are_saved(fitted, prepared, tmp_path):
    tower, before, folder = fitted
    changed = {name for name, one in tower.model.named_parameters() if not torch.equal(one, before[name])}
    assert changed
    assert changed <= set(tower.trained())
    assert all("layer.5." in name for name in changed)
    titles = [item.title for item in material(prepared, tmp_path).items]
    vectors = tower.model.encode_histories(titles)
    mean = TextTower(SPACE, titles).embed(titles).mean(0)
    expected = torch.nn.functional.normalize(vectors - mean, dim=1)
    saved = PulseSASRecModel.from_pretrained(str(folder)).text_features[1:]
    torch.testing.assert_close(saved, expected, atol=1e-4, rtol=0)


def test_no_fresh_vector_is_scored_beside_a_stale_one(prepared, monkeypatch):
    """What all encoded items have in common must not move the loss: it would tell targets by their age."""
    titles = [item.title for item in load_items(prepared)]
    tower = TextTower(SPACE, titles)
    config = PulseSASRecConfig(num_items=len(titles), dim=8, text_dim=tower.dim)
    model = morec_file.TextItemsModel(config, tower=tower, texts=titles, mean=torch.zeros(tower.dim)).eval()
    shares, rows = torch.full((len(titles),), 1 / len(titles)), [[1, 2, 3], [4, 5, 6]]

    def loss() -> float:
        draw = torch.Generator().manual_seed(0)
        return float(end_to_end_loss(model, rows, draw, shares=shares, most=8))

    monkeypatch.setattr(model, "encode", lambda items, table: torch.ones(*items.shape, 8))
    before, encode = loss(), model.encoded
    monkeypatch.setattr(model, "encoded", lambda items: encode(items) + 3.0)
    assert loss() == pytest.approx(before, abs=1e-4)
    model.scores([[1, 2]])  # a validation encodes every item anew
    torch.testing.assert_close(model.text_features[1:], encode(range(1, len(titles) + 1)) + 3.0)


def test_alignment_finds_a_users_own_text(prepared, tmp_path):
    _, record = align(material(prepared, tmp_path))
    assert record["losses"][-1] < record["losses"][0]
    assert record["mrr"]["after"] > 2 * record["mrr"]["before"]


def test_stage_two_starts_from_the_aligned_weights(prepared, tmp_path, monkeypatch):
    given, begun = [], []

    def spy(self: Fits, name: str, *, start: PulseSASRecModel) -> None:
        given.append((name, start))
        self.reports[name] = {}

    monkeypatch.setattr(Fits, "fit", spy)
    monkeypatch.setattr(ctrl_file, "align", lambda one: begun.append(align(one)) or begun[0])
    assert ctrl(material(prepared, tmp_path))["alignment"] == begun[0][1]
    assert given[0] == ("ctrl", begun[0][0])


def test_similarity_takes_the_most_alike_sub_vectors_and_equal_texts_are_no_negatives():
    generator = torch.Generator().manual_seed(0)
    users, texts = (torch.randn(5, 4, 3, generator=generator) for _ in range(2))
    cosines = torch.nn.functional.cosine_similarity(users[1][:, None], texts[2][None], dim=-1)
    assert fine_grained(users, texts)[1, 2] == pytest.approx(float(cosines.amax(1).mean()), abs=1e-6)
    same = torch.eye(5, dtype=torch.bool)
    same[0, 1] = same[1, 0] = True
    assert contrastive_loss(users, texts, same=same) < contrastive_loss(users, texts, same=torch.eye(5).bool())
    assert contrastive_loss(users, texts, same=torch.ones(5, 5).bool()) == 0


@pytest.mark.parametrize("fit", [morec, ctrl])
def test_a_seed_decides_every_byte(fit, prepared, tmp_path):
    hashes = []
    for folder in (tmp_path / "once", tmp_path / "again"):
        torch.rand(3)  # what was drawn before does not count
        fit(material(prepared, folder))
        hashes.append(sha256_of_file(folder / fit.__name__ / "model.safetensors"))
    assert hashes[0] == hashes[1]
