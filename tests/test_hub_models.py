"""The models as users of the Hub's libraries meet them: with the package, without it, and as a SentenceTransformer."""

import json
import os
from pathlib import Path

import pytest
import torch
from loopback_hub import run_client
from safetensors.torch import load_file
from test_modeling_sasrec import build
from test_modeling_thought_space import TEXTS, WORDS, encoders, space, tokenizer  # noqa: F401 (a fixture)
from transformers import AutoModel, AutoTokenizer, GPT2Config, GPT2Model

from pulse_hf.models.sasrec import PulseSASRecModel
from pulse_hf.models.thought_space import PulseThoughtSpaceModel
from pulse_hf.models.thought_space.sentence_transformer import export_sentence_transformer

LONG = " ".join(WORDS)
HISTORIES = [*TEXTS, LONG, "  w7   [SEP] w8 unknown"]
RATIONALES = HISTORIES[::-1]
CODE = {"configuration_thought_space.py", "modeling_thought_space.py", "processing_thought_space.py"}
TOKENIZER = {"tokenizer.json", "tokenizer_config.json"}
SPACE_FILES = {"config.json", "model.safetensors", "processor_config.json", *CODE} | {
    f"{side}_tokenizer/{file}" for side in ("history", "rationale") for file in TOKENIZER
}
SASREC_CODE = {"configuration_sasrec.py", "modeling_sasrec.py", "modeling_sasrec_losses.py"}
SASREC_FILES = {"config.json", "model.safetensors", *SASREC_CODE}

