"""Commands: lines that are printed run as they are, also of an installed package."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from v2 import play_atari_hires
from v2.data import collect_atari, tokenize_atari
from v2.runtime import commands
from v2.train import train_vqvae_hires, train_wm_hires

try:
    import tomllib
except ImportError:  # Python 3.10
    tomllib = None

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted(p for p in (ROOT / "v2").rglob("*.py") if "cli.run(main)" in p.read_text())
TINY = {  # added to the line: it stays what was printed, and takes no time
    "collect_atari.py": (collect_atari, []),
    "train_vqvae_hires.py": (train_vqvae_hires, ["--set", "steps=4"]),
    "tokenize_atari.py": (tokenize_atari, []),
    "train_wm_hires.py": (train_wm_hires, ["--set", "steps=2"]),
    "play_atari_hires.py": (play_atari_hires, ["--headless", "--steps", "2"]),
}


def _words(line: str) -> list[str]:
    """Split a line as a shell does."""
    done = subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], check=True,
                          stdout=subprocess.PIPE)  # fmt: skip
    return [os.fsdecode(word) for word in done.stdout.split(b"\0")[:-1]]


def _next(capsys) -> list[str]:
    (line,) = re.findall(r"^next: (.*)$", capsys.readouterr().out, re.M)
    return _words(line)


def test_a_line_keeps_every_name_that_a_file_can_have():
    names = ["plain", "two words", "it's", "$HOME", "*[x]?", "line\nbreak", "byte\udcff", "-dash"]
    line = commands.command("eval/gold_eval.py", *names, json=None, data="", report=True)
    python, script, *words = _words(line)
    assert words == [*names, "--report"] and "\n" not in line
    assert Path(script).samefile(ROOT / "v2/eval/gold_eval.py")


def test_a_line_is_called_from_where_it_is_printed(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert commands.command("doctor.py").endswith(" v2/doctor.py")
    monkeypatch.chdir(tmp_path)
    assert commands.command("doctor.py").endswith(f" {ROOT / 'v2/doctor.py'}")
    monkeypatch.setattr(commands, "IS_INSTALLED", True)
    assert commands.command("eval/gold_eval.py").endswith(" -m v2.eval.gold_eval")
    assert commands.example("python v2/data/a.py --x") == "python -m v2.data.a --x"


def test_the_interpreter_is_named_as_it_is_found(tmp_path, monkeypatch):
    for path in ("", os.path.dirname(sys.executable)):
        monkeypatch.setenv("PATH", path)
        (name,) = commands.python()
        assert os.path.abspath(shutil.which(name) or name) == sys.executable
        assert (name in ("python", "python3")) == bool(path)


def test_every_next_line_runs_as_printed_with_the_places_that_were_given(
    small_models, data_path, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("v2.data.games.CHECKPOINTS", tmp_path / "nothing here")
    home = tmp_path / "my [own] é"
    flags = ["--data", str(data_path), "--out", str(home), "--device", "cpu", "--game", "Breakout"]
    assert train_vqvae_hires.main([*flags, "--set", "steps=4"]) == 0
    called = []
    while not called or called[-1] != "play_atari_hires.py":
        _, script, *flags = _next(capsys)
        called.append(Path(script).name)
        module, tiny = TINY[called[-1]]
        assert module.main([*flags, *tiny]) == 0
    assert called == ["tokenize_atari.py", "train_wm_hires.py", "play_atari_hires.py"]
    assert str(home) in capsys.readouterr().out  # the weights that play took
    assert not (tmp_path / "nothing here").exists()


def test_tokens_of_a_home_are_trained_on_in_that_home(vqvae_run, data_path, tmp_path, capsys):
    home = tmp_path / "a home"
    flags = ["--data", str(data_path), "--vqvae", str(vqvae_run), "--out", str(home)]
    assert tokenize_atari.main(flags) == 0
    _, _, *flags = _next(capsys)
    assert train_wm_hires.main([*flags, "--set", "steps=2"]) == 0
    assert len(list(home.glob("runs/*/best.pt"))) == 1


def test_what_is_collected_somewhere_is_trained_on_there(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("v2.data.games.CHECKPOINTS", tmp_path / "nothing here")
    home = tmp_path / "a b"
    small = ["--frames", "60", "--workers", "1", "--policy", "random"]
    assert collect_atari.main(["--game", "pong", "--out", str(home), *small]) == 0
    _, script, *flags = _next(capsys)
    assert Path(script).name == "train_vqvae_hires.py"
    args = train_vqvae_hires.build_parser().parse_args(flags)
    assert (args.game, args.out) == ("pong", home)
    assert args.data == [home / "atari_game_data.npz"] and args.data[0].exists()


# The package


@pytest.mark.skipif(tomllib is None, reason="tomllib came with Python 3.11")
def test_every_folder_of_the_package_is_in_the_wheel():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "v2").rglob("__init__.py")}
    packages = {".".join(folder.parts) for folder in folders}
    assert set(project["tool"]["setuptools"]["packages"]) == packages | {"v2.shipped"}


def _environment(folder: Path, *what) -> Path:
    """Make an environment with the package and this one's packages; return its commands."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    purelib = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
    (Path(purelib) / "shared.pth").write_text(sysconfig.get_path("purelib"))
    scripts = Path(sysconfig.get_path("scripts", vars={"base": str(folder)}))
    pip = [sys.executable, "-m", "pip", "--python", scripts / "python"]
    install = [*pip, "install", "--quiet", "--no-deps", "--no-build-isolation", *what]
    subprocess.run(install, check=True, cwd=folder)
    return scripts


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A copy of what is committed or will be, in which a build leaves its folders."""
    folder = tmp_path_factory.mktemp("source")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT,
        check=True, capture_output=True, text=True,
    ).stdout.split("\0")  # fmt: skip
    for name in filter(None, listed):
        if not name.startswith(("docs/", "tests/")) and (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


IN_PYTHON = """
import v2.dream
from v2.eval.gold import GOLD_SHA256, gold_path
from v2.runtime.files import file_sha256
for game in ("breakout", "pong"):
    is_gold = file_sha256(gold_path(game)) == GOLD_SHA256[gold_path(game).stem]
    print(v2.dream.DreamEngine.load("shipped", game).source, is_gold)
