"""The whole road on a small embedded world: every stage, the report, the recommender, the command line."""

import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from small_road import small_settings
from test_data import event_row, write_rows
from typer.testing import CliRunner

from pulse_hf.artifacts import (
    ArtifactError,
    content_sha256,
    read_json,
    read_manifest,
    read_table,
    read_tensors,
    verify,
    write_json,
    write_tensors,
)
from pulse_hf.cli.main import app, main
from pulse_hf.composition import _of_writer, _pinned
from pulse_hf.data.world.stage import is_synthetic, load_truth
from pulse_hf.evaluation.evaluate import SYSTEMS
from pulse_hf.hub.files import check_folder, seal_folder
from pulse_hf.hub.model_cards import license_of
from pulse_hf.models.embedded import MINILM_ID, NANO_ID, resolve_model
from pulse_hf.models.scorer.adapter import files_sha256
from pulse_hf.pipeline import run_road, run_stage, settings_of_run, token_budget
from pulse_hf.presets import preset_named
from pulse_hf.reasoning.generator import ScriptedGenerator
from pulse_hf.recommender import Event, PulseRecommender
from pulse_hf.saving import named_models, save_published
from pulse_hf.settings import load_settings, merge, override
from pulse_hf.stages import BASELINES, ROAD, stage_named

FOLDERS = ("world", "sequences", "sequential", "candidates", "rationales", "thought_space", "thoughts", "recommender")


@pytest.fixture(scope="module")
def run(small_run):
    return small_run


@pytest.fixture(scope="module")
def recommender(run):
    return PulseRecommender.from_run(run)


def test_every_stage_leaves_a_whole_artefact_linked_to_its_parents(run):
    for name in FOLDERS:
        verify(run / name)
    known = {read_manifest(run / name)["sha256"] for name in FOLDERS}
    for name in FOLDERS[2:]:
        parents = [
            json.loads(v) for k, v in read_manifest(run / name)["fingerprint"].items() if k.startswith("parents.")
        ]
        assert parents
        assert set(parents) <= known, name
    assert not list(run.glob("*.partial"))


def test_the_report_has_its_fixed_keys_and_the_audit_passed(run):
    report = json.loads((run / "report.json").read_text())
    assert {"protocol", "systems", "comparisons", "audit", "stages", "versions"} <= set(report)
    assert {"split", "negatives", "sampling", "seed", "candidates_sha256", "users", "refit"} <= set(report["protocol"])
    assert set(SYSTEMS) - {*BASELINES, "encoder-tuned+sasrec", "gated", "thought-space"} == set(report["systems"])
    for name in report["systems"]:
        row = report["systems"][name]
        for metric in ("hr@1", "hr@5", "hr@10", "ndcg@10", "mrr"):
            assert 0 <= row[metric]["low"] <= row[metric]["value"] <= row[metric]["high"] <= 1
        assert row["hr@10"]["value"] == 1.0
        assert {"cold", "warm"} <= set(row["slices"])
        assert {"tokens", "seconds", "bytes"} <= set(row["cost"])
    assert report["audit"]["passed"], report["audit"]
    assert "synthetic" in (run / "report.md").read_text().lower()


def test_a_second_run_changes_nothing_and_a_changed_setting_is_refused(run):
    def stamps():
        return {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file() and path.parent != run}

    before, report = stamps(), (run / "report.json").read_bytes()
    run_road(run, small_settings())
    assert stamps() == before
    assert (run / "report.json").read_bytes() == report
    with pytest.raises(ArtifactError, match=r"settings\.num_negatives"):
        run_road(run, override(small_settings(), ["candidates.num_negatives=4"]))


