"""Collect, train, tokenize, train and play with the real emulator, for a few steps each."""

import argparse
import dataclasses
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.conftest import train_vqvae
from v2 import play_atari_hires
from v2.data import collect_atari, tokenize_atari
from v2.data.atari_dataset import load_game_data, save_game_data
from v2.data.emulator import make_atari_env
from v2.data.games import EmulatorConfig, find_weights
from v2.data.tokens import recording_sha256, tokenize
from v2.dream import DreamEngine
from v2.eval import documents
from v2.models.temporal_world_model import WorldModelConfig
from v2.models.weights import load_vqvae, tokenizer_sha256
from v2.runtime import checkpoint
from v2.runtime.run_dir import all_runs
from v2.train import ablations, pipeline, train_wm_hires
from v2.train import flags as flags_of
from v2.train.pipeline import Pipeline
from v2.train.recipe import WORLD_MODEL_PRESETS, VQVAERecipe, WorldModelRecipe


def test_the_whole_pipeline_runs_on_the_real_game(small_models, tmp_path, capsys):
    out, data = str(tmp_path), str(tmp_path / "atari_game_data.npz")
    tokens = str(tmp_path / "atari_tokens_hires.npz")
    assert collect_atari.main(["--frames", "1200", "--workers", "1", "--out", out]) == 0
    vqvae = str(train_vqvae(tmp_path, Path(data), "--set", "steps=30"))
    assert tokenize_atari.main(["--data", data, "--vqvae", vqvae, "--out", tokens]) == 0
    flags = ["--data", data, "--tokens", tokens, "--vqvae", vqvae, "--out", out]
    flags += ["--set", "steps=10"]
    assert train_wm_hires.main([*flags, "--batch-size", "2", "--rollout-steps", "3"]) == 0
    run = all_runs(tmp_path)[-1]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {"token_accuracy@1", "copy_last@10", "changed_accuracy@1"} <= lines[-1].keys()
    assert {"token_accuracy@5", "copy_last@5", "token_accuracy@10"} <= lines[-1].keys()
    assert {"one_step_accuracy", "scheduled_accuracy"} & lines[-2].keys()
    assert {"one_step_loss", "scheduled_loss"} & lines[-2].keys()
    assert "samples_per_second" in lines[-2]
    assert list((run / "samples").glob("*.png"))
    logged = [json.loads(line) for line in (Path(vqvae) / "metrics.jsonl").read_text().splitlines()]
    assert {"reconstruction_loss", "commitment", "codes_used", "perplexity", "held_out_psnr",
            "ball_recall", "ball_error_median_px"} <= set().union(*logged)  # fmt: skip
    assert list((Path(vqvae) / "samples").glob("*.png"))
    capsys.readouterr()
    movie = tmp_path / "play.gif"
    flags = ["--checkpoint", str(run), "--headless", "--steps", "6", "--record", str(movie)]
    assert play_atari_hires.main([*flags, "--device", "cpu"]) == 0
    assert movie.stat().st_size > 1000 and str(run) in capsys.readouterr().out


@pytest.mark.skipif(
    not shutil.which("make") or sys.platform == "darwin", reason="no make, or always a display"
)
@pytest.mark.parametrize("display, is_headless", [("", True), (":0", False)])
def test_make_play_without_a_display_says_so_and_records(display, is_headless, tmp_path):
    """A python that prints what it is asked to run stands in for the environment's."""
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text('#!/bin/sh\necho "$@"\n')
    python.chmod(0o755)
    (tmp_path / ".ready").touch()
    environment = os.environ | {"DISPLAY": display, "WAYLAND_DISPLAY": "", "MAKEFLAGS": ""}
    command = ["make", "--no-print-directory", "play", f"VENV={tmp_path}"]
    done = subprocess.run(command, env=environment, cwd=Path(__file__).resolve().parents[1],
                          check=True, capture_output=True, text=True)  # fmt: skip
    command = "v2/play_atari_hires.py --game breakout --latest"
    headless = " --headless --steps 300 --record recordings/play.mp4"
    lines = done.stdout.splitlines()
    assert lines[-1] == command + (headless if is_headless else "")
    assert any("no display here" in line for line in lines) == is_headless


@pytest.mark.skipif(not shutil.which("make"), reason="no make")
@pytest.mark.parametrize("flags, python", [
    ([], "python3"), (["LOWEST_PYTHON=python3.11"], "python3.11"),
])  # fmt: skip
def test_the_lowest_versions_are_tested_with_the_python_that_is_named(flags, python):
    environment = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "LOWEST_PYTHON")}
    command = ["make", "--no-print-directory", "--dry-run", "test-lowest", *flags]
    done = subprocess.run(command, env=environment, cwd=Path(__file__).resolve().parents[1],
                          check=True, capture_output=True, text=True)  # fmt: skip
    assert done.stdout.splitlines()[0] == f"{python} -m venv .venv-lowest"


