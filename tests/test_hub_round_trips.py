"""A run published and loaded again, every step in a process of its own, over the loopback Hub."""

import io
import json
import os
import re
import subprocess
import sys
import time
from ast import literal_eval
from dataclasses import astuple
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from loopback_hub import LoopbackHub, run_client

from pulse_hf.artifacts import read_table
from pulse_hf.data.sequences import load_items
from pulse_hf.hub.cards import metadata_of, render
from pulse_hf.hub.model_cards import ModelCards
from pulse_hf.hub.privacy import pseudonyms
from pulse_hf.recommender import PulseRecommender

HISTORY = ["a cork tray", "a bamboo kettle that is not in the catalogue"]
LOAD = """
    import sys
    from dataclasses import astuple
    from pulse_hf.recommender import PulseRecommender
    recommender = PulseRecommender.from_pretrained(sys.argv[1])
    print(repr([astuple(one) for one in recommender.recommend(sys.argv[2:], k=4)]))
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with LoopbackHub(tmp_path_factory.mktemp("hub")) as running:
        yield running


def pulse(env: dict[str, str], *arguments: object) -> str:
    command = [sys.executable, "-m", "pulse_hf.cli.main", *map(str, arguments)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        raise RuntimeError(f"{done.returncode}: {done.stdout[-1500:]}{done.stderr[-3000:]}")
    return done.stdout


@pytest.fixture(scope="module")
def alice(hub, tmp_path_factory):
    return hub.environment(tmp_path_factory.mktemp("alice"), "alice")


@pytest.fixture(scope="module")
def shop(hub, alice, small_run):
    """The recommender, published."""
    return pulse(alice, "push", "recommender", "alice/shop", "--run", small_run, "--dataset", "alice/reasons")


@pytest.fixture(scope="module")
def ranked(small_run):
    recommender = PulseRecommender.from_run(small_run)
    return [astuple(one) for one in recommender.recommend(HISTORY, k=4)]


def last_line(text: str) -> str:
    return text.strip().splitlines()[-1]


def test_a_recommender_gives_the_same_to_the_last_digit_and_offline(hub, alice, shop, ranked, small_run, tmp_path):
    assert "commit" in shop
    commits = len(hub.commits("alice/shop"))
    again = pulse(alice, "push", "recommender", "alice/shop", "--run", small_run, "--dataset", "alice/reasons")
    assert "no commit was made" in again
    assert len(hub.commits("alice/shop")) == commits
    fresh = hub.environment(tmp_path / "fresh")
    assert last_line(run_client(LOAD, fresh, "alice/shop", *HISTORY)) == repr(ranked)
    start = len(hub.requests)
    offline = fresh | {"HF_HUB_OFFLINE": "1"}
    assert last_line(run_client(LOAD, offline, "alice/shop", *HISTORY)) == repr(ranked)
    assert len(hub.requests) == start


@pytest.mark.slow
def test_a_merged_recommender_comes_back_without_an_adapter(hub, alice, ranked, small_run, tmp_path):
    pulse(alice, "push", "recommender", "alice/merged", "--run", small_run, "--merge")
    files = hub.files("alice/merged")
    assert not any(name.startswith("adapter/") for name in files)
    assert b"peft import" not in files["README.md"]
    found = literal_eval(last_line(run_client(LOAD, hub.environment(tmp_path / "cache"), "alice/merged", *HISTORY)))
    assert [row[:2] for row in found] == [row[:2] for row in ranked]
    assert [row[2] for row in found] == pytest.approx([row[2] for row in ranked], abs=1e-4)


def test_the_adapter_alone_loads_with_peft_and_changes_the_logits_as_ours_does(hub, shop, small_run, tmp_path):
    code = """
        import json, sys, torch
        from peft import PeftModel
        from transformers import AutoModelForCausalLM
        base = AutoModelForCausalLM.from_pretrained("alice/shop", subfolder="base", dtype=torch.float32)
        ids = torch.arange(20, 60)[None]
        with torch.no_grad():
            plain = base(ids).logits
            tuned = PeftModel.from_pretrained(base, "alice/shop", subfolder="adapter")(ids).logits
        torch.save([plain, tuned], sys.argv[1])
    """
    import torch

    run_client(code, hub.environment(tmp_path / "cache"), tmp_path / "logits.pt")
    plain, tuned = torch.load(tmp_path / "logits.pt")
    assert (plain - tuned).abs().max() > 1e-4
    scorer = PulseRecommender.from_run(small_run).parts.scorer
    ids = torch.arange(20, 60)[None]
    with torch.no_grad():
        ours = scorer.lm_head(scorer.model(ids).last_hidden_state)
    torch.testing.assert_close(tuned, ours, atol=1e-4, rtol=1e-4)


def test_cards_are_valid_and_hold_no_number_that_the_report_does_not(hub, shop, small_run):
    from huggingface_hub import ModelCard

    card = hub.files("alice/shop")["README.md"].decode()
    data = ModelCard(card, ignore_metadata_errors=False).data
    assert data.base_model == "pulse-hf/pulse-nano"
    assert {one.metric_type for one in data.eval_results} == {"hr@1", "ndcg@10", "mrr"}
    assert ".eval_results/pulse.yaml" in hub.files("alice/shop")
    report = json.loads((small_run / "report.json").read_text())
    known = {f"{value:.{digits}f}" for value in numbers_of(report) for digits in (0, 3, 4)}
    recommender = PulseRecommender.from_run(small_run)
    known |= {str(len(recommender.parts.items)), str(len(recommender.parts.pool.item_ids))}
    body = re.sub(r"```.*?```", "", card.split("---\n", 2)[2], flags=re.DOTALL)
    body = re.sub(r"HR@\d+|NDCG@\d+|apache-2\.0", "", body)
    found = re.findall(r"(?<![\w.])\d[\d,]*(?:\.\d+)?", body)
    assert len(found) > 20
    assert [one for one in found if one.replace(",", "") not in known] == []


def test_what_a_models_owner_set_stays_and_its_example_is_of_the_kind_it_was_trained_on(small_run):
    first, second = load_items(small_run)[:2]
    plain = ModelCards(small_run, "alice/space").thought_space()
    assert metadata_of(plain)["license"] == "apache-2.0"
    owners = plain.replace("license: apache-2.0", "license: mit\nextra_gated_prompt: Be kind.\nlicense_name: x")
    owners = owners.replace("language: en", "language: de").replace("\n---\n", "\nmodel-index: []\n---\n", 1)
    for export in (False, True):
        card = ModelCards(small_run, "alice/space", before=owners).thought_space(as_sentence_transformer=export)
        added = {"license": "mit", "language": "de", "extra_gated_prompt": "Be kind.", "license_name": "x"}
        library = {"library_name": "sentence-transformers" if export else "transformers"}
        assert metadata_of(card) == metadata_of(plain) | added | library
        assert "Licence: mit." in card
        assert f'"{second.title}: so quiet, and made to last. {first.title}"' in card
        assert "the latest first, each with the person's own words after a colon" in card
    stated = ModelCards(small_run, "alice/space", "cc0-1.0", before=owners).thought_space()
    assert metadata_of(stated)["license"] == "cc0-1.0"
    assert "license_name" not in metadata_of(stated)


def numbers_of(value):
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return []
    if isinstance(value, int | float):
        return [value, abs(value)]
    return [n for one in (value.values() if isinstance(value, dict) else value) for n in numbers_of(one)]


def test_a_card_with_a_field_unfilled_does_not_render():
    from pulse_hf.artifacts import ArtifactError

    with pytest.raises(ArtifactError, match="nothing is published without it"):
        render("sequential", metadata="", name="x", repo_id="a/b")


@pytest.mark.slow
def test_datasets_load_stream_and_feed_the_road_again(hub, alice, small_run, tmp_path):
    for word in ("rationales", "thoughts", "sequences", "candidates"):
        pulse(alice, "push", word, "alice/reasons", "--run", small_run, "--config", "tiny-shop")
    commits = len(hub.commits("alice/reasons", repo_type="dataset"))
    again = pulse(alice, "push", "thoughts", "alice/reasons", "--run", small_run, "--config", "tiny-shop")
    assert "no commit was made" in again
    assert len(hub.commits("alice/reasons", repo_type="dataset")) == commits
    code = """
        import json
        from datasets import get_dataset_config_names, load_dataset
        repo = "alice/reasons"
        whole = load_dataset(repo, "tiny-shop")
        streamed = next(iter(load_dataset(repo, "tiny-shop", split="train", streaming=True)))
        assert streamed == whole["train"][0]
        rows = {name: {split: len(part) for split, part in load_dataset(repo, name).items()}
                for name in get_dataset_config_names(repo)}
        users, all_users = (
            set(load_dataset(repo, name, split="train")["user_id"]) for name in ("tiny-shop", "tiny-shop-sequences")
        )
        print(json.dumps([rows, streamed, users <= all_users]))
    """
    out = run_client(code, hub.environment(tmp_path / "reader"))
    rows, first, joined = json.loads(last_line(out))
    assert set(rows) == {"tiny-shop"} | {
        f"tiny-shop-{table}" for table in ("thoughts", "trees", "sequences", "items", "candidates")
    }
    assert set(rows["tiny-shop"]) == {"train"}  # rationales are written for training targets only
    assert set(rows["tiny-shop-thoughts"]) == {"train", "validation", "test"}
    assert joined
    assert {"prompt_sha256", "model_id", "revision", "seed", "engine", "item_id", "title"} <= set(first)
    stored = read_table(small_run / "rationales" / "rationales.parquet").num_rows
    assert 0 < rows["tiny-shop"]["train"] <= stored

    files = hub.files("alice/reasons", repo_type="dataset")
    tables = [pq.read_table(io.BytesIO(data)) for name, data in files.items() if name.endswith(".parquet")]
    assert len(tables) > 5
    published = b"".join([*files.values(), *(str(table.to_pydict()).encode() for table in tables)])
    sequences = read_table(small_run / "sequences" / "sequences.parquet").to_pydict()
    assert not any(user.encode() in published for user in sequences["user_id"])

    run = tmp_path / "mine"
    reader = hub.environment(tmp_path / "reader")
    for word in ("sequences", "rationales", "candidates", "thoughts"):
        pulse(reader, "pull", "alice/reasons", "--config", f"tiny-shop/{word}", "--run", run)
    mine = read_table(run / "sequences" / "sequences.parquet").to_pydict()
    names = pseudonyms(small_run)
    for column in ("item_ids", "timestamps", "cut"):
        theirs = zip(map(names.get, sequences["user_id"]), sequences[column], strict=True)
        assert dict(zip(mine["user_id"], mine[column], strict=True)) == dict(theirs)
    assert {review for reviews in mine["reviews"] for review in reviews} == {""}
    pulse(reader, "thought-space", "--run", run, "--preset", "demo", "--set", "thought_space.epochs=1")
    assert (run / "thought_space" / "model" / "model.safetensors").exists()


def test_reviews_travel_only_when_asked_for(hub, alice, small_run):
    pulse(alice, "push", "sequences", "alice/open", "--run", small_run, "--config", "tiny", "--include-reviews")
    files = hub.files("alice/open", repo_type="dataset")
    assert b"People's reviews are included" in files["README.md"]
    import io

    import pyarrow.parquet as pq

    reviews = pq.read_table(io.BytesIO(files["tiny/sequences/train.parquet"]))["review"].to_pylist()
    assert any(reviews)


@pytest.mark.slow
def test_metric_and_models_load_from_their_repos(hub, alice, small_run, tmp_path):
    pulse(alice, "push", "metric", "alice/tie-aware-ranking")
    for word in ("thought-space", "sequential", "sentence-transformer"):
        pulse(alice, "push", word, f"alice/{word}", "--run", small_run)
        assert f"alice/{word}" in hub.files(f"alice/{word}")["README.md"].decode()
    code = """
        import json
        import evaluate
        metric = evaluate.load("alice/tie-aware-ranking")
        found = metric.compute(predictions=[[0.2, 0.9, 0.1]], references=[1])["hr@1"]
        from sentence_transformers import SentenceTransformer
        from pulse_hf.models.sasrec import PulseSASRecModel
        from pulse_hf.models.thought_space import PulseThoughtSpaceModel
        space = PulseThoughtSpaceModel.from_pretrained("alice/thought-space")
        other = SentenceTransformer("alice/sentence-transformer")
        ours, theirs = space.encode_rationales(["quiet rooms"]).numpy(), other.encode_document(["quiet rooms"])
        difference = abs(ours - theirs).max()
        scores = PulseSASRecModel.from_pretrained("alice/sequential").eval().scores([[1, 2]])
        print(json.dumps([found, float(difference), list(scores.shape)]))
    """
    found, difference, shape = json.loads(last_line(run_client(code, hub.environment(tmp_path / "cache"))))
    assert found == 1.0
    assert difference < 1e-5
    assert shape == [1, 1 + read_table(small_run / "sequences" / "items.parquet").num_rows]


@pytest.mark.slow
def test_the_snippets_of_the_cards_and_of_readme_run_as_they_stand(hub, alice, shop, small_run, tmp_path):
    for word in ("thought-space", "sequential", "sentence-transformer", "rationales"):
        pulse(alice, "push", word, f"alice/snippets-{word}", "--run", small_run)
    pulse(alice, "push", "rationales", "owner/my-reasons", "--run", small_run, "--config", "my-shop", "--dry-run")
    cards = [
        hub.files("alice/shop")["README.md"],
        *(hub.files(f"alice/snippets-{word}")["README.md"] for word in ("thought-space", "sequential")),
        hub.files("alice/snippets-sentence-transformer")["README.md"],
        hub.files("alice/snippets-rationales", repo_type="dataset")["README.md"],
    ]
    snippets = [code for card in cards for code in re.findall(r"```python\n(.*?)```", card.decode(), re.DOTALL)]
    readme = (Path(__file__).resolve().parents[1] / "README.md").read_text()
    snippets += [code for code in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "runs/demo" in code]
    assert len(snippets) == 7
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "demo").symlink_to(small_run)
    code = """
        import json, os, sys
        os.chdir(sys.argv[1])
        for snippet in json.load(open("snippets.json")):
            exec(compile(snippet, snippet, "exec"), {})
    """
    (tmp_path / "snippets.json").write_text(json.dumps(snippets))
    printed = run_client(code, hub.environment(tmp_path / "cache"), tmp_path)
    assert "because: " in printed
    assert (tmp_path / "my-shop" / "checksums.json").exists()


@pytest.mark.slow
def test_the_space_runs_from_its_repo_alone_and_serves_what_is_published(
    hub, alice, shop, ranked, small_run, tmp_path
):
    from gradio_client import Client

    pulse(alice, "push", "rationales", "alice/browse", "--run", small_run, "--config", "tiny")
    pulse(alice, "push", "space", "alice/app")
    assert "no commit was made" in pulse(alice, "push", "space", "alice/app")
    code = """
        import sys
        from huggingface_hub import snapshot_download
        print(snapshot_download("alice/app", repo_type="space", local_dir=sys.argv[1]))
    """
    reader = hub.environment(tmp_path / "cache")
    run_client(code, reader, tmp_path / "app")
    assert (tmp_path / "app" / "pulse_hf" / "recommender.py").exists()
    published = {"PULSE_REPO_ID": "alice/shop", "PULSE_DATASET_ID": "alice/browse"}
    environment = reader | published | {"GRADIO_SERVER_PORT": "7895", "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    log = (tmp_path / "log").open("w")
    server = subprocess.Popen(
        [sys.executable, "app.py"], cwd=tmp_path / "app", env=environment, stdout=log, stderr=subprocess.STDOUT
    )
    try:
        client = None
        for _ in range(240):
            try:
                client = Client("http://127.0.0.1:7895", verbose=False)
                break
            except Exception:  # not up yet
                assert server.poll() is None, (tmp_path / "log").read_text()[-3000:]
                time.sleep(0.5)
        answer = client.predict(history=HISTORY, words=[], k=4, api_name="/recommend")
        assert answer["reason"] == ranked[0][3]
        assert [one["title"] for one in answer["items"]] == [row[1] for row in ranked]
        assert [one["score"] for one in answer["items"]] == pytest.approx([row[2] for row in ranked], abs=1e-3)
        rationales = client.predict(query="", page=1, api_name="/browse_rationales")
        assert "They" in json.dumps(rationales) or "Their" in json.dumps(rationales)
    finally:
        server.terminate()
        server.wait(20)


def test_mistakes_at_the_command_line_are_sentences(hub, alice, small_run, tmp_path):
    for arguments, code, message in (
        (("push", "everything", "alice/x", "--run", small_run), 2, "cannot be published"),
        (("push", "recommender", "alice/x", "--run", tmp_path), 6, "manifest.json"),
        (("pull", "alice/nothing"), 2, "does not exist, or is private"),
        (("pull", "alice/shop", "--config", "a/b"), 2, "a dataset needs both"),
    ):
        command = [sys.executable, "-m", "pulse_hf.cli.main", *map(str, arguments)]
        done = subprocess.run(command, env=alice, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == code, done.stderr
        assert message in done.stderr
        assert "Traceback" not in done.stderr
        assert alice["HF_TOKEN"] not in done.stderr


def test_a_dry_run_asks_nobody(small_run):
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9"}
    done = pulse(environment, "push", "rationales", "alice/x", "--run", small_run, "--dry-run")
    assert "nothing was sent" in done
    assert re.search(r"[\d,]+  train\.parquet", done)
    assert Path(small_run / "rationales" / "manifest.json").exists()
