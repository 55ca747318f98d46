"""The Space towards its visitors: shares of the queue, visits that expire, what is read aloud, what is missing."""

import importlib.util
import json
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from answers import Answers, moves
from app import launch
from limits import BURST, QUEUE, WAITING, Rate
from panels import map_panel, ranking_panel, tree_panel
from rationale_table import rationales_of_dataset
from source import Source

from pulse_hf.recommender import Recommendation

MANY = Rate(10_000, 10_000)


@pytest.fixture(scope="module")
def served(small_answers):
    page = launch(Source.of(small_answers), MANY, prevent_thread_lock=True)
    yield page
    page.close()


# -- shares of the queue -----------------------------------------------------------------------------


def asked(web, url, name="recommend", data=(["Kettle"], "", None, 5)):
    return web.post(f"{url}gradio_api/call/{name}", json={"data": list(data)}, timeout=30)


def test_one_client_cannot_fill_the_queue(small_answers, monkeypatch):
    page = launch(Source.of(small_answers), MANY, prevent_thread_lock=True)
    go_on, answer = threading.Event(), small_answers.answer
    monkeypatch.setattr(small_answers, "answer", lambda *given: (go_on.wait(60), answer(*given))[1])
    greedy, other = (httpx.Client(transport=httpx.HTTPTransport(local_address=f"127.0.0.{n}")) for n in (1, 2))
    try:
        with ThreadPoolExecutor(12) as many:  # at once, so that nobody is counted too late
            came = list(many.map(lambda _: asked(greedy, page.local_url), range(60)))
        refused = [one for one in came if one.status_code != 200]
        assert len(came) - len(refused) in (WAITING["model"], WAITING["model"] + 1)  # one is being answered
        assert {one.status_code for one in refused} == {429}
        assert "4 of your requests are waiting already" in refused[0].json()["detail"]
        assert asked(other, page.local_url).status_code == 200
        found = asked(other, page.local_url, "search_catalogue", ["", 1]).json()["event_id"]
        told = other.get(f"{page.local_url}gradio_api/call/search_catalogue/{found}", timeout=30).text
        assert "event: complete" in told
        go_on.set()
        told = greedy.get(f"{page.local_url}gradio_api/call/recommend/{came[0].json()['event_id']}", timeout=60).text
        assert "event: complete" in told
    finally:
        go_on.set()
        page.close()


def test_a_burst_leaves_room_in_the_queue():
    assert 1.5 * BURST < QUEUE
    assert sum(WAITING.values()) < QUEUE / 2


# -- visits ------------------------------------------------------------------------------------------


class Visitor:
    """A page as the browser has it: values of its boxes, sent with a touch and changed by what comes back."""

    def __init__(self, url, name):
        self.url, self.name, self.web = f"{url}gradio_api", name, httpx.Client(timeout=60)
        config = self.web.get(f"{url}config").json()
        self.ids = {one["props"].get("elem_id"): one["id"] for one in config["components"]}
        self.values = {one["id"]: one["props"].get("value") for one in config["components"]}
        self.works = config["dependencies"]
        self.told = []

    def __getitem__(self, box):
        return self.values[self.ids[f"pulse-{box}"]]

    def set(self, box, value):
        self.values[self.ids[f"pulse-{box}"]] = value

    def touch(self, box, event="click", value=None):
        """Something is touched; gives what the page says in passing."""
        if value is not None:
            self.set(box, value)
        place = self.ids[f"pulse-{box}"]
        work = next(one for one in self.works if [place, event] in one["targets"])
        body = {"data": [self.values[one] for one in work["inputs"]], "fn_index": work["id"]}
        joined = self.web.post(f"{self.url}/queue/join", json={**body, "session_hash": self.name, "trigger_id": place})
        assert joined.status_code == 200, joined.text
        said = []
        with self.web.stream("GET", f"{self.url}/queue/data", params={"session_hash": self.name}) as stream:
            for line in stream.iter_lines():
                message = json.loads(line.removeprefix("data: ")) if line else {}
                if message.get("msg") == "log":
                    said.append(message["log"])
                if message.get("msg") == "process_completed":
                    output = message["output"]
                    if not message["success"]:
                        return [*said, output["error"]]
                    for one, new in zip(work["outputs"], output["data"], strict=True):
                        self.values[one] = new.get("value", self.values[one]) if isinstance(new, dict) else new
                    return said
        raise AssertionError("no answer came")


def test_nobody_is_picked_after_clear_and_after_an_example(served, small_answers):
    page = Visitor(served.local_url, "one")
    person = small_answers.people[0]
    for button in ("clear", "example-1"):
        assert page.touch("people", "input", person) == []
        assert page["people"] == person
        assert person not in page["ranking"]
        page.touch("title", "submit", "A kettle")
        assert page["people"] == person  # the history is still this person's, and one more
        page.touch(button)
        assert page["people"] is None
    assert page["begun"] == "yes"


