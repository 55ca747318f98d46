"""The Space without a browser: bounds, answers, pictures, limits, real clients, broken repos."""

import doctest
import importlib
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import gradio
import httpx
import numpy as np
import pytest
import thinking
from answers import Answers, moves
from app import launch
from gradio_client import Client
from gradio_client.exceptions import AppError
from hostile_texts import HOSTILE, MARK
from inputs import RefusedError, read_history, read_reason, whole_number
from limits import Rate
from panels import agreement_panel, map_panel, notice, ranking_panel, rationales_panel, tree_panel
from pictures import tree_picture
from rationale_table import RationalePage, rationales_of_dataset
from source import Source
from thinking import Mind
from visit import Visit, answered, begun, keeping, of_example, of_person, steered, unsteered, with_title

from pulse_hf.reasoning.prompts import Evidence, Prompt
from pulse_hf.reasoning.tree_of_thought import Node, Tree
from pulse_hf.recommender import Event, PulseRecommender, Recommendation

SPACE = Path(__file__).resolve().parents[1] / "spaces_app"
MANY = Rate(10_000, 10_000)


@pytest.fixture(scope="module")
def served(small_answers):
    page = launch(Source.of(small_answers), MANY, server_port=None, prevent_thread_lock=True)
    yield page.local_url.rstrip("/")
    page.close()


@pytest.fixture(scope="module")
def client(served):
    return Client(served, verbose=False)


@pytest.fixture(scope="module")
def history(small_answers):
    return small_answers.history_of(small_answers.people[0])


@pytest.mark.parametrize("name", ["limits", "markup", "rationale_table", "thought_map"])
def test_examples_of_docstrings_run(name):
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted > 0
    assert found.failed == 0


# -- bounds ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("titles", "words", "sentence"),
    [
        ([], None, "is empty"),
        ("a text", None, "must be a list of texts"),
        (None, None, "missing value came"),
        ({"a": 1}, None, "a mapping came"),
        ([1], None, "a number came"),
        ([["a"]], None, "a list came"),
        ([True], None, "a truth value came"),
        (["x"] * 51, None, "at most 50"),
        (["x" * 301], None, "at most 300"),
        (["\u200b"], None, "no readable character"),
        (["x"], ["a", "b"], "at most one for each"),
        (["x"], ["y" * 2001], "at most 2,000"),
        (["x"], 7, "must be a list of texts"),
    ],
)
def test_a_history_out_of_bounds_is_refused_in_a_sentence(titles, words, sentence):
    with pytest.raises(RefusedError, match=sentence) as refusal:
        read_history(titles, words)
    assert str(refusal.value).endswith(".")


def test_what_is_within_bounds_is_cleaned_and_taken():
    events = read_history(["<b>Tray</b>\u200b", "Kettle"], ["  like\x00 it "])
    assert events == [Event("Tray", review="like it"), Event("Kettle")]
    assert read_reason(None) == ""
    with pytest.raises(RefusedError, match="at most 600"):
        read_reason("x" * 601)


@pytest.mark.parametrize("value", ["3", 1.5, None, True, [1], 0, 101, 10**30, float("nan"), float("inf")])
def test_a_number_out_of_bounds_is_refused(value):
    with pytest.raises(RefusedError, match="from 1 to 100"):
        whole_number(value, "k", 1, 100)


# -- answers -----------------------------------------------------------------------------------------


def test_an_answer_is_the_recommenders_own(small_answers, history):
    answer = small_answers.answer(history)
    alone = small_answers.recommender.recommend(history, k=5)
    # The agreement is made in another batch here.
    assert [replace(one, agreement=None) for one in answer.ranking[:5]] == [replace(o, agreement=None) for o in alone]
    assert answer.agreement == pytest.approx(alone[0].agreement, abs=1e-5)
    assert answer.reason == answer.tree.chosen.text
    assert answer.agreement == pytest.approx(answer.tree.chosen.agreement, abs=1e-5)