def test_the_same_bytes_whatever_the_hash_seed_the_time_zone_and_the_language(small_run, tmp_path):
    code = """if True:
        import sys
        from pathlib import Path
        sys.path.insert(0, sys.argv[2])
        from small_road import small_settings
        from pulse_hf.pipeline import run_road
        run_road(Path(sys.argv[1]), small_settings(), until="rationales")
    """
    elsewhere = {"PYTHONHASHSEED": "7", "TZ": "Pacific/Kiritimati", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-X", "utf8=0", "-c", code, str(tmp_path / "run"), str(Path(__file__).parent)]
    subprocess.run(command, env={**os.environ, **elsewhere}, check=True, capture_output=True)
    for name in ("world", "sequences", "sequential", "candidates", "rationales"):
        assert content_sha256(tmp_path / "run" / name) == content_sha256(small_run / name), name


def test_recommend_for_a_known_user(recommender):
    user_id = next(iter(recommender.users))
    history = recommender.history_of(user_id)
    ranked = recommender.recommend(history, k=5)
    assert len(ranked) == 5
    assert [one.score for one in ranked] == sorted((one.score for one in ranked), reverse=True)
    assert {one.item_id for one in ranked}.isdisjoint(event.item for event in history)
    assert len({one.rationale for one in ranked}) == 1
    assert all(math.isfinite(one.score) for one in ranked)


def test_scores_depend_neither_on_order_nor_on_company(recommender):
    history = recommender.history_of(next(iter(recommender.users)))
    ids = recommender.catalogue["item_id"].to_pylist()[:12]
    scores = recommender.score(history, ids)
    assert recommender.score(history, ids[::-1])[::-1] == pytest.approx(scores, abs=1e-4)
    assert recommender.score(history, ids[3:4]) == pytest.approx(scores[3:4], abs=1e-4)


def test_a_given_rationale_moves_the_scores_and_is_returned(recommender):
    history = recommender.history_of(next(iter(recommender.users)))
    ids = recommender.catalogue["item_id"].to_pylist()[:10]
    own = recommender.score(history, ids)
    other = recommender.score(history, ids, rationale="They care about rain and wind.")
    assert own != pytest.approx(other, abs=1e-6)
    (first,) = recommender.recommend(history, k=1, candidates=ids, rationale="They care about rain and wind.")
    assert first.rationale == "They care about rain and wind."
    assert -1 <= first.agreement <= 1


@pytest.mark.parametrize(
    "history",
    [
        ["Bamboo Kettle", "An unheard-of thing"],
        [Event("Cork Tray", 5.0, "I care about making less waste.")],
        ["qqqq zzzz"],
        [],
    ],
    ids=["titles", "words", "nonsense", "nobody"],
)
def test_new_users_and_free_text_work(recommender, history):
    assert len(recommender.recommend(history, k=3)) == 3


def test_a_title_finds_its_item_and_a_new_candidate_keeps_its_title(recommender):
    table = recommender.catalogue
    title, item_id = table["title"][0].as_py(), table["item_id"][0].as_py()
    by_title = recommender.recommend([title.upper()], k=2, candidates=[table["title"][1].as_py(), "Brand New Thing"])
    assert {one.item_id for one in by_title} == {table["item_id"][1].as_py(), "Brand New Thing"}
    assert recommender.score([title], ["Brand New Thing"]) == recommender.score([item_id], ["Brand New Thing"])


def test_many_histories_get_what_each_gets_alone(run):
    recommender = PulseRecommender.from_run(run, dtype=torch.float32)  # in bfloat16 rounding may choose another word
    users = list(recommender.users)[:4]
    histories = [*map(recommender.history_of, users), [], ["Bamboo Kettle", Event("An unheard-of thing", 4)]]
    alone = [recommender.recommend(history, k=5) for history in histories]
    together = PulseRecommender(recommender.parts).recommend_many(histories, k=5)
    assert len({ranked[0].rationale for ranked in together}) > 2
    for one, other in zip(together, alone, strict=True):
        assert [(found.item_id, found.rationale) for found in one] == [(it.item_id, it.rationale) for it in other]
        for found, it in zip(one, other, strict=True):
            assert found.score == pytest.approx(it.score, abs=1e-4)
            assert found.agreement == pytest.approx(it.agreement, abs=1e-4)


def test_explain_gives_the_whole_tree(recommender):
    tree = recommender.explain(recommender.history_of(next(iter(recommender.users))))
    assert len(tree.nodes) == 3
    assert tree.chosen is not None
    assert tree.chosen.agreement == max(
        node.agreement for node in tree.nodes if node.depth == 1 and node.status == "ok"
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r: r.recommend(["x"], k=0), "k is 0"),
        (lambda r: r.recommend(["x"], candidates=[]), "no candidates"),
        (lambda r: r.recommend("one string"), "expected a list"),
        (lambda r: r.recommend(["x"], k=2.5), r"k is 2\.5; expected a whole number"),
        (lambda r: r.recommend([" "]), "an item is empty"),
        (lambda r: r.history_of("nobody"), "not known here"),
    ],
)
def test_misuse_is_told_plainly(recommender, call, message):
    with pytest.raises(ValueError, match=message):
        call(recommender)


