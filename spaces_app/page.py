"""The page: what is where, and what happens when something is touched. It keeps one visitor's state per visit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from textwrap import shorten
from typing import Any

import gradio as gr
from answers import Answers, moves
from api import answers_of, endpoints, guarded
from gradio.components import Component
from inputs import MAX_REASON_CHARS, MAX_TITLE_CHARS, MAX_WORDS_CHARS, one_text
from limits import QUEUE
from markup import inert
from panels import agreement_panel, empty, map_panel, notice, ranking_panel, rationales_panel, tree_panel
from source import Source
from visit import Visit, answered, keeping, of_example, of_person, steered, unsteered, with_title

CSS = (Path(__file__).parent / "style.css").read_text(encoding="utf-8")
THEME = gr.themes.Base(
    primary_hue=gr.themes.colors.teal,
    neutral_hue=gr.themes.colors.slate,
    radius_size=gr.themes.sizes.radius_lg,
    font=["ui-sans-serif", "system-ui", "Segoe UI", "Noto Sans", "sans-serif"],
    font_mono=["ui-monospace", "Consolas", "monospace"],
).set(
    # Text and controls in tones that are read easily on white, and lighter ones on black.
    color_accent="*primary_700",
    body_text_color_subdued="*neutral_500",
    body_text_color_subdued_dark="*neutral_400",
    button_primary_background_fill="*primary_700",
    button_primary_background_fill_hover="*primary_800",
    button_primary_background_fill_dark="*primary_600",
    button_primary_background_fill_hover_dark="*primary_500",
    button_secondary_background_fill="white",
    button_secondary_background_fill_hover="*neutral_100",
    button_secondary_border_color="*neutral_300",
    button_border_width="1px",
    button_large_text_weight="500",
    button_large_text_size="*text_md",
    button_large_padding="*spacing_md *spacing_lg",
    button_small_text_weight="500",
    checkbox_label_background_fill="transparent",
    checkbox_label_background_fill_dark="transparent",
    checkbox_label_background_fill_hover="*neutral_100",
    checkbox_label_background_fill_hover_dark="*neutral_700",
    checkbox_label_background_fill_selected="transparent",
    checkbox_label_background_fill_selected_dark="transparent",
    checkbox_border_color_dark="*neutral_500",
    checkbox_label_padding="6px 6px",
    checkbox_background_color_selected="*primary_700",
    checkbox_border_color_selected="*primary_700",
    input_background_fill="white",
    input_border_color="*neutral_300",
    input_border_width="1px",
    block_label_text_color="*body_text_color",
    block_title_text_color="*body_text_color",
    block_title_text_weight="600",
)
MODEL = {"concurrency_id": "model", "concurrency_limit": 1}
LIGHT = {"concurrency_id": "light", "concurrency_limit": 4}
MAX_SESSIONS = 300
SESSION_S = 3600
FOUND = 6
SAID_CHARS = 90
START = "Pick a person or an example, or type what someone liked."
EXPIRED = "This visit has expired: its history was kept for an hour, or made room for newer visits. Please begin anew."
Change = Callable[..., Visit]
TITLE = "PULSE: recommendation that knows why"


def build(source: Source) -> gr.Blocks:
    """The page for a source, with its endpoints.

    Args:
        source: Ready, or opened in the background meanwhile.
    """
    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True) as page:
        for work in endpoints(source):  # first, so that their names are theirs
            kind = LIGHT if work.__name__ in ("search_catalogue", "browse_rationales") else MODEL
            gr.api(guarded(work), api_name=work.__name__, **kind)
        header = gr.HTML(_header(source), js_on_load=None)
        waiting = gr.HTML(_waiting(source), visible=not source.ready, js_on_load=None, elem_id="pulse-waiting")
        timer = gr.Timer(1.5, active=not source.ready)
        with gr.Tabs(visible=source.ready, elem_id="pulse-tabs") as tabs:
            with gr.Tab("Recommend", id="recommend"):
                people = _recommend_tab(source)
            with gr.Tab("Rationales", id="rationales"):
                shown = _rationales_tab(source)
            with gr.Tab("About", id="about"):
                gr.HTML(_about(), js_on_load=None)

        def look() -> list[Any]:
            """Show how far the source is; the page itself once it is ready."""
            return [
                _header(source),
                gr.HTML(_waiting(source), visible=not source.ready),
                gr.Timer(active=not source.ready),
                gr.Tabs(visible=source.ready),
                _people(source),
                _first_rationales(source),
            ]

        parts = [header, waiting, timer, tabs, people, shown]
        for start in (page.load, timer.tick):
            start(look, None, parts, show_progress="hidden", api_visibility="private", **LIGHT)
    return page.queue(max_size=QUEUE, default_concurrency_limit=1, api_open=False)


# -- the tab that recommends -------------------------------------------------------------------------


def _recommend_tab(source: Source) -> gr.Dropdown:
    visit = gr.State(None, time_to_live=SESSION_S)
    with gr.Row(elem_id="pulse-columns"):
        with gr.Column(scale=4, min_width=320, elem_id="pulse-history"):
            gr.HTML('<h2 class="pulse-h2">History</h2>', js_on_load=None)
            people = _people(source)
            with gr.Row(elem_classes="pulse-examples"):
                examples = [
                    gr.Button(f"Example {number}", size="sm", elem_id=f"pulse-example-{number}")
                    for number in (1, 2, 3)
                ]
                clear = gr.Button("Clear", size="sm", variant="secondary", elem_id="pulse-clear")
            title = gr.Textbox(
                label="Add a title", max_length=MAX_TITLE_CHARS, max_lines=1, elem_id="pulse-title",
                info="Search the catalogue, or type any title.", placeholder="Words of a title",
            )  # fmt: skip
            found = gr.Radio([], label="In the catalogue", visible=False, elem_id="pulse-found")
            words = gr.Textbox(
                label="What did they say about it? (optional)", max_length=MAX_WORDS_CHARS, lines=1, max_lines=4,
                placeholder="Reasons are drawn from these words.", elem_id="pulse-words",
            )  # fmt: skip
            # A visit is None before it begins and after it has expired; which of them it is, the page knows by this
            # box. The style sheet hides it: what the framework hides, it shows as soon as it is set.
            begun = gr.Textbox("", elem_id="pulse-begun")
            add = gr.Button("Add to the history", elem_id="pulse-add")
            kept = gr.CheckboxGroup([], label="Choices", visible=False, elem_id="pulse-kept",
                info="Untick one to drop it and see the ranking move.",
            )  # fmt: skip
        with gr.Column(scale=7, min_width=320, elem_id="pulse-results"):
            gr.HTML('<h2 class="pulse-h2">Why, and what next</h2>', js_on_load=None)
            reason = gr.Textbox(
                label="The reason", lines=2, max_lines=6, max_length=MAX_REASON_CHARS, elem_id="pulse-reason",
                info="Edit it to steer the ranking.", placeholder="It is drafted from the history.",
            )  # fmt: skip
            agreement = gr.HTML("", js_on_load=None, elem_id="pulse-agreement")
            with gr.Row():
                by_own = gr.Button("Rank by this reason", variant="primary", elem_id="pulse-steer")
                by_drafted = gr.Button("Back to the draft", elem_id="pulse-back")
            with gr.Tabs(elem_id="pulse-views"):
                with gr.Tab("Ranking"):
                    ranking = gr.HTML(empty(START), js_on_load=None, elem_id="pulse-ranking", min_height=120)
                with gr.Tab("Tree of thoughts"):
                    tree = gr.HTML(empty(START), js_on_load=None, elem_id="pulse-tree", min_height=120)
                with gr.Tab("Map"):
                    space = gr.HTML(empty(START), js_on_load=None, elem_id="pulse-space", min_height=120)

    outputs = [visit, begun, kept, reason, agreement, ranking, tree, space, people]

    def on(
        triggers: list[Any],
        change: Change,
        *inputs: Component,
        cleared: tuple[Component, ...] = (),
        anew: bool = False,
    ) -> None:
        """Change the visit when something is touched; ``anew`` where nothing of the former history stays."""

        def run(progress: gr.Progress = gr.Progress(), *values: Any) -> list[Any]:  # noqa: B008
            answers = answers_of(source)
            now, seen, *given = values
            if now is None and seen and not anew:
                gr.Warning(EXPIRED)
                return [*_show(answers, Visit()), gr.update(value=None), *(gr.skip() for _ in cleared)]
            now = change(answers, now or Visit(), *given)
            progress(0.3, desc="Thinking about why")
            shown = _show(answers, answered(answers, now))
            person = gr.update(value=None) if anew and people not in inputs else gr.skip()
            return [*shown, person, *(gr.update(value=None if part is found else "") for part in cleared)]

        for trigger in triggers:
            trigger(
                guarded(run), [visit, begun, *inputs], [*outputs, *cleared],
                # What comes is judged by `inputs` and `visit`: the framework forgets the choices it showed, too.
                preprocess=False,
                show_progress="full", show_progress_on=[ranking], api_visibility="private", **MODEL,
            )  # fmt: skip

    @guarded
    def match(typed: object) -> gr.Radio:
        text = one_text(typed, "The title", MAX_TITLE_CHARS)
        titles = [(name, item_id) for item_id, name in answers_of(source).search(text, FOUND)] if text else []
        label = "In the catalogue" if titles else "Not in the catalogue; it is added as typed"
        return gr.Radio(titles, value=None, label=label, visible=bool(text))

    on([people.input], of_person, people, anew=True)
    for number, button in enumerate(examples):
        on([button.click], lambda answers, now, number=number: of_example(answers, now, number), anew=True)
    on([clear.click], lambda answers, now: Visit(), anew=True)
    on([add.click, title.submit, words.submit], with_title, title, found, words, cleared=(title, found, words))
    on([kept.input], keeping, kept)
    on([by_own.click, reason.submit], steered, reason)
    on([by_drafted.click], unsteered)
    title.change(
        match, title, found, show_progress="hidden", trigger_mode="always_last", api_visibility="private", **LIGHT
    )
    return people


def _show(answers: Answers, visit: Visit) -> list[Any]:
    """Everything the page shows of a visit, and whether it has begun."""
    labels = [_label(answers.title(event.item), event.review) for event in visit.events]
    choices = [(label, str(place)) for place, label in enumerate(labels)]
    boxes = gr.CheckboxGroup(
        choices,
        value=[str(place) for place in visit.kept],
        label=f"{len(visit.kept)} of {len(choices)} choices count, oldest first",
        visible=bool(choices),
    )
    answer = visit.answer
    if answer is None:
        nothing = empty("Every choice is dropped; tick one to go on." if choices else START)
        return [visit, "yes" if choices else "", boxes, "", "", nothing, nothing, nothing]
    return [
        visit,
        "yes",
        boxes,
        answer.reason,
        agreement_panel(answer),
        ranking_panel(moves(visit.before, answer), visit.before is not None),
        tree_panel(answer),
        map_panel(answers, answer),
    ]


def _label(title: str, words: str) -> str:
    return f"{title} · “{shorten(words, SAID_CHARS, placeholder=' …')}”" if words else title


def _people(source: Source) -> gr.Dropdown:
    answers = source.answers
    names = [] if answers is None else [(f"{one} ({answers.choices(one)} choices)", one) for one in answers.people]
    return gr.Dropdown(
        names, value=None, label="A person", visible=bool(names), elem_id="pulse-people", allow_custom_value=False,
        info="People of the shop, with what they chose and said.",
    )  # fmt: skip


# -- the other tabs ----------------------------------------------------------------------------------


def _rationales_tab(source: Source) -> gr.HTML:
    number = gr.State(1, time_to_live=SESSION_S)
    with gr.Row(elem_classes="pulse-search"):
        query = gr.Textbox(
            label="Search the rationales", max_length=200, scale=5, elem_id="pulse-query",
            placeholder="Words of a title or a reason",
        )  # fmt: skip
    shown = gr.HTML(_first_rationales(source), js_on_load=None, elem_id="pulse-rationales", min_height=120)
    with gr.Row(elem_classes="pulse-pages"):
        earlier = gr.Button("Previous page", size="sm", elem_id="pulse-earlier")
        later = gr.Button("Next page", size="sm", elem_id="pulse-later")

    @guarded
    def turn(text: object, page: int) -> tuple[str, int]:
        rationales = answers_of(source).rationales
        if rationales is None:
            return _first_rationales(source), 1
        found = rationales.page(text, max(1, page))
        return rationales_panel(found, rationales.source), found.page

    options: dict[str, Any] = {"outputs": [shown, number], "api_visibility": "private", **LIGHT}
    query.submit(lambda text: turn(text, 1), query, **options)
    query.change(lambda text: turn(text, 1), query, trigger_mode="always_last", **options)
    earlier.click(lambda text, page: turn(text, page - 1), [query, number], **options)
    later.click(lambda text, page: turn(text, page + 1), [query, number], **options)
    return shown


def _first_rationales(source: Source) -> str:
    if source.answers is None:
        return ""
    if source.answers.rationales is None:
        return empty(inert(source.no_rationales))
    return rationales_panel(source.answers.rationales.page(), source.answers.rationales.source)


def _header(source: Source) -> str:
    subject = source.answers.subject if source.answers is not None else ""
    return (
        '<header class="pulse-header"><h1>PULSE</h1><p class="line">Recommendation that knows why</p>'
        f'<p class="subject">{inert(subject)}</p></header>'
    )


def _waiting(source: Source) -> str:
    status = source.status
    return notice(status.heading, status.sentence, status.fraction)


def _about() -> str:
    return (Path(__file__).parent / "about.html").read_text(encoding="utf-8")
