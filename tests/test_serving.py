"""A recommender that serves: several threads, odd texts, typed titles, and what grows with the shop or with time."""

import copy
import io
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from pulse_hf.cli import show
from pulse_hf.data.item_text import build_item
from pulse_hf.models import text_encoder
from pulse_hf.models.embedded import NANO_ID, resolve_model
from pulse_hf.models.scorer.adapter import load_scorer
from pulse_hf.models.scorer.processing_scorer import PulseScorerProcessor
from pulse_hf.reasoning.examples import PromptShape, Thought, example_of_set, scorer_example
from pulse_hf.reasoning.generator import ScriptedGenerator
from pulse_hf.reasoning.prompts import score_prompt, template
from pulse_hf.reasoning.shared_reasons import SharedReasons
from pulse_hf.reasoning.transformers_engine import TransformersGenerator
from pulse_hf.recommender import Event, PulseRecommender, Title
from pulse_hf.retrieval.names import Names
from pulse_hf.retrieval.retriever import Pool
from pulse_hf.schema import CandidateSet, Item, Sequence

REASON = "They care about quiet rooms."
UNSPACED = {
    "cjk": "日本語の茶碗と急須" * 30,
    "one word": "x" * 5_000,
    "emoji": "\U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea\U0001f44d\U0001f3fd".replace(" ", "")
    * 90,
    "marks": "a" + "\u0301" * 4_000,
}


@pytest.fixture
def parts(small_recommender):
    """Of a recommender whose reasons are written at once."""
    return replace(small_recommender.parts, generator=ScriptedGenerator({}, default=f"Reason: {REASON}"))


def keep(monkeypatch, number):
    monkeypatch.setattr("pulse_hf.answering.KEPT_THOUGHTS", number)


# -- several threads ---------------------------------------------------------------------------------


def test_models_read_by_several_threads_are_whole(parts):
    def read(number):
        if number % 2:
            return load_scorer(NANO_ID, parts.folder)[0].state_dict()
        return TransformersGenerator.from_pretrained(NANO_ID).model.state_dict()

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(read, range(12)))
    for number, weights in enumerate(found):
        for name, value in found[number % 2].items():
            assert torch.equal(weights[name], value), name


class Unhurried:
    """A thought space whose reading lets another thread go on, as a large one does."""

    def __init__(self, space):
        self.space, self.config = space, space.config

    def encode_rationales(self, texts):
        return self.space.encode_rationales(texts)

    def encode_histories(self, texts):
        time.sleep(0.02)
        return self.space.encode_histories(texts)


def test_threads_get_what_one_alone_gets(parts, monkeypatch):
    keep(monkeypatch, 1)
    shared = parts.shared
    unhurried = SharedReasons(shared.vectors, shared.item_indices, shared.places, Unhurried(shared.space))
    recommender, ids = PulseRecommender(replace(parts, shared=unhurried)), list(parts.items)
    weights = parts.scorer.feature_score.weight
    monkeypatch.setattr(weights, "data", torch.ones_like(weights))  # both votes count, whatever was fitted
    asked = [(ids[start : start + 2], f"They care about {word}.") for start, word in enumerate("abcdef")] * 2

    def answer(one):
        history, reason = one
        recommender.explain(history)
        return recommender.score(history, ids[20:24], rationale=reason)

    expected = [answer(one) for one in asked]
    with ThreadPoolExecutor(6) as threads:
        assert list(threads.map(answer, asked)) == expected


def test_a_copy_answers_what_the_original_answers(small_recommender):
    ids = list(small_recommender.parts.items)
    expected = small_recommender.recommend(ids[:2], k=3)  # its writer keeps a cache of this, to be copied with it
    other = copy.deepcopy(small_recommender)
    assert other.recommend(ids[:2], k=3) == expected
    assert other.users == small_recommender.users
    assert other.parts.scorer is not small_recommender.parts.scorer


# -- how many, and of whom nothing is known ----------------------------------------------------------


def test_k_beyond_what_is_usually_retrieved_is_given(parts, monkeypatch):
    monkeypatch.setattr("pulse_hf.answering.NUM_RETRIEVED", 5)
    recommender, ids = PulseRecommender(parts), list(parts.items)
    for history in (ids[:2], []):
        assert len(recommender.recommend(history, k=3)) == 3
        assert len(recommender.recommend(history, k=20)) == 20
        everything = recommender.recommend(history, k=10**6)
        assert sorted(one.item_id for one in everything) == sorted(set(ids) - set(history))