"""


@pytest.mark.slow
@pytest.mark.parametrize("is_editable", [False, True], ids=["wheel", "editable"])
def test_the_package_is_installed_and_plays_from_any_folder(is_editable, source, tmp_path):
    scripts = _environment(tmp_path / "venv", *(["-e"] if is_editable else []), source)
    elsewhere = tmp_path / "else where"
    elsewhere.mkdir()

    def run(command, *flags):
        return subprocess.run([scripts / command, *flags], cwd=elsewhere, text=True,
                              capture_output=True, timeout=300)  # fmt: skip

    loaded = run("python", "-c", IN_PYTHON).stdout.splitlines()
    assert len(loaded) == 2 and all(line.endswith(" True") for line in loaded), loaded
    played = run("wm-play", "--headless", "--steps", "2", "--record", "a.gif")
    assert played.returncode == 0 and (elsewhere / "a.gif").exists(), played.stderr
    wrong = run("wm-train", "--frames", "0")
    assert wrong.returncode == 2 and wrong.stderr.count("\n") == 1 and "--frames" in wrong.stderr
    shown = run("wm-eval", "--help").stdout
    example = "python v2/eval/gold_eval.py" if is_editable else "python -m v2.eval.gold_eval"
    assert f"example: {example}" in shown
    tiny = ("--frames", "60", "--workers", "1", "--policy", "random")
    collected = run("python", "-m", "v2.data.collect_atari", *tiny, "--out", "d")
    line = re.findall(r"^next: (.*)$", collected.stdout, re.M)[0]
    helped = subprocess.run(["bash", "-c", f"{line} --help"], cwd=elsewhere, check=True,
                            capture_output=True, text=True).stdout  # fmt: skip
    assert "--rollout-steps" not in helped and "--epochs" in helped
    missing = run("wm-play", "--headless", "--game", "seaquest")
    assert missing.returncode == 2 and "no shipped weights" in missing.stderr
    if not is_editable:
        assert "-m v2.train.pipeline --game seaquest" in missing.stderr
        run("python", "-m", "v2.data.collect_atari", *tiny)
        assert (elsewhere / "checkpoints/v2/atari/atari_game_data.npz").exists()


@pytest.mark.slow
@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_every_script_runs_without_docstrings_and_assertions(path, tmp_path):
    done = subprocess.run([sys.executable, "-OO", path, "--help"], cwd=tmp_path, text=True,
                          capture_output=True, timeout=300)  # fmt: skip
    assert done.returncode == 0 and "example: python v2/" in done.stdout, done.stderr