def test_a_saved_recommender_is_the_same_and_holds_no_user(recommender, tmp_path):
    history = recommender.history_of(next(iter(recommender.users)))
    recommender.save_pretrained(tmp_path / "shop")
    loaded = PulseRecommender.from_pretrained(tmp_path / "shop")
    assert loaded.recommend(history, k=4) == recommender.recommend(history, k=4)
    assert loaded.users == {}
    files = [path for path in (tmp_path / "shop").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {
        ".json",
        ".safetensors",
        ".parquet",
        ".jinja",
        ".txt",
        ".md",
        ".py",
    }  # .py: the tower's own source
    tables = [read_table(path).to_pylist() for path in files if path.suffix == ".parquet"]  # packed on the disk
    assert tables
    text = b"".join([json.dumps(tables).encode(), *(path.read_bytes() for path in files)])
    assert not any(user_id.encode() in text for user_id in recommender.users)


def test_a_recommender_loads_in_the_precision_and_place_asked_for(recommender, tmp_path):
    history = recommender.history_of(next(iter(recommender.users)))
    recommender.save_pretrained(tmp_path / "shop")
    halved = PulseRecommender.from_pretrained(tmp_path / "shop", device="cpu", dtype=torch.bfloat16)
    weights = halved.parts.scorer.model.named_parameters()
    assert {weight.dtype for name, weight in weights if "lora_" not in name} == {torch.bfloat16}
    assert halved.parts.generator.model.dtype == torch.bfloat16  # who writes, too
    whole = PulseRecommender.from_pretrained(tmp_path / "shop").parts.scorer
    assert {weight.dtype for weight in whole.parameters()} == {torch.float32}
    names = list(recommender.parts.items)[:5]
    given = {"rationale": "They look for something quiet."}
    assert halved.score(history, names, **given) == pytest.approx(recommender.score(history, names, **given), abs=0.1)


def test_a_merged_recommender_scores_the_same_without_an_adapter(recommender, tmp_path):
    history = recommender.history_of(next(iter(recommender.users)))
    names = list(recommender.parts.items)[:6]
    recommender.save_pretrained(tmp_path / "shop", merge=True)
    assert not (tmp_path / "shop" / "adapter").exists()
    merged = PulseRecommender.from_pretrained(tmp_path / "shop")
    assert merged.score(history, names) == pytest.approx(recommender.score(history, names), abs=1e-4)
    merged.save_pretrained(tmp_path / "again")  # a loaded one can be kept again
    assert (tmp_path / "again" / "checksums.json").read_text() == (tmp_path / "shop" / "checksums.json").read_text()
    recommender.save_pretrained(tmp_path / "shop")  # over an earlier save: nothing of that stays
    assert not (tmp_path / "shop" / "merged").exists()
    assert (tmp_path / "shop" / "adapter").is_dir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("mine")
    with pytest.raises(ArtifactError, match="holds other files"):
        recommender.save_pretrained(tmp_path / "full")


@pytest.mark.parametrize("merge", [False, True])
def test_a_recommender_is_saved_over_itself(recommender, tmp_path, monkeypatch, merge):
    def full(*_):
        raise OSError("full")

    names = list(recommender.parts.items)[:4]
    recommender.save_pretrained(tmp_path / "shop")
    sealed = (tmp_path / "shop" / "checksums.json").read_bytes()
    loaded = PulseRecommender.from_pretrained(tmp_path / "shop")
    with monkeypatch.context() as broken:
        broken.setattr("pulse_hf.saving.write_json", full)
        with pytest.raises(OSError, match="full"):
            loaded.save_pretrained(tmp_path / "shop", merge=merge)
    assert (tmp_path / "shop" / "checksums.json").read_bytes() == sealed
    check_folder(tmp_path / "shop")  # what fails leaves it as it was
    loaded.save_pretrained(tmp_path / "shop", merge=merge)
    assert not [path.name for path in (tmp_path / "shop").iterdir() if path.name.startswith(".")]
    again = PulseRecommender.from_pretrained(tmp_path / "shop")
    assert again.score(names[:2], names) == pytest.approx(recommender.score(names[:2], names), abs=1e-4)
    assert (tmp_path / "shop" / "merged").is_dir() == merge


def test_a_recommender_is_saved_through_a_link_and_names_what_it_does_not_hold(recommender, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "shop").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / ".saving" / "new").mkdir(parents=True)
    recommender.save_pretrained(tmp_path / "shop")
    recommender.save_pretrained(tmp_path / "shop")
    check_folder(tmp_path / "elsewhere")
    assert not list((tmp_path / "elsewhere").glob(".saving*"))  # nor what a killed save left
    assert named_models(tmp_path / "shop") == [str(tmp_path / "shop" / "base"), MINILM_ID]
    monkeypatch.setattr("pulse_hf.saving.MAX_INCLUDED_BASE_BYTES", 0)
    recommender.save_pretrained(tmp_path / "shop")
    assert named_models(tmp_path / "shop") == [NANO_ID, MINILM_ID]
    record = read_json(tmp_path / "shop" / "pulse.json")
    write_json(tmp_path / "shop" / "pulse.json", record | {"thoughts": record["thoughts"] | {"model": "owner/writer"}})
    assert named_models(tmp_path / "shop") == [NANO_ID, "owner/writer", MINILM_ID]
    assert named_models(tmp_path / "shop", writes=False) == [NANO_ID, MINILM_ID]
    seal_folder(tmp_path / "shop", "recommender")
    with pytest.raises(ConnectionError, match="owner/writer is not in the cache"):
        PulseRecommender.from_pretrained(tmp_path / "shop", local_files_only=True)
    write_json(tmp_path / "shop" / "pulse.json", record | {"encoder": "owner/encoder"})
    seal_folder(tmp_path / "shop", "recommender")
    with pytest.raises(ConnectionError, match="owner/encoder is not in the cache"):
        PulseRecommender.from_pretrained(tmp_path / "shop", local_files_only=True)


