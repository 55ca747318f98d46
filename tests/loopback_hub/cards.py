"""The metadata block of a README, and what the Hub refuses in it."""

from typing import Any

import yaml
from huggingface_hub.repocard import REGEX_YAML_BLOCK


def metadata_of(content: str) -> dict[str, Any]:
    """The metadata of a README; empty when there is none."""
    block = REGEX_YAML_BLOCK.search(content)
    return (yaml.safe_load(block.group(2)) or {}) if block else {}


def check_card(content: str, repo_type: str) -> tuple[list[str], list[str]]:
    """Errors and warnings."""
    return [], []
