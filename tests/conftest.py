"""What several test files share: a small run of the road up to its recommender, and the Space's folder as a path."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

SPACE = Path(__file__).resolve().parents[1] / "spaces_app"
sys.path.insert(0, str(SPACE))  # the Space's files import each other as they do there, where app.py is at the top


@pytest.fixture(scope="session")
def small_run(tmp_path_factory):
    from pulse_hf.data.world.shop import WorldSettings
    from pulse_hf.pipeline import run_road
    from pulse_hf.presets import preset_named

    demo = preset_named("demo")
    settings = replace(
        demo,
        world=WorldSettings(num_users=60, items_per_kind=2),
        sequential=replace(demo.sequential, epochs=1),
        candidates=replace(demo.candidates, max_test_users=20, max_validation_users=20),
        thoughts=replace(demo.thoughts, depth=1, width=2),
        recommender=replace(demo.recommender, epochs=1),
    )
    return run_road(tmp_path_factory.mktemp("runs") / "small", settings, until="recommender")


@pytest.fixture(scope="session")
def small_answers(small_run):
    from answers import Answers
    from rationale_table import rationales_of_run

    from pulse_hf.recommender import PulseRecommender

    recommender = PulseRecommender.from_run(small_run)
    rationales = rationales_of_run(small_run, recommender.users, recommender.parts.items)
    return Answers(recommender, rationales, "A small synthetic shop", aligned=True)
