"""The engine without a language model: a reason quoted from the person's own words.

The floor that every language model must beat. It reads a prompt's evidence, never its prose: it splits
the reviews into sentences, ranks those that state a preference, and quotes the best ones. It cannot say
anything the person did not write, and it writes the same text on every machine.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterable
from collections.abc import Sequence as Series
from dataclasses import dataclass

from pulse_hf.reasoning.generator import Generation, Sampling, Usage
from pulse_hf.reasoning.prompts import Evidence, Prompt

_SENTENCE = re.compile(r"(?<=[.!?;])\s+|\n+")
_WORD = re.compile(r"[a-z']+")
_FIRST_PERSON = frozenset("i i'm i've i'd me my mine we our us".split())
_PREFERENCE = frozenset(
    "want wants wanted need needs needed like likes liked love loves loved prefer prefers care cares matter matters "
    "looking because since favourite favorite enjoy enjoyed hate hated dislike disliked must important perfect".split()
)
_FUNCTION = frozenset(
    "the a an and or but it its it's is was are were be been to of in on for with this that these those so as at by "
    "from have has had not no very just too if than then when what which who you your they them their he she his her "
    "do does did all one can will would".split()
)
_QUOTED = 2
_MAX_WORDS = 24


@dataclass(frozen=True, slots=True)
class _Sentence:
    text: str
    score: float
    order: int


class ExtractiveGenerator:
    """Quotes the sentences that best tell what a person cares about.

    Further samples and refinements of a reason quote the next best sentences that the conversation has
    not told yet; ``sampling`` and ``seed`` change nothing.

    Example:
        >>> events = (("Norvik kettle", 5.0, "It is blue. I love how quiet it is."),)
        >>> prompt = Prompt("u#1", ({"role": "user", "content": "why?"},), Evidence(events))
        >>> ExtractiveGenerator().generate([prompt], width=1, sampling=Sampling(), seed=0)[0][0].text
        'Reason: They say: "I love how quiet it is" and "It is blue".'
    """

    engine: str = "extractive"
    model_id: str = "extractive"
    revision: str = "2"

    def __init__(self) -> None:
        self.usage = Usage()

    def generate(
        self, prompts: Series[Prompt], *, width: int, sampling: Sampling, seed: int
    ) -> list[list[Generation]]:
        """Write ``width`` reasons per prompt; see :class:`pulse_hf.reasoning.generator.Generator`."""
        started = time.perf_counter()
        results = [[self._write(prompt, sample) for sample in range(width)] for prompt in prompts]
        self.usage.generated_tokens += sum(reply.num_tokens for replies in results for reply in replies)
        self.usage.seconds += time.perf_counter() - started
        return results

    def _write(self, prompt: Prompt, sample: int) -> Generation:
        told = " ".join(message["content"] for message in prompt.messages if message["role"] == "assistant")
        text = _reason(prompt.evidence, told, sample)
        return Generation(text, num_tokens=len(text.split()), quoted=True)


def _reason(evidence: Evidence, told: str, sample: int) -> str:
    ranked = [sentence.text for sentence in _ranked(evidence)]
    fresh = [text for text in ranked if text not in told] or ranked
    # A later sample starts further down; what it skipped comes last.
    turn = sample % len(fresh) if fresh else 0
    quotes = [f'"{text}"' for text in (fresh[turn:] + fresh[:turn])[:_QUOTED]]
    parts = []
    if quotes:
        parts.append(f"They say: {' and '.join(quotes)}.")
    elif evidence.events:
        latest = _distinct(title for title, _, _ in reversed(evidence.events))[:3]
        parts.append(f"They keep choosing things like {_listed(reversed(latest))}.")
    if evidence.target_title:
        parts.append(f"That led them to {evidence.target_title}.")
    elif evidence.neighbour_titles:
        lent = _distinct(evidence.neighbour_titles)
        start = (sample + told.count("Reason:")) % len(lent)
        parts.append(f"People of similar taste went on to {_listed((lent[start:] + lent[:start])[:2])}.")
    return f"Reason: {' '.join(parts)}" if parts else ""


def _distinct(titles: Iterable[str]) -> list[str]:
    """Each title once: several items of one name are one thing to tell of."""
    return list(dict.fromkeys(titles))


def _listed(titles: Iterable[str]) -> str:
    return ", ".join(titles)


def _ranked(evidence: Evidence) -> list[_Sentence]:
    """The reviews' sentences, best first; equal ones by recency."""
    sentences = [
        (text, rating, number)
        for number, (_, rating, review) in enumerate(evidence.events)
        for text in (" ".join(piece.split()[:_MAX_WORDS]).strip(" .!?;,\"'") for piece in _SENTENCE.split(review))
        if text
    ]
    events_with = Counter(
        word for words in ({*_content(review)} for _, _, review in evidence.events) for word in words
    )
    found: dict[str, _Sentence] = {}
    for order, (text, rating, number) in enumerate(sentences):
        recency = (number + 1) / len(evidence.events)
        found[text] = _Sentence(text, _score(text, rating, recency, events_with), order)
    return sorted(found.values(), key=lambda sentence: (-sentence.score, -sentence.order))


def _score(text: str, rating: float | None, recency: float, events_with: Counter[str]) -> float:
    """How much a sentence tells about its writer: weights set by hand, in points.

    A stated preference counts most, then words the person comes back to, then a clear rating and recency.
    """
    words = _WORD.findall(text.lower())
    content = _content(text)
    person = 1.0 if _FIRST_PERSON & set(words) else 0.0
    preference = 1.0 * min(2, sum(word in _PREFERENCE for word in words))
    recurring = sum(events_with[word] > 1 for word in content) / len(content) if content else 0.0
    clear = 0.0 if rating is None else abs(rating - 3.0) / 4
    fragment = -2.0 if len(words) < 3 else 0.0
    return person + preference + 1.5 * recurring + clear + 0.5 * recency + fragment


def _content(text: str) -> list[str]:
    return [word for word in _WORD.findall(text.lower()) if word not in _FUNCTION and word not in _FIRST_PERSON]