def test_a_base_model_of_this_machine_travels_under_its_name_and_without_what_is_no_data(recommender, tmp_path):
    base = tmp_path / "secret place" / "tiny-base"
    shutil.copytree(resolve_model(NANO_ID)[0], base)
    for name in (".git/HEAD", "pytorch_model.bin", "modeling_x.py"):
        (base / name).parent.mkdir(exist_ok=True)
        (base / name).write_text("x")
    record = {**recommender.parts.record, "base_model": str(base)}
    record["thoughts"] = {**record["thoughts"], "model": str(base)}
    scorer = shutil.copytree(recommender.parts.folder, tmp_path / "scorer")
    told = read_json(scorer / "scorer.json")
    write_json(scorer / "scorer.json", told | {"base": told["base"] | {"id": str(base)}})
    config = scorer / "adapter" / "adapter_config.json"
    write_json(config, read_json(config) | {"base_model_name_or_path": str(base)})
    parts = replace(recommender.parts, record=record, folder=scorer, scorer_sha256=files_sha256(scorer))
    save_published(parts, tmp_path / "shop", None)
    texts = "".join(path.read_text() for path in (tmp_path / "shop").rglob("*.json"))
    assert "secret place" not in texts
    assert read_json(tmp_path / "shop" / "pulse.json")["base_model"] == "tiny-base"
    assert {path.name for path in (tmp_path / "shop" / "base").iterdir()}.isdisjoint({".git", "pytorch_model.bin"})
    names = list(recommender.parts.items)[:4]
    loaded = PulseRecommender.from_pretrained(tmp_path / "shop")
    assert loaded.recommend(names[:2], k=2) == recommender.recommend(names[:2], k=2)