# argv: "package" or "code", the Thought Space, SASRec, where outputs go, options of from_pretrained as JSON
LOAD = f"""
import json, sys
how, space, sasrec, out, options = sys.argv[1:]
options = json.loads(options)
if how == "package":
    import pulse_hf.models.sasrec, pulse_hf.models.thought_space
else:
    sys.modules["pulse_hf"] = None  # as if it were not installed
    options["trust_remote_code"] = True
import torch
from safetensors.torch import save_file
from transformers import AutoModel, AutoProcessor
histories, rationales = {HISTORIES!r}, {RATIONALES!r}
model = AutoModel.from_pretrained(space, **options)
processor = AutoProcessor.from_pretrained(space, **options)
recommender = AutoModel.from_pretrained(sasrec, **options)
home = "pulse_hf.models." if how == "package" else "transformers_modules."
assert all(type(part).__module__.startswith(home) for part in (model, model.processor, processor, recommender))
with torch.no_grad():
    forward = model(**processor(histories, rationales))
save_file({{
    "histories": model.encode_histories(histories), "rationales": model.encode_rationales(rationales),
    "agreement": model.agreement(histories, rationales), "forward": forward.agreement,
    "scores": recommender.scores([[1, 2, 3], [4]]),
}}, out)
"""


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def offline(cache):
    """The environment of a client that has no Hub at all."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return {**kept, "HF_HOME": str(cache), "HF_HUB_OFFLINE": "1"}


def outputs(how, space, sasrec, env, out, **options):
    run_client(LOAD, env, how, space, sasrec, out, json.dumps(options))
    return load_file(out)


def same(one, other):
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def mixed_space(encoders):  # noqa: F811
    """Two towers of different kinds, a projection that does something, and two limits."""
    model = space(encoders, two=True, projection_dim=8, max_history_tokens=9, max_rationale_tokens=6)
    with torch.no_grad():
        model.history_projection.weight.add_(torch.linspace(-1, 1, 128).view(8, 16))
    return model


@pytest.fixture
def saved(encoders, tmp_path):  # noqa: F811
    """Folders of a Thought Space and a SASRec."""
    mixed_space(encoders).save_pretrained(tmp_path / "space")
    build(text_dim=4).save_pretrained(tmp_path / "sasrec")
    return tmp_path / "space", tmp_path / "sasrec"


def test_a_folder_gives_the_same_with_and_without_the_package(saved, tmp_path):
    env = offline(tmp_path / "home")
    by_package = outputs("package", *saved, env, tmp_path / "package.safetensors")
    by_code = outputs("code", *saved, env, tmp_path / "code.safetensors")
    same(by_package, by_code)
    model, recommender = PulseThoughtSpaceModel.from_pretrained(saved[0]), PulseSASRecModel.from_pretrained(saved[1])
    torch.testing.assert_close(by_code["agreement"], model.agreement(HISTORIES, RATIONALES), atol=1e-6, rtol=0)
    torch.testing.assert_close(by_code["scores"], recommender.scores([[1, 2, 3], [4]]), atol=1e-5, rtol=1e-5)
    assert by_code["agreement"].std() > 0.01
    tokens = AutoTokenizer.from_pretrained(saved[0], subfolder="history_tokenizer")
    assert tokens(LONG).input_ids == model.processor.history_tokenizer(LONG).input_ids


def test_a_folder_holds_these_files_and_tells_nothing_of_the_machine(saved, encoders, tmp_path):  # noqa: F811
    first = files(saved[0])
    assert first.keys() == SPACE_FILES
    assert files(saved[1]).keys() == SASREC_FILES
    base = str(tmp_path.parent).encode()
    assert [name for name, content in first.items() if base in content] == []
    again = PulseThoughtSpaceModel.from_pretrained(saved[0], local_files_only=True, token="hf_CANARY")
    again.encode_histories([LONG])  # leaves a mark in a tokenizer
    again.save_pretrained(tmp_path / "again")
    assert files(tmp_path / "again") == first


def test_code_of_a_folder_never_runs_where_the_package_is(saved, tmp_path):
    expected = PulseThoughtSpaceModel.from_pretrained(saved[0]).encode_histories(HISTORIES)
    canary = f"open({str(tmp_path / 'canary')!r}, 'w').close()\nraise SystemExit('canary')\n"
    for path in (*saved[0].glob("*.py"), *saved[1].glob("*.py")):
        path.write_text(canary)
    (saved[0] / "evil.py").write_text(canary)
    config = json.loads((saved[0] / "config.json").read_text())
    config["history_config"]["auto_map"] = {"AutoModel": "evil.Evil", "AutoConfig": "evil.Evil"}
    (saved[0] / "config.json").write_text(json.dumps(config))
    for side in ("history", "rationale"):
        path = saved[0] / f"{side}_tokenizer" / "tokenizer_config.json"
        (path.parent / "evil.py").write_text(canary)
        evil = {"AutoTokenizer": ["evil.Evil", "evil.Evil"], "AutoProcessor": "evil.Evil"}
        path.write_text(json.dumps({**json.loads(path.read_text()), "auto_map": evil}))
    for trust in (None, True):
        loaded = AutoModel.from_pretrained(saved[0], trust_remote_code=trust)
        assert type(loaded) is PulseThoughtSpaceModel
        torch.testing.assert_close(loaded.encode_histories(HISTORIES), expected)
        assert type(AutoModel.from_pretrained(saved[1], trust_remote_code=trust)) is PulseSASRecModel
    PulseThoughtSpaceModel.from_pretrained(saved[0]).save_pretrained(tmp_path / "clean")
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("model_class", [PulseThoughtSpaceModel, PulseSASRecModel])
def test_pickled_weights_are_refused(saved, model_class):
    folder = saved[model_class is PulseSASRecModel]
    with pytest.raises(ValueError, match="can run code"):
        model_class.from_pretrained(folder, use_safetensors=False)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    model_class.from_pretrained(folder)  # a pickle beside safetensors is left alone
    (folder / "model.safetensors").unlink()
    for load in (model_class, AutoModel):
        with pytest.raises(OSError, match="pickle only"):
            load.from_pretrained(folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(OSError, match=r"model\.safetensors"):
        model_class.from_pretrained(folder)


def test_dtype_and_device_are_taken(saved):
    options = {"dtype": torch.bfloat16, "device_map": "cpu"}
    for folder in saved:
        loaded = AutoModel.from_pretrained(folder, **options)
        assert {tensor.dtype for tensor in loaded.state_dict().values()} == {torch.bfloat16}
    whole = PulseThoughtSpaceModel.from_pretrained(saved[0]).encode_histories(HISTORIES)
    half = AutoModel.from_pretrained(saved[0], **options).encode_histories(HISTORIES)
    assert half.dtype is torch.float32
    assert (whole * half).sum(-1).min() > 0.99


def gpt_folder(folder):
    """A causal tower with absolute positions, whose tokenizer pads on the left and knows no padding token."""
    torch.manual_seed(3)
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": 32, "initializer_range": 0.3}
    GPT2Model(GPT2Config(vocab_size=44, bos_token_id=2, eos_token_id=3, **sizes)).save_pretrained(folder)
    tokens = tokenizer()
    tokens.pad_token = None
    tokens.padding_side = tokens.init_kwargs["padding_side"] = "left"  # saved only if it is in the latter
    tokens.chat_template = "{{ messages[0]['content'] }} w1 w1 w1"
    tokens.save_pretrained(folder)
    return str(folder)


def test_a_sentence_transformer_gives_the_same_vectors(encoders, tmp_path):  # noqa: F811
    limits = {"max_history_tokens": 9, "max_rationale_tokens": 6}
    models = {
        "shared": space(encoders, **limits),
        "projected": space(encoders, projection_dim=8, **limits),
        "mixed": mixed_space(encoders),
        "causal": space([gpt_folder(tmp_path / "gpt")], **limits),
    }
    for name, model in models.items():
        export_sentence_transformer(model, tmp_path / name)
        export_sentence_transformer(model, tmp_path / "again" / name)
        assert files(tmp_path / name) == files(tmp_path / "again" / name)
        assert not [
            file for file in files(tmp_path / name) if Path(file).suffix not in (".json", ".jinja", ".safetensors")
        ]
        encoders_written = list((tmp_path / name).glob("*_Transformer"))
        assert len(encoders_written) == (2 if name == "mixed" else 1)
    assert not list(tmp_path.glob(".*"))
    program = f"""
    import sys
    sys.modules["pulse_hf"] = None
    import torch
    from safetensors.torch import save_file
    from sentence_transformers import SentenceTransformer
    vectors = {{}}
    for name in {list(models)!r}:
        model = SentenceTransformer({str(tmp_path)!r} + "/" + name, device="cpu")
        vectors[name + " histories"] = torch.tensor(model.encode_query({HISTORIES!r}))
        vectors[name + " rationales"] = torch.tensor(model.encode_document({RATIONALES!r}))
        vectors[name + " plain"] = torch.tensor(model.encode({RATIONALES!r}))
    save_file(vectors, sys.argv[1])
    """
    run_client(program, offline(tmp_path / "home"), tmp_path / "vectors.safetensors")
    vectors = load_file(tmp_path / "vectors.safetensors")
    for name, model in models.items():
        histories, rationales = model.encode_histories(HISTORIES), model.encode_rationales(RATIONALES)
        torch.testing.assert_close(vectors[f"{name} histories"], histories, atol=1e-6, rtol=0)
        torch.testing.assert_close(vectors[f"{name} rationales"], rationales, atol=1e-6, rtol=0)
        torch.testing.assert_close(vectors[f"{name} plain"], rationales, atol=1e-6, rtol=0)
        # The two sides do differ, so that a mix-up would be seen.
        assert not torch.allclose(histories, model.encode_rationales(HISTORIES), atol=1e-2)


def test_an_export_that_would_be_wrong_or_in_the_way_is_refused(encoders, tmp_path):  # noqa: F811
    class FirstToken(PulseThoughtSpaceModel):
        def pool(self, side, hidden_states, attention_mask):
            return torch.nn.functional.normalize(hidden_states[:, 0], dim=-1)

    model = FirstToken.from_encoders(encoders[0])
    with pytest.raises(ValueError, match="no processor"):
        export_sentence_transformer(model, tmp_path / "out")
    model.processor = space(encoders).processor
    with pytest.raises(ValueError, match="other vectors of histories"):
        export_sentence_transformer(model, tmp_path / "out")
    with pytest.raises(ValueError, match=r"torch\.bfloat16, expected float32"):
        export_sentence_transformer(space(encoders).bfloat16(), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "README.md").write_text("mine")
    with pytest.raises(FileExistsError, match="name a new folder"):
        export_sentence_transformer(space(encoders), tmp_path / "out")
    assert files(tmp_path / "out") == {"README.md": b"mine"}


PUSH = """
import sys, torch
from huggingface_hub import HfApi
from pulse_hf.models.sasrec import PulseSASRecModel
from pulse_hf.models.thought_space import PulseThoughtSpaceModel
space, sasrec, st, out = sys.argv[1:]
api, model = HfApi(), PulseThoughtSpaceModel.from_pretrained(space)
model.push_to_hub("alice/space")
PulseSASRecModel.from_pretrained(sasrec).push_to_hub("alice/sasrec", private=True)
api.create_repo("alice/st", private=True)
api.upload_folder(repo_id="alice/st", folder_path=st)
for name in ("alice/space", "alice/sasrec", "alice/st"):
    api.create_tag(name, tag="v1")