def test_a_cold_start_is_told(parts, capsys):
    recommender, ids = PulseRecommender(parts), list(parts.items)
    title = parts.items[ids[0]].title
    histories = {(): True, ("qqqq zzzz",): True, (ids[0],): False, (title,): False, ("qqqq zzzz", title): False}
    for history, cold in histories.items():
        for candidates in (None, ids[5:8]):
            ranked = recommender.recommend(list(history), k=2, candidates=candidates)
            assert {one.cold_start for one in ranked} == {cold}, history
    show._print_ranked(recommender.recommend([], k=1))
    show._print_ranked(recommender.recommend([title], k=1))
    assert capsys.readouterr().out.count("nothing of this history is in the catalogue") == 1


# -- what grows with the shop, and with time ---------------------------------------------------------


def test_the_best_are_those_of_a_whole_sort():
    generator = np.random.default_rng(0)
    ids = [f"i{number}" for number in range(60)]
    names = Names({one: Item(one, one, one) for one in ids}, np.zeros((60, 2), np.float32), "none is asked")
    for values in (generator.integers(0, 6, 60), generator.normal(size=60).astype(np.float32), np.zeros(60)):
        without = ["i7", "i30", "unheard of", "i7"]
        whole = [one for one in sorted(ids, key=lambda one: -values[ids.index(one)]) if one not in without]
        for count in (1, 2, 5, 57, 58, 59, 1000):
            assert names.best(values, count, without) == whole[:count]
    assert names.best(values, 3, ids) == []


def test_the_popular_are_counted_once_and_the_catalogue_is_not_copied(parts):
    class Counted(list):
        passes = 0

        def __iter__(self):
            self.passes += 1
            return super().__iter__()

    rows = Counted(parts.pool.item_ids)
    recommender = PulseRecommender(replace(parts, pool=Pool(parts.pool.vectors, rows)))
    chosen = [item_id for row in parts.pool.item_ids for item_id in row]
    expected = sorted(parts.items, key=lambda item_id: -chosen.count(item_id))[:100]
    for _ in range(3):
        assert recommender._steps.retriever.best(*recommender._steps.names.read([]), 100) == expected
    assert rows.passes == 1
    past, items = recommender._steps.names.read(["a new thing"])
    assert items.maps[1] is parts.items
    assert "a new thing" in items
    assert "a new thing" not in parts.items
    assert past.item_ids == ("a new thing",)


def test_free_text_candidates_do_not_gather(parts, monkeypatch):
    keep(monkeypatch, 3)
    recommender, known = PulseRecommender(parts), parts.processor._known
    expected = recommender.score([], ["thing 0"], rationale=REASON)
    parts.processor._cut.add("left behind")
    for start in range(0, 200, 20):
        recommender.score([], [f"thing {number}" for number in range(start, start + 20)], rationale=REASON)
    assert len(known) <= 3 + len(parts.items) + 20
    assert "left behind" not in parts.processor._cut
    assert recommender.score([], ["thing 0"], rationale=REASON) == expected


# -- typed titles ------------------------------------------------------------------------------------

FILMS = {
    "7": Item("7", "300", "300"),
    "300": Item("300", "Se7en", "Se7en"),
    "8": Item("8", "Up", "Up"),
    "9": Item("9", "9", "9"),
}


def test_an_id_is_an_id_and_a_typed_title_a_title():
    names = Names(FILMS, np.zeros((4, 2), np.float32), "none is asked")
    texts = ["300", "7", "up", "9", "SE7EN", "unheard of"]
    assert names.found(texts, dict(FILMS)) == ["300", "7", "8", "9", "300", "unheard of"]
    items = dict(FILMS)
    typed = names.found([Title(text) for text in texts], items)
    assert typed == ["7", "7", "8", "9", "300", "unheard of"]
    assert {type(one) for one in typed} == {str}
    assert type(items["unheard of"].title) is str