def test_a_saved_recommender_with_a_planted_weight_or_server_is_refused(recommender, tmp_path):
    import torch

    recommender.save_pretrained(tmp_path / "shop")
    head = tmp_path / "shop" / "score_head.safetensors"
    state = read_tensors(head)
    write_tensors(head, {name: torch.full_like(value, torch.nan) for name, value in state.items()})
    seal_folder(tmp_path / "shop", "recommender")
    with pytest.raises(ArtifactError, match="not finite"):
        PulseRecommender.from_pretrained(tmp_path / "shop")
    write_tensors(head, {"score.weight": torch.zeros(1, 3)})
    seal_folder(tmp_path / "shop", "recommender")
    with pytest.raises(ArtifactError, match="belongs to another scorer"):
        PulseRecommender.from_pretrained(tmp_path / "shop")
    write_tensors(head, state)
    record = json.loads((tmp_path / "shop" / "pulse.json").read_text())
    record["thoughts"] |= {"engine": "server", "model": "evil@http://127.0.0.1:9/v1"}
    (tmp_path / "shop" / "pulse.json").write_text(json.dumps(record))
    seal_folder(tmp_path / "shop", "recommender")
    with pytest.raises(ArtifactError, match="pass generator="):
        PulseRecommender.from_pretrained(tmp_path / "shop")
    given = ScriptedGenerator({}, default="Reason: They care about quiet rooms.")
    loaded = PulseRecommender.from_pretrained(tmp_path / "shop", generator=given)
    assert loaded.recommend(["a kettle"], k=1)[0].rationale == "They care about quiet rooms."


def test_a_writer_of_reasons_with_another_tokenizer_is_refused(recommender, tmp_path):
    recommender.save_pretrained(tmp_path / "shop")
    record = json.loads((tmp_path / "shop" / "pulse.json").read_text())
    assert record["writer_tokenizer_sha256"] == recommender.parts.generator.tokenizer_sha256 != ""
    record["writer_tokenizer_sha256"] = "0" * 64  # as if the base folder's tokenizer were another one now
    (tmp_path / "shop" / "pulse.json").write_text(json.dumps(record))
    seal_folder(tmp_path / "shop", "recommender")
    with pytest.raises(ArtifactError, match="reasons were written with the tokenizer and chat template of sha256 000"):
        PulseRecommender.from_pretrained(tmp_path / "shop")


def test_a_saved_recommender_refuses_other_prompts_and_another_base(recommender, tmp_path):
    recommender.save_pretrained(tmp_path / "shop")
    record = json.loads((tmp_path / "shop" / "pulse.json").read_text())
    (tmp_path / "shop" / "pulse.json").write_text(
        json.dumps({**record, "prompts": {**record["prompts"], "score": "0" * 64}})
    )
    with pytest.raises(ArtifactError, match=r"damaged: pulse\.json"):
        PulseRecommender.from_pretrained(tmp_path / "shop")
    seal_folder(tmp_path / "shop", "recommender")
    with pytest.raises(ArtifactError, match=r"other prompts \(score\)"):
        PulseRecommender.from_pretrained(tmp_path / "shop")
    (tmp_path / "shop" / "pulse.json").write_text(json.dumps(record))
    weights = tmp_path / "shop" / "base" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    with pytest.raises(ArtifactError, match=r"damaged: .*base/model\.safetensors"):
        PulseRecommender.from_pretrained(tmp_path / "shop")
    seal_folder(tmp_path / "shop", "recommender")
    with pytest.raises(ArtifactError, match="base model"):
        PulseRecommender.from_pretrained(tmp_path / "shop")
    with pytest.raises(ArtifactError, match="not a saved recommender"):
        PulseRecommender.from_pretrained(tmp_path)


def test_parts_of_different_shops_are_refused_with_their_sizes(recommender, tmp_path):
    recommender.save_pretrained(tmp_path / "shop")
    vectors = tmp_path / "shop" / "catalogue" / "item_vectors.safetensors"
    whole = read_tensors(vectors)["item_vectors"]
    n = len(whole)
    write_tensors(vectors, {"item_vectors": whole[:-1]})
    seal_folder(tmp_path / "shop", "recommender")
    with pytest.raises(ArtifactError, match=rf"catalogue {n}, item vectors {n - 1}, sequential model {n}"):
        PulseRecommender.from_pretrained(tmp_path / "shop")
    write_tensors(vectors, {"item_vectors": whole})
    reasons = tmp_path / "shop" / "thought_space" / "reasons.safetensors"
    stored = read_tensors(reasons)
    width = stored["vectors"].shape[1]
    write_tensors(reasons, stored | {"vectors": stored["vectors"][:, :-1]})
    seal_folder(tmp_path / "shop", "recommender")
    with pytest.raises(ArtifactError, match=rf"rationales have {width - 1} numbers, the thought space gives {width}"):
        PulseRecommender.from_pretrained(tmp_path / "shop")


