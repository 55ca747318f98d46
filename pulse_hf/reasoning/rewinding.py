"""Where a text began to go in circles, and what was written before that.

Small models fall into loops ("peace and quiet and quiet and quiet"). Drawing the whole text anew at a higher
temperature mostly loops again or derails elsewhere; measured on pulse-nano, 86 of 89 looping rationales became
sound when the text was cut before the second copy and went on with another token (4 draws at temperature 0.7: 29).
"""

from __future__ import annotations

from collections.abc import Sequence as Series
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Text:
    """One branch's text as tokens.

    Args:
        tokens: What was written, the closing token included.
        log_probabilities: Of each token, under the model's own distribution.
        stopped: It ended by itself.
    """

    tokens: list[int]
    log_probabilities: list[float]
    stopped: bool

    def up_to(self, length: int) -> Text:
        """Its first tokens, open again unless that is all."""
        return Text(self.tokens[:length], self.log_probabilities[:length], self.stopped and length >= len(self.tokens))

    def __add__(self, more: Text) -> Text:
        return Text([*self.tokens, *more.tokens], [*self.log_probabilities, *more.log_probabilities], more.stopped)


def second_copy(tokens: Series[int]) -> int | None:
    """Where the second copy begins in the longest stretch that repeats itself at once.

    A stretch counts if it is there three times in a row; the last copy may lack its last token.

    Example:
        >>> second_copy("they want peace and quiet and quiet and quiet .".split())
        5
        >>> second_copy("peace and quiet and quiet .".split()) is None
        True
    """
    found, longest = None, 0
    for size in range(1, len(tokens) // 2 + 1):
        run, needed = 0, max(2, 2 * size - 1)
        for place in range(size, len(tokens)):
            run = run + 1 if tokens[place] == tokens[place - size] else 0
            if run >= needed and run > longest:
                found, longest = place - run + 1, run
    return found
