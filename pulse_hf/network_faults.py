"""What tells that the Hub, or the way there, failed, and not this package or this machine."""

from __future__ import annotations

BUSY = (408, 425, 429)
"""HTTP answers that say "not now"; so do all from 500 on."""


def lost_on_the_way(error: Exception) -> bool:
    """Whether a Hub client's transport failed; by the name of the class, since the client changes its library.

    The one that moves large files (Xet) raises nothing but ``RuntimeError``, from compiled code that the client calls.
    """
    if type(error) is RuntimeError:
        return raised_in(error) == "huggingface_hub"
    return any(base.__name__ == "TransportError" for base in type(error).__mro__)


def raised_in(error: BaseException) -> str:
    """The package whose Python code raised an error, or called the compiled code that did; ``""`` if none is known."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return str(trace.tb_frame.f_globals.get("__name__", "")).partition(".")[0] if trace else ""