def test_an_edited_reason_ranks_the_same_candidates_anew_and_reuses_the_tree(small_answers, history):
    drafted = small_answers.answer(history)
    own = small_answers.answer(history, "They care about rain and wind.", drafted)
    assert own.tree is drafted.tree
    assert own.reason == "They care about rain and wind."
    assert {one.item_id for one in own.ranking} == {one.item_id for one in drafted.ranking}
    moved = moves(drafted, own)
    assert any(move.change for move in moved)
    was = [one.item_id for one in drafted.ranking]
    for move in moved:
        assert move.change == was.index(move.item.item_id) - (move.rank - 1)
    assert small_answers.answer(history, "", drafted).agreement is None


def test_places_in_thought_space_agree_with_the_agreement(small_answers, history):
    reasons = ["They care about rain and wind.", "They care about having it done fast."]
    behaviour, vectors = small_answers.recommender.embed(history, reasons)
    for reason, vector in zip(reasons, vectors, strict=True):
        told = small_answers.recommender.recommend(history, k=1, rationale=reason)[0].agreement
        assert behaviour @ vector == pytest.approx(told, abs=1e-4)
    assert small_answers.recommender.embed(history, [])[1].shape == (0, len(behaviour))


def item(name, score=0.0):
    return Recommendation(name, name, score, "because", 0.5)


def test_moves_are_counted_among_the_candidates_of_both_rankings(small_answers, history):
    answer = small_answers.answer(history)
    before = replace(answer, ranking=tuple(map(item, "ABCD")))
    after = replace(answer, ranking=tuple(map(item, "XDABY")))  # C left, X and Y came
    assert [(m.item.item_id, m.rank, m.change) for m in moves(before, after)] == [
        ("X", 1, None),
        ("D", 2, 2),
        ("A", 3, -1),
        ("B", 4, -1),
        ("Y", 5, None),
    ]
    assert [move.change for move in moves(None, after)] == [None] * 5


def test_search_finds_titles_by_all_their_words(small_answers):
    title = next(iter(small_answers.recommender.parts.items.values())).title
    words = title.upper().split()[::-1]
    assert title in [found for _, found in small_answers.search(" ".join(words))]
    assert small_answers.search("no such words anywhere") == []
    assert len(small_answers.search("")) == 20
    assert small_answers.search(title)[0][1] == title


def test_a_visit_goes_its_way(small_answers):
    first = answered(small_answers, of_person(small_answers, Visit(), small_answers.people[0]))
    assert first.before is None
    edited = answered(small_answers, steered(small_answers, first, "They care about peace and quiet."))
    assert (edited.before, edited.answer.own) == (first.answer, "They care about peace and quiet.")
    back = answered(small_answers, unsteered(small_answers, edited))
    assert back.answer.ranking == first.answer.ranking
    dropped = answered(small_answers, keeping(small_answers, back, [str(place) for place in back.kept[1:]]))
    assert dropped.answer.history == first.answer.history[1:]
    assert any(move.change for move in moves(dropped.before, dropped.answer))
    grown = answered(small_answers, with_title(small_answers, dropped, "A thing of my own", None, "I like it."))
    assert grown.answer.history[-1] == Event("A thing of my own", review="I like it.")
    nothing = answered(small_answers, keeping(small_answers, grown, []))
    assert (nothing.answer, nothing.own) == (None, None)
    with pytest.raises(RefusedError, match="history first"):
        steered(small_answers, nothing, "x")
    with pytest.raises(RefusedError, match="changed meanwhile"):
        keeping(small_answers, first, ["99"])
    with pytest.raises(RefusedError, match="no such person"):
        of_person(small_answers, Visit(), "nobody")
    with pytest.raises(RefusedError, match="50 choices already"):
        with_title(small_answers, begun([Event("x")] * 50), "y", None, None)


def test_visits_do_not_touch_each_other(small_answers):
    people = small_answers.people[:2]
    alone = [small_answers.answer(small_answers.history_of(one)).ranking for one in people]
    reasons = ["They care about rain and wind.", "They care about having it done fast."]
    own = [small_answers.answer(small_answers.history_of(p), r).ranking for p, r in zip(people, reasons, strict=True)]
    visits = [answered(small_answers, of_person(small_answers, Visit(), one)) for one in people]
    for turn in range(24):
        place = turn % 2
        change = (
            steered(small_answers, visits[place], reasons[place]) if turn % 4 < 2 else unsteered(None, visits[place])
        )
        visits[place] = answered(small_answers, change)
        assert visits[place].answer.ranking == (own if turn % 4 < 2 else alone)[place]


