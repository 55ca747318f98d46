"""One table of bad models, checkpoints and adapters; the ids are those of the reliability plan's section 3.5."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loopback_hub import run_client
from small_road import small_settings
from test_artifacts import ROW
from test_modeling_scorer import base_folder, saved
from test_scorer_training import SHAPE, settings_for, toy_examples
from transformers import AutoTokenizer, BertConfig, BertModel, BertTokenizerFast

from pulse_hf import artifacts
from pulse_hf.artifacts import ArtifactError, building, read_json, read_manifest, seal, write_json
from pulse_hf.evaluation.evaluate import evaluate
from pulse_hf.hub.files import seal_folder
from pulse_hf.models import embedded, text_encoder
from pulse_hf.models.embedded import resolve_model
from pulse_hf.models.scorer.adapter import load_scorer
from pulse_hf.models.text_encoder import encode_texts
from pulse_hf.models.thought_space import PulseThoughtSpaceModel
from pulse_hf.reasoning import transformers_engine
from pulse_hf.reasoning.chat_tokens import ChatTokens
from pulse_hf.reasoning.generator import open_generator
from pulse_hf.recommender import PulseRecommender
from pulse_hf.training.candidate_trainer import newest_checkpoint
from pulse_hf.training.scorer_fit import make_processor, train_scorer

__all__ = ["base_folder"]  # a fixture of another room


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def nan(path: Path) -> None:
    tensors = artifacts.read_tensors(path)
    next(iter(tensors.values())).view(-1)[0] = np.nan
    artifacts.write_tensors(path, tensors)


def fewer(path: Path) -> None:
    tensors = artifacts.read_tensors(path)
    tensors.pop(sorted(tensors)[0])
    artifacts.write_tensors(path, tensors)


def more(path: Path) -> None:
    artifacts.write_tensors(path, artifacts.read_tensors(path) | {"other.weight": torch.ones(2)})


ADAPTERS: list[tuple[str, str, Callable[[Path], None], str]] = [
    ("M10 NaN in the adapter", "adapter/adapter_model.safetensors", nan, "is not finite in 1 of .* Train it anew"),
    ("M10 NaN in the head", "score_head.safetensors", nan, "is not finite in 1 of"),
    ("M12 adapter lacks a tensor", "adapter/adapter_model.safetensors", fewer, r"lacks \['base_model.*another scorer"),
    ("M12 adapter has one more", "adapter/adapter_model.safetensors", more, r"has \['other.weight'\] too many"),
    (
        "M12 head lacks a tensor",
        "score_head.safetensors",
        fewer,
        r"score_head\.safetensors: lacks \['likelihood_score",
    ),
    ("M1 head cut", "score_head.safetensors", cut, r"score_head\.safetensors: .*Copy it again"),
]


@pytest.mark.parametrize(("name", "harm", "said"), [one[1:] for one in ADAPTERS], ids=[one[0] for one in ADAPTERS])
def test_a_damaged_adapter_is_refused(
    base_folder: Path, tmp_path: Path, name: str, harm: Callable[[Path], None], said: str
) -> None:
    saved(base_folder, tmp_path / "scorer")
    load_scorer(str(base_folder), tmp_path / "scorer")
    harm(tmp_path / "scorer" / name)
    with pytest.raises(ArtifactError, match=said):
        load_scorer(str(base_folder), tmp_path / "scorer")


def test_M13_a_resized_vocabulary_is_refused_with_both_sizes(base_folder: Path, tmp_path: Path) -> None:  # noqa: N802
    saved(base_folder, tmp_path / "scorer")
    record = read_json(tmp_path / "scorer" / "scorer.json")
    size = record["vocab_size"]
    write_json(tmp_path / "scorer" / "scorer.json", {**record, "vocab_size": size + 8})
    with pytest.raises(ArtifactError, match=rf"'vocab_size': {size + 8}.* has .*'vocab_size': {size}"):
        load_scorer(str(base_folder), tmp_path / "scorer")


@pytest.mark.parametrize("gone", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"])
@pytest.mark.parametrize("how", ["M5 missing", "M6 truncated"])
def test_a_checkpoint_with_one_of_its_files_damaged_is_passed_over(tmp_path: Path, gone: str, how: str) -> None:
    for step in (1, 2):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"):
            (folder / name).write_text(name)
        seal(folder)
    file = tmp_path / "checkpoint-2" / gone
    file.unlink() if "missing" in how else file.write_text(gone[:-1])
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-1"


def test_M9_without_any_whole_checkpoint_a_fit_begins_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:  # noqa: N802
    (tmp_path / "checkpoint-5").mkdir()
    assert newest_checkpoint(tmp_path) is None
    assert "checkpoint-5 is torn" in caplog.text
    kept = artifacts.Checkpoints(tmp_path, "fit")
    kept.save(1, {"x": torch.ones(3)}, {})
    (file,) = kept.folder.glob("*/tensors.safetensors")
    file.write_bytes(b"")
    assert kept.newest() is None


@pytest.mark.parametrize("what", ["M14 tokenizer", "T18 chat template"])
def test_a_base_model_that_reads_words_otherwise_is_refused(base_folder: Path, tmp_path: Path, what: str) -> None:
    saved(base_folder, tmp_path / "scorer")
    load_scorer(str(base_folder), tmp_path / "scorer")
    if what == "M14 tokenizer":  # the same size, two words in each other's place
        text = (base_folder / "tokenizer.json").read_text()
        swapped = text.replace('"w1":', '"W":').replace('"w2":', '"w1":').replace('"W":', '"w2":')
        assert swapped != text
        (base_folder / "tokenizer.json").write_text(swapped)
    else:
        (base_folder / "chat_template.jinja").write_text("{{ messages[0].content }} Rank the first one first.")
    with pytest.raises(
        ArtifactError, match="trained with the tokenizer and chat template of sha256 .*, but .*/base has"
    ):
        load_scorer(str(base_folder), tmp_path / "scorer")
    record = read_json(tmp_path / "scorer" / "scorer.json")
    del record["tokenizer_sha256"]  # saved before it was recorded
    write_json(tmp_path / "scorer" / "scorer.json", record)
    load_scorer(str(base_folder), tmp_path / "scorer")


def test_T18_the_chat_template_of_an_adapters_folder_is_not_looked_at(base_folder: Path, tmp_path: Path) -> None:  # noqa: N802
    saved(base_folder, tmp_path / "scorer")
    evil = "{{ cycler.__init__.__globals__.os.system('touch " + str(tmp_path / "fired") + "') }}"
    for folder in (tmp_path / "scorer", tmp_path / "scorer" / "adapter"):
        (folder / "chat_template.jinja").write_text(evil)
        write_json(folder / "tokenizer_config.json", {"chat_template": evil, "tokenizer_class": "Evil"})
    _, processor = load_scorer(str(base_folder), tmp_path / "scorer")
    assert processor.tokenizer.chat_template is None
    # In the base model's own place it runs in the library's sandbox, and the scorer is refused above all.
    (base_folder / "chat_template.jinja").write_text(evil)
    with pytest.raises(ArtifactError, match="chat template"):
        load_scorer(str(base_folder), tmp_path / "scorer")
    with pytest.raises(ValueError, match="chat template of .* fails"):
        ChatTokens(AutoTokenizer.from_pretrained(base_folder)).text([{"role": "user", "content": "hello"}])
    assert not (tmp_path / "fired").exists()


def test_M8_work_of_another_version_is_gone_on_with_if_only_minor(  # noqa: N802
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def begin(work: Path) -> dict[str, int]:
        shards = artifacts.Shards(work, "written", "decisions")
        found = len(shards.done())
        if not found:
            shards.append([ROW])
            raise InterruptedError
        return {"found": found}

    def go(version: str, **more: bool) -> None:
        monkeypatch.setattr(building, "package_versions", lambda: {"torch": version, "trl": "1.16.0"})
        artifacts.build(tmp_path / "toy", artifacts.Fingerprint("toy", {}, 0), begin, **more)

    with pytest.raises(InterruptedError):
        go("2.11.0")
    with pytest.raises(
        ArtifactError, match=r"toy\.partial was started with torch 2\.11\.0 \(now 3\.0\.1\); .*--force"
    ):
        go("3.0.1")
    with pytest.raises(InterruptedError):  # made anew: nothing was found
        go("3.0.1", force=True)
    assert "was started with" not in caplog.text
    go("3.4.0")
    assert "was started with torch 3.0.1 (now 3.4.0); going on with it" in caplog.text
    go("9.0.0")  # finished: there is nothing to go on with
    assert read_manifest(tmp_path / "toy")["counts"] == {"found": 1}


HUGE: list[tuple[str, dict[str, Any]]] = [
    ("num_hidden_layers", {"num_hidden_layers": 10**9}),
    ("hidden_size", {"hidden_size": -8}),
    ("vocab_size", {"text_config": {"vocab_size": 10**12}}),
    ("num_attention_heads", {"num_attention_heads": 1e9}),
    ("intermediate_size", {"intermediate_size": "9" * 500}),
]


@pytest.mark.parametrize(("name", "sizes"), HUGE, ids=[f"M18 {name}" for name, _ in HUGE])
def test_a_configuration_out_of_reason_is_refused_before_anything_is_made(
    base_folder: Path, name: str, sizes: dict[str, Any]
) -> None:
    resolve_model(str(base_folder))
    write_json(base_folder / "config.json", read_json(base_folder / "config.json") | sizes)
    started = time.perf_counter()
    for load in (resolve_model, lambda folder: open_generator("transformers", folder, batch_size=2)):
        with pytest.raises(ArtifactError, match=rf"base/config\.json: {name} is .*, expected an integer from 0 to"):
            load(str(base_folder))
    assert time.perf_counter() - started < 1


def test_M18_parts_of_a_recommender_are_checked_before_they_are_made(  # noqa: N802
    small_recommender: PulseRecommender, tmp_path: Path
) -> None:
    small_recommender.save_pretrained(tmp_path)
    for part in ("thought_space", "sequential"):
        path = tmp_path / part / "config.json"
        honest = read_json(path)
        write_json(path, honest | {"num_layers": 10**9})
        seal_folder(tmp_path, "recommender")
        with pytest.raises(ArtifactError, match=rf"{part}/config\.json: num_layers is 1000000000"):
            PulseRecommender.from_pretrained(tmp_path)
        write_json(path, honest)


@pytest.mark.parametrize(
    "shard", ["../outside.safetensors", "/etc/x.safetensors", "..\\x.safetensors", "x.bin", "gone"]
)
def test_M19_a_shard_lies_beside_its_index_or_is_refused(base_folder: Path, shard: str) -> None:  # noqa: N802
    (base_folder / "model.safetensors").rename(base_folder / "model-1.safetensors")
    (base_folder.parent / "outside.safetensors").write_bytes((base_folder / "model-1.safetensors").read_bytes())
    names = artifacts.read_tensors(base_folder / "model-1.safetensors")
    index = base_folder / "model.safetensors.index.json"
    write_json(index, {"metadata": {}, "weight_map": dict.fromkeys(names, "model-1.safetensors")})
    open_generator("transformers", str(base_folder), batch_size=2)
    shard = "gone.safetensors" if shard == "gone" else shard
    write_json(index, {"metadata": {}, "weight_map": dict.fromkeys(names, shard)})
    with pytest.raises(ArtifactError, match=rf"index\.json: .*the shard {re.escape(repr(shard))}"):
        open_generator("transformers", str(base_folder), batch_size=2)


def tiny_bert(folder: Path) -> Any:
    """An encoder that is not saved yet, its tokenizer in the folder."""
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nb\nc")
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    return BertModel(BertConfig(vocab_size=8, **sizes))


def test_M20_half_precision_is_computed_in_float32_where_it_is_not_native(  # noqa: N802
    base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(base_folder).half().save_pretrained(base_folder)
    assert read_json(base_folder / "config.json")["dtype"] == "float16"
    monkeypatch.setattr(transformers_engine, "computes_in_bf16", lambda device: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with caplog.at_level("INFO"):
        engine: Any = open_generator("transformers", str(base_folder), batch_size=2)
    assert engine.model.dtype is torch.float32
    assert "base: stored in torch.float16, computed in torch.float32 here" in caplog.text
    saved(base_folder, tmp_path / "scorer")
    assert load_scorer(str(base_folder), tmp_path / "scorer")[0].model.dtype is torch.float32

    encoder = tmp_path / "encoder"
    tiny_bert(encoder).half().save_pretrained(encoder)
    assert PulseThoughtSpaceModel.from_encoders(str(encoder)).dtype is torch.float32
    assert encode_texts(["a b", "c"], str(encoder)).dtype == np.float32
    assert next(text_encoder._opened(str(encoder))[0].parameters()).dtype is torch.float32


def test_M22_stages_of_another_catalogue_are_refused(small_run: Path, tmp_path: Path) -> None:  # noqa: N802
    for folder in small_run.iterdir():
        if folder.is_dir() and folder.name != "sequences":
            (tmp_path / folder.name).symlink_to(folder)
    shutil.copytree(small_run / "sequences", tmp_path / "sequences")
    manifest = read_manifest(tmp_path / "sequences")  # as if prepare had been run anew: as many items, others
    write_json(tmp_path / "sequences" / "manifest.json", manifest | {"sha256": "0" * 64})
    with pytest.raises(ArtifactError, match=rf"sequential was made from sequences of .* is {'0' * 64}\. Run the"):
        PulseRecommender.from_run(tmp_path)


@pytest.mark.parametrize(
    "file",
    [
        "sequential/sasrec/model.safetensors",
        "sequential/item_vectors.safetensors",
        "thought_space/model/model.safetensors",
        "recommender/pulse/score_head.safetensors",
        "sequences/items.parquet",
    ],
)
@pytest.mark.parametrize("harm", ["a flipped bit", "cut"])
def test_M1_M2_a_run_damaged_since_is_neither_served_nor_gone_on_from(  # noqa: N802
    small_run: Path, tmp_path: Path, file: str, harm: str
) -> None:
    stage = file.split("/")[0]
    for folder in small_run.iterdir():
        if folder.is_dir() and folder.name != stage:
            (tmp_path / folder.name).symlink_to(folder)
    shutil.copytree(small_run / stage, tmp_path / stage)
    data = bytearray((tmp_path / file).read_bytes())
    data[-9] ^= 1
    (tmp_path / file).write_bytes(bytes(data[:-40]) if harm == "cut" else bytes(data))
    with pytest.raises(ArtifactError, match=rf"{stage} is damaged:\n  {file.partition('/')[2]}: sha256 differs"):
        PulseRecommender.from_run(tmp_path)
    settings = replace(small_settings().evaluate, systems=("popularity",))
    with pytest.raises(ArtifactError, match=rf"{stage} is damaged"):
        evaluate(tmp_path, settings, seed=0)


@pytest.mark.parametrize("label", [-100, None, 5])
def test_M24_rows_without_a_label_are_counted_and_named(base_folder: Path, tmp_path: Path, label: int | None) -> None:  # noqa: N802
    settings = settings_for(base_folder, epochs=1)
    rows = [replace(one, decision_id=f"u{n}#3") for n, one in enumerate(toy_examples(8, 1))]
    spoilt = [replace(one, target_index=label) for one in rows]
    for train, validation, count in ((spoilt, rows, "8 of 16"), ([*rows, spoilt[3]], rows, "1 of 17")):
        named = "u3#3" if count.startswith("1 ") else "u0#3, u1#3, u2#3"
        with pytest.raises(
            ValueError, match=rf"{count} rows have no label among their candidates \(decisions {named}\)"
        ):
            train_scorer(
                train, validation, settings, make_processor(settings), SHAPE, seed=0, folder=tmp_path / "pulse"
            )
    assert not (tmp_path / "pulse").exists()


def test_M15_a_base_model_that_the_hub_does_not_give(hub: Any, tmp_path: Path) -> None:  # noqa: N802
    hub.create_repo("bob/gated", {"config.json": b"{}"}, gated="auto")
    hub.create_repo("bob/huge", {"config.json": json.dumps({"num_hidden_layers": 10**9}).encode()})
    hub.create_repo("bob/new-name", {"config.json": b"{}"})
    code = """
        import json, logging, sys
        from unittest.mock import patch
        from huggingface_hub import HfApi
        from pulse_hf.models.embedded import resolve_model
        told = []
        def tell(name):
            try:
                told.append(resolve_model(name)[1]["id"])
            except Exception as error:
                told.append(f"{type(error).__name__}: {error}")
        for name in sys.argv[1:]:
            tell(name)
        logging.basicConfig(stream=sys.stdout)
        asked = HfApi.model_info  # the real Hub answers an old name by the new one
        with patch.object(HfApi, "model_info", lambda api, name, **more: asked(api, "bob/new-name", **more)):
            tell("bob/old-name")
        print(json.dumps(told))
    """
    env = hub.environment(tmp_path / "cache", "alice")
    hub.create_repo("bob/kept", {"config.json": b"{}", "model.safetensors": b"weights"})
    kept = """
        import os, sys
        from huggingface_hub import snapshot_download
        from pulse_hf.models.embedded import resolve_model
        if sys.argv[1] == "fetch":
            snapshot_download("bob/kept")
        print(resolve_model("bob/kept")[1]["revision"])
    """
    first = run_client(kept, env, "fetch", patient=False).split()[-1]
    away = env | {"HF_ENDPOINT": "http://127.0.0.1:9"}  # nobody listens there
    assert run_client(kept, away, "cached", patient=False).split()[-1] == first
    out = run_client(code, env, "bob/gated", "bob/deleted", "bob/huge", "bob/new-name@v9", patient=False)
    gated, deleted, huge, revision, renamed = json.loads(out.splitlines()[-1])
    assert re.match(r"ValueError: bob/gated@main is gated: accept its terms at http\S+/bob/gated, then log in", gated)
    assert re.match(r"ValueError: bob/deleted is not on the Hub \(deleted, or renamed.*give a folder", deleted)
    assert re.match(r"ArtifactError: .*config\.json: num_hidden_layers is 1000000000, expected", huge)
    assert "bob/new-name@v9: the Hub answered" in revision
    assert renamed == "bob/old-name"  # the old name is answered as the new one
    assert "bob/old-name is called bob/new-name now; name it so in the settings" in out


def test_M16_weights_that_are_pickles_are_not_loaded(tmp_path: Path) -> None:  # noqa: N802
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps({}))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match=r"holds no \.safetensors weights; only safetensors are loaded"):
        resolve_model(str(tmp_path))


def test_M16_an_encoder_that_was_not_looked_through_loads_no_pickle(  # noqa: N802
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A repo that is named by commit is not asked what files it has."""
    model = tiny_bert(tmp_path)
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    monkeypatch.setattr(embedded, "resolve_model", lambda name: (name, {"revision": "local"}))
    with pytest.raises(OSError, match="safetensors"):
        text_encoder._opened(str(tmp_path))
    with pytest.raises(OSError, match="safetensors"):
        PulseThoughtSpaceModel.from_encoders(str(tmp_path))
    model.save_pretrained(tmp_path)
    assert text_encoder._opened(str(tmp_path))[0] is not None


def test_M17_the_code_of_a_model_is_never_run(base_folder: Path, tmp_path: Path) -> None:  # noqa: N802
    from pulse_hf.models.scorer.modeling_scorer import PulseScorerModel

    fired = tmp_path / "fired"
    (base_folder / "evil.py").write_text(f"import pathlib\npathlib.Path({str(fired)!r}).touch()\n")
    classes = {"AutoConfig": "evil.C", "AutoModel": "evil.M", "AutoModelForCausalLM": "evil.M"}
    for name, more in (("config.json", classes), ("tokenizer_config.json", {"AutoTokenizer": ["evil.T", None]})):
        write_json(base_folder / name, read_json(base_folder / name) | {"auto_map": more})
    PulseScorerModel.from_base(str(base_folder), head_token_ids=(4, 5), likelihood_scale=0.0)
    open_generator("transformers", str(base_folder), batch_size=2)
    assert not fired.exists()
    config = read_json(base_folder / "config.json") | {"model_type": "evil"}
    write_json(base_folder / "config.json", config)
    with pytest.raises(ValueError, match="trust_remote_code|evil"):
        open_generator("transformers", str(base_folder), batch_size=2)
    assert not fired.exists()
