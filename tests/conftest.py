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