def test_a_frame_is_the_same_in_collecting_evaluating_and_playing(tmp_path, vqvae, world_model):
    """The recorded actions, played again by the one emulator, give the recorded frames."""
    out = str(tmp_path)
    collect_atari.main(["--frames", "400", "--policy", "sticky", "--workers", "1", "--out", out])
    data = load_game_data(tmp_path / "atari_game_data.npz")
    env = make_atari_env(config=EmulatorConfig(**data.meta["emulator"]))
    frame, _ = env.reset()
    engine = DreamEngine(vqvae, world_model)
    rows = np.flatnonzero(data.episode_ids == data.episode_ids[0])
    for row in rows[:-1]:
        assert np.array_equal(frame, data.frames[row]) and np.array_equal(env.ram, data.ram[row])
        frame, *_ = env.step(int(data.actions[row]))
    shown = engine.reset(data.frames[rows[:4]], data.actions[rows[:3]])
    again = engine.decode(engine.encode(data.frames[rows[3:4]]))[0]
    assert np.array_equal(shown, again)


def test_a_stopped_recording_is_made_again_and_one_of_yours_is_kept(tmp_path, monkeypatch):
    runs, data = [], tmp_path / "atari_game_data.npz"

    def run(self, script, *flags):
        runs.append("--overwrite" in flags)
        data.write_bytes(b"a part")
        if len(runs) == 1:
            sys.exit(130)

    monkeypatch.setattr(Pipeline, "run", run)
    with pytest.raises(SystemExit):
        Pipeline(tmp_path, "breakout", "default").collect(tmp_path, 100)
    Pipeline(tmp_path, "breakout", "default").collect(tmp_path, 100)  # goes on where it stopped
    Pipeline(tmp_path, "breakout", "default").collect(tmp_path, 100)  # what is there is whole
    assert runs == [False, True]


def test_a_recording_made_by_hand_after_a_stop_is_kept(tmp_path, monkeypatch):
    data = tmp_path / "atari_game_data.npz"

    def run(self, script, *flags):
        if parts.pop():
            data.write_bytes(b"a part")
        sys.exit(130)

    monkeypatch.setattr(Pipeline, "run", run)
    parts = [True, False]
    while parts:
        with pytest.raises(SystemExit):
            Pipeline(tmp_path, "breakout", "default").collect(tmp_path, 100)
        data.write_bytes(b"by hand")
        Pipeline(tmp_path, "breakout", "default").collect(tmp_path, 100)
        assert data.read_bytes() == b"by hand" and list(tmp_path.iterdir()) == [data]
        data.unlink()


def test_a_recording_made_by_hand_after_a_kill_is_kept(tmp_path):
    (tmp_path / "collecting.tmp").touch()  # as a killed pipeline leaves it
    flags = ["--game", "breakout", "--frames", "60", "--workers", "1", "--out", str(tmp_path)]
    assert collect_atari.main(flags) == 0
    (data,) = tmp_path.glob("*")  # the mark is gone
    before = data.read_bytes()
    Pipeline(tmp_path, "breakout", "default").collect(tmp_path, 100)
    assert data.read_bytes() == before


@pytest.fixture
def stages(game_data, vqvae, world_model, monkeypatch):
    """Scripts that parse their flags and write what they should; the calls of each are noted."""
    calls: list[tuple[str, argparse.Namespace]] = []
    made = iter(range(1, 100))

    def run(script, *flags):
        module = importlib.import_module("v2." + script.removesuffix(".py").replace("/", "."))
        args = module.build_parser().parse_args([str(flag) for flag in flags])
        calls.append((script, args))
        if script == pipeline.COLLECT:
            save_game_data(args.out / "atari_game_data.npz", game_data)
        if not script.startswith("train/"):
            return
        kind, model = "world_model", world_model
        extra = {"data_sha256": recording_sha256(args.data)}
        if script == pipeline.TRAIN_VQVAE:
            kind, model = "vqvae", vqvae
            with torch.no_grad():
                vqvae.quantizer.codebook += 1  # each is another tokenizer
        else:
            extra["vqvae_sha256"] = tokenizer_sha256(
                load_vqvae(find_weights(args.vqvae, "vqvae", args.game))[0]
            )
        folder = args.out / "runs" / f"20260101_0000{next(made):02}"
        folder.mkdir(parents=True)
        presets = pipeline.RECIPES[kind]
        recipe = flags_of.parse(module.build_parser(), presets, list(map(str, flags))).recipe
        config = {"kind": kind, "args": flags_of.plain_args(args),
                  "recipe": dataclasses.asdict(recipe), "is_smoke": recipe.is_smoke}  # fmt: skip
        (folder / "config.json").write_text(json.dumps(config))
        status = {"is_finished": True, "step": 10, "minutes": 7.0}
        (folder / "status.json").write_text(json.dumps(status))
        checkpoint.save_checkpoint(folder / "last.pt", kind, model, **extra)

    monkeypatch.setattr(pipeline.cli, "run_script", run)
    monkeypatch.setattr(pipeline, "image_flops", lambda model: 3e9)
    monkeypatch.setattr(pipeline, "window_flops", lambda *of: 1e9)
    monkeypatch.setattr(pipeline, "matrix_products", lambda device, seconds: {"float32": 1.0})
    return calls


