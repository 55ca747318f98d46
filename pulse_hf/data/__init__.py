"""From a shop's raw files to sequences and a catalogue."""

from pulse_hf.data.columns import Columns, ItemColumns
from pulse_hf.data.sequences import decisions, load_items, load_sequences, sample_decisions, training_decisions

__all__ = [
    "Columns",
    "ItemColumns",
    "decisions",
    "load_items",
    "load_sequences",
    "sample_decisions",
    "training_decisions",
]
