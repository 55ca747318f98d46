from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from loopback_hub import LoopbackHub


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
