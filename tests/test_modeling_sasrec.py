"""SASRec as a model: causality, padding, saving and loading, losses against hand-made ones."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel

from pulse_hf.models.sasrec import PulseSASRecConfig, PulseSASRecModel
from pulse_hf.models.sasrec import modeling_sasrec_losses as losses
from pulse_hf.models.sasrec.modeling_sasrec import left_padded
from pulse_hf.models.sasrec.modeling_sasrec_losses import full_softmax_loss, sampled_loss


def build(seed: int = 0, **fields) -> PulseSASRecModel:
    # A large range, so that what must not matter would be seen if it did.
    config = PulseSASRecConfig(**{"num_items": 20, "dim": 16, "max_events": 8, "initializer_range": 0.5, **fields})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = PulseSASRecModel(config).eval()
        if config.text_dim:
            model.set_text_features(torch.randn(config.num_items, config.text_dim))
    return model


def test_future_items_cannot_change_the_past():
    model = build()
    one, other = torch.tensor([[1, 2, 3, 4, 5]]), torch.tensor([[1, 2, 3, 9, 10]])
    first, second = model.encode(one), model.encode(other)
    assert torch.equal(first[:, :3], second[:, :3])
    assert not torch.allclose(first[:, 3:], second[:, 3:], atol=1e-3)


def test_past_items_do_change_the_future():
    model = build()
    assert not torch.allclose(model.user_vectors([[1, 2, 3]]), model.user_vectors([[7, 2, 3]]), atol=1e-3)
    assert not torch.allclose(model.user_vectors([[1, 2, 3]]), model.user_vectors([[2, 1, 3]]), atol=1e-3)


def test_padding_changes_no_vector():
    model = build()
    plain = model.encode(torch.tensor([[1, 2, 3]]))
    padded = model.encode(torch.tensor([[0, 0, 0, 1, 2, 3]]))
    torch.testing.assert_close(padded[:, 3:], plain)
    assert padded[:, :3].abs().max() == 0


def test_vectors_do_not_depend_on_company_or_batches():
    model = build()
    histories = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10], [11, 12]]
    together = model.user_vectors(histories)
    alone = torch.cat([model.user_vectors([history]) for history in histories])
    torch.testing.assert_close(together, alone)
    torch.testing.assert_close(model.user_vectors(histories, batch_size=1), together)


def test_a_long_history_is_its_last_events():
    model = build()
    history = list(range(1, 15))
    assert torch.equal(model.user_vectors([history]), model.user_vectors([history[-8:]]))


def test_scores_are_dot_products_and_padding_can_never_win():
    model = build(text_dim=4)
    scores = model.scores([[1, 2], [3]])
    torch.testing.assert_close(scores[:, 1:], model.user_vectors([[1, 2], [3]]) @ model.item_vectors()[1:].T)
    assert scores.shape == (2, 21)
    assert scores[:, 0].tolist() == [float("-inf")] * 2


def test_inference_leaves_the_mode_as_it_was_and_ignores_dropout():
    model = build(dropout=0.5)
    expected = model.user_vectors([[1, 2, 3]])
    model.train()
    assert torch.equal(model.user_vectors([[1, 2, 3]]), expected)
    assert model.training


@pytest.mark.parametrize("text_dim", [0, 6])
def test_a_saved_model_loads_equal(tmp_path, text_dim):
    model = build(text_dim=text_dim, loss="gbce")
    model.save_pretrained(tmp_path)
    for loaded in (PulseSASRecModel.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)):
        assert isinstance(loaded, PulseSASRecModel)
        assert not loaded.training
        assert loaded.config.loss == "gbce"
        # Loaded weights lie elsewhere in memory, which may change the last bit of a product.
        torch.testing.assert_close(loaded.scores([[1, 2, 3]]), model.scores([[1, 2, 3]]), atol=1e-5, rtol=1e-5)
        assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    assert AutoConfig.from_pretrained(tmp_path).text_dim == text_dim


def test_what_a_checkpoint_lacks_is_initialised_not_garbage(tmp_path):
    build(text_dim=6).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    missing = {"text_features", "text_projection.weight", "position_embedding.weight", "final_norm.weight"}
    save_file({k: v for k, v in tensors.items() if k not in missing}, tmp_path / "model.safetensors", {"format": "pt"})
    loaded = PulseSASRecModel.from_pretrained(tmp_path)
    assert loaded.text_features.abs().max() == 0
    assert (loaded.final_norm.weight == 1).all()
    assert 0.3 < loaded.position_embedding.weight.std() < 0.7


def test_text_gives_items_vectors_and_padding_none():
    model = build(text_dim=4)
    with torch.no_grad():
        model.item_embedding.weight.zero_()  # as if no id had ever been seen
    vectors = model.item_vectors()
    assert vectors[0].abs().max() == 0
    assert vectors[1:].norm(dim=-1).min() > 0
    assert torch.linalg.matrix_rank(vectors[1:]) == 4


def test_text_features_are_frozen():
    model = build(text_dim=4)
    assert "text_features" not in dict(model.named_parameters())
    assert "text_features" in model.state_dict()


def test_cross_entropy_is_over_the_whole_catalogue_without_padding():
    model = build()
    inputs, labels = torch.tensor([[0, 1, 2], [3, 4, 5]]), torch.tensor([[0, 2, 7], [4, 5, 0]])
    output = model(inputs, labels)
    expected = [
        -torch.log_softmax(model.encode(inputs)[row, column] @ model.item_vectors()[1:].T, -1)[labels[row, column] - 1]
        for row, column in ((0, 1), (0, 2), (1, 0), (1, 1))
    ]
    torch.testing.assert_close(output.loss, torch.stack(expected).mean())


@pytest.mark.parametrize("rows_in_a_block", [1, 5, 7, 50])  # never fewer than a vector has numbers, here 4
def test_the_full_softmax_in_blocks_is_cross_entropy_and_so_are_its_gradients(monkeypatch, rows_in_a_block):
    monkeypatch.setitem(losses._BLOCK_BYTES, "cpu", rows_in_a_block * 11 * 8)
    drawn = torch.Generator().manual_seed(0)
    users = torch.randn(7, 4, generator=drawn, dtype=torch.float64, requires_grad=True)
    items = torch.randn(11, 4, generator=drawn, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 10, 3, 3, 5, 0, 9])
    expected = 3 * F.cross_entropy(users @ items.T, targets)
    loss = 3 * full_softmax_loss(users, items, targets)
    torch.testing.assert_close(loss, expected)
    found = torch.autograd.grad(loss, (users, items))
    torch.testing.assert_close(found, torch.autograd.grad(expected, (users, items)))
    with torch.no_grad():
        torch.testing.assert_close(3 * full_softmax_loss(users, items, targets), expected)


def test_the_full_softmax_stays_finite_where_an_exponential_would_not_and_lets_nan_through():
    users, items = torch.tensor([[1e4], [-1e4]], requires_grad=True), torch.tensor([[1.0], [0.0], [-1.0]])
    loss = full_softmax_loss(users, items, torch.tensor([2, 2]))
    assert loss.item() == 1e4  # 20,000 for the first row, 0 for the second
    loss.backward()
    assert users.grad.tolist() == [[1.0], [0.0]]
    assert full_softmax_loss(users * float("nan"), items, torch.tensor([0, 0])).isnan()


def test_items_left_out_of_the_softmax_are_as_if_they_were_not_there():
    model = build(text_dim=4)
    excluded = torch.zeros(20, dtype=torch.bool)
    excluded[[2, 8, 19]] = True
    inputs, labels = torch.tensor([[0, 1, 2], [3, 4, 5]]), torch.tensor([[0, 2, 7], [4, 5, 0]])
    hidden = model.encode(inputs)[labels != 0]
    logits = (hidden @ model.item_vectors()[1:].T).masked_fill(excluded, float("-inf"))
    found, expected = model(inputs, labels, None, excluded).loss, F.cross_entropy(logits, labels[labels != 0] - 1)
    torch.testing.assert_close(found, expected)
    parameters = [one for one in model.parameters() if one.requires_grad]
    torch.testing.assert_close(torch.autograd.grad(found, parameters), torch.autograd.grad(expected, parameters))
    excluded[6] = True  # item 7, a target
    with pytest.raises(ValueError, match="is a target"):
        model(inputs, labels, None, excluded)


def test_sampled_losses_equal_their_definitions():
    positive, negative = torch.randn(5), torch.randn(5, 3)
    logits = torch.cat([positive[:, None], negative], dim=1)
    labels = torch.zeros_like(logits)
    labels[:, 0] = 1
    plain = F.binary_cross_entropy_with_logits(logits, labels)
    torch.testing.assert_close(sampled_loss(positive, negative, num_items=31, t=0.0), plain)
    rate = 3 / 30
    beta = rate * (0.75 * (1 - 1 / rate) + 1 / rate)  # gSASRec, Eq. 12
    expected = -(torch.log(positive.sigmoid() ** beta) + torch.log(1 - negative.sigmoid()).sum(1)).mean() / 4
    torch.testing.assert_close(sampled_loss(positive, negative, num_items=31, t=0.75), expected)


def test_left_padding_keeps_the_newest_events():
    assert left_padded([[1], [2, 3, 4]], 2).tolist() == [[0, 1], [3, 4]]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dim": 15}, "multiple of num_heads"),
        ({"loss": "mse"}, "not one of ce"),
        ({"num_items": 0}, "at least one item"),
    ],
)
def test_contradictory_configurations_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        build(**fields)


@pytest.mark.parametrize("history", [[], [21], [-1]])
def test_histories_outside_the_catalogue_are_refused(history):
    with pytest.raises(ValueError, match=r"outside \[1, 20\]"):
        build().user_vectors([history, [1]])


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="padded on the left"):
        build().encode(torch.tensor([[1, 2, 0]]))
    with pytest.raises(ValueError, match="the last 8"):
        build().encode(torch.ones(1, 9, dtype=torch.long))
    with pytest.raises(ValueError, match=r"expects \(20, 4\)"):
        build(text_dim=4).set_text_features(torch.zeros(19, 4))
    with pytest.raises(ValueError, match="needs sampled negatives"):
        build(loss="bce")(torch.tensor([[1]]), torch.tensor([[2]]))