def pulse(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "pulse_hf.cli.main", *arguments], capture_output=True, text=True, check=False
    )


def test_the_command_line_recommends_and_audits(run):
    done = pulse("recommend", "--run", str(run), "--history", "Bamboo Kettle", "--history", "Cork Tray", "-k", "2")
    assert done.returncode == 0, done.stderr
    assert "because:" in done.stdout
    assert " 2. " in done.stdout
    done = pulse("audit", "--run", str(run))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ok" in done.stdout


def test_the_command_line_says_what_is_wrong(tmp_path):
    done = pulse("prepare", "--run", str(tmp_path))
    assert done.returncode == 2
    assert "there is no data to read" in done.stderr
    done = pulse("run", "--set", "sequential.dimm=3")
    assert done.returncode == 2
    assert "unknown setting 'dimm'" in done.stderr
    assert "Traceback" not in done.stderr


def test_help_lists_every_stage():
    done = pulse("--help")
    assert done.returncode == 0
    for stage in ROAD:
        assert stage.word in done.stdout


def test_the_command_tells_its_version_and_every_setting(tmp_path):
    assert CliRunner().invoke(app, ["--version"]).output.strip() == version("pulse-hf")
    printed = CliRunner().invoke(app, ["settings", "--preset", "demo", "--set", "seed=3"]).output
    (tmp_path / "mine.json").write_text(printed)
    assert load_settings(tmp_path / "mine.json", preset_named("small")) == override(preset_named("demo"), ["seed=3"])


