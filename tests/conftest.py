"""What several test files share: a small finished run, a loopback Hub, and the Space's folder as a path."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from answers import Answers
    from loopback_hub import LoopbackHub

    from pulse_hf.recommender import PulseRecommender

SPACE = Path(__file__).resolve().parents[1] / "spaces_app"
sys.path.insert(0, str(SPACE))  # the Space's files import each other as they do there, where app.py is at the top


@pytest.fixture
def hub(tmp_path: Path) -> "Iterator[LoopbackHub]":
    """A Hub of its own for one test."""
    from loopback_hub import LoopbackHub

    with LoopbackHub(tmp_path / "hub") as running:
        yield running


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a small embedded world; tests read it and leave it as it is."""
    from small_road import small_settings

    from pulse_hf.pipeline import run_road

    return run_road(tmp_path_factory.mktemp("runs") / "small", small_settings())


@pytest.fixture(scope="session")
def small_recommender(small_run: Path) -> "PulseRecommender":
    """The recommender of the small run; tests leave it as it is."""
    from pulse_hf.recommender import PulseRecommender

    return PulseRecommender.from_run(small_run)


@pytest.fixture(scope="session")
def small_answers(small_run: Path) -> "Answers":
    """The Space's answers over the small run."""
    from answers import Answers
    from rationale_table import rationales_of_run

    from pulse_hf.recommender import PulseRecommender

    recommender = PulseRecommender.from_run(small_run)
    rationales = rationales_of_run(small_run, recommender.users, recommender.parts.items)
    return Answers(recommender, rationales, "A small synthetic shop", aligned=True)
