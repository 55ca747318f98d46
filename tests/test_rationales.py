"""The stages ``rationales`` and ``thoughts`` on a small run: who is explained, resuming, accounting, cross-fit."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import pytest
import torch

from pulse_hf import artifacts
from pulse_hf.reasoning import rationales as rationale_stage
from pulse_hf.reasoning import thoughts as thought_stage
from pulse_hf.reasoning.generator import Generation, ScriptedGenerator
from pulse_hf.reasoning.rationales import RationaleSettings, rationale_inputs, rationales, write_rationales
from pulse_hf.reasoning.recorded import recorded_rationales
from pulse_hf.reasoning.thoughts import ThoughtSettings, inputs_sha256, thought_inputs, thoughts
from pulse_hf.schema import Decision, Item, Sequence, fold_of

SEED = 4
CATALOGUE = [f"i{number}" for number in range(8)]
ITEMS = {item_id: Item(item_id, f"Thing {item_id}", f"Thing {item_id}") for item_id in CATALOGUE}
WORDS = ("I love quiet things.", "Too loud for me.", "We need soft cloth.", "It matters that it is light.", "Blue.")


def person(number):
    return Sequence(
        f"u{number}",
        tuple(CATALOGUE[(number + step) % 8] for step in range(5)),
        tuple(range(5)),
        (5.0, 2.0, 4.0, 5.0, 3.0),
        tuple(f"{WORDS[(number + step) % 5]} Event {number} {step}." for step in range(5)),
    )


PEOPLE = [person(number) for number in range(12)]
BY_USER = {sequence.user_id: sequence for sequence in PEOPLE}
DECISIONS = [Decision(one.user_id, place, one.split_of(place)) for place in (4, 3, 1, 2) for one in PEOPLE]


class Space:
    """Agreement by letters, so that every number can be made by hand; folds differ by their letter."""

    def __init__(self, letter="e"):
        self.letter = letter
        self.weights = torch.ones(3)
        self.processor = SimpleNamespace(truncated={"history": 0, "rationale": 2})

    def state_dict(self):
        return {"weights": self.weights}

    def _encode(self, texts):
        counts = torch.tensor([[1.0 + text.count(self.letter), 1.0 + text.count("o")] for text in texts])
        return torch.nn.functional.normalize(counts, dim=-1)

    encode_histories = encode_rationales = _encode


@pytest.fixture
def run(tmp_path):
    def tables(name, content):
        def make(work):
            for file, (table, rows) in content.items():
                artifacts.write_table(work / file, table, rows)
            return {}

        artifacts.build(tmp_path / name, artifacts.Fingerprint(name, {}, 0), make)

    tables("sequences", {"sequences.parquet": ("sequences", PEOPLE), "items.parquet": ("items", ITEMS.values())})
    keys = [
        {"decision_id": one.decision_id, "user_id": one.user_id, "position": one.position, "split": one.split}
        for one in DECISIONS
    ]
    tables(
        "candidates",
        {
            "candidates.parquet": (
                "candidates",
                [{**key, "item_ids": CATALOGUE[:3], "target_index": 0} for key in keys],
            )
        },
    )
    neighbours = [{**key, "user_ids": ["u1"], "similarities": [0.5], "item_ids": CATALOGUE[5:7]} for key in keys]
    tables("sequential", {"neighbours.parquet": ("neighbours", neighbours)})
    tables("thought_space", {})
    return tmp_path


@pytest.fixture
def spaces(monkeypatch):
    made = {"model": Space(), "fold-0": Space("a"), "fold-1": Space("i")}
    monkeypatch.setattr(thought_stage, "load_spaces", lambda run: made)
    monkeypatch.setattr(
        thought_stage,
        "_read_inputs",
        lambda run, settings, seed: (
            thought_inputs(
                DECISIONS,
                BY_USER,
                ITEMS,
                {one.decision_id: CATALOGUE[5:7] for one in DECISIONS},
                settings.budget,
                max_events=6,
                review_words=16,
            ),
            {},
        ),
    )
    return made


def extractive(stage=RationaleSettings, **changes):
    return stage(engine="extractive", batch_size=4, **changes)


def rows(run, path):
    return artifacts.read_table(run / path).to_pylist()


def test_only_training_targets_are_explained(run):
    rationales(run, extractive(), seed=SEED)
    made = rows(run, "rationales/rationales.parquet")
    assert [row["decision_id"] for row in made] == [one.decision_id for one in DECISIONS if one.split == "train"]
    assert {row["status"] for row in made} == {"ok"}
    assert all(row["text"] and row["raw"].startswith("Reason:") and row["engine"] == "extractive" for row in made)
    assert {len(row["prompt_sha256"]) for row in made} == {64}
    counts = artifacts.read_manifest(run / "rationales")["counts"]
    assert counts["rows"] == {"read": 24, "kept": 24, "dropped": {}}
    assert len(counts["inputs_sha256"]["rationales"]) == 64
    assert not (run / "rationales" / "shards").exists()


@pytest.mark.parametrize(("position", "listed"), [(4, "test"), (3, "validation"), (4, "train"), (3, "train")])
def test_later_targets_are_refused_whatever_the_decision_says(position, listed):
    with pytest.raises(ValueError, match="training targets only"):
        rationale_inputs([Decision("u1", position, listed)], BY_USER, ITEMS, RationaleSettings())


def test_settings_limit_users_and_decisions(run):
    rationales(run, extractive(training_decisions_per_user=1, max_users=5), seed=SEED)
    made = rows(run, "rationales/rationales.parquet")
    assert len(made) == len({row["user_id"] for row in made}) == 5
    assert {row["position"] for row in made} == {2}


def test_failed_texts_are_retried_with_recorded_seeds_and_then_kept_as_failures():
    prompts = rationale_inputs([Decision(f"u{n}", 2, "train") for n in range(3)], BY_USER, ITEMS, RationaleSettings())

    class Flaky(ScriptedGenerator):
        calls = ()

        def generate(self, prompts, *, width, sampling, seed):
            self.calls = (*self.calls, ([one.key for one in prompts], sampling.temperature, seed))
            good = {"u0#2": 0, "u1#2": 1, "u2#2": 9}
            return [
                [Generation("Reason: fine." if len(self.calls) > good[one.key] else "", num_tokens=1)]
                for one in prompts
            ]

    engine = Flaky({})
    results = write_rationales(prompts, engine, RationaleSettings(), SEED)
    assert [parsed.status for parsed, _, _ in results] == ["ok", "ok", "empty"]
    assert [(keys, temperature) for keys, temperature, _ in engine.calls] == [
        (["u0#2", "u1#2", "u2#2"], 0.0),
        (["u1#2", "u2#2"], 0.7),
        (["u2#2"], 0.7),
    ]
    seeds = [seed for _, _, seed in engine.calls]
    assert len(set(seeds)) == 3
    assert [seed for _, _, seed in results] == seeds == [SEED, *seeds[1:]]


def test_failures_are_counted_and_their_text_kept(run, monkeypatch, caplog):
    scripted = ScriptedGenerator({"u1#1": ["I think so."]}, "Reason: fine.")
    monkeypatch.setattr(rationale_stage, "open_generator", lambda *args, **kwargs: scripted)
    rationales(run, extractive(), seed=SEED)
    (failed,) = [row for row in rows(run, "rationales/rationales.parquet") if row["status"] != "ok"]
    assert (failed["decision_id"], failed["status"], failed["text"], failed["raw"]) == (
        "u1#1",
        "no_marker",
        "",
        "I think so.",
    )
    assert failed["seed"] != SEED
    counts = artifacts.read_manifest(run / "rationales")["counts"]
    assert counts["rows"] == {"read": 24, "kept": 23, "dropped": {"no_marker": 1}}
    assert counts["written_by_this_process"]["retried"] == 1
    assert "rationales failed" not in caplog.text  # more than a tenth is warned of


class KilledError(Exception):
    """Stands for a kill."""


def kill_at(monkeypatch, table, call):
    """Die in the given append to the shards of a table; returns how to live on."""
    append, calls = artifacts.Shards.append, []

    def dying(shards, rows):
        if shards.table == table:
            calls.append(1)
            if len(calls) == call:
                raise KilledError
        append(shards, rows)

    monkeypatch.setattr(artifacts.Shards, "append", dying)
    return lambda: monkeypatch.setattr(artifacts.Shards, "append", append)


def test_a_killed_stage_goes_on_and_gives_the_same_rows(run, monkeypatch):
    rationales(run, extractive(), seed=SEED)
    expected = rows(run, "rationales/rationales.parquet")
    shutil.rmtree(run / "rationales")
    revive = kill_at(monkeypatch, "rationales", 3)
    with pytest.raises(KilledError):
        rationales(run, extractive(), seed=SEED)
    assert not (run / "rationales").exists()
    revive()
    rationales(run, extractive(), seed=SEED)
    assert rows(run, "rationales/rationales.parquet") == expected
    assert artifacts.read_manifest(run / "rationales")["counts"]["written_by_this_process"]["rows"] == 8


@pytest.mark.parametrize("table", ["trees", "thoughts"])
def test_killed_thoughts_go_on_without_loss_or_repetition(run, spaces, monkeypatch, table):
    settings = extractive(ThoughtSettings, users_per_batch=7)
    thoughts(run, settings, seed=SEED)
    expected = [rows(run, f"thoughts/{name}.parquet") for name in ("thoughts", "trees")]
    shutil.rmtree(run / "thoughts")
    revive = kill_at(monkeypatch, table, 3)
    with pytest.raises(KilledError):
        thoughts(run, settings, seed=SEED)
    revive()
    thoughts(run, settings, seed=SEED)
    assert [rows(run, f"thoughts/{name}.parquet") for name in ("thoughts", "trees")] == expected
    assert artifacts.read_manifest(run / "thoughts")["counts"]["written_by_this_process"]["trees"] == 48 - 14


def test_thoughts_of_all_splits_with_their_trees(run, spaces):
    thoughts(run, extractive(ThoughtSettings), seed=SEED)
    made, trees = rows(run, "thoughts/thoughts.parquet"), rows(run, "thoughts/trees.parquet")
    assert [row["decision_id"] for row in made] == [one.decision_id for one in DECISIONS]
    assert len(trees) == 48 * 7
    nodes = {(row["decision_id"], row["node"]): row for row in trees}
    for row in made:
        leaf = nodes[row["decision_id"], row["leaf"]]
        leaves = [nodes[row["decision_id"], number]["agreement"] for number in range(3, 7)]
        assert leaf["depth"] == 2
        assert (row["reason"], row["agreement"]) == (leaf["text"], leaf["agreement"])
        assert row["agreement"] == max(leaves)
        assert row["base_reason"] == nodes[row["decision_id"], 0]["text"]
    counts = artifacts.read_manifest(run / "thoughts")["counts"]
    assert counts["rows"] == {"read": 48, "kept": 48, "dropped": {}}
    assert counts["nodes"] == {"ok": 48 * 7}
    assert set(counts["mean_agreement"]) == {"train", "validation", "test"}
    assert set(counts["encoders_sha256"]) == {"model", "fold-0", "fold-1"}
    assert counts["written_by_this_process"]["ends_trimmed"] == 0
    assert counts["written_by_this_process"]["texts_cut"] == {"history": 0, "rationale": 6}  # of three spaces


def test_training_thoughts_are_judged_by_the_space_that_has_not_seen_their_user(run, spaces):
    thoughts(run, extractive(ThoughtSettings, depth=0), seed=SEED)
    inputs = {one.prompt.key: one for one in thought_stage._read_inputs(run, ThoughtSettings(), SEED)[0]}
    folds = set()
    for row in rows(run, "thoughts/thoughts.parquet"):
        fold = fold_of(row["user_id"], 2, SEED)
        space = spaces[f"fold-{fold}" if row["split"] == "train" else "model"]
        folds.add((row["split"], fold))
        expected = (
            space.encode_histories([inputs[row["decision_id"]].behaviour]) * space.encode_rationales([row["reason"]])
        ).sum()
        assert row["agreement"] == pytest.approx(expected.item(), abs=1e-6)
    assert len(folds) == 6


def test_a_tree_without_any_good_reason_is_an_empty_counted_row(run, spaces, monkeypatch, caplog):
    monkeypatch.setattr(thought_stage, "open_generator", lambda *args, **kwargs: ScriptedGenerator({}, "no marker"))
    thoughts(run, extractive(ThoughtSettings, depth=1), seed=SEED)
    (statuses,) = {(row["reason"], row["agreement"], row["leaf"]) for row in rows(run, "thoughts/thoughts.parquet")}
    assert statuses == ("", None, -1)
    counts = artifacts.read_manifest(run / "thoughts")["counts"]
    assert counts["rows"] == {"read": 48, "kept": 0, "dropped": {"all_reasons_failed": 48}}
    assert counts["nodes"] == {"no_marker": 48 * 3}
    assert "no usable reason" in caplog.text


def test_an_encoder_that_changes_stops_the_stage(run, spaces, monkeypatch):
    class Trains(ScriptedGenerator):
        def generate(self, prompts, **rest):
            spaces["fold-1"].weights += 1
            return super().generate(prompts, **rest)

    monkeypatch.setattr(thought_stage, "open_generator", lambda *args, **kwargs: Trains({}, "Reason: fine."))
    with pytest.raises(artifacts.ArtifactError, match="frozen"):
        thoughts(run, extractive(ThoughtSettings, depth=0), seed=SEED)


def make_inputs(people):
    lent = {one.decision_id: ["i5"] for one in DECISIONS}
    by_user = {one.user_id: one for one in people}
    return thought_inputs(DECISIONS, by_user, ITEMS, lent, ThoughtSettings().budget, max_events=6, review_words=16)


def test_inputs_never_hold_the_target():
    def swapped(sequence, position):
        item_ids, reviews = list(sequence.item_ids), list(sequence.reviews)
        item_ids[position], reviews[position] = "i7", "canary"
        return replace(sequence, item_ids=tuple(item_ids), reviews=tuple(reviews))

    clean = inputs_sha256(make_inputs(PEOPLE))
    assert set(clean) == {
        f"{kind}/{split}" for kind in ("thoughts", "behaviour") for split in ("train", "validation", "test")
    }
    assert inputs_sha256(make_inputs([swapped(one, 4) for one in PEOPLE])) == clean
    later = inputs_sha256(make_inputs([swapped(one, 3) for one in PEOPLE]))
    assert {name for name in clean if later[name] != clean[name]} == {"thoughts/test", "behaviour/test"}


def test_a_decision_without_similar_users_row_is_named():
    with pytest.raises(ValueError, match="u1#2 has no row"):
        thought_inputs(
            [Decision("u1", 2, "train")], BY_USER, ITEMS, {}, ThoughtSettings().budget, max_events=6, review_words=16
        )


def test_other_settings_are_refused_by_name(run):
    rationales(run, extractive(), seed=SEED)
    with pytest.raises(artifacts.ArtifactError, match=r"settings\.max_new_tokens"):
        rationales(run, extractive(max_new_tokens=9), seed=SEED)


@pytest.mark.parametrize("values", [{"retries": 3}, {"training_decisions_per_user": 0}])
def test_impossible_rationale_settings_are_refused(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        RationaleSettings(**values)


def recorded(folder, told, **changes):
    """A file of texts, and the settings that read it."""
    path = folder / "why.jsonl"
    columns = ("user_id", "item_id", "text")
    path.write_text("".join(json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in told))
    return RationaleSettings(engine="recorded", model=str(path), batch_size=4, **changes)


def test_recorded_rationales_are_read_and_every_row_is_accounted_for(run):
    told = [
        ("u0", "i1", "Reason: They love\u200b quiet &amp; soft things."),
        ("u0", "i2", "Because <b>it is light</b>."),
        ("u1", "i3", "They look for wool that lasts."),
        ("u1", "i2", " "),  # no text
        ("u0", "i1", "Another one for the same choice."),
        ("u2", "i5", "u2 chose i5 as validation target."),
        ("u2", "i6", "u2 chose i6 as test target."),
        ("u2", "i2", "What u2 chose first has no history."),
        ("nobody", "i1", "Who is this?"),
    ]
    settings = recorded(run, told)
    rationales(run, settings, seed=SEED)
    written = {row["decision_id"]: row for row in rows(run, "rationales/rationales.parquet")}
    assert list(written) == ["u0#1", "u0#2", "u1#2"]  # as the decisions stand, and nobody else
    assert written["u0#1"]["text"] == "They love quiet & soft things."
    assert {(row["engine"], row["prompt_sha256"]) for row in written.values()} == {("recorded", "")}
    assert {row["model_id"] for row in written.values()} == {"why.jsonl"}
    assert {row["revision"] for row in written.values()} == {artifacts.sha256_of_file(run / "why.jsonl")}
    counts = artifacts.read_manifest(run / "rationales")["counts"]
    assert counts["recorded"]["read"] == len(told) == 3 + sum(counts["recorded"]["dropped"].values())
    assert counts["recorded"]["dropped"] == {
        "another row for the same choice": 1,
        "no text": 1,
        "no training target with a history": 4,
    }
    (run / "why.jsonl").write_text((run / "why.jsonl").read_text().replace("love", "hate"))
    with pytest.raises(artifacts.ArtifactError, match="weights_sha256"):
        rationales(run, settings, seed=SEED)


def test_a_long_recorded_rationale_ends_with_its_last_whole_sentence_and_loops_are_no_reasons(run):
    numbered = " ".join(f"Sentence number {number} of {number * 7} is here." for number in range(30))
    settings = recorded(run, [("u0", "i1", numbered), ("u0", "i2", "It is good and it is good and it is good, " * 5)])
    rationales(run, settings, seed=SEED)
    long, loop = rows(run, "rationales/rationales.parquet")
    assert long["status"] == "ok"
    assert long["text"] == " ".join(numbered.split()[:98])  # 14 sentences of seven words; the 15th is cut
    assert loop["status"] == "looping"


def test_a_recorded_text_keeps_every_word_whatever_it_calls_itself(run):
    told = [
        ("u0", "i1", "**Reason:** They love quiet things."),
        ("u0", "i2", "Main Reason: it is light."),
        ("u1", "i3", "REASON: Wool. Reason: it lasts."),
    ]
    rationales(run, recorded(run, told), seed=SEED)
    texts = [row["text"] for row in rows(run, "rationales/rationales.parquet")]
    assert texts == ["They love quiet things.", "Main reason: it is light.", "Wool. reason: it lasts."]


def test_a_recorded_text_of_an_item_that_is_a_target_too_is_not_taken():
    sequence = Sequence("u", ("a", "b", "c", "d", "b"), (), (None,) * 5, ("",) * 5)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "why.jsonl"
        told = [{"user_id": "u", "item_id": item, "text": "They wore the first one out."} for item in "bc"]
        path.write_text("".join(json.dumps(row) + "\n" for row in told))
        found = recorded_rationales(str(path), [sequence])
    assert set(found.texts) == {"u#2"}  # c; b is the test target, and the text may tell of that
    assert sum(found.count.dropped.values()) == 1


def test_the_latest_recorded_rationale_is_taken_where_only_one_is_asked_for(run):
    settings = recorded(run, [("u0", "i1", "They like it plain.")], training_decisions_per_user=1)
    rationales(run, settings, seed=SEED)
    assert [row["decision_id"] for row in rows(run, "rationales/rationales.parquet")] == ["u0#1"]


def test_a_file_without_a_training_target_is_refused_and_thoughts_cannot_be_recorded(run):
    with pytest.raises(ValueError, match=r"why\.jsonl: none of its 1 rows is of a training target; expected columns"):
        rationales(run, recorded(run, [("u0", "i7", "Nobody chose it.")]), seed=SEED)
    with pytest.raises(ValueError, match=r"gone\.jsonl: found nothing, expected a file"):
        rationales(run, RationaleSettings(engine="recorded", model=str(run / "gone.jsonl")), seed=SEED)
    (run / "why.jsonl").write_text('{"user_id": "u0", "text": "Fine."}\n')
    with pytest.raises(ValueError, match=r"why\.jsonl:1: field 'item_id'.* Correct the row, or take it out\."):
        rationales(run, RationaleSettings(engine="recorded", model=str(run / "why.jsonl")), seed=SEED)
    with pytest.raises(ValueError, match="engine is 'recordd', expected one of .*'extractive', 'recorded'"):
        RationaleSettings(engine="recordd")
    with pytest.raises(ValueError, match="engine is 'recorded', expected one of"):
        thoughts(run, ThoughtSettings(engine="recorded"), seed=SEED)
