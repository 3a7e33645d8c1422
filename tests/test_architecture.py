"""The rules of the house, read from the source itself."""

import ast
import importlib
import re
import runpy
import shlex
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LOWEST = ROOT / "requirements-lowest.txt"
MODULES = sorted((ROOT / "v2").rglob("*.py"))
SCRIPTS = [path for path in MODULES if "cli.run(main)" in path.read_text()]


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


def test_only_the_emulator_module_knows_the_emulator():
    assert _importers("gymnasium") == {
        "data/emulator.py", "data/environments.py", "dream_env.py", "train/agent_env.py",
    }  # fmt: skip
    assert _importers("ale_py") == {"data/emulator.py"}


TIERS = (  # from the lowest; each imports nothing of a later one, nor of another on its own
    ("v2.runtime",),
    ("v2.models",),
    ("v2.data",),
    ("v2.eval.objects",),
    ("v2.decoding",),
    ("v2.dream",),
    ("v2.export", "v2.agents"),
    ("v2.dream_env",),
    ("v2.eval", "v2.train", "v2.play"),
)
TOP_MODULES = {"play_atari_hires", "dream", "dream_env", "decoding", "doctor"}


def _room(module: str) -> str | None:
    """Return the longest name in `TIERS` that a module lies under."""
    known = [name for names in TIERS for name in names if f"{module}.".startswith(f"{name}.")]
    return max(known, key=len, default=None)


def _rank(room: str) -> int:
    return next(rank for rank, names in enumerate(TIERS) if room in names)


def _own_imports(path: Path) -> set[str]:
    """Return the modules of v2 that a file imports."""
    names = {_name(other) for other in MODULES}
    return {name for name in _imports(path) if name in names and name != "v2"}


def test_every_module_is_a_script_or_on_a_tier():
    for path in set(MODULES) - set(SCRIPTS):
        assert _name(path).endswith("__init__") or _room(_name(path)), path


def test_dependencies_point_one_way():
    for path in set(MODULES) - set(SCRIPTS):
        room = _room(_name(path))
        for name in _own_imports(path):
            other = _room(name)
            assert other and (other == room or _rank(other) < _rank(room)), (path, name)


def test_no_module_is_imported_in_a_circle():
    imports = {_name(path): _own_imports(path) for path in MODULES}
    assert list(TopologicalSorter(imports).static_order())  # raises a CycleError with the circle


def test_the_top_level_holds_no_module_but_these():
    found = {path.stem for path in (ROOT / "v2").glob("*.py")} - {"__init__"}
    assert found == TOP_MODULES


def test_the_dream_brings_neither_emulator_nor_window_nor_training():
    code = "import sys, v2.dream; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True,
                            capture_output=True, text=True).stdout.split()  # fmt: skip
    assert "v2.decoding" in loaded
    assert not {"gymnasium", "ale_py", "pygame", "v2.train", "v2.eval", "v2.play"} & set(loaded)


def test_the_window_knows_no_torch_and_the_models_no_files():
    for name in ("picture", "window", "draw"):
        assert not {n for n in _imports(ROOT / f"v2/play/{name}.py") if n.startswith("torch")}
    parts = ("by_hand", "cells", "patch_hash", "patch_memory", "patch_table")
    names = {f"v2.models.{n}" for n in parts}
    for name in ("temporal_world_model", "vqvae_hires", "agent_network", *(n[10:] for n in names)):
        assert _own_imports(ROOT / f"v2/models/{name}.py") <= names


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
                if path.name != "cli.py":  # where every error becomes one line
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


def _module(path: Path):
    return importlib.import_module(_name(path))


@pytest.mark.parametrize("path", SCRIPTS, ids=_name)
def test_every_script_opens_with_what_it_does_and_a_command_that_can_be_pasted(path, capsys):
    purpose, empty, command = ast.get_docstring(ast.parse(path.read_text())).splitlines()[:3]
    command = command.strip()
    assert not empty and command.startswith(f"python {path.relative_to(ROOT)}")
    parser = _module(path).build_parser()
    parser.parse_args(shlex.split(command)[2:])
    shown = " ".join(parser.format_help().split())
    assert purpose in shown and f"example: {command}" in shown
    with pytest.raises(SystemExit) as ended:
        _module(path).main(["--help"])
    assert ended.value.code == 0 and "example:" in capsys.readouterr().out


