"""The house: who may import whom, and what files may be called."""

import ast
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "pulse_hf"
# Top to bottom; rooms on one floor never import each other.
FLOORS = (
    {"cli"},
    {"answering", "composition", "pipeline", "presets", "publish", "recommender", "saving", "settings"},
    {"hub"},
    {"training", "evaluation"},
    {"retrieval", "reasoning"},
    {"data", "models"},
    {"schema", "artifacts", "metrics", "network_faults", "ranges", "stages"},
)
BESIDE = {
    ("pipeline", "settings"),
    ("presets", "settings"),
    ("artifacts", "schema"),
    ("recommender", "answering"),
    ("answering", "composition"),
    ("recommender", "composition"),
    ("recommender", "saving"),
    ("saving", "composition"),
    ("recommender", "publish"),
    ("publish", "composition"),
    ("publish", "saving"),
}
LEVEL = {room: level for level, floor in enumerate(FLOORS) for room in floor}
FORBIDDEN_NAMES = {"utils.py", "helpers.py", "common.py", "misc.py", "manager.py", "handler.py"}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]  # "from pulse_hf import ..." as well
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        rooms |= {name.split(".")[1] for name in names if name.startswith("pulse_hf.")}
    return rooms


def sources() -> list[Path]:
    found = [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]
    assert {room_of(path) for path in found} == set(LEVEL)  # where nothing is found, nothing is wrong
    return found


def test_imports_go_downward_only():
    wrong = []
    for path in sources():
        here = room_of(path)
        for there in imports_of(path) - {here}:
            if (here, there) not in BESIDE and LEVEL[there] <= LEVEL[here]:
                wrong.append(f"{path.relative_to(PACKAGE)} imports {there}")
    assert wrong == []


def test_model_files_import_only_torch_transformers_and_their_configuration():
    allowed = {"torch", "transformers", "math", "collections", "dataclasses", "typing", "__future__", "contextlib"}
    paths = list(PACKAGE.glob("models/*/modeling_*.py"))
    assert {path.parent.name for path in paths} == {"a_llmrec", "sasrec", "scorer", "thought_space"}
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                own = node.level == 1 and (node.module or "").startswith(("configuration_", "modeling_"))
                assert own or (node.level == 0 and (node.module or "").split(".")[0] in allowed), (
                    f"{path.name}: {node.module}"
                )
            if isinstance(node, ast.Import):
                assert {alias.name.split(".")[0] for alias in node.names} <= allowed, path.name


def test_file_names_say_their_subject():
    assert [str(path) for path in sources() if path.name in FORBIDDEN_NAMES] == []


def test_importing_the_package_and_its_settings_is_light():
    code = (
        "import sys, pulse_hf, pulse_hf.settings, pulse_hf.presets, pulse_hf.cli.main;"
        "heavy = {'torch', 'transformers', 'pandas', 'sklearn', 'peft', 'trl', 'datasets'} & set(sys.modules);"
        "print(sorted(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_pickle_in_the_package():
    for path in sources():
        text = path.read_text()
        assert "torch.save(" not in text, path
        assert "import pickle" not in text, path