def test_a_stage_that_is_left_out_still_ends_the_road(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr("pulse_hf.pipeline.run_stage", lambda stage, *_, **__: made.append(stage.word))
    run_road(tmp_path, preset_named("small"), until="world")
    assert made == []
    run_road(tmp_path, preset_named("demo"), until="baselines")
    assert made[-1] == "recommender"


@pytest.mark.parametrize("name", ["reviews", "metadata"])
def test_files_of_ones_own_are_not_passed_over(tmp_path, name):
    settings = small_settings()
    settings = replace(settings, prepare=replace(settings.prepare, **{name: "mine.csv"}))
    with pytest.raises(ValueError, match=f"prepare.{name} is 'mine.csv', but these settings make a shop"):
        run_road(tmp_path, settings, until="prepare")


def test_who_has_everything_is_recommended_nothing(recommender):
    assert recommender.recommend(list(recommender.parts.items), k=3) == []


def test_a_world_never_gets_into_a_run_of_other_data(tmp_path, monkeypatch):
    log = write_rows(tmp_path / "log.jsonl", [event_row(f"u{n % 5}", f"i{n}", n + 1) for n in range(40)])
    words = ["prepare.format=table", f"prepare.reviews={log}", "prepare.min_item_events=0"]
    own, run = override(preset_named("small"), words), tmp_path / "run"
    with pytest.raises(ValueError, match="add --preset small, or leave prepare.reviews out"):
        run_road(run, override(preset_named("demo"), words))
    assert not (run / "world").exists()
    run_road(run, own, until="prepare")
    with pytest.raises(ValueError, match=r"holds a run of other data.* add --preset small"):
        run_road(run, preset_named("demo"))
    assert not (run / "world").exists()
    # Without a preset the command takes the run's own settings.
    taken = []
    monkeypatch.setattr("pulse_hf.pipeline.run_road", lambda run, settings, **_: taken.append(settings))
    done = CliRunner().invoke(app, ["run", "--run", str(run), "--until", "prepare", "--set", "seed=3"])
    assert done.exit_code == 0, done.output
    assert taken == [override(own, ["seed=3"])]
    # One that got there by another way is not taken for the run's.
    run_stage(stage_named("world"), run, preset_named("demo"))
    assert not is_synthetic(run)
    assert load_truth(run) is None
    assert license_of(run) is None


@pytest.mark.parametrize("preset", ["demo", "small", "paper"])
def test_a_run_keeps_its_settings_and_single_stages_take_them(tmp_path, monkeypatch, preset):
    settings = override(preset_named(preset), ["seed=5", "prepare.split=people"])
    monkeypatch.setattr("pulse_hf.pipeline.run_stage", lambda *_, **__: None)
    run_road(tmp_path / "run", settings)
    assert settings_of_run(tmp_path / "run") == settings
    assert settings_of_run(tmp_path) is None
    taken = []
    monkeypatch.setattr("pulse_hf.pipeline.run_stage", lambda stage, run, chosen, **_: taken.append(chosen) or run)
    for words in ([], ["--set", "evaluate.ablations=true"], ["--preset", "small"]):
        CliRunner().invoke(app, ["evaluate", "--run", str(tmp_path / "run"), *words], catch_exceptions=False)
    assert taken == [settings, override(settings, ["evaluate.ablations=true"]), preset_named("small")]


def test_refused_settings_are_not_kept(run):
    kept = (run / "settings.json").read_text()
    for before in (kept, None):
        if before is None:  # a run of an earlier version
            (run / "settings.json").unlink()
        with pytest.raises(ArtifactError, match=r"settings\.num_negatives"):
            run_road(run, override(small_settings(), ["candidates.num_negatives=4"]))
        assert settings_of_run(run) == (small_settings() if before else None)
    (run / "settings.json").write_text(kept)


def test_a_model_of_the_hub_is_pinned_to_the_commit_a_stage_used():
    def used(revision):
        return {"fingerprint": {"model.revision": json.dumps(revision)}}

    commit = "0123456789" * 4
    assert _pinned("owner/writer", used(commit)) == f"owner/writer@{commit}"
    assert _pinned("owner/writer@v1", used(commit)) == f"owner/writer@{commit}"  # a branch moves, a tag may
    for name, revision in ((NANO_ID, "package"), (MINILM_ID, commit)):
        assert _pinned(name, used(revision)) == name
    assert _pinned("owner/writer", {"fingerprint": {}}) == "owner/writer"
    base, engine = {"id": "owner/base", "revision": commit}, "transformers"
    for name, revision, kept in (
        ("owner/base", commit, "owner/base"),
        ("owner/base@main", commit, "owner/base"),  # the same commit by another name is loaded once
        ("owner/base@v1", commit[::-1], f"owner/base@{commit[::-1]}"),
        ("owner/writer@v1", commit, f"owner/writer@{commit}"),
    ):
        assert _of_writer({"engine": engine, "model": name}, used(revision), base)["model"] == kept


def test_half_a_configuration_is_told():
    done = CliRunner().invoke(app, ["pull", "owner/x", "--config", "shop", "--run", "y"])
    assert "expected CONFIG/ARTEFACT, for example shop/rationales" in str(done.exception)


def test_a_shop_that_no_settings_make_is_told(tmp_path):
    with pytest.raises(ValueError, match="make no shop of their own; add --preset demo"):
        run_stage(stage_named("world"), tmp_path, preset_named("small"))


def test_a_missing_extra_is_named(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "gradio" else 1 / 0)
    monkeypatch.setattr("sys.argv", ["pulse", "space"])
    monkeypatch.setattr("signal.signal", lambda *_: None)  # else its handlers outlive the test
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "pip install 'pulse-hf[space]'" in capsys.readouterr().err


def test_settings_are_strict_about_names_and_types():
    settings = preset_named("demo")
    with pytest.raises(ValueError, match=r"systems: found 'pulse', expected a list, for example \[\"pulse\"\]"):
        merge(settings, {"evaluate": {"systems": "pulse"}}, "file")
    assert merge(settings, {"sequential": {"dim": 16}, "seed": 3}, "file").sequential.dim == 16
    with pytest.raises(ValueError, match="unknown setting 'nope'"):
        merge(settings, {"nope": 1}, "file")
    with pytest.raises(ValueError, match="dim"):
        merge(settings, {"sequential": {"dim": "wide"}}, "file")
    with pytest.raises(ValueError, match="no preset"):
        preset_named("huge")
    budget = token_budget(settings)
    assert budget["thoughts a decision"] == 3
    assert budget["decisions"] == 1500 + 200 + 250
    assert budget["rationale tokens"] == 1500 * 7 * settings.rationales.max_new_tokens
