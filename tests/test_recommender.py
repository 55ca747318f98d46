"""A recommender without its models: what is refused or mended before any of them is read or asked."""

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from pulse_hf.artifacts import ArtifactError, replacing, write_json
from pulse_hf.cli.show import show_recommendations
from pulse_hf.composition import FORMAT_VERSION
from pulse_hf.hub.files import check_folder, seal_folder
from pulse_hf.recommender import PulseRecommender
from pulse_hf.schema import Item

ITEMS = {one: Item(one, one, one) for one in ("kettle", "tray")}


@pytest.fixture
def modelless():
    """It knows its catalogue and nothing else: whatever asks a model fails otherwise than by a refusal."""
    record = {
        "encoder": "none is asked",
        "neighbours": {"num_neighbours": 1, "neighbour_items": 1},
        "thoughts": {"budget": {}},
    }
    vectors = np.zeros((2, 2), np.float32)
    return PulseRecommender(
        SimpleNamespace(items=ITEMS, item_vectors=vectors, record=record, sequential=None, pool=None)
    )


def test_no_candidates_are_refused_before_a_reason_is_drafted(modelless):
    for ask in (
        lambda: modelless.recommend(["kettle"], candidates=[]),
        lambda: modelless.recommend([], candidates=()),
        lambda: modelless.score(["kettle"], []),
        lambda: modelless.score([], [], rationale="They care about quiet rooms."),
    ):
        with pytest.raises(ValueError, match="there are no candidates to score"):
            ask()


RECORD = {
    "format_version": FORMAT_VERSION,
    "base_model": "owner/base",
    "encoder": "a/b",
    "seed": 0,
    "prompts": {},
    "neighbours": {"num_neighbours": 1, "neighbour_items": 1},
    "thoughts": {"engine": "transformers", "model": "owner/writer", "batch_size": 1, "budget": {}},
}


def write_shop(folder: Path, record: dict) -> None:
    """Of a saved recommender what tells which models it names."""
    (folder / "base").mkdir()
    write_json(folder / "base" / "config.json", {})
    write_json(folder / "pulse.json", record)
    seal_folder(folder, "recommender")


def save_anew(folder: Path, record: dict) -> None:
    with replacing(folder, ["base", "pulse.json", "checksums.json"], last="checksums.json") as new:
        write_shop(new, record)


def test_a_killed_save_is_finished_before_its_models_are_sought_in_the_cache(tmp_path, monkeypatch):
    write_shop(tmp_path, {"format_version": FORMAT_VERSION})

    def failing(source: Path, target: Path) -> None:
        if Path(target) == tmp_path / "pulse.json":  # the old one was moved away
            raise OSError("the server of this mount went away")
        os.rename(source, target)

    with monkeypatch.context() as broken:
        broken.setattr(os, "replace", failing)
        with pytest.raises(OSError, match="went away"):
            save_anew(tmp_path, RECORD)
    assert not (tmp_path / "pulse.json").exists()
    shutil.copytree(tmp_path, tmp_path.with_name("asked by its command"))
    with pytest.raises((ArtifactError, ConnectionError)) as told:  # not that there is no run
        show_recommendations(tmp_path.with_name("asked by its command"), user=None, history=["x"], k=1, rationale=None)
    assert "sequences" not in str(told.value)
    with pytest.raises(ConnectionError, match="owner/writer is not in the cache"):
        PulseRecommender.from_pretrained(tmp_path, local_files_only=True)
    check_folder(tmp_path)


def test_an_empty_record_is_refused_with_and_without_the_hub(tmp_path):
    write_shop(tmp_path, {})
    for local in (False, True):
        with pytest.raises(ArtifactError, match=f"format None, expected {FORMAT_VERSION}"):
            PulseRecommender.from_pretrained(tmp_path, local_files_only=local)


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ([], f"format None, expected {FORMAT_VERSION}"),
        ({**RECORD, "prompts": ["judge"]}, r"pulse\.json: prompts is \['judge'\], expected dict"),
        ({**RECORD, "seed": True}, "seed is True, expected int"),
        ({**RECORD, "neighbours": {"num_neighbours": 1}}, r"neighbours\.neighbour_items is None, expected int"),
        ({**RECORD, "thoughts": "none"}, r"thoughts\.engine is None, expected str.* Save it again"),
    ],
)
def test_a_record_written_by_hand_is_refused_by_its_field(tmp_path, record, said):
    write_shop(tmp_path, record)
    with pytest.raises(ArtifactError, match=said):
        PulseRecommender.from_pretrained(tmp_path)


def test_a_damaged_folder_is_refused_before_its_models_are_sought_in_the_cache(tmp_path):
    write_shop(tmp_path, {})
    write_json(tmp_path / "pulse.json", {"format_version": FORMAT_VERSION})
    with pytest.raises(ArtifactError, match=r"damaged: pulse\.json"):
        PulseRecommender.from_pretrained(tmp_path, local_files_only=True)