LONG = "The cream of the crop " * 20
SHOP = {
    "B1": Item("B1", "Crabtree & Evelyn", "Crabtree & Evelyn"),
    "B2": Item("B2", "Salt &amp; Pepper", "Salt &amp; Pepper"),  # the shop had escaped it twice
    "B3": build_item("B3", LONG)[0],
    "&amp;": Item("&amp;", "Tea", "Tea"),
}


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("Crabtree &amp; Evelyn", "B1"),
        ("<b>crabtree</b>  &\u200b  Evelyn ", "B1"),
        ("Salt &amp;amp; Pepper", "B2"),
        ("Salt &amp; Pepper", "B2"),
        (LONG, "B3"),
        (SHOP["B3"].title, "B3"),
        ("&amp;", "&amp;"),  # an id is an id
    ],
)
def test_a_name_as_the_shop_wrote_it_finds_its_item(name, found):
    names = Names(SHOP, np.zeros((4, 2), np.float32), "none is asked")
    assert names.found([name], dict(SHOP)) == [found]


def test_a_name_that_finds_nothing_becomes_a_cleaned_item():
    names, items = Names(SHOP, np.zeros((4, 2), np.float32), "none is asked"), dict(SHOP)
    dirty = ["Soap &amp; <i>Water</i>", "Soap  & Water", Title("soap \ud800")]
    assert names.found(dirty, items) == ["Soap & Water", "Soap & Water", "soap \ufffd"]
    assert items["Soap & Water"] == Item("Soap & Water", "Soap & Water", "Soap & Water")
    for name in ("", " ", "<br>", "\u200b\u00ad"):
        with pytest.raises(ValueError, match="an item is empty"):
            names.found([name], dict(SHOP))


def test_stars_and_words_that_are_not_known_are_none():
    names = Names(SHOP, np.zeros((4, 2), np.float32), "none is asked")
    unknown = Event("B1", np.float32("nan"), float("nan"))
    events = [Event("B1", 4, None), unknown, Event("B1", np.int64(3), " so\x00 light&nbsp;")]
    past, _ = names.read(events)
    assert past.ratings == (4.0, None, 3.0)
    assert past.reviews == ("", "", "so light")
    for wrong in ("4", True, [4]):
        with pytest.raises(ValueError, match="rating is .*; expected a number"):
            names.read([Event("B1", wrong)])
    for wrong in (9, -1, float("inf")):  # of another scale than the five stars that prompts show
        with pytest.raises(ValueError, match="rating is .*; expected stars of five"):
            names.read([Event("B1", wrong)])


class Table(list):
    """A list with columns: iterating a data frame gives their names."""

    columns = ("item", "rating")


def test_whatever_gives_items_in_order_is_a_history_and_a_table_or_a_file_is_not():
    names = Names(SHOP, np.zeros((4, 2), np.float32), "none is asked")
    for given in (["B1", "B2"], ("B1", "B2"), np.array(["B1", "B2"]), (one for one in ("B1", "B2"))):
        assert names.read(given)[0].item_ids == ("B1", "B2")
    for given in (np.array(["B1", "B2"]), (one for one in ("B1", "B2"))):
        assert names.found(given, dict(SHOP)) == ["B1", "B2"]
    for wrong in (Table(["item"]), io.StringIO("B1\nB2\n"), {"B1"}, {"B1": 1}, "B1", None):
        with pytest.raises(ValueError, match="expected a list, in order"):
            names.read(wrong)
        with pytest.raises(ValueError, match="expected a list, in order"):
            names.found(wrong, dict(SHOP))
    with pytest.raises(ValueError, match="found 0 as an item, expected .* as a text, such as '17'"):
        names.read([0])
    with pytest.raises(ValueError, match="review is 5; expected a text"):
        names.read([Event("B1", review=5)])


def test_the_command_line_takes_titles_before_ids(monkeypatch):
    asked = []

    class Asked:
        def recommend(self, history, **_):
            asked.extend(history)
            return []

    monkeypatch.setattr(show, "_open", lambda folder: Asked())
    show.show_recommendations("shop", user=None, history=["300"], k=3, rationale=None)
    names = Names(FILMS, np.zeros((4, 2), np.float32), "none is asked")
    assert names.read(asked)[0].item_ids == ("7",)


# -- an encoder that is not there --------------------------------------------------------------------


def test_an_encoder_that_is_not_there_is_not_asked_for_in_every_request(monkeypatch):
    asked, now = [], [1_000.0]

    def away(encoder):
        asked.append(encoder)
        raise ConnectionError(f"{encoder} is out of reach")

    monkeypatch.setattr(text_encoder, "_opened", away)
    monkeypatch.setattr(text_encoder, "monotonic", lambda: now[0], raising=False)
    for seconds, times in ((0, 1), (1, 1), (58, 1), (2, 2), (1, 2)):
        now[0] += seconds
        with pytest.raises(ConnectionError, match="owner/encoder is out of reach"):
            text_encoder.encode_texts(["a title"], "owner/encoder")
        assert len(asked) == times
    text_encoder._refused.clear()


