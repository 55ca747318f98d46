"""Folders that stand beside the package in its repository and inside it once it is installed."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


def shipped(name: str) -> Path:
    """Where ``hub_cards`` or ``spaces_app`` lies.

    Raises:
        FileNotFoundError: The installation lacks it.
    """
    for folder in (PACKAGE / "shipped" / name, PACKAGE.parent / name):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"{name} is neither in {PACKAGE / 'shipped'} nor beside {PACKAGE}; install pulse-hf anew")