@pytest.mark.parametrize("path", SCRIPTS, ids=_name)
def test_every_script_finds_the_package_from_any_folder(path, monkeypatch, capsys):
    for name in ("stdout", "stderr", "excepthook"):  # which it replaces
        monkeypatch.setattr(sys, name, getattr(sys, name))
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    monkeypatch.setattr(sys, "path", ["elsewhere", *sys.path])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(path), run_name="__main__")
    assert ended.value.code == 0 and sys.path[0] == str(ROOT)
    assert "example:" in capsys.readouterr().out


MAX_FLAGS = 18  # besides --help


@pytest.mark.parametrize("path", SCRIPTS, ids=_name)
def test_no_script_has_more_flags_than_can_be_read(path):
    flags = [action for action in _module(path).build_parser()._actions if action.option_strings]
    assert len(flags) - 1 <= MAX_FLAGS, sorted(flag.dest for flag in flags)


@pytest.mark.parametrize("page", ["ARCHITECTURE.md", "docs/reliability.md"])
def test_every_test_that_a_page_names_is_there(page):
    named = re.findall(r"(test_\w+\.py)(?:::(test_\w+))?", (ROOT / page).read_text())
    assert named
    for file, claim in named:
        assert f"def {claim}(" in (ROOT / "tests" / file).read_text() or not claim, claim


def test_the_map_names_every_module_once():
    text = (ROOT / "ARCHITECTURE.md").read_text()
    folders = re.split(r"\| `v2/(\w*)/?` \|", text[: text.index("## Tiers")])
    tables = dict(zip(folders[1::2], folders[2::2], strict=True))
    for path in (ROOT / "v2").rglob("*.py"):
        if path.name != "__init__.py":
            *folder, name = path.relative_to(ROOT / "v2").parts
            table = tables[folder[0] if folder else ""]
            assert table.count(f"`{'/'.join([*folder[1:], name])}`") == 1, path


OF_OTHERS = {"--nproc_per_node", "--force-reinstall"}  # torchrun's and pip's
OF_OLD_CARDS = {"--init-from"}  # in commands that trained older weights


def _texts(path: Path):
    """Yield the strings of a module but its docstrings."""
    tree = ast.parse(path.read_text())
    documents = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if id(node) not in documents:
                yield node.value


def test_every_flag_that_is_named_is_there():
    parsers = [_module(path).build_parser() for path in SCRIPTS]
    there = {flag for parser in parsers for flag in parser._option_string_actions}
    there |= OF_OTHERS | OF_OLD_CARDS
    for path in MODULES:
        named = set(re.findall(r"(?<![\w-])--[a-z][a-z_-]+[a-z]", " ".join(_texts(path))))
        assert named <= there, (path, named - there)


def test_scripts_run_from_any_folder_as_modules_and_without_docstrings(tmp_path):
    """Real processes, side by side; the other scripts differ in nothing that matters to these."""
    by_path = [SCRIPTS[0]], tmp_path
    by_name = ["-m", "v2.train.train_wm_hires"], ROOT
    optimized = ["-OO", ROOT / "v2/doctor.py"], tmp_path  # with torch it would compile for long
    children = [
        subprocess.Popen([sys.executable, *map(str, command), "--help"], cwd=folder, text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for command, folder in (by_path, by_name, optimized)
    ]  # fmt: skip
    for child in children:
        shown, errors = child.communicate(timeout=120)
        assert child.returncode == 0 and "example: python v2/" in shown, errors


def test_no_module_reads_a_docstring_that_python_oo_removes():
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            assert not (isinstance(node, ast.Name) and node.id == "__doc__"), path


def test_no_progress_bar_fills_a_log_file():
    def is_bar(node) -> bool:
        return isinstance(node, ast.Name) and node.id == "tqdm"

    bars = 0
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and (is_bar(node.func) or any(map(is_bar, node.args))):
                bars += 1
                assert "disable" in {each.arg for each in node.keywords}, (path, node.lineno)
    assert bars > 10


def test_the_pages_that_everybody_reads_stay_short():
    limits = {"README.md": 9000, "ARCHITECTURE.md": 12_000, "ROADMAP.md": 4096}
    sizes = {name: (ROOT / name).stat().st_size for name in limits}
    assert not {name: size for name, size in sizes.items() if size > limits[name]}
