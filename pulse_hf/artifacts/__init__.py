"""The one I/O room: every artefact is written, checked, resumed and skipped here and nowhere else.

An artefact is a folder of rows (Parquet, safetensors, JSON) and a ``manifest.json`` that is written
last. A stage works in ``<folder>.partial`` and renames it when done, so a reader sees a complete
artefact or none. The manifest's *fingerprint* (settings, seed, parents, prompts, model identity) says
what made it: a finished stage with the same fingerprint is skipped, with another one it is refused by
name unless the caller forces it.
"""

from pulse_hf.artifacts.building import build, models_of
from pulse_hf.artifacts.files import (
    NO_ROOM,
    ArtifactError,
    DiskFullError,
    copy_file,
    fsync_files,
    no_room,
    read_json,
    read_table,
    read_tensors,
    sha256_of_file,
    sha256_of_text,
    table_writer,
    write_json,
    write_table,
    write_tensors,
    write_text,
)
from pulse_hf.artifacts.manifest import (
    MANIFEST,
    Fingerprint,
    content_sha256,
    package_versions,
    parent_sha256,
    parents_of,
    read_manifest,
    seed_of,
    settings_in,
    settings_of,
    verify,
)
from pulse_hf.artifacts.processes import dealt, num_processes, process, tell_all, wait_for_all
from pulse_hf.artifacts.swapping import finish_replacing, replacing
from pulse_hf.artifacts.unfinished import Checkpoints, Shards, seal, sealed, whole_batch

__all__ = [
    "MANIFEST",
    "NO_ROOM",
    "ArtifactError",
    "Checkpoints",
    "DiskFullError",
    "Fingerprint",
    "Shards",
    "build",
    "content_sha256",
    "copy_file",
    "dealt",
    "finish_replacing",
    "fsync_files",
    "models_of",
    "no_room",
    "num_processes",
    "package_versions",
    "parent_sha256",
    "parents_of",
    "process",
    "read_json",
    "read_manifest",
    "read_table",
    "read_tensors",
    "replacing",
    "seal",
    "sealed",
    "seed_of",
    "settings_in",
    "settings_of",
    "sha256_of_file",
    "sha256_of_text",
    "table_writer",
    "tell_all",
    "verify",
    "wait_for_all",
    "whole_batch",
    "write_json",
    "write_table",
    "write_tensors",
    "write_text",
]