@pytest.mark.parametrize("preset", pipeline.PRESETS)
def test_every_stage_knows_the_flags_that_a_preset_gives(preset, stages, tmp_path):
    assert pipeline.main(["--preset", preset, "--out", str(tmp_path)]) == 0
    assert [script for script, _ in stages] == [
        pipeline.COLLECT, pipeline.TRAIN_VQVAE, pipeline.TOKENIZE, pipeline.TRAIN_WM,
        pipeline.EVALUATE,
    ]  # fmt: skip
    assert all(args.preset == preset for _, args in stages if "preset" in args)
    judged = stages[-1][1]  # its results are kept beside the weights
    assert judged.json.parent == judged.model_card.parent == Path(judged.checkpoint).parent


def test_the_long_preset_records_more_games_for_the_world_model_alone(
    stages, game_data, tmp_path, monkeypatch
):
    game_data.meta = game_data.meta | {"policy": "mix", "seed": 0}
    small = dataclasses.replace(pipeline.PRESETS["long"], more_frames=602)
    monkeypatch.setitem(pipeline.PRESETS, "long", small)
    assert pipeline.main(["--preset", "long", "--out", str(tmp_path)]) == 0
    first, more, vqvae, tokens, model, _ = (args for _, args in stages)
    assert (first.out, more.out) == (tmp_path, tmp_path / "more") and first.seed != more.seed
    assert vqvae.data == [tmp_path / "atari_game_data.npz"]
    assert tokens.data == model.data == [*vqvae.data, tmp_path / "more" / "atari_game_data.npz"]


@pytest.mark.parametrize("change", [{"seed": 1}, {"policy": "human"}, {"frameskip": 2}])
def test_the_long_preset_adds_no_games_to_a_recording_of_another_kind(
    stages, game_data, tmp_path, change, capsys
):
    game_data.meta |= {"policy": "mix", "seed": 0} | change
    game_data.meta["emulator"] |= change if "frameskip" in change else {}
    assert pipeline.main(["--preset", "long", "--out", str(tmp_path)]) == 0
    assert [script for script, _ in stages].count(pipeline.COLLECT) == 1
    assert "no other games are added to it" in capsys.readouterr().out


def test_a_tokenizer_that_is_named_is_taken_and_an_unknown_one_refused_at_once(stages, tmp_path):
    flags = ["--out", str(tmp_path), "--vqvae"]
    with pytest.raises(FileNotFoundError):
        pipeline.main([*flags, "no/such"])
    assert not stages
    assert pipeline.main([*flags, "shipped"]) == 0
    assert [script for script, _ in stages] == [
        pipeline.COLLECT, pipeline.TOKENIZE, pipeline.TRAIN_WM, pipeline.EVALUATE,
    ]  # fmt: skip


def test_a_run_of_another_preset_is_left_out(stages, tmp_path, capsys):
    assert pipeline.main(["--out", str(tmp_path)]) == 0
    assert pipeline.main(["--preset", "long", "--out", str(tmp_path)]) == 0
    trained = [args.preset for script, args in stages if script.startswith("train/")]
    assert trained == ["default"] * 2 + ["long"] * 2
    assert "is not of the long recipe" in capsys.readouterr().out


def test_the_default_recipe_ends_in_two_hours():
    assert WorldModelRecipe().num_steps(10**6) == 9600  # 62 minutes on 2 cores with AVX-512


def test_the_gold_set_is_found_however_the_game_is_spelt(stages, tmp_path):
    assert pipeline.main(["--game", "ALE/Breakout-v5", "--out", str(tmp_path)]) == 0
    assert stages[-1][0] == pipeline.EVALUATE