def test_a_folder_may_come_to_be_at_any_time(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(text_encoder, "_opened", lambda encoder: asked.append(encoder) or 1 / 0)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            text_encoder.encode_texts(["a title"], str(tmp_path))
    assert len(asked) == 2


# -- texts without spaces ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def processor():
    return PulseScorerProcessor(AutoTokenizer.from_pretrained(resolve_model(NANO_ID)[0]))


@pytest.mark.parametrize("text", UNSPACED.values(), ids=UNSPACED)
@pytest.mark.parametrize("what", ["title", "reason", "both"])
def test_a_text_without_spaces_is_cut_until_the_prompt_fits(processor, text, what):
    title, reason = (text if what in (one, "both") else "Cork Tray" for one in ("title", "reason"))
    items = {"A": Item("A", "Kettle", "Kettle"), "B": Item("B", title, title), "C": Item("C", text, text)}
    past = Sequence("u", ("A", "B", "C", "B"), (), (5.0, 4.0, None, None), ("", "", "", ""))
    thought = Thought(reason, 0.4)
    served = scorer_example(past.before(2), items, ["A", "C"], thought, PromptShape(), processor.prompt_fits)
    chosen = CandidateSet("u#3", "train", ("C", "B"), 1)
    trained = example_of_set(chosen, past, items, thought, PromptShape(), processor.prompt_fits)
    for example, number in ((served, 1), (trained, 1)):
        assert example.num_events >= number
        start, _, end = example.prompt.partition("\n")
        assert start == template("score").partition("\n")[0]
        assert "\nReason: " in end
        assert end.endswith("Agreement with their behaviour: 0.4\n")
        assert len(example.candidates) == 2
        (encoded,) = processor.encode([example])
        for ids in encoded.candidate_ids:
            assert ids[-len(processor._judge_ids) :] == processor._judge_ids
    assert trained.target_index == 1


def test_words_are_tried_before_characters(processor):
    items = {"A": Item("A", "Bamboo Kettle", "Bamboo Kettle")}
    past, thought = Sequence("u", ("A",) * 3, (), (5.0,) * 3, ("",) * 3), Thought(" ".join(["quiet"] * 50), 0.4)
    shape = PromptShape()
    whole = score_prompt(past, items, thought.reason, 0.4, shape.budget)
    shortest = score_prompt(past, items, "quiet " * 10, 0.4, replace(shape.budget, score_events=1))
    for fits, expected in ((processor.prompt_fits, whole), (lambda prompt: len(prompt) <= len(shortest), shortest)):
        assert scorer_example(past, items, ["A"], thought, shape, fits).prompt == expected


@pytest.mark.parametrize("text", UNSPACED.values(), ids=UNSPACED)
def test_a_recommender_answers_to_texts_without_spaces(parts, text):
    ids = list(parts.items)
    recommender = PulseRecommender(parts)
    assert len(recommender.score([ids[0], text], [ids[1], text], rationale=text)) == 2
    assert len(recommender.recommend([text], k=2)) == 2


# -- similar users ------------------------------------------------------------------------------------


def test_a_known_user_is_not_lent_to_by_himself(small_recommender, monkeypatch):
    taken = []

    def noted(user_ids, cosines, lenders, **how):
        taken.append([lenders[user_id].item_ids for user_id in user_ids])
        return ["lent"]

    monkeypatch.setattr("pulse_hf.retrieval.retriever.lend_items", noted)
    number = small_recommender.parts.record["neighbours"]["num_neighbours"]
    for user_id in list(small_recommender.users)[:10]:
        history = small_recommender.history_of(user_id)
        own = small_recommender.users[user_id].training().item_ids
        assert own in small_recommender.parts.pool.item_ids
        for known in (len(history), max(3, len(history) - 3)):  # whole, and cut back as for a test
            past, items = small_recommender._steps.names.read(history[:known])
            assert small_recommender._steps.retriever.lent(past, items) == ["lent"]
            assert len(taken[-1]) == number
            assert own not in taken[-1]