def forget(page, name, kind):
    """What becomes of a visit after an hour, and what when many have come since."""
    sessions = page.app.state_holder.session_data
    if kind == "an hour":
        sessions[name].state_data.clear()
    else:
        sessions.pop(name)


@pytest.mark.parametrize("kind", ["an hour", "many visitors"])
@pytest.mark.parametrize(
    ("box", "event", "value"),
    [
        ("kept", "input", ["1"]),
        ("add", "click", None),
        ("steer", "click", None),
        ("back", "click", None),
    ],
)
def test_an_expired_visit_is_told_and_the_page_begins_anew(served, small_answers, kind, box, event, value):
    name = f"{kind} {box}"
    page = Visitor(served.local_url, name)
    page.touch("people", "input", small_answers.people[0])
    page.touch("kept", "input", [])  # nothing ticked: a history is there all the same
    page.set("title", "A kettle of mine")
    page.set("found", next(iter(small_answers.recommender.parts.items)))
    forget(served, name, kind)
    (said,) = page.touch(box, event, value)
    assert said.startswith("This visit has expired")
    assert "Pick a person" in page["ranking"]
    assert (page["kept"], page["people"], page["begun"]) == ([], None, "")
    assert page["title"] == "A kettle of mine"  # what was typed is not lost
    assert page.touch("add") == []
    assert page["kept"] == ["0"]


@pytest.mark.parametrize("kind", ["an hour", "many visitors"])
def test_after_an_expired_visit_another_history_is_shown_at_once(served, small_answers, kind):
    name = f"{kind} anew"
    page = Visitor(served.local_url, name)
    for box, event, value in (("people", "input", small_answers.people[1]), ("example-2", "click", None)):
        page.touch("example-1")
        forget(served, name, kind)
        assert page.touch(box, event, value) == []
        assert "pulse-ranking" in page["ranking"]
    forget(served, name, kind)
    assert page.touch("clear") == []
    assert page["kept"] == []


@pytest.mark.parametrize("ticked", [["99"], [["0"]], [None], "0", {"0": 1}, [True]])
def test_ticks_that_no_page_sends_are_refused(served, ticked):
    page = Visitor(served.local_url, f"ticks {ticked}")
    page.touch("example-1")
    (said,) = page.touch("kept", "input", ticked)
    assert "changed meanwhile" in said


# -- what is read aloud ------------------------------------------------------------------------------


class Aloud(HTMLParser):
    """What a screen reader gets of a panel: texts, and names of pictures; the depth of lists counts."""

    def __init__(self, markup):
        super().__init__()
        self.path, self.said, self.marks, self.tips, self.named = [], [], [], {}, []
        self.feed(markup)
        self.close()

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if "aria-label" in given and tag not in ("svg", "div"):
            self.named.append((tag, given.get("role")))
        if "mark" in given.get("class", "").split():
            self.marks.append(given)
        if tag not in ("path", "rect"):
            self.path.append((tag, given))

    def handle_endtag(self, tag):
        while tag not in ("path", "rect") and self.path.pop()[0] != tag:
            pass

    def handle_data(self, data):
        if tip := next((given["id"] for _, given in self.path if "id" in given), None):
            self.tips[tip] = self.tips.get(tip, "") + data
        hidden = any(given.get("aria-hidden") == "true" or given.get("role") == "img" for _, given in self.path)
        if data.strip() and not hidden:
            self.said.append((sum(tag == "ul" for tag, _ in self.path), data.strip()))


def test_the_tree_is_read_aloud_once_with_its_levels(small_answers):
    answer = small_answers.answer(small_answers.history_of(small_answers.people[0]))
    nodes = [replace(node) for node in answer.tree.nodes]
    nodes[1] = replace(nodes[1], status="empty", text="")
    said = Aloud(tree_panel(replace(answer, tree=replace(answer.tree, nodes=nodes)))).said
    told = [(depth, text) for depth, text in said if depth]
    assert len(told) == len(nodes)
    for (depth, text), node in zip(told, sorted(nodes, key=lambda node: node.number), strict=True):
        assert depth == node.depth + 1
        assert (node.text if node.status == "ok" else "Not usable (empty).") in text
        assert ("· chosen" in text) == (node.number == answer.tree.leaf)
    assert "agrees" in told[0][1]


def test_marks_of_the_map_have_a_role_a_name_and_their_words(small_answers):
    answer = small_answers.answer(small_answers.examples[0], "They care about rain and wind.")
    heard = Aloud(map_panel(small_answers, answer))
    assert {mark["aria-label"] for mark in heard.marks} >= {"This history", "Your reason", "A stored reason"}
    assert len({mark["aria-describedby"] for mark in heard.marks}) == len(heard.marks)
    for mark in heard.marks:
        assert mark["role"] == "img"
        assert heard.tips[mark["aria-describedby"]].strip()
    (own,) = [mark for mark in heard.marks if mark["aria-label"] == "Your reason"]
    assert heard.tips[own["aria-describedby"]] == "Your reason They care about rain and wind."


