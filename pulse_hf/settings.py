"""The settings of a whole run: one group per stage, from a preset, a JSON file and ``stage.key=value`` flags."""

from __future__ import annotations

import json
from collections.abc import Mapping
from collections.abc import Sequence as Series
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from pulse_hf.data.prepare import PrepareSettings
from pulse_hf.data.world.shop import WorldSettings
from pulse_hf.evaluation.evaluate import EvaluateSettings
from pulse_hf.ranges import at_least
from pulse_hf.reasoning.rationales import RationaleSettings
from pulse_hf.reasoning.thoughts import ThoughtSettings
from pulse_hf.retrieval.candidates import CandidateSettings
from pulse_hf.training.baselines import BaselineSettings
from pulse_hf.training.scorer import RecommenderSettings
from pulse_hf.training.sequential import SequentialSettings
from pulse_hf.training.thought_space import ThoughtSpaceSettings


@dataclass(frozen=True)
class RunSettings:
    """Everything that decides a run.

    Args:
        seed: One seed for all stages.
        world: The embedded shop to generate, or ``None`` when ``prepare`` reads data of your own.
        prepare: Reading, cleaning, filtering.
        sequential: SASRec and similar users.
        candidates: Frozen candidate sets.
        rationales: Positive rationales of training targets.
        thought_space: The two encoders and InfoNCE.
        thoughts: Base reasons and their trees.
        recommender: LoRA tuning of the scorer.
        baselines: Learned rows that only the report needs; none by default.
        evaluate: The report.
    """

    seed: int = 0
    world: WorldSettings | None = None
    prepare: PrepareSettings = field(default_factory=lambda: PrepareSettings(format="amazon-2018", reviews=""))
    sequential: SequentialSettings = field(default_factory=SequentialSettings)
    candidates: CandidateSettings = field(default_factory=CandidateSettings)
    rationales: RationaleSettings = field(default_factory=RationaleSettings)
    thought_space: ThoughtSpaceSettings = field(default_factory=ThoughtSpaceSettings)
    thoughts: ThoughtSettings = field(default_factory=ThoughtSettings)
    recommender: RecommenderSettings = field(default_factory=RecommenderSettings)
    baselines: BaselineSettings = field(default_factory=lambda: BaselineSettings(systems=()))
    evaluate: EvaluateSettings = field(default_factory=EvaluateSettings)

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        at_least(self, 0, "seed")


def load_settings(path: Path, start: RunSettings) -> RunSettings:
    """Settings from a JSON file, on top of a preset.

    Args:
        path: An object with a group per stage, for example ``{"seed": 1, "sequential": {"dim": 32}}``.
        start: What keys not named in the file keep.

    Raises:
        ValueError: A key is unknown or a value has another type; the message names file and key.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_each_once)
    except OSError as error:
        raise ValueError(f"{path}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path} is not a JSON file of settings: {error}") from error
    return merge(start, values, str(path))


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        twice = sorted({key for key, _ in pairs if sum(key == other for other, _ in pairs) > 1})
        raise ValueError(f"{', '.join(map(repr, twice))} stands in it twice")
    return values


def override(settings: RunSettings, assignments: Series[str]) -> RunSettings:
    """Apply ``stage.key=value`` flags; values are JSON, bare words are strings.

    >>> override(RunSettings(), ["seed=3", "sequential.dim=16"]).sequential.dim
    16
    """
    for assignment in assignments:
        name, separator, text = assignment.partition("=")
        if not separator:
            raise ValueError(f"--set {assignment}: expected stage.key=value, for example --set sequential.dim=32")
        try:
            value: Any = json.loads(text)
        except json.JSONDecodeError:
            value = text
        for key in reversed(name.split(".")):
            value = {key: value}
        settings = merge(settings, value, f"--set {assignment}")
    return settings


def merge(record: Any, values: Mapping[str, Any], source: str) -> Any:
    """A copy of a settings record with some values replaced; groups are merged, unknown keys refused."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{source}: found {values!r}, expected an object of settings")
    types = get_type_hints(type(record))
    known = {entry.name for entry in fields(record)}
    changes: dict[str, Any] = {}
    for key, value in values.items():
        if key not in known:
            raise ValueError(f"{source}: unknown setting {key!r}; known here: {', '.join(sorted(known))}")
        current = getattr(record, key)
        if key == "world" and current is None and value is not None:
            current = WorldSettings()  # the one group that may be absent
        if not is_dataclass(current) or (key == "world" and value is None):
            changes[key] = _typed(value, types[key], f"{source}: {key}")
        elif value is None:
            raise ValueError(f"{source}: {key}: found null, expected an object of settings")
        else:
            changes[key] = merge(current, value, source)
    try:
        return replace(record, **changes)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def _typed(value: Any, expected: Any, where: str) -> Any:
    """JSON has lists where settings have tuples, and integers where they have floats; nothing else is bent."""
    options = [option for option in getattr(expected, "__args__", ()) if isinstance(option, type)]
    plain = [expected] if isinstance(expected, type) else options
    if _is_tuple(expected):
        return _as_tuple(value, expected, where)
    if get_origin(expected) is Mapping and not isinstance(value, Mapping):
        raise ValueError(f"{where}: found {value!r}, expected an object")
    if isinstance(value, int) and not isinstance(value, bool) and float in plain and int not in plain:
        return float(value)
    simple = tuple(option for option in plain if option in (bool, int, float, str, type(None)))
    if simple and (type(value) not in simple) and not getattr(expected, "__origin__", None):
        names = ", ".join(option.__name__ for option in simple)
        quoted = (
            f"; a text is written in quotes: '\"{value}\"'" if str in simple and isinstance(value, int | float) else ""
        )
        raise ValueError(f"{where}: found {value!r}, expected {names}{quoted}")
    return value


def _as_tuple(value: Any, expected: Any, where: str) -> Any:
    """A list as the tuple that a setting is; where the setting may also be a text or nothing, these."""
    options = (expected,) if get_origin(expected) is tuple else get_args(expected)
    for option in options:
        if get_origin(option) is tuple and isinstance(value, list | tuple) and _are(value, get_args(option)):
            return tuple(value)
        if isinstance(option, type) and isinstance(value, option):
            return value
    example = f", for example {json.dumps([value])}" if isinstance(value, str) else ""
    raise ValueError(f"{where}: found {value!r}, expected a list{example}")


def _are(values: Series[Any], kinds: tuple[Any, ...]) -> bool:
    """Whether the values are of a tuple's kinds, of which ``...`` repeats the one before."""
    if Ellipsis not in kinds and len(values) != len(kinds):
        return False
    allowed = (int, float) if kinds[0] is float else kinds[0]
    return all(isinstance(one, allowed) and not isinstance(one, bool) for one in values)


def _is_tuple(expected: Any) -> bool:
    return any(get_origin(option) is tuple for option in (expected, *get_args(expected)))
