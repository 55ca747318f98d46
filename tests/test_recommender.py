"""A recommender without its models: what is refused or mended before any of them is read or asked."""

import copy
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pulse_hf.artifacts import ArtifactError, replacing, write_json
from pulse_hf.cli.show import show_recommendations
from pulse_hf.composition import FORMAT_VERSION
from pulse_hf.hub.files import check_folder, seal_folder
from pulse_hf.reasoning.examples import PromptShape
from pulse_hf.reasoning.generator import Generation, ScriptedGenerator
from pulse_hf.reasoning.shared_reasons import SharedReasons
from pulse_hf.recommender import Event, PulseRecommender
from pulse_hf.retrieval.retriever import Pool
from pulse_hf.schema import Item

ITEMS = {one: Item(one, one, one) for one in ("kettle", "tray")}


@pytest.fixture
def modelless():
    """It knows its catalogue and nothing else: whatever asks a model fails otherwise than by a refusal."""
    record = {
        "encoder": "none is asked",
        "neighbours": {"num_neighbours": 1, "neighbour_items": 1},
        "thoughts": {"budget": {}},
    }
    vectors = np.zeros((2, 2), np.float32)
    return PulseRecommender(
        SimpleNamespace(items=ITEMS, item_vectors=vectors, record=record, sequential=None, pool=None)
    )


def test_no_candidates_are_refused_before_a_reason_is_drafted(modelless):
    for ask in (
        lambda: modelless.recommend(["kettle"], candidates=[]),
        lambda: modelless.recommend([], candidates=()),
        lambda: modelless.score(["kettle"], []),
        lambda: modelless.score([], [], rationale="They care about quiet rooms."),
    ):
        with pytest.raises(ValueError, match="there are no candidates to score"):
            ask()


def test_what_is_no_number_or_no_text_is_refused_with_what_was_found(modelless):
    given = ["kettle"]
    for ask, said in (
        (lambda: modelless.recommend(given, k=2.0), r"k is 2\.0; expected a whole number"),
        (lambda: modelless.recommend(given, k="3"), "k is '3'; expected a whole number"),
        (lambda: modelless.recommend(given, k=True), "k is True; expected a whole number"),
        (lambda: modelless.recommend_many([given], k=0), "k is 0; expected a whole number"),
        (lambda: modelless.recommend(given, candidates=given, rationale=5), "rationale is 5; expected a text"),
        (lambda: modelless.score(given, given, rationale=["x"]), r"rationale is \['x'\]; expected a text"),
        (lambda: modelless.embed(given, "abc"), "found 'abc', expected a list of texts"),
        (lambda: modelless.embed(given, ["a", 5]), r"found \['a', 5\], expected a list of texts"),
        (lambda: modelless.explain([Event("kettle", rating="five")]), "rating is 'five'; expected a number"),
        (lambda: modelless.explain([Event("kettle", review=3)]), "review is 3; expected a text"),
        (lambda: modelless.recommend_many("kettle"), "found 'kettle', expected a list of histories"),
        (lambda: modelless.recommend_many(None), "found None, expected a list of histories"),
        (lambda: modelless.recommend(None), "found None, expected a list, in order"),
        (lambda: modelless.recommend({"kettle", "cup"}), "expected a list, in order"),
        (lambda: modelless.embed(given, None), "found None, expected a list of texts"),
    ):
        with pytest.raises(ValueError, match=said):
            ask()


# -- a recommender of one's own making: letters for a space, votes for a scorer ----------------------


class Letters:
    """A thought space in which texts of like letters are near each other; it notes what it read."""

    config = SimpleNamespace(max_events=5, review_words=20)

    def __init__(self):
        self.read = []

    def _encode(self, texts):
        self.read += texts
        counts = torch.tensor([[text.count(letter) + 0.1 for letter in "aeioukt"] for text in texts])
        return torch.nn.functional.normalize(counts, dim=1)

    def encode_histories(self, texts, batch_size=64):
        return self._encode(texts)

    def encode_rationales(self, texts, batch_size=64):
        return self._encode(texts)

    def agreement(self, told, reasons):
        return self._encode(reasons) @ self._encode([told])[0]


class Keyed(ScriptedGenerator):
    """Writes by the prompt's key and last message, as a sampling engine does."""

    def generate(self, prompts, *, width, sampling, seed):
        self.asked = [*getattr(self, "asked", []), [prompt.key for prompt in prompts]]
        return [
            [Generation(f"Reason: They like {sum(map(ord, f'{prompt}{sample}')):x}.") for sample in range(width)]
            for prompt in prompts
        ]


