"""What several test files share: a small finished run, a loopback Hub, and the Space's folder as a path."""

import os
import shutil
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from filelock import FileLock

if TYPE_CHECKING:
    from answers import Answers
    from loopback_hub import LoopbackHub

    from pulse_hf.recommender import PulseRecommender

SPACE = Path(__file__).resolve().parents[1] / "spaces_app"
sys.path.insert(0, str(SPACE))  # the Space's files import each other as they do there, where app.py is at the top


@pytest.hookimpl(trylast=True)  # when what does not run is gone
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of several workers one makes the small run at once, for all; the others begin with files that do without it.

    Large files first, so that the workers end together (`--no-loadscope-reorder` keeps this order).
    """
    files: dict[Path, list[pytest.Item]] = defaultdict(list)
    for item in items:
        files[item.path].append(item)
    using = [path for path in files if any("small_run" in getattr(one, "fixturenames", ()) for one in files[path])]
    first = min(using, key=lambda path: len(files[path]), default=None)
    order = sorted(files, key=lambda path: (path != first, path in using, -len(files[path])))
    items[:] = [item for path in order for item in files[path]]


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

    own = tmp_path_factory.mktemp("runs") / "small"
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return run_road(own, small_settings())
    shared = tmp_path_factory.getbasetemp().parent / "small"
    with FileLock(shared.with_suffix(".lock")):
        run_road(shared, small_settings())  # whoever comes second finds it finished
    shutil.copytree(shared, own)
    return own


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
