"""The Space: ``python spaces_app/app.py``.

The recommender is a published one (``PULSE_REPO_ID``, a repo id or folder), a run (``PULSE_RUN``), or the embedded
demo, which is made on the spot if there is none. ``PULSE_DATASET_ID`` names a rationale dataset to leaf through.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import gradio as gr
from limits import BURST, PER_SECOND, WAITING, Limits, Rate, share
from page import CSS, MAX_SESSIONS, THEME, build
from source import Source, from_environment
from starlette.middleware import Middleware

WAIT_S = 60.0


def launch(
    source: Source, rate: Rate | None = None, waiting: Mapping[str, int] = WAITING, **options: Any
) -> gr.Blocks:
    """Serve the page of a source.

    Args:
        source: Started or ready.
        rate: Requests per client; the default fits people and small programs.
        waiting: Requests of one client that may wait at a time, by lane of the queue.
        options: Passed on to ``gradio.Blocks.launch``.
    """
    page = build(source)
    share(page._queue, waiting)
    limits = Middleware(Limits, healthy=lambda: source.ready, rate=rate or Rate(BURST, PER_SECOND))
    page.launch(
        **{
            # A Space is reached through its proxy; everywhere else the page is for this machine only.
            "server_name": "0.0.0.0" if "SPACE_ID" in os.environ else "127.0.0.1",
            "app_kwargs": {"middleware": [limits]},
            "allowed_paths": [],
            "max_file_size": 1,
            "state_session_capacity": MAX_SESSIONS,
            "show_error": False,
            "quiet": True,
            "ssr_mode": False,
            "share": False,
            "mcp_server": True,
            "theme": THEME,
            "css": CSS,
            "footer_links": ["api"],
            **options,
        }
    )
    return page


def main() -> None:
    """Open what the environment names and serve it."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    source = from_environment()
    source.start()
    source.wait(WAIT_S)
    launch(source)


if __name__ == "__main__":
    main()