with torch.no_grad():
    model.history_projection.weight.neg_()
model.save_pretrained(out, push_to_hub=True, repo_id="alice/space", commit_message="the other sign")
"""
CARD = b"---\nlicense: apache-2.0\ntags:\n- pulse\n---\n\n# Our card\n"
IDS = ("alice/space", "alice/sasrec")


@pytest.fixture
def published(saved, hub, tmp_path):
    """A private Thought Space (with a card; tag ``v1``, and a later commit with other signs), a SASRec, an export."""
    hub.create_repo("alice/space", {"README.md": CARD}, private=True)
    export_sentence_transformer(PulseThoughtSpaceModel.from_pretrained(saved[0]), tmp_path / "st")
    run_client(PUSH, hub.environment(tmp_path / "pusher", "alice"), *saved, tmp_path / "st", tmp_path / "new")
    return hub


@pytest.mark.slow
def test_models_come_back_from_the_hub(published, saved, tmp_path):
    assert [len(published.commits(name)) for name in IDS] == [4, 2]  # one each time: nobody meets half a model
    assert published.files("alice/space").keys() == SPACE_FILES | {"README.md"}
    assert published.files("alice/sasrec").keys() == SASREC_FILES | {"README.md"}
    assert published.files("alice/space")["README.md"] == CARD
    env = published.environment(tmp_path / "package", "alice")
    newest = outputs("package", *IDS, env, tmp_path / "newest.safetensors")
    asked = len(published.requests)
    same(newest, outputs("package", *IDS, {**env, "HF_HUB_OFFLINE": "1"}, tmp_path / "offline.safetensors"))
    assert len(published.requests) == asked

    env = published.environment(tmp_path / "code", "alice")
    tagged = outputs("code", *IDS, env, tmp_path / "tagged.safetensors", revision="v1")
    torch.testing.assert_close(tagged["histories"], -newest["histories"], atol=1e-6, rtol=0)
    env = published.environment(tmp_path / "pulled", "alice")  # a cache that only `hf download` has filled
    pull = "import sys, huggingface_hub; [huggingface_hub.snapshot_download(name) for name in sys.argv[1:]]"
    run_client(pull, env, *IDS)
    same(newest, outputs("code", *IDS, {**env, "HF_HUB_OFFLINE": "1"}, tmp_path / "pulled.safetensors"))
    model = PulseThoughtSpaceModel.from_pretrained(saved[0])
    torch.testing.assert_close(tagged["rationales"], model.encode_rationales(RATIONALES), atol=1e-6, rtol=0)


@pytest.mark.slow
def test_a_sentence_transformer_comes_back_from_the_hub(published, saved, tmp_path):
    program = f"""
    import sys
    sys.modules["pulse_hf"] = None
    import torch
    from safetensors.torch import save_file
    from sentence_transformers import SentenceTransformer
    model = SentenceTransformer("alice/st", revision="v1", device="cpu")
    vectors = {{"histories": model.encode_query({HISTORIES!r}), "rationales": model.encode_document({RATIONALES!r})}}
    save_file({{name: torch.tensor(rows) for name, rows in vectors.items()}}, sys.argv[1])
    """
    model, env = PulseThoughtSpaceModel.from_pretrained(saved[0]), published.environment(tmp_path / "reader", "alice")
    for environment in (env, {**env, "HF_HUB_OFFLINE": "1"}):
        run_client(program, environment, tmp_path / "vectors.safetensors")
        vectors = load_file(tmp_path / "vectors.safetensors")
        torch.testing.assert_close(vectors["histories"], model.encode_histories(HISTORIES), atol=1e-6, rtol=0)
        torch.testing.assert_close(vectors["rationales"], model.encode_rationales(RATIONALES), atol=1e-6, rtol=0)


def test_private_repositories_and_pickles_of_the_hub_are_refused(published, saved, tmp_path):
    torch.save(load_file(saved[1] / "model.safetensors"), tmp_path / "pytorch_model.bin")
    published.create_repo(
        "mallory/sasrec",
        {
            "config.json": (saved[1] / "config.json").read_bytes(),
            "pytorch_model.bin": (tmp_path / "pytorch_model.bin").read_bytes(),
        },
    )
    program = """
    from transformers import AutoModel
    import pulse_hf.models.sasrec, pulse_hf.models.thought_space
    for name in ("alice/space", "alice/sasrec", "mallory/sasrec"):
        try:
            AutoModel.from_pretrained(name)
        except OSError as error:
            print(name, "pickle only" in str(error), "not a valid model identifier" in str(error))
    """
    said = run_client(program, published.environment(tmp_path / "stranger"))
    assert said.splitlines() == ["alice/space False True", "alice/sasrec False True", "mallory/sasrec True False"]
    assert not [record for record in published.requests if record.method == "GET" and record.path.endswith(".bin")]