def test_a_recording_of_another_size_than_asked_for_is_refused(stages, tmp_path, capsys):
    asked = ["--out", str(tmp_path), "--frames"]
    assert pipeline.main([*asked, "602"]) == 0  # 600 frames: a policy may lack one
    assert pipeline.main(asked[:2]) == 0
    assert f"600 frames: {tmp_path}" in capsys.readouterr().out
    stages.clear()
    for frames in ("1000000", "599"):
        with pytest.raises(FileExistsError, match=f"600 frames in all, not {frames}: .*delete"):
            pipeline.main([*asked, frames])
    assert not stages


def test_only_runs_of_todays_recording_and_tokens_are_gone_on_with(
    stages, game_data, tmp_path, capsys
):
    def trained():
        stages.clear()
        assert pipeline.main(["--out", str(tmp_path)]) == 0
        return [script for script, _ in stages if script.startswith("train/")]

    both = [pipeline.TRAIN_VQVAE, pipeline.TRAIN_WM]
    assert trained() == both and trained() == []
    shutil.rmtree(min((tmp_path / "runs").iterdir()))  # the VQ-VAE's
    capsys.readouterr()
    assert trained() == both
    assert "is left out, it learnt from another VQ-VAE's tokens" in capsys.readouterr().out
    assert stages[-1][1].checkpoint == str(max((tmp_path / "runs").iterdir()) / "best.pt")
    game_data.rewards[0] += 1
    save_game_data(tmp_path / "atari_game_data.npz", game_data)
    for status in (tmp_path / "runs").glob("*/status.json"):
        status.unlink()  # unfinished ones cannot be resumed on it either
    assert trained() == both and trained() == []


def test_the_run_that_was_begun_last_is_gone_on_with_whatever_its_name(stages, tmp_path):
    assert pipeline.main(["--out", str(tmp_path)]) == 0
    run = max((tmp_path / "runs").iterdir())
    shutil.copytree(run, tmp_path / "runs" / "0_renamed")
    status = {"is_finished": False, "step": 5, "minutes": 1.0, "number": 7}
    (tmp_path / "runs" / "0_renamed" / "status.json").write_text(json.dumps(status))
    found = pipeline.Pipeline(tmp_path, "breakout", "default")._newest_run("world_model", {})
    assert found == run  # the model is small: of another architecture
    status |= {"is_finished": True}
    (tmp_path / "runs" / "0_renamed" / "status.json").write_text(json.dumps(status))
    found = pipeline.Pipeline(tmp_path, "breakout", "default")._newest_run("world_model", {})
    assert found == tmp_path / "runs" / "0_renamed"


def test_a_field_that_changes_nothing_leaves_no_run_out():
    config = dataclasses.asdict(WorldModelConfig(num_actions=4))
    del config["local_layers"]  # as if it was younger than the run
    state = {"kind": "world_model", "config": config, "model": {}}
    assert not pipeline._is_of_older_code(state)
    assert pipeline._is_of_older_code(state | {"config": config | {"layers": 3}})


def test_what_is_made_and_judged_is_not_made_again(stages, tmp_path):
    assert pipeline.main(["--out", str(tmp_path)]) == 0
    vqvae_run, run = sorted((tmp_path / "runs").iterdir())
    vqvae, _ = load_vqvae(vqvae_run / "last.pt")
    data = tmp_path / "atari_game_data.npz"
    tokenize(data, vqvae, torch.device("cpu")).save(tmp_path / "atari_tokens_hires.npz")
    (run / "best.pt").touch()
    (run / "gold.md").touch()
    os.utime(run / "best.pt", (0, 0))
    stages.clear()
    assert pipeline.main(["--out", str(tmp_path)]) == 0 and not stages
    (run / "gold.md").unlink()
    assert pipeline.main(["--out", str(tmp_path)]) == 0
    assert [script for script, _ in stages] == [pipeline.EVALUATE]


def test_an_unfinished_run_of_another_architecture_is_left_out(stages, tmp_path, capsys):
    assert pipeline.main(["--out", str(tmp_path)]) == 0
    for status in (tmp_path / "runs").glob("*/status.json"):
        status.unlink()  # and the models are small
    stages.clear()
    assert pipeline.main(["--out", str(tmp_path)]) == 0
    trained = [args.resume for script, args in stages if script.startswith("train/")]
    assert trained == [None, None]
    assert "left out, unfinished and of another architecture" in capsys.readouterr().out


