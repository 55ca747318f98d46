"""Real clients in processes of their own: the libraries read `HF_ENDPOINT` when they are imported."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

OURS = ("HF_", "HUGGING", "TRANSFORMERS_", "SENTENCE_TRANSFORMERS_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
NOBODY = "http://127.0.0.1:9"  # the discard port: a request to the real Hub fails at once instead of waiting


def client_environment(endpoint: str, token: str | None, cache: Path) -> dict[str, str]:
    env = {name: value for name, value in os.environ.items() if not name.upper().startswith(OURS)}
    if token is not None:
        env["HF_TOKEN"] = token
    return env | {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(cache),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_UPDATE_DOWNLOAD_COUNTS": "0",
        "HTTP_PROXY": NOBODY,
        "HTTPS_PROXY": NOBODY,
        "NO_PROXY": "127.0.0.1,localhost",
    }


IMPATIENT = "import time; time.sleep = lambda seconds: None\n"


def run_client(code: str, env: dict[str, str], *args: object, timeout: float = 300, patient: bool = True) -> str:
    """Run a Python snippet in a fresh process and return what it printed.

    Args:
        code: Python source; indentation common to all lines is removed.
        env: the whole environment, as of `LoopbackHub.environment`.
        args: given to the snippet as strings, `sys.argv[1:]`.
        timeout: seconds.
        patient: False makes `time.sleep` return at once, so that the clients' retries cost nothing.

    Raises:
        RuntimeError: the process failed; the message ends with what it wrote to stderr.

    Examples:
        >>> import os
        >>> run_client("import sys; print(sys.argv[1])", dict(os.environ), 42)
        '42\\n'
    """
    source = ("" if patient else IMPATIENT) + textwrap.dedent(code)
    command = [sys.executable, "-c", source, *map(str, args)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=timeout, check=False)
    if done.returncode:
        raise RuntimeError(f"the client ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-8000:]}")
    return done.stdout