@pytest.fixture
def parts():
    ids = ("kettle", "tray", "lamp", "rug", "kite")
    space, places = Letters(), {one: place for place, one in enumerate(ids)}
    reasons = space._encode([f"They like {one}s." for one in ids]).numpy()
    record = {
        "encoder": "none is asked",
        "neighbours": {"num_neighbours": 1, "neighbour_items": 1},
        "thoughts": {"depth": 1, "width": 2, "budget": {}},
        "seed": 0,
    }
    asked = []
    return SimpleNamespace(
        items={one: Item(one, one, one) for one in ids},
        item_vectors=np.eye(5, dtype=np.float32),
        record=record,
        sequential=SimpleNamespace(
            user_vectors=lambda histories: torch.tensor([[1.0, sum(one)] for one in histories]),
            scores=lambda histories: torch.tensor(
                [[0.0, *(5.0 - sum(one) % n for n in range(1, 6))] for one in histories]
            ),
        ),
        pool=Pool(np.array([[1, 2], [1, 9]], np.float32), [("lamp", "rug"), ("tray",)]),
        generator=Keyed({}),
        thought_space=space,
        shared=SharedReasons(reasons, np.arange(5), places, space),
        shape=PromptShape(shared_temperature=0.2),
        scorer=SimpleNamespace(
            reads_text=False, feature_score=SimpleNamespace(weight=torch.tensor([[1.0, 0.5]])), asked=asked
        ),
        processor=SimpleNamespace(
            prompt_fits=lambda prompt: bool(asked.append(prompt)) or True, forget=lambda beyond: None
        ),
    )


def test_an_item_given_by_id_and_by_title_is_ranked_once_and_scored_twice(parts):
    parts.items["tray"] = Item("tray", "Cork Tray", "Cork Tray")
    recommender, given = PulseRecommender(parts), ["tray", "Cork Tray", "lamp", "tray"]
    ranked = recommender.recommend(["kettle"], candidates=given)
    assert sorted(one.item_id for one in ranked) == ["lamp", "tray"]
    scores = recommender.score(["kettle"], given)
    assert scores[0] == scores[1] == scores[3]
    assert {one.item_id: one.score for one in ranked} == {"tray": scores[0], "lamp": scores[2]}


def test_words_are_cleaned_as_the_pipeline_cleans_them(parts):
    recommender = PulseRecommender(parts)
    event, dirty = Event("kettle", 4, "quiet &amp; <b>light</b>"), "They like\u200b tea &amp;  rugs."
    clean = Event("kettle", 4, "quiet & light")
    assert recommender.score([event], ["tray"]) == recommender.score([clean], ["tray"])
    assert "kettle: quiet & light" in parts.thought_space.read
    assert not [text for text in parts.thought_space.read if "&amp;" in text]
    (found,) = recommender.recommend([event], k=1, rationale=dirty)
    assert found.rationale == "They like tea & rugs."
    behaviour, (reason,) = recommender.embed([event], [dirty])
    assert found.agreement == pytest.approx(float(behaviour @ reason), abs=1e-6)
    for broken in ("\ud83d", "half of \udc00 it"):
        parts.thought_space.read.clear()
        recommender.recommend([Event("kettle", review=broken)], candidates=[broken, "tray"], rationale=broken)
        recommender.embed(["kettle"], [broken])
        assert parts.thought_space.read
        "".join(parts.thought_space.read).encode()


def test_a_copy_answers_alike_and_apart(parts):
    recommender = PulseRecommender(parts)
    expected = recommender.recommend(["kettle"], k=3)
    other = copy.deepcopy(recommender)
    assert other.recommend(["kettle"], k=3) == expected
    assert other._turn is not recommender._turn
    assert other.parts.shared is not recommender.parts.shared
    assert not copy.copy(recommender)._steps.trees
    assert recommender._steps.trees


def test_a_tree_that_was_given_out_changes_nothing(parts):
    recommender = PulseRecommender(parts)
    tree = recommender.explain(["kettle"])
    expected, chosen = copy.deepcopy(tree), recommender.recommend(["kettle"], k=1)
    tree.leaf = -1
    tree.nodes.clear()
    tree.prompt.messages[0]["content"] = ""
    assert recommender.explain(["kettle"]) == expected
    assert recommender.recommend(["kettle"], k=1) == chosen


def test_nothing_agrees_with_an_empty_history(parts):
    recommender = PulseRecommender(parts)
    tree = recommender.explain([])
    assert tree.chosen.depth == 1
    assert {node.agreement for node in tree.nodes} == {None}
    assert {node.status for node in tree.nodes} == {"ok"}
    for rationale in (None, "They like tea."):
        (found,) = recommender.recommend([], k=1, rationale=rationale)
        assert found.agreement is None
        assert found.rationale == (rationale or tree.chosen.text)
        assert parts.scorer.asked[-1].endswith("Agreement with their behaviour: none\n")
    parts.thought_space.agreement = None  # is it asked? then it fails
    parts.shared.forget(beyond=0)
    assert recommender.recommend([], k=1, rationale="They like tea.")[0].agreement is None
    mixed = PulseRecommender(parts).recommend_many([["kettle"], []], k=1)
    assert [one[0].agreement is None for one in mixed] == [False, True]
    assert mixed[1] == recommender.recommend([], k=1)


