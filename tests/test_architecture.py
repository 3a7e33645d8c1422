"""The rules of the house, read from the source itself."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LOWEST = ROOT / "requirements-lowest.txt"
MODULES = sorted((ROOT / "v2").rglob("*.py"))
SCRIPTS = [path for path in MODULES if "command_line.run(main)" in path.read_text()]


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _importers(name: str) -> set[str]:
    return {
        str(path.relative_to(ROOT / "v2"))
        for path in MODULES
        if any(found == name or found.startswith(name + ".") for found in _imports(path))
    }


def _name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def test_only_the_dataset_knows_the_emulator():
    assert _importers("gymnasium") == {"data/atari_dataset.py"}
    assert _importers("ale_py") == {"data/atari_dataset.py"}


def test_the_models_know_only_torch():
    for path in (ROOT / "v2" / "models").glob("*.py"):
        assert not {name for name in _imports(path) if name.startswith("v2")}


TIERS = (  # from the lowest; each imports nothing of a later one
    ("v2.files", "v2.device", "v2.models", "v2.pairs", "v2.data.frames", "v2.data.npz"),
    ("v2.checkpoint", "v2.data"),
    ("v2.dream", "v2.rollout", "v2.run_dir"),
    ("v2.train", "v2.eval", "v2.play_loop", "v2.play_session", "v2.play_game"),
)


def test_dependencies_point_one_way():
    tier_of = {name: rank for rank, names in enumerate(TIERS) for name in names}

    def tier(module: str, unknown: int) -> int:
        known = [name for name in tier_of if f"{module}.".startswith(f"{name}.")]
        return tier_of[max(known, key=len)] if known else unknown

    for path in set(MODULES) - set(SCRIPTS):
        own = tier(_name(path), len(TIERS))
        later = {name for name in _imports(path) if tier(name, 0) > own}
        assert not later, (path, later)


def test_the_window_knows_no_torch_and_the_dream_neither_pygame_nor_gymnasium():
    for name in ("render", "window", "pen"):
        assert not {n for n in _imports(ROOT / f"v2/{name}.py") if n.split(".")[0] == "torch"}
    dream = _imports(ROOT / "v2/dream.py")
    assert not {n for n in dream if n.split(".")[0] in ("pygame", "gymnasium", "ale_py")}


def test_scripts_import_no_scripts():
    names = {_name(path) for path in SCRIPTS}
    for path in MODULES:
        assert not names & _imports(path), path


def test_only_checkpoint_reads_and_writes_weights():
    for path in MODULES:
        if path.name != "checkpoint.py":
            text = path.read_text()
            assert "torch.load(" not in text and "torch.save(" not in text, path


def test_nothing_is_caught_blindly_or_unpickled():
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ExceptHandler):
                assert node.type, path
                caught = {n.id for n in ast.walk(node.type) if isinstance(n, ast.Name)}
                if path.name != "command_line.py":  # where every error becomes one line
                    assert not caught & {"Exception", "BaseException"}, path
            if isinstance(node, ast.keyword) and node.arg in ("weights_only", "allow_pickle"):
                assert ast.literal_eval(node.value) is (node.arg == "weights_only"), path


def test_nothing_is_timed_by_a_clock_that_can_be_set():
    for path in MODULES:
        text = path.read_text()
        assert "time.time(" not in text and "datetime.now(" not in text, path


def test_the_lowest_versions_are_the_bounds_of_the_requirements():
    """Of make test-lowest; pygame-ce is for a Python that is newer than these versions."""
    bounds = re.findall(r"^([\w-]+)>=([\d.]+)", (ROOT / "requirements.txt").read_text(), re.M)
    lowest = re.findall(r"^([\w-]+)==([\d.]+)$", LOWEST.read_text(), re.M)
    lowest = {name: [*map(int, version.split("."))] for name, version in lowest}
    bounds = {name: [*map(int, f"{version}.0.0".split("."))][:3] for name, version in bounds}
    assert lowest == {name: bound for name, bound in bounds.items() if name != "pygame-ce"}


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_modules_say_what_they_are(path):
    if path.name != "__init__.py":
        assert ast.get_docstring(ast.parse(path.read_text())), path


@pytest.mark.parametrize("path", SCRIPTS, ids=_name)
def test_every_script_runs_from_any_folder_and_as_a_module(path, tmp_path):
    by_path = subprocess.run([sys.executable, str(path), "--help"], cwd=tmp_path,
                             capture_output=True, text=True)  # fmt: skip
    assert by_path.returncode == 0 and "example:" in by_path.stdout, by_path.stderr
    by_name = subprocess.run([sys.executable, "-m", _name(path), "--help"], cwd=ROOT,
                             capture_output=True, text=True)  # fmt: skip
    assert by_name.returncode == 0, by_name.stderr
