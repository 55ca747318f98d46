"""What one visitor has on the page, and how each touch changes it; nothing of it is shown to others."""

from __future__ import annotations

from dataclasses import dataclass, replace

from answers import Answer, Answers
from inputs import MAX_EVENTS, MAX_TITLE_CHARS, MAX_WORDS_CHARS, RefusedError, one_text, read_reason

from pulse_hf.recommender import Event


@dataclass(frozen=True)
class Visit:
    """One visitor's history, reason and rankings.

    Args:
        events: The history, oldest first, dropped ones included.
        kept: Places of the events that count.
        own: The visitor's own reason, ``None`` for the drafted one.
        answer: The last answer.
        before: The one before it, to compare with.
    """

    events: tuple[Event, ...] = ()
    kept: tuple[int, ...] = ()
    own: str | None = None
    answer: Answer | None = None
    before: Answer | None = None


def begun(history: list[Event]) -> Visit:
    """A new visit with a history; nothing is compared with what was there before."""
    return Visit(tuple(history), tuple(range(len(history))))


def of_person(answers: Answers, _: Visit, person: object) -> Visit:
    """The history of a person of the run."""
    return begun([] if person in (None, "") else answers.history_of(person))


def of_example(answers: Answers, _: Visit, number: int) -> Visit:
    """One of the histories built from the catalogue."""
    if number >= len(answers.examples):
        raise RefusedError("The catalogue is too small for this example.")
    return begun(answers.examples[number])


def with_title(_: Answers, now: Visit, typed: object, chosen: object, said: object) -> Visit:
    """One more choice: the item chosen in the catalogue, else the title as typed."""
    text = one_text(chosen, "The title", MAX_TITLE_CHARS) or one_text(typed, "The title", MAX_TITLE_CHARS)
    words = one_text(said, "The comment", MAX_WORDS_CHARS)
    if not text:
        raise RefusedError("Give a title first: search the catalogue, or type any.")
    if len(now.events) >= MAX_EVENTS:
        raise RefusedError(f"The history holds {MAX_EVENTS} choices already; clear it to begin anew.")
    return replace(now, events=(*now.events, Event(text, review=words)), kept=(*now.kept, len(now.events)))


def keeping(_: Answers, now: Visit, ticked: object) -> Visit:
    """Only the ticked choices count."""
    known = {str(place): place for place in range(len(now.events))}
    places = {str(place) for place in ticked} if isinstance(ticked, list) else {""}
    if not places <= known.keys():
        raise RefusedError("The history has changed meanwhile; please try again.")
    return replace(now, kept=tuple(sorted(known[place] for place in places)))


def steered(_: Answers, now: Visit, text: object) -> Visit:
    """Ranked by the visitor's own reason."""
    if not now.kept:
        raise RefusedError("Give a history first; then its ranking can be steered by a reason.")
    return replace(now, own=read_reason(text))


def unsteered(_: Answers, now: Visit) -> Visit:
    """Ranked by the drafted reason again."""
    return replace(now, own=None)


def answered(answers: Answers, now: Visit) -> Visit:
    """With the answer for what is kept, compared with the one before; without any where nothing is kept."""
    if not now.kept:
        return replace(now, own=None, answer=None, before=None)
    answer = answers.answer([now.events[place] for place in now.kept], now.own, now.answer)
    return replace(now, answer=answer, before=now.answer)