def test_what_rose_and_fell_is_read_aloud(small_answers):
    answer = small_answers.answer(small_answers.examples[0])

    def ranked(names):
        return replace(answer, ranking=tuple(Recommendation(one, one, 0.0, "", None) for one in names))

    heard = Aloud(ranking_panel(moves(ranked("ABCD"), ranked("DABC")), True))
    said = [text for _, text in heard.said]
    assert said.count("fell 1 place") == 3
    assert "rose 3 places" in said
    assert "▲ 3" not in said
    assert heard.named == []  # a name without a role is read by nobody
    assert "stayed" in [text for _, text in Aloud(ranking_panel(moves(answer, answer), True)).said]


# -- what is missing ---------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["trl", None])
def test_a_demo_that_cannot_be_made_tells_what_to_install(missing, tmp_path, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *more: None if name == missing else real(name, *more))
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: SimpleNamespace(poll=lambda: 4, returncode=4))
    monkeypatch.chdir(tmp_path)
    source = Source()
    source.start()
    source.wait(30)
    source.stop()
    assert source.status.state == "failed"
    told = source.status.sentence
    assert "publish it anew" not in told
    if missing:
        assert "trl is not installed here: pip install 'pulse-hf[train,demo]'" in told
    else:
        assert "could not be made (exit code 4)" in told


def write(folder, **columns):
    folder.mkdir()
    pq.write_table(pa.table(columns), folder / "train.parquet")


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("missing", "There is no dataset of that name"),
        ("sequences", "The dataset has no column of reasons (rationale, reason, text)."),
        ("failed", "The dataset holds no usable reason."),
        ("damaged", "Its files are damaged"),
    ],
)
def test_a_named_dataset_that_cannot_be_read_is_told_with_its_cause(kind, sentence, small_answers, tmp_path):
    shop, folder = tmp_path / "shop", tmp_path / "reasons"
    if kind == "sequences":
        write(folder, user_id=["u"], item_id=["i"], position=[0])
    if kind == "failed":
        write(folder, status=["empty"], text=[""])
    if kind == "damaged":
        write(folder, text=["They like cork."])
        (folder / "train.parquet").write_bytes(b"PAR1 no")
    small_answers.recommender.save_pretrained(shop)
    source = Source(repo_id=str(shop), dataset_id=str(folder))
    source.start()
    source.wait(60)
    assert source.ready  # rationales are an extra
    assert source.no_rationales.startswith("The rationale dataset reasons could not be read. ")
    assert sentence in source.no_rationales
    assert str(tmp_path) not in source.no_rationales
    page = launch(source, MANY, prevent_thread_lock=True)
    try:
        config = httpx.get(f"{page.local_url}config").json()["components"]
        (shown,) = [one["props"] for one in config if one["props"].get("elem_id") == "pulse-rationales"]
        assert "The rationale dataset reasons could not be read" in shown["value"]
        event = asked(httpx.Client(), page.local_url, "browse_rationales", ["", 1]).json()["event_id"]
        told = httpx.get(f"{page.local_url}gradio_api/call/browse_rationales/{event}", timeout=30).text
        assert "The rationale dataset reasons could not be read" in told
    finally:
        page.close()


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [(ConnectionError("x"), "The Hub did not answer."), (ModuleNotFoundError("datasets"), "'pulse-hf[train]'")],
)
def test_a_dataset_out_of_reach_is_told(kind, sentence, small_run, small_answers, monkeypatch):
    def fails(*_):
        raise kind

    monkeypatch.setattr("source.rationales_of_dataset", fails)
    monkeypatch.setattr("source.rationales_of_run", lambda *_: None)
    source = Source(run=str(small_run), dataset_id="<i>alice</i>/reasons")
    assert source._loaded().rationales is None
    assert source.no_rationales.endswith(sentence) or sentence in source.no_rationales
    source.answers = replace_rationales(small_answers)
    from page import _first_rationales

    assert "<i>" not in _first_rationales(source)
    assert "could not be read" in _first_rationales(source)


def replace_rationales(answers):
    """The same answers without any rationales."""
    bare = object.__new__(Answers)
    bare.__dict__ |= {**answers.__dict__, "rationales": None}
    return bare


def test_rationales_that_failed_are_left_out_and_counted(tmp_path):
    write(
        tmp_path / "mine", title=["Tray", "Lamp", "Cup"], status=["ok", "no_reason", "ok"], text=["Cork.", "", "Tin."]
    )
    made = rationales_of_dataset(str(tmp_path / "mine"), {})
    assert made.page().rows == [("Tray", "Cork."), ("Cup", "Tin.")]
    assert made.source == "mine (1 without a usable reason left out)"
    write(tmp_path / "theirs", title=["Tray", "Lamp"], status=["draft", "final"], text=["Cork.", "Tin."])
    theirs = rationales_of_dataset(str(tmp_path / "theirs"), {})
    assert (len(theirs), theirs.source) == (2, "theirs")  # a status of their own
