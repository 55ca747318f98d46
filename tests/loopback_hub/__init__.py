"""A small Hub on the loopback interface."""

from .client import run_client
from .faults import DropAfter, DropBefore, Fault, Faults, FlipByte, Meanwhile, Record, Status, Truncate
from .hub import LoopbackHub

__all__ = [
    "DropAfter",
    "DropBefore",
    "Fault",
    "Faults",
    "FlipByte",
    "LoopbackHub",
    "Meanwhile",
    "Record",
    "Status",
    "Truncate",
    "run_client",
]
