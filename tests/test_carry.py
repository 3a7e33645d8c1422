"""An unfinished run on its way to another machine."""

import dataclasses
import functools
import json
import math
import os
import shutil
import signal

import numpy as np
import pytest

from tests.conftest import SMALL_WORLD_MODEL, wm_flags
from v2.data.tokens import load_tokens
from v2.models.temporal_world_model import WorldModelConfig
from v2.models.weights import build_model, load_vqvae, tokenizer_sha256
from v2.runtime import checkpoint
from v2.runtime.run_dir import CARRIED, all_runs
from v2.train import carry, pipeline, train_wm_hires
from v2.train.recipe import WORLD_MODEL_PRESETS

STOP = 200
RECIPE = dataclasses.replace(
    WORLD_MODEL_PRESETS["smoke"], steps=300, rollout_ratio=0.0, eval_steps=10_000, batch_size=8,
    decay=0.0, is_smoke=False,
)  # fmt: skip


@pytest.fixture
def stopped(vqvae_run, tokens_path, data_path, tmp_path, monkeypatch):
    """The home of a run that a signal stopped."""
    for presets in (WORLD_MODEL_PRESETS, pipeline.RECIPES["world_model"]):
        monkeypatch.setitem(presets, "long", RECIPE)
    small = functools.partial(WorldModelConfig, **SMALL_WORLD_MODEL)
    monkeypatch.setattr(pipeline, "WorldModelConfig", small)
    original, home = train_wm_hires.Trainer.train_step, tmp_path / "home"

    def stopping(trainer):
        if trainer.step == STOP:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(train_wm_hires.Trainer, "train_step", stopping)
        flags = wm_flags(home, data_path, vqvae_run, "--preset", "long")
        assert train_wm_hires.main(flags) == 143
    return home


def _losses(run) -> dict[int, float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["one_step_loss"] for line in lines if "one_step_loss" in line}


@pytest.mark.slow
def test_a_carried_run_goes_on_elsewhere_where_its_loss_was(
    stopped, data_path, tokens_path, vqvae_run, tmp_path, capsys, ends
):
    ends(carry.main, ["--out", stopped / "runs"], 2, "no unfinished world-model run in")
    ends(carry.main, ["--run", vqvae_run], 2, "is no unfinished run of a world model")
    assert carry.main(["--out", str(stopped)]) == 0
    (run,) = all_runs(stopped)
    (carried,) = (stopped / CARRIED).iterdir()
    next_command = f"make train GAME=breakout PRESET=long VQVAE={carried / 'vqvae.pt'}"
    assert next_command in capsys.readouterr().out
    assert checkpoint.load_checkpoint(carried / "last.pt", "world_model")["best"] == -math.inf
    sizes = [sum(f.stat().st_size for f in folder.glob("last.pt")) for folder in (run, carried)]
    assert sizes[1] < sizes[0] / 5  # of weights, averages and two moments in float32, half of one
    assert carry.main(["--out", str(stopped)]) == 0  # once a sitting: the old one is replaced
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (stopped / CARRIED).rename(elsewhere / CARRIED)
    made = pipeline.Pipeline(elsewhere, "breakout", "long")
    made._bring_carried()
    (new,) = all_runs(elsewhere)
    named, _ = load_vqvae(elsewhere / CARRIED / run.name / "vqvae.pt")  # as the command says
    wanted = {"vqvae_sha256": tokenizer_sha256(named)}
    assert made._newest_run("world_model", wanted) == new and new.name == run.name
    made._bring_carried()
    assert all_runs(elsewhere) == [new]  # which came as far
    other_tokens = tmp_path / "others.npz"  # as of a machine that rounds otherwise
    tokens = load_tokens(tokens_path, named, data_path)
    tokens.tokens[7, 7] = (tokens.tokens[7, 7] + 1) % 8
    tokens.save(other_tokens)
    flags = ["--resume", str(new), "--data", str(data_path), "--tokens", str(other_tokens)]
    assert train_wm_hires.main(flags) == 0
    said = capsys.readouterr().out
    assert "warming up again" in said and "machines round differently" in said
    ends(train_wm_hires.main, [*flags[:-1], tokens_path], 2, "was trained on other tokens")
    state = checkpoint.load_checkpoint(new / "last.pt", "world_model")
    assert (state["step"], state["warm_from"]) == (300, STOP + 1)
    losses = _losses(new)
    before, after = (
        [loss for step, loss in losses.items() if first < step <= last]
        for first, last in ((STOP - 80, STOP), (STOP, 300))
    )
    noise = np.std(before) + np.std(after)
    assert np.mean(after) < np.mean(before) + noise < losses[20]
    rates = {
        line["step"]: line["lr"]
        for line in map(json.loads, (new / "metrics.jsonl").read_text().splitlines())
        if "lr" in line
    }
    assert rates[220] < 0.1 * rates[200] < rates[300]


def test_a_run_that_came_further_elsewhere_goes_on_from_there(stopped, capsys):
    assert carry.main(["--out", str(stopped)]) == 0
    (run,), made = all_runs(stopped), pipeline.Pipeline(stopped, "breakout", "long")
    last = run / "last.pt"
    state = checkpoint.load_checkpoint(last, "world_model")
    model = build_model(dict(state), last)
    kept = {k: v for k, v in state.items() if k not in ("format", "kind", "config", "model")}
    checkpoint.save_checkpoint(last, "world_model", model, **kept | {"step": STOP - 50})
    shutil.copytree(run, run.with_name("another"))  # as young
    made._bring_carried()
    assert f"brought from {stopped / CARRIED / run.name}" in capsys.readouterr().out
    assert checkpoint.load_last(run, "world_model")["step"] == state["step"] > STOP - 50
    before = run.with_name(f"{run.name}_at_{STOP - 50}")
    assert checkpoint.load_last(before, "world_model")["optimizer"]
    assert made._newest_run("world_model", {}) == run
    made._bring_carried()
    assert len(all_runs(stopped)) == 3