def test_examples_come_from_the_catalogue(small_answers):
    first, *others = small_answers.examples
    assert len({event.item for event in first}) == 4
    assert {event.item for event in first} != {event.item for event in others[0]}
    assert of_example(small_answers, Visit(), 0).events == tuple(first)


def test_a_question_without_an_answer_in_time_is_refused(small_answers, history):
    with pytest.raises(RefusedError, match="No answer came within"):
        Mind(small_answers.recommender, deadline_s=0.0).think([*history, Event("slow")])


def test_a_slow_first_pass_delays_the_page_and_no_more(small_run):
    answers = Answers(PulseRecommender.from_run(small_run))
    answers.mind.deadline_s = 0.0
    assert Source.of(answers).ready
    assert answers.mind.deadline_s == 0.0


def test_a_recommender_that_fails_at_first_is_let_go(small_run, monkeypatch):
    answers = Answers(PulseRecommender.from_run(small_run))
    before = len(thinking._opened)
    monkeypatch.setattr(answers.recommender, "explain", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Source.of(answers)
    assert len(thinking._opened) == before - 1


def test_serving_does_not_gather_texts(small_answers, history):
    shared = small_answers.recommender.parts.shared
    for number in range(520):
        shared.read([f"reason {number}"], [])
    small_answers.answer(history, "They care about rain and wind.")
    assert len(shared._reasons) < 10


# -- pictures ----------------------------------------------------------------------------------------


def tree_of(texts, depth=1):
    nodes = [Node(0, -1, 0, "ok", texts[0], texts[0], -1.0, 0.2)]
    for number, text in enumerate(texts[1:], start=1):
        nodes.append(Node(number, (number - 1) // 2 if depth > 1 else 0, 1, "ok", text, text, -1.0, 0.1 * number))
    return Tree(Prompt("", (), Evidence(())), nodes, leaf=len(nodes) - 1)


def words_of(svg):
    return " ".join("".join(part.itertext()) for part in svg.iter("text"))


def test_the_tree_is_drawn_with_its_chosen_branch(small_answers, history):
    answer = small_answers.answer(history)
    drawn = list(ElementTree.fromstring(tree_picture(answer.tree)).iter("svg"))
    assert len(drawn) == 2  # one for wide screens, one for phones
    for svg in drawn:
        assert len(list(svg.iter("g"))) == len(answer.tree.nodes)
        (leaf,) = [group for group in svg.iter("g") if "leaf" in group.get("class")]
        assert " ".join(answer.tree.chosen.text.split()) in words_of(leaf)
        chosen = [path for path in svg.iter("path") if "chosen" in path.get("class")]
        assert len(chosen) == answer.tree.chosen.depth
        width, height = float(svg.get("width")), float(svg.get("height"))
        for box in svg.iter("rect"):
            assert float(box.get("x")) + float(box.get("width")) <= width
            assert float(box.get("y")) + float(box.get("height")) <= height


def test_cards_do_not_overlap_and_long_words_are_broken():
    texts = ["short", "word " * 80, "x" * 400, "長い理由" * 20, "last"]
    drawn = list(ElementTree.fromstring(tree_picture(tree_of(texts))).iter("svg"))
    assert len(drawn) == 2
    for svg in drawn:
        boxes = [[float(box.get(name)) for name in ("x", "y", "width", "height")] for box in svg.iter("rect")]
        assert len(boxes) == len(texts)
        for number, (x, y, width, height) in enumerate(boxes):
            for x2, y2, width2, height2 in boxes[:number]:
                assert x >= x2 + width2 or x2 >= x + width or y >= y2 + height2 or y2 >= y + height
        longest = max(len("".join(part.itertext())) for part in svg.iter("text"))
        assert longest <= 70


def test_a_large_tree_is_drawn_in_part_and_says_so():
    drawn = tree_picture(tree_of(["reason"] * 500))
    assert "440 more reasons are not drawn" in drawn
    assert drawn.count('class="card leaf"') == 2  # one for wide screens, one for phones


def test_the_map_places_stored_and_new_reasons(small_answers, history):
    flat = small_answers.map
    assert ((flat.background >= 0) & (flat.background <= 1)).all()
    assert 0 < flat.share <= 1
    point = flat.vectors[3]
    near = flat.neighbours(point, count=5)
    assert [one.cosine for one in near] == pytest.approx(sorted(flat.vectors @ point, reverse=True)[:5])
    assert near[0].cosine == pytest.approx(1.0, abs=1e-5)
    assert np.allclose(near[0].place, flat.places(flat.vectors[near[0].row])[0])
    answer = small_answers.answer(history, "They care about rain and wind.")
    panel = map_panel(small_answers, answer)
    for kind in ("history", "chosen", "own", "neighbour"):
        assert f'class="mark {kind}' in panel
    title, words = small_answers.told(answer.neighbours[0])
    assert title in panel
    assert words in panel


# -- untrusted text ----------------------------------------------------------------------------------

TAGS = {
    "div",
    "p",
    "span",
    "ol",
    "li",
    "i",
    "b",
    "h2",
    "h3",
    "section",
    "details",
    "summary",
    "svg",
    "path",
    "rect",
    "g",
    "text",
    "ul",
}
ATTRIBUTES = {
    "class", "style", "role", "start", "tabindex", "viewbox", "preserveaspectratio", "width", "height", "x", "y", "d",
    "rx", "id", "text-anchor", "aria-hidden", "aria-label", "aria-describedby",
    "aria-valuenow", "aria-valuemin", "aria-valuemax",
}  # fmt: skip


class Reader(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.attributes, self.values, self.text = [], set(), [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        self.values += [value or "" for _, value in attrs]

    def handle_comment(self, data):
        raise AssertionError(f"a comment: {data}")

    def handle_data(self, data):
        self.text.append(data)


def read(markup):
    reader = Reader()
    reader.feed(markup)
    reader.close()
    assert set(reader.tags) <= TAGS, set(reader.tags) - TAGS
    assert reader.attributes <= ATTRIBUTES, reader.attributes - ATTRIBUTES
    for value in reader.values:
        assert MARK not in value
        assert "tracker.invalid" not in value
        assert "javascript:" not in value
    assert not re.search(r"\$\{|\{\{", markup)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u202a-\u202e\u2066-\u2069\U000e0000-\U000e007f]", markup)
    return reader


def panels_about(text, answers, answer):
    """Every panel with one text in all its places."""
    places = [Recommendation(f"i{number}", text, 1.0 - number, text, 0.5) for number in range(12)]
    nodes = [replace(node, text=text) for node in answer.tree.nodes]
    asked = replace(
        answer, ranking=tuple(places), tree=replace(answer.tree, nodes=nodes), own=text, given=answer.behaviour
    )
    stored = Answers.told
    try:
        Answers.told = lambda self, neighbour: (text, text)
        shown = map_panel(answers, asked)
    finally:
        Answers.told = stored
    before = replace(asked, ranking=tuple(places[::-1]))
    return [
        shown,
        tree_panel(asked),
        agreement_panel(asked),
        ranking_panel(moves(before, asked), True),
        rationales_panel(RationalePage([(text, text)], 1, 1, 1), text),
        notice(text, text, 0.5),
    ]


def test_sixty_hostile_texts_are_inert_in_every_panel(small_answers, history):
    answer = small_answers.answer(history)
    plain = [read(panel).tags for panel in panels_about("A plain text", small_answers, answer)]
    for text in HOSTILE:
        for panel, tags in zip(panels_about(text, small_answers, answer), plain, strict=True):
            found = read(panel).tags
            if "svg" in found and "rect" in found:  # longer texts make more lines in the tree, nothing else
                found, tags = ([tag for tag in some if tag != "text"] for some in (found, tags))
            assert found == tags, text


def test_hostile_texts_rank_only_what_was_a_candidate(small_answers):
    known = set(small_answers.recommender.parts.items)
    for text in HOSTILE[::6]:  # all of them in test_space_browser.py
        events = read_history(["Kettle"], [text])
        ranking = small_answers.answer(events, read_reason(text)).ranking
        assert ranking
        assert {one.item_id for one in ranking} <= known


# -- the server --------------------------------------------------------------------------------------


def test_the_page_and_its_health_and_headers(served):
    page = httpx.get(served)
    assert page.status_code == 200
    assert "frame-ancestors 'self' https://huggingface.co" in page.headers["content-security-policy"]
    assert page.headers["x-content-type-options"] == "nosniff"
    assert page.headers["referrer-policy"] == "no-referrer"
    assert httpx.get(f"{served}/health").json() == {"detail": "ready"}
    assert '"analytics_enabled":false' in page.text


@pytest.mark.parametrize(
    "path",
    [
        "file=/etc/passwd", "file=../../../../etc/passwd", "file=%2e%2e/%2e%2e/etc/passwd", "file=C:/Windows/win.ini",
        "file=//host/share/x", "file=http://127.0.0.1:1/", "file=https://example.invalid/x", "file=app.py",
        "file=./app.py", "FILE=/etc/passwd", "file=/proc/self/environ", "file=%00/etc/passwd", "file=~/.ssh/id_rsa",
        "file//etc/passwd", "file/app.py", "proxy=http://127.0.0.1:1/", "custom_component/x/client/component/app.py",
        "upload_progress?upload_id=1", "file=style.css", "file=..%5c..%5cetc%5cpasswd",
    ],
)  # fmt: skip
def test_no_file_is_given(served, path):
    answer = httpx.get(f"{served}/gradio_api/{path}")
    assert answer.status_code in (403, 404), answer.text[:200]
    assert "root:" not in answer.text


def test_no_file_is_taken(served):
    answer = httpx.post(f"{served}/gradio_api/upload", files={"files": ("x.txt", b"x")})
    assert answer.status_code == 403


def join(served, data):
    return httpx.post(f"{served}/gradio_api/call/recommend", **data, timeout=30)


@pytest.mark.parametrize("size", [65_537, 1_000_000, 30_000_000])
@pytest.mark.parametrize("chunked", [False, True])
def test_large_requests_are_refused_at_once(served, size, chunked):
    body = b'{"data": ["' + b"x" * size + b'"]}'
    content = iter([body[start : start + 65_536] for start in range(0, len(body), 65_536)]) if chunked else body
    started = time.perf_counter()
    try:
        answer = join(served, {"content": content, "headers": {"content-type": "application/json"}})
    except httpx.TransportError:  # the server answered and closed while we were still sending
        assert size > 65_537
    else:
        assert answer.status_code == 413
        assert "too large" in answer.json()["detail"]
    assert time.perf_counter() - started < 5
    assert httpx.get(f"{served}/health").status_code == 200


def test_deep_nesting_is_refused_and_brackets_in_texts_are_not(served):
    deep = b'{"data": ' + b"[" * 30_000 + b"]" * 30_000 + b"}"
    kind = {"content-type": "application/json"}
    answer = join(served, {"content": deep, "headers": kind})
    assert answer.status_code == 422
    assert join(served, {"json": {"data": [["[" * 100 + '\\"{']]}}).status_code == 200


@pytest.mark.parametrize("body", [b"", b"null", b"5", b"[]", b'{"data": 5}', b"{", b'{"data": null}', b"\xff\xfe"])
def test_malformed_requests_are_refused_and_nothing_breaks(served, body):
    answer = join(served, {"content": body, "headers": {"content-type": "application/json"}})
    assert answer.status_code == 422
    assert "Traceback" not in answer.text
    assert httpx.get(f"{served}/health").status_code == 200


def test_a_client_that_asks_too_often_waits_and_others_do_not():
    now = [0.0]
    rate = Rate(burst=3, per_second=1, clock=lambda: now[0])
    assert [rate.allows("a") for _ in range(5)] == [True] * 3 + [False] * 2
    assert rate.allows("b")
    now[0] = 2.5
    assert [rate.allows("a") for _ in range(3)] == [True, True, False]
    for number in range(10_050):
        rate.allows(str(number))
    assert len(rate._clients) <= 10_000


def test_the_rate_is_kept_by_the_server(small_answers):
    page = launch(Source.of(small_answers), Rate(3, 0.001), prevent_thread_lock=True)
    try:
        codes = [join(page.local_url.rstrip("/"), {"json": {"data": [["x"]]}}).status_code for _ in range(6)]
        assert codes[-3:] == [429] * 3
        assert httpx.get(page.local_url).status_code == 200
    finally:
        page.close()


# -- programs ----------------------------------------------------------------------------------------


def test_the_endpoints_are_documented_and_answer(client, small_answers, history):
    told = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert set(told) == {
        "/recommend", "/steer", "/explain", "/nearest_reasons", "/search_catalogue", "/browse_rationales"
    }  # fmt: skip
    titles = [small_answers.title(event.item) for event in history]
    words = [event.review for event in history]
    ranked = client.predict(history=titles, words=words, k=4, api_name="/recommend")
    expected = small_answers.answer(read_history(titles, words)).ranking
    assert [one["item_id"] for one in ranked["items"]] == [one.item_id for one in expected[:4]]
    assert ranked["reason"] == expected[0].rationale
    told = client.predict(titles, "They care about rain and wind.", words, 100, api_name="/steer")
    assert told["drafted"] == ranked["reason"]
    assert sum(one["rose"] for one in told["items"]) == 0
    tree = client.predict(titles, words, api_name="/explain")
    assert tree["nodes"][tree["chosen"]]["text"] == ranked["reason"]
    near = client.predict(titles, "", words, api_name="/nearest_reasons")
    assert len(near["nearest"]) == 8
    assert all(0 <= value <= 1 for value in near["history_place"] + near["reason_place"])
    assert client.predict(titles[0], 1, api_name="/search_catalogue")[0]["title"] == titles[0]
    assert client.predict("", 2, api_name="/browse_rationales")["page"] == 2


@pytest.mark.parametrize(
    ("name", "arguments", "sentence"),
    [
        ("/recommend", [[]], "The history is empty"),
        ("/recommend", ["text"], "must be a list of texts"),
        ("/recommend", [None], "must be a list of texts"),
        ("/recommend", [["x"], 5], "The reason must be text"),
        ("/recommend", [["x"], "y" * 601], "at most 600"),
        ("/recommend", [["x"], "", None, 0], "from 1 to 100"),
        ("/steer", [["x"], {"a": 1}], "The reason must be text"),
        ("/search_catalogue", ["y" * 201], "at most 200"),
        ("/browse_rationales", ["", -1], "The page must be from 1"),
    ],
)
def test_refusals_are_sentences(client, name, arguments, sentence):
    with pytest.raises(AppError, match=sentence):
        client.predict(*arguments, api_name=name)


def test_an_unforeseen_error_tells_a_number_and_nothing_else(client, small_answers, monkeypatch):
    def broken(*_):
        raise KeyError("secret/path")

    monkeypatch.setattr(small_answers.mind, "think", broken)
    with pytest.raises(AppError, match=r"Something went wrong here \(error [0-9a-f]{8}\)") as error:
        client.predict(["x"], api_name="/recommend")
    assert "secret" not in str(error.value)


# -- where the recommender comes from ----------------------------------------------------------------


def opened(source):
    source.start()
    source.wait(60)
    source.stop()  # a thread that goes on trying would read models beside other tests
    return source.status


def test_a_run_brings_people_and_rationales_a_saved_recommender_neither(small_run, small_answers, tmp_path):
    source = Source(run=str(small_run))
    assert opened(source).state == "ready"
    assert source.answers.people
    assert "synthetic" in source.answers.subject
    row = source.answers.answer(source.answers.examples[0]).neighbours[0]
    assert source.answers.told(row)[1]
    small_answers.recommender.save_pretrained(tmp_path / "shop")
    saved = Source(repo_id=str(tmp_path / "shop"))
    assert opened(saved).state == "ready"
    assert saved.answers.people == []
    assert saved.answers.rationales is None
    assert str(tmp_path) not in saved.answers.subject
    history = saved.answers.examples[0]
    here, there = (one.answer(history).ranking for one in (small_answers, saved.answers))
    assert [replace(one, score=0.0) for one in there] == [replace(one, score=0.0) for one in here]
    # Some machines add up a row alone in another order than one among many; which it was depends on earlier visits.
    assert [one.score for one in there] == pytest.approx([one.score for one in here], abs=1e-5)


@pytest.mark.parametrize("kind", ["missing", "damaged", "run"])
def test_a_broken_source_shows_a_page_that_says_so(kind, small_answers, tmp_path):
    folder = tmp_path / "shop"
    if kind == "damaged":
        small_answers.recommender.save_pretrained(folder)
        (folder / "catalogue" / "items.parquet").write_bytes(b"PAR1 no")
    source = Source(run=str(folder)) if kind == "run" else Source(repo_id=str(folder))
    status = opened(source)
    assert status.state == "failed"
    assert status.sentence.endswith(".")
    assert str(tmp_path) not in status.sentence
    page = launch(source, MANY, prevent_thread_lock=True)
    try:
        assert "No recommender could be opened" in httpx.get(page.local_url).text
        assert httpx.get(page.local_url + "health").status_code == 503
        with pytest.raises(AppError, match="No recommender could be opened"):
            Client(page.local_url, verbose=False).predict(["x"], api_name="/recommend")
    finally:
        page.close()


def test_the_rationales_of_a_dataset_can_be_browsed(small_answers, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    item_id, known = next(iter(small_answers.recommender.parts.items.items()))
    table = pa.table({"item_id": [item_id, "new"], "rationale": ["They like cork.", "They like <b>tin</b>."]})
    pq.write_table(table, tmp_path / "train.parquet")
    made = rationales_of_dataset(str(tmp_path), {item_id: known})
    assert made.page("CORK").rows == [(known.title, "They like cork.")]
    assert made.page("cork tin").found == 0
    assert made.page("", 99).page == 1


def test_the_pages_of_the_rationales_hold_every_row_once(small_answers):
    table = small_answers.rationales
    first = table.page()
    rows = [row for number in range(1, first.pages + 1) for row in table.page("", number).rows]
    assert len(rows) == first.found == len(table) == len(small_answers.map.vectors)


def test_on_zerogpu_the_model_runs_where_the_package_says(tmp_path):
    (tmp_path / "spaces.py").write_text(
        "calls = []\n"
        "def GPU(duration):\n"
        "    def lend(work):\n"
        "        def lent(*given):\n"
        "            calls.append(duration)\n"
        "            return work(*given)\n"
        "        return lent\n"
        "    return lend\n"
    )
    code = "import spaces, thinking\nassert thinking.think.__name__ == 'lent'\n"
    code += "try:\n    thinking.think(0, [], None, None)\nexcept KeyError:\n    pass\nassert spaces.calls == [60]"
    path = os.pathsep.join([str(tmp_path), str(SPACE), str(SPACE.parent), os.environ.get("PYTHONPATH", "")])
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": path})


# -- what is published -------------------------------------------------------------------------------


def test_the_front_matter_is_a_spaces_own():
    from huggingface_hub import SpaceCard

    card = SpaceCard.load(SPACE / "README.md")
    data = card.data.to_dict()
    assert data["sdk"] == "gradio"
    assert data["sdk_version"] == gradio.__version__
    assert (SPACE / data["app_file"]).exists()
    assert len(data["short_description"]) <= 60
    colours = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
    assert {data["colorFrom"], data["colorTo"]} <= colours


def test_the_requirements_are_those_of_the_package():
    import tomllib

    project = tomllib.loads((SPACE.parent / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["train"]]
    wanted += project["optional-dependencies"]["demo"]
    asked = (SPACE / "requirements.txt").read_text().splitlines()
    assert set(wanted) <= set(asked)
    assert f"gradio[mcp]=={gradio.__version__}" in asked


def test_the_client_configuration_for_mcp_is_json():
    assert json.loads((SPACE / "examples" / "mcp.json").read_text())["mcpServers"]["pulse"]["url"].endswith("/mcp/")


def test_it_listens_to_everybody_on_a_space_only(small_answers, monkeypatch):
    seen = []
    monkeypatch.setattr(gradio.Blocks, "launch", lambda self, **options: seen.append(options["server_name"]))
    launch(Source.of(small_answers))
    monkeypatch.setenv("SPACE_ID", "owner/space")
    launch(Source.of(small_answers))
    assert seen == ["127.0.0.1", "0.0.0.0"]
