"""Named recipes: the paper's three datasets, each as the paper describes it and as A-LLMRec's code makes it.

``paper``: one event for each user and item, then the iterated 5-core (paper §5.1). ``a-llmrec``: one counting pass
over all events with a threshold of 4 (Luxury Beauty) or 5, repeats kept, as the code that most papers of this family
build on does. Neither gives the counts of the paper's Table 2, whose own preprocessing is not public.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from pulse_hf.data.prepare import PrepareSettings

Counts = tuple[int, int, int]  # users, items, events


@dataclass(frozen=True)
class Recipe:
    """How one dataset is made, and what is known of the result.

    Args:
        settings: Filters and format; the files are the user's.
        counts: Users, items and events that the result must have; ``None`` where nobody of us has seen the raw data.
        table_2: What the paper's Table 2 says.
    """

    settings: PrepareSettings
    counts: Counts | None
    table_2: Counts

    def difference(self) -> str:
        """How the result differs from the paper's Table 2, in one sentence."""
        paper = "{:,} users, {:,} items, {:,} events".format(*self.table_2)
        if self.counts is None:
            return f"The paper's Table 2 has {paper}; what this recipe gives is not known yet and not checked."
        own = "{:,} users, {:,} items, {:,} events".format(*self.counts)
        return f"This recipe gives {own}; the paper's Table 2 has {paper} and does not say how it was made."


_PAPER = PrepareSettings(format="amazon-2018", reviews="")
_LUXURY_TABLE, _PANTRY_TABLE, _GAMES_TABLE = (
    (11_690, 6_534, 71_898),
    (15_611, 7_841, 150_402),
    (64_073, 33_614, 568_508),
)


def _one_pass(threshold: int) -> PrepareSettings:
    return replace(_PAPER, deduplicate=False, min_user_events=threshold, min_item_events=threshold, core_rounds=1)


RECIPES = {
    "luxury-beauty/paper": Recipe(_PAPER, (1_907, 910, 19_205), _LUXURY_TABLE),
    "luxury-beauty/a-llmrec": Recipe(_one_pass(4), (9_930, 6_141, 63_953), _LUXURY_TABLE),
    "prime-pantry/paper": Recipe(_PAPER, None, _PANTRY_TABLE),
    "prime-pantry/a-llmrec": Recipe(_one_pass(5), None, _PANTRY_TABLE),
    "video-games/paper": Recipe(_PAPER, (50_546, 16_859, 452_989), _GAMES_TABLE),
    "video-games/a-llmrec": Recipe(_one_pass(5), None, _GAMES_TABLE),
}


def recipe_named(name: str) -> Recipe:
    """The recipe of that name, its settings with the counts it must reach.

    Args:
        name: ``dataset/variant``, for example ``"luxury-beauty/paper"``.

    Raises:
        ValueError: No recipe has that name.

    Example:
        >>> recipe_named("luxury-beauty/paper").settings.expected["users"]
        1907
    """
    if name not in RECIPES:
        raise ValueError(f"no recipe {name!r}; there are {', '.join(RECIPES)}")
    recipe = RECIPES[name]
    if recipe.counts is None:
        return recipe
    expected = dict(zip(("users", "items", "events"), recipe.counts, strict=True))
    return replace(recipe, settings=replace(recipe.settings, expected=expected))