def test_every_stage_that_is_done_shows_its_time_and_speed(stages, tmp_path, capsys):
    for has_collected in (True, False):
        assert pipeline.main(["--out", str(tmp_path)]) == 0
        out = capsys.readouterr().out
        assert len(re.findall(r"data/collect_atari.py .* frames a second", out)) == has_collected
        assert len(re.findall(r"data/tokenize_atari.py .* frames a second", out)) == 1
        assert len(re.findall(r"train/train_.*_hires.py +7.0 minutes, .* matrix product", out)) == 2


def test_the_share_of_the_peak_counts_all_steps_and_minutes(tmp_path, monkeypatch):
    def window_flops(model, steps, num_cells, num_layers):
        return steps * (num_cells + num_layers) * 1e9

    monkeypatch.setattr(pipeline, "image_flops", lambda model: 3e9)
    monkeypatch.setattr(pipeline, "window_flops", window_flops)

    def share(recipe):
        kind = "vqvae" if isinstance(recipe, VQVAERecipe) else "world_model"
        config = {"kind": kind, "args": {"seed": 0}, "recipe": dataclasses.asdict(recipe)}
        status = {"step": 100, "minutes": 2.0}
        (tmp_path / "config.json").write_text(json.dumps(config))
        (tmp_path / "status.json").write_text(json.dumps(status))
        return pipeline.share_of_peak(tmp_path, 100)

    assert share(VQVAERecipe(batch_size=16)) == ", 40 GFLOP/s: 40% of the matrix product"
    model = SimpleNamespace(config=SimpleNamespace(num_cells=2))
    monkeypatch.setattr(pipeline, "load_world_model", lambda path: (model, {}))
    shares = {"rollout_start": 0.6, "first_cells_share": 0.5, "first_layers_share": 0.2}
    text = share(WorldModelRecipe(rollout_ratio=1.0, first_cells=1, first_layers=3, **shares))
    single = (20 * (1 + 3) + 30 * 1 + 10 * 2) * 32 * 1  # 60 steps
    rate = (single + 40 * 2 * 12 * 5 * 5) / 120
    assert text == f", {rate:.0f} GFLOP/s: {rate:.0f}% of the matrix product"


def test_ablations_have_known_flags_and_equal_cost(tmp_path, monkeypatch, capsys):
    calls = []

    def run(script, *flags):
        flags = [str(flag) for flag in flags]
        calls.append((script, flags))
        if script.startswith("train/"):
            args = flags_of.parse(train_wm_hires.build_parser(), WORLD_MODEL_PRESETS, flags).args
            run_dir = args.out / "runs" / "20260101_000000"
            run_dir.mkdir(parents=True)
            for name in ("last.pt", "config.json"):
                (run_dir / name).touch()

    monkeypatch.setattr(ablations.cli, "run_script", run)
    monkeypatch.setattr(ablations, "is_finished", lambda run: True)
    def evaluated(args, world_model):
        assert (args.data, world_model.name) == ([Path("x/d.npz")], "last.pt")
        return {"steps": 7, "minutes": 3.0, "metrics": {"turns/exact flight": {"value": 0.5}}}

    monkeypatch.setattr(ablations, "evaluated", evaluated)
    command = ["--out", str(tmp_path), "--data", "x/d.npz", "--budget"]
    assert ablations.main([*command, "1000"]) == 0
    trained = [flags for script, flags in calls if script.startswith("train/")]
    assert len(trained) == len(ablations.ROWS)
    for flags in trained:
        recipe = flags_of.parse(train_wm_hires.build_parser(), WORLD_MODEL_PRESETS, flags).recipe
        assert recipe.steps == ablations.num_steps(1000, recipe)
    assert ablations.num_steps(1000, ablations.BASE) == 1000
    unrolled = dataclasses.replace(ablations.BASE, rollout_ratio=1.0, rollout_start=0.0)
    assert ablations.num_steps(1000, unrolled) == round(1000 * (32 * 144 + 600) / (60 * 144 + 600))
    halves = dataclasses.replace(ablations.BASE, first_cells=72, first_cells_share=1.0)
    assert ablations.num_steps(1000, halves) == round(1000 * (32 * 144 + 600) / (32 * 72 + 600))
    assert "active cells: 7 steps, 3 minutes; flight 0.500\n" in capsys.readouterr().out
    table = documents.read_ablations(tmp_path / ablations.TABLE)
    assert [row["name"] for row in table["rows"]] == list(ablations.ROWS)
    with pytest.raises(ValueError, match='begun with .*"budget": "1000".*another --out'):
        ablations.main([*command, "2000"])
