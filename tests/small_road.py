"""Settings of the smallest road on which every stage has something to do, and what of its report repeats."""

from dataclasses import replace
from typing import Any

from pulse_hf.data.world.shop import WorldSettings
from pulse_hf.presets import preset_named
from pulse_hf.settings import RunSettings


def small_settings() -> RunSettings:
    demo = preset_named("demo")
    return replace(
        demo,
        world=WorldSettings(num_users=80, items_per_kind=2),
        sequential=replace(demo.sequential, epochs=2),
        candidates=replace(demo.candidates, max_test_users=40, max_validation_users=24),
        thoughts=replace(demo.thoughts, depth=1, width=2),
        recommender=replace(demo.recommender, epochs=1),
        evaluate=replace(demo.evaluate, audit_users=2),
    )


def untimed(report: Any) -> Any:
    """A report without what no two runs have in common: its seconds."""
    if isinstance(report, dict):
        return {key: untimed(value) for key, value in report.items() if not key.startswith("seconds")}
    return [untimed(value) for value in report] if isinstance(report, list) else report