def test_many_histories_are_answered_together_as_one_by_one(parts):
    words = Event("kettle", 4.0, "so quiet")
    everything = list(parts.items)
    histories = [["kettle"], ["tray"], [words], ["kettle", "lamp"], [], ["kettle"], everything, ["lamp", "kettle"]]
    for candidates in (None, ["rug", "kite", "rug"]):
        alone = [PulseRecommender(parts).recommend(one, 2, candidates) for one in histories]
        parts.generator.asked = []
        recommender = PulseRecommender(parts)
        recommender.explain(["tray"])
        together = recommender.recommend_many(histories, 2, candidates)
        assert len(parts.generator.asked) == 4  # base reasons and refinements: of one alone, of all others
        keys = parts.generator.asked[2]
        assert len(keys) == len(set(keys)) == (5 if candidates is None else 6)
        for one, other in zip(together, alone, strict=True):
            assert [found.item_id for found in one] == [found.item_id for found in other]
            assert [found.rationale for found in one] == [found.rationale for found in other]
            assert [found.score for found in one] == pytest.approx([found.score for found in other], abs=1e-5)
    assert len({found[0].rationale for found in together}) > 3
    assert PulseRecommender(parts).recommend_many([]) == []


def test_more_histories_than_trees_are_kept(parts, monkeypatch):
    monkeypatch.setattr("pulse_hf.answering.KEPT_THOUGHTS", 2)
    recommender = PulseRecommender(parts)
    histories = [[one] for one in parts.items]
    assert [len(one) for one in recommender.recommend_many(histories, k=1)] == [1] * 5
    assert len(recommender._steps.trees) == 2


RECORD = {
    "format_version": FORMAT_VERSION,
    "base_model": "owner/base",
    "encoder": "a/b",
    "seed": 0,
    "prompts": {},
    "neighbours": {"num_neighbours": 1, "neighbour_items": 1},
    "thoughts": {"engine": "transformers", "model": "owner/writer", "batch_size": 1, "budget": {}},
}


def write_shop(folder: Path, record: dict) -> None:
    """Of a saved recommender what tells which models it names."""
    (folder / "base").mkdir()
    write_json(folder / "base" / "config.json", {})
    write_json(folder / "pulse.json", record)
    seal_folder(folder, "recommender")


def save_anew(folder: Path, record: dict) -> None:
    with replacing(folder, lambda: ["base", "pulse.json", "checksums.json"], last="checksums.json") as new:
        write_shop(new, record)


def test_a_killed_save_is_finished_before_its_models_are_sought_in_the_cache(tmp_path, monkeypatch):
    write_shop(tmp_path, {"format_version": FORMAT_VERSION})

    def failing(source: Path, target: Path) -> None:
        if Path(target) == tmp_path / "pulse.json":  # the old one was moved away
            raise OSError("the server of this mount went away")
        os.rename(source, target)

    with monkeypatch.context() as broken:
        broken.setattr(os, "replace", failing)
        with pytest.raises(OSError, match="went away"):
            save_anew(tmp_path, RECORD)
    assert not (tmp_path / "pulse.json").exists()
    shutil.copytree(tmp_path, tmp_path.with_name("asked by its command"))
    with pytest.raises((ArtifactError, ConnectionError)) as told:  # not that there is no run
        show_recommendations(tmp_path.with_name("asked by its command"), user=None, history=["x"], k=1, rationale=None)
    assert "sequences" not in str(told.value)
    with pytest.raises(ConnectionError, match="owner/writer is not in the cache"):
        PulseRecommender.from_pretrained(tmp_path, local_files_only=True)
    check_folder(tmp_path)


def test_an_empty_record_is_refused_with_and_without_the_hub(tmp_path):
    write_shop(tmp_path, {})
    for local in (False, True):
        with pytest.raises(ArtifactError, match=f"format None, expected {FORMAT_VERSION}"):
            PulseRecommender.from_pretrained(tmp_path, local_files_only=local)


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ([], f"format None, expected {FORMAT_VERSION}"),
        ({**RECORD, "prompts": ["judge"]}, r"pulse\.json: prompts is \['judge'\], expected dict"),
        ({**RECORD, "seed": True}, "seed is True, expected int"),
        ({**RECORD, "neighbours": {"num_neighbours": 1}}, r"neighbours\.neighbour_items is None, expected int"),
        ({**RECORD, "thoughts": "none"}, r"thoughts\.engine is None, expected str.* Save it again"),
    ],
)
def test_a_record_written_by_hand_is_refused_by_its_field(tmp_path, record, said):
    write_shop(tmp_path, record)
    with pytest.raises(ArtifactError, match=said):
        PulseRecommender.from_pretrained(tmp_path)


def test_a_damaged_folder_is_refused_before_its_models_are_sought_in_the_cache(tmp_path):
    write_shop(tmp_path, {})
    write_json(tmp_path / "pulse.json", {"format_version": FORMAT_VERSION})
    with pytest.raises(ArtifactError, match=r"damaged: pulse\.json"):
        PulseRecommender.from_pretrained(tmp_path, local_files_only=True)
