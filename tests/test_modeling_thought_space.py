"""The Thought Space model: unit vectors, two towers, save and load, batches that do not matter."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModel, BertConfig, BertModel, DistilBertConfig, DistilBertModel, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from pulse_hf.models.thought_space import PulseThoughtSpaceConfig, PulseThoughtSpaceModel, PulseThoughtSpaceProcessor

WORDS = [f"w{number}" for number in range(40)]
TEXTS = ["w1 w2", "w3", "w4 w5 w6 w7 w8 w9 w10 w11", "w12 w13 w14 w2", "w1 w2"]


def tokenizer():
    vocabulary = {word: place for place, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


def bert(seed=0, hidden=16):
    torch.manual_seed(seed)
    sizes = {"num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 32}
    return BertModel(BertConfig(vocab_size=44, hidden_size=hidden, initializer_range=0.3, **sizes))


def distilbert(seed=1):
    torch.manual_seed(seed)
    sizes = {"n_layers": 2, "n_heads": 2, "hidden_dim": 32, "max_position_embeddings": 32}
    return DistilBertModel(DistilBertConfig(vocab_size=44, dim=16, initializer_range=0.3, **sizes))


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    """Folders of two saved encoders with their tokenizer."""
    folders = []
    for name, encoder in (("bert", bert()), ("distilbert", distilbert())):
        folder = tmp_path_factory.mktemp(name)
        encoder.save_pretrained(folder)
        tokenizer().save_pretrained(folder)
        folders.append(str(folder))
    return folders


def space(encoders, *, two=False, projection_dim=0, **limits):
    names = encoders if two else encoders[:1]
    model = PulseThoughtSpaceModel.from_encoders(*names, shared_towers=not two, projection_dim=projection_dim)
    model.processor = PulseThoughtSpaceProcessor.from_encoders(*names, **limits)
    return model


@pytest.mark.parametrize("projection_dim", [0, 8, 16])
@pytest.mark.parametrize("two", [False, True])
def test_vectors_have_unit_length_and_agreement_is_their_cosine(encoders, two, projection_dim):
    model = space(encoders, two=two, projection_dim=projection_dim)
    history, rationale = model.encode_histories(TEXTS), model.encode_rationales(TEXTS[::-1])
    assert history.shape == (5, projection_dim or 16)
    torch.testing.assert_close(history.norm(dim=-1), torch.ones(5))
    torch.testing.assert_close(rationale.norm(dim=-1), torch.ones(5))
    agreement = model.agreement(TEXTS, TEXTS[::-1])
    torch.testing.assert_close(agreement, torch.cosine_similarity(history, rationale))
    assert agreement.abs().max() <= 1
    assert model.encode_histories([]).shape == (0, projection_dim or 16)


def test_the_pretrained_weights_are_kept_and_the_projection_begins_as_identity(encoders):
    model, tower = space(encoders), bert().eval()
    ids = tokenizer()(TEXTS[2], return_tensors="pt", return_token_type_ids=False)
    expected = tower(**ids).last_hidden_state.mean(1)
    expected = torch.nn.functional.normalize(expected, dim=-1)
    torch.testing.assert_close(model.encode_histories([TEXTS[2]]), expected.detach())
    torch.testing.assert_close(
        space(encoders, projection_dim=16).encode_histories(TEXTS), model.encode_histories(TEXTS)
    )


def test_shared_towers_read_alike_and_separate_ones_do_not(encoders):
    shared, separate = space(encoders), space(encoders, two=True)
    torch.testing.assert_close(shared.encode_histories(TEXTS), shared.encode_rationales(TEXTS))
    assert not torch.allclose(separate.encode_histories(TEXTS), separate.encode_rationales(TEXTS), atol=1e-2)
    apart = PulseThoughtSpaceModel.from_encoders(encoders[0], shared_towers=False)
    assert apart.history_tower is not apart.rationale_tower
    with pytest.raises(ValueError, match="drop one"):
        PulseThoughtSpaceModel.from_encoders(*encoders)


def test_neither_order_nor_batches_matter(encoders):
    model = space(encoders, two=True)
    texts = [" ".join(WORDS[start : start + 1 + start % 7]) for start in range(20)]
    whole = model.encode_histories(texts)
    torch.testing.assert_close(model.encode_histories(texts, batch_size=3), whole, atol=1e-5, rtol=0)
    torch.testing.assert_close(model.encode_histories(texts[::-1]).flip(0), whole, atol=1e-5, rtol=0)
    one_by_one = torch.cat([model.encode_histories([text]) for text in texts])
    torch.testing.assert_close(one_by_one, whole, atol=1e-5, rtol=0)


def test_encoding_ignores_and_keeps_the_training_mode(encoders):
    model = space(encoders).train()
    torch.testing.assert_close(model.encode_histories(TEXTS), model.encode_histories(TEXTS))
    assert model.training


@pytest.mark.parametrize("two", [False, True])
def test_a_saved_model_comes_back_with_its_processor(encoders, two, tmp_path):
    model = space(encoders, two=two, projection_dim=8, max_history_tokens=6, max_rationale_tokens=5)
    with torch.no_grad():
        model.history_projection.weight.add_(0.1)
    model.config.max_events = 9
    model.save_pretrained(tmp_path)
    for loaded in (PulseThoughtSpaceModel.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)):
        assert type(loaded) is PulseThoughtSpaceModel
        assert (loaded.processor.max_history_tokens, loaded.processor.max_rationale_tokens) == (6, 5)
        assert loaded.config.max_events == 9
        torch.testing.assert_close(loaded.encode_histories(TEXTS), model.encode_histories(TEXTS))
        torch.testing.assert_close(loaded.encode_rationales(TEXTS), model.encode_rationales(TEXTS))


def test_the_folder_loads_without_the_package(encoders, tmp_path):
    model = space(encoders, two=True)
    model.save_pretrained(tmp_path / "model")
    program = (
        "import sys, torch; from transformers import AutoModel;"
        f"model = AutoModel.from_pretrained({str(tmp_path / 'model')!r}, trust_remote_code=True);"
        f"vectors = model.encode_rationales({TEXTS!r}); assert 'pulse_hf' not in sys.modules;"
        f"torch.save(vectors, {str(tmp_path / 'vectors.pt')!r})"
    )
    environment = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "PATH": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    torch.testing.assert_close(torch.load(tmp_path / "vectors.pt"), model.encode_rationales(TEXTS))


def test_forward_takes_what_the_processor_gives(encoders):
    model = space(encoders, two=True)
    batch = model.processor(TEXTS, TEXTS[::-1])
    assert sorted(batch) == sorted(model.processor.model_input_names)
    with torch.no_grad():
        out = model(**batch)
    torch.testing.assert_close(out.agreement, model.agreement(TEXTS, TEXTS[::-1]), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("family", "most"), [("bert", 20), ("roberta", 18), ("xlm-roberta", 18), ("mpnet", 18), ("esm", 18)]
)
def test_the_longest_allowed_text_encodes(family, most, tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = CONFIG_MAPPING[family](vocab_size=44, max_position_embeddings=20, pad_token_id=1, **sizes)
    AutoModel.from_config(config).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    model = space([str(tmp_path)], max_history_tokens=500, max_rationale_tokens=7)
    assert (model.processor.max_history_tokens, model.processor.max_rationale_tokens) == (most, 7)
    assert model.encode_histories([" ".join(WORDS)]).isfinite().all()
    assert model.processor.truncated["history"] == 1
    shorter = tokenizer()
    shorter.model_max_length = 11
    shorter.save_pretrained(tmp_path)
    assert space([str(tmp_path)], max_history_tokens=500).processor.max_history_tokens == 11


def test_long_texts_lose_their_end_and_are_counted(encoders):
    model = space(encoders, max_history_tokens=6)
    torch.testing.assert_close(model.encode_histories([TEXTS[2]]), model.encode_histories(["w4 w5 w6 w7"]))
    assert model.processor.truncated == {"history": 1, "rationale": 0}
    # An encoder with 32 positions cannot read more, whatever was asked for.
    assert space(encoders, max_history_tokens=500).processor.max_history_tokens == 32


def test_what_cannot_work_is_refused(encoders):
    model = space(encoders)
    with pytest.raises(ValueError, match="one string"):
        model.encode_histories("w1 w2")
    with pytest.raises(ValueError, match="batch_size is -1, expected at least 1"):
        model.encode_histories(TEXTS, batch_size=-1)
    with pytest.raises(ValueError, match="Found None"):
        model.encode_histories(None)
    with pytest.raises(ValueError, match="history text number 1 is 1, expected a string"):
        model.encode_histories([TEXTS[0], 1])
    assert torch.equal(model.encode_histories(np.array(TEXTS, dtype=object)), model.encode_histories(TEXTS))
    with pytest.raises(ValueError, match="expected pairs"):
        model.agreement(TEXTS, TEXTS[:2])
    with pytest.raises(ValueError, match="expected a list of rationales"):
        model.agreement(TEXTS, TEXTS[0])
    one = model.agreement(TEXTS[0], TEXTS)
    torch.testing.assert_close(one, model.agreement([TEXTS[0]] * len(TEXTS), TEXTS), atol=1e-6, rtol=0)
    towers = {"history_config": bert(hidden=8).config, "rationale_config": bert().config}
    unequal = PulseThoughtSpaceConfig(**towers, shared_towers=False)
    with pytest.raises(ValueError, match="projection_dim"):
        PulseThoughtSpaceModel(unequal)
    model.processor = None
    with pytest.raises(ValueError, match="no processor"):
        model.encode_histories(TEXTS)
    with pytest.raises(ValueError, match="no processor"):
        model.save_pretrained("nowhere")
