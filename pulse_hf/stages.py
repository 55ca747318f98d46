"""The stages of a run in their order, by name alone: nothing is imported, so that help starts at once."""

from __future__ import annotations

from typing import NamedTuple


class Stage(NamedTuple):
    """One step of the road.

    Args:
        word: What the command line calls it.
        setting: Its group in :class:`~pulse_hf.settings.RunSettings`.
        folder: Where its artefact lies in the run.
        purpose: One line for people.
        writes: Whether a language model writes here, for hours on large shops.
    """

    word: str
    setting: str
    folder: str
    purpose: str
    writes: bool = False


ROAD = (
    Stage("world", "world", "world", "generate the embedded synthetic shop"),
    Stage("prepare", "prepare", "sequences", "read, clean, filter and split the interactions"),
    Stage("sequential", "sequential", "sequential", "train SASRec, find similar users"),
    Stage("candidates", "candidates", "candidates", "freeze the candidate sets every system ranks"),
    Stage("rationales", "rationales", "rationales", "write the positive rationales of training targets", writes=True),
    Stage("thought-space", "thought_space", "thought_space", "align histories and rationales by InfoNCE"),
    Stage("thoughts", "thoughts", "thoughts", "draft reasons and refine them by tree of thought", writes=True),
    Stage("recommender", "recommender", "recommender", "tune the small language model as candidate scorer"),
    Stage("baselines", "baselines", "baselines", "fit the learned baselines that only the report needs"),
    Stage("evaluate", "evaluate", "evaluate", "score every system, audit for leaks, write the report"),
)

A_LLMREC = ("a-llmrec", "a-llmrec+reason")
BASELINES = ("encoder-tuned", "sasrec-bce", "sasrec-gbce", "duorec", "ec4srec", "morec", "ctrl", *A_LLMREC)
"""What the stage ``baselines`` can fit."""


def stage_named(word: str) -> Stage:
    """The stage of a command-line word.

    Raises:
        ValueError: No stage has that name.

    Example:
        >>> stage_named("prepare").folder
        'sequences'
    """
    for stage in ROAD:
        if stage.word == word:
            return stage
    raise ValueError(f"no stage {word!r}; the road is {', '.join(stage.word for stage in ROAD)}")
