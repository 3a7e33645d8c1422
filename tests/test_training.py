"""The training scripts on a synthetic game with known truth, with small models."""

import dataclasses
import errno
import functools
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import SMALL_VQVAE, SMALL_WORLD_MODEL, train_vqvae, train_world_model, wm_flags
from v2.data import tokenize_atari
from v2.data.ages import cut_ages
from v2.data.atari_dataset import load_game_data, save_game_data, split_of, window_starts
from v2.data.patch_counts import fold_of_rows, read_counts
from v2.data.tokens import load_tokens
from v2.dream import DreamEngine
from v2.eval import validate, weights_folder
from v2.models.patch_table import SLOTS, PatchTable
from v2.models.temporal_world_model import WorldModelConfig
from v2.models.vqvae_hires import VQVAE, VQVAEConfig
from v2.models.weights import (
    build_model,
    load_vqvae,
    load_world_model,
    tokenizer_sha256,
    told,
)
from v2.runtime import checkpoint
from v2.runtime.device import has_fast_bfloat16
from v2.runtime.files import file_sha256
from v2.runtime.run_dir import RunDir, finished_runs, read_config
from v2.train import ship, train_vqvae_hires, train_wm_hires
from v2.train.distributed import Workers
from v2.train.optim import GradientGuard, Muon, Optimizers, learning_rate
from v2.train.recipe import VQVAERecipe, WorldModelRecipe
from v2.train.sampling import Rows, read_windows, step_rng
from v2.train.vqvae_loss import ReconstructionLoss
from v2.train.wm_loss import WorldModelLoss

UNRAISABLE = "error::pytest.PytestUnraisableExceptionWarning"
NO_OPEN_FILES = pytest.mark.filterwarnings("error::ResourceWarning", UNRAISABLE)


def test_every_main_keeps_actions_beside_their_frames(small_models, data_path, tmp_path):
    """The world model learns which way each action moves the block, and a shift would show."""
    vqvae_run = train_vqvae(tmp_path / "v", data_path, "--set", "steps=80", "eval_steps=80")
    tokens_path = data_path.with_name("tokens.npz")
    assert tokenize_atari.main(["--data", str(data_path), "--vqvae", str(vqvae_run), "--out",
                                str(tokens_path)]) == 0  # fmt: skip
    flags = ["--set", "steps=350", "eval_steps=350", "--rollout-steps", "2", "--lr", "1e-2",
             "--batch-size", "16"]  # fmt: skip
    run = train_world_model(tmp_path / "w", data_path, vqvae_run, *flags)
    vqvae, _ = load_vqvae(run / "vqvae.pt")
    tokens = load_tokens(tokens_path, vqvae, data_path)
    windows = read_windows(tokens, tokens.rows_of("val")[:20], 4, 1)
    model, _ = load_world_model(run / "last.pt")
    engine = DreamEngine(vqvae, model)
    truth = windows.tokens[:, 4]
    is_changed = truth != windows.tokens[:, 3]
    accuracy = {}
    for name, shift in (("right", 0), ("one late", 1)):
        actions = windows.actions.roll(shift, dims=1).numpy()
        engine.reset_tokens(windows.tokens[:, :4], actions[:, :3])
        seen = torch.from_numpy(engine.step_tokens(actions[:, 3])).flatten(1)
        accuracy[name] = float((seen == truth)[is_changed].float().mean())
    assert accuracy["right"] > 0.9 > accuracy["one late"] + 0.2, accuracy
    windows = read_windows(tokens, window_starts(tokens.episode_ids, 5), 4, 1)
    engine.reset_tokens(windows.tokens[:, :4], windows.actions[:, :3].numpy())
    engine.step_tokens(windows.actions[:, 3].numpy())
    is_gain = windows.reward_signs[:, 0].numpy() == 2
    found = engine.last_reward > 0
    assert found[is_gain].mean() > 0.5 and found[~is_gain].mean() < 0.01, engine.last_reward


def test_noise_changes_what_is_read_and_not_what_is_learnt(
    vqvae_run, tokens_path, data_path, tmp_path
):
    batches = []
    original = train_wm_hires.Trainer.train_step

    def noting(trainer):
        result = original(trainer)
        batches.append(trainer.batch)
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_wm_hires.Trainer, "train_step", noting)
        for noise in ("0", "1"):
            flags = ["--set", "steps=1", f"history_noise={noise}"]
            train_world_model(tmp_path / "w", data_path, vqvae_run, *flags)
    plain, noisy = batches
    assert "history" not in plain and (plain["tokens"] == noisy["tokens"]).all()
    assert (noisy["history"] != noisy["tokens"][:, :4]).any()


def test_a_window_reads_the_ages_and_the_table_of_other_games(
    vqvae_run, data_path, tokens_path, tmp_path, monkeypatch
):
    trainers, starts = [], []
    original, read = train_wm_hires.Trainer.train_step, train_wm_hires.read_windows

    def noting(trainer):
        trainers.append(trainer)
        return original(trainer)

    def noted(tokens, rows, *more):
        starts.append(rows)
        return read(tokens, rows, *more)

    monkeypatch.setattr(train_wm_hires.Trainer, "train_step", noting)
    monkeypatch.setattr(train_wm_hires, "read_windows", noted)
    for share in (0, 1):
        flags = ["--set", "steps=1", f"unknown_age_share={share}", "batch_size=64",
                 "rollout_ratio=0", "table_bits=8"]  # fmt: skip
        train_world_model(tmp_path / "w", data_path, vqvae_run, *flags)
    for trainer, rows, share in zip(trainers, starts, (0, 1), strict=True):
        fold = trainer.batch["fold"]
        games = trainer.tokens.episode_ids[rows]
        assert (fold >= 0).all() and (fold == fold_of_rows(trainer.tokens, 4)[rows]).all()
        assert len(set(zip(games, fold, strict=True))) == len(set(games)) > len(set(fold)) > 1
        known = cut_ages(trainer.ages[rows + 3], trainer.episode_steps[rows + 3])
        assert (trainer.batch["age"] == known).all() == (share == 0)


def test_rates_rise_stay_and_fall_and_gradients_are_clipped():
    rates = [learning_rate(step, 100, 1.0, 10, 0.4) for step in (0, 9, 60, 80, 100)]
    assert rates == pytest.approx([0.1, 1, 1, 0.5, 0])
    weight = torch.nn.Parameter(torch.zeros(4))
    groups = [{"params": [weight], "rate_scale": 3.0}]
    guard = GradientGuard(torch.optim.SGD(groups, lr=1.0), 1.0, Workers())
    loss = 5 * weight.sum()
    loss.backward()
    assert guard.apply(loss.detach(), 0.1) == pytest.approx(10)
    assert weight.detach().norm() == pytest.approx(0.3)  # of norm 1, at three times the rate


def test_validation_leaves_training_as_it_was_and_keeps_the_best(
    vqvae_run, data_path, tokens_path, tmp_path, monkeypatch
):
    scores = iter((1.0, 0.5, 0.7))
    seen: list = []

    def scored(self, model, picture):
        seen.append(set(self.clips.episodes))
        return {}, next(scores)

    monkeypatch.setattr(validate.Evaluation, "__call__", scored)
    run = train_world_model(tmp_path, data_path, vqvae_run, "--set", "steps=2", "eval_steps=1")
    assert checkpoint.load_checkpoint(run / "best.pt", "world_model")["step"] == 1
    state = checkpoint.load_checkpoint(run / "last.pt", "world_model")
    assert not torch.equal(state["model"]["position"], state["ema"]["position"])
    more = ["--data", str(data_path), "--tokens", str(tokens_path), "--set", "steps=3"]
    assert train_wm_hires.main(["--resume", str(run), *more]) == 0
    assert checkpoint.load_checkpoint(run / "best.pt", "world_model")["step"] == 1
    data = load_game_data(data_path)
    held_out = {e["seed"] for e in data.meta["episodes"] if split_of(e) == "val"}
    assert all(seeds and seeds <= held_out for seeds in seen) and len(seen) == 3


def test_the_flags_of_length_say_how_many_steps(small_models, data_path, tmp_path):
    """Epochs times samples over the batch; 0: as many draws as there are; a time limit saves."""
    rows, windows = 18 * 30, 18 * 26
    flags = ["--batch-size", "4", "--max-minutes", "1e-6"]
    run = train_vqvae(tmp_path / "v", data_path, *flags, "--epochs", "3", "--set",
                       "samples_per_epoch=0")  # fmt: skip
    state = checkpoint.load_checkpoint(run / "last.pt", "vqvae")
    assert (state["step"], state["num_steps"]) == (1, 3 * rows // 4)
    assert state["warmup"] == 3 * rows // 4 // 10 < VQVAERecipe().unquantized_steps
    for samples, num_steps in (("0", 2 * windows // 4), ("40", 20)):
        more = [*flags, "--epochs", "2", "--set", f"samples_per_epoch={samples}", "table_bits=0"]
        trained = train_world_model(tmp_path / samples, data_path, run, *more)
        state = checkpoint.load_checkpoint(trained / "last.pt", "world_model")
        assert (state["step"], state["num_steps"]) == (1, num_steps)


def test_the_table_is_counted_once_and_resumed_as_it_was(
    vqvae_run, data_path, tmp_path, monkeypatch
):
    counted = []

    def fill(table, tokens, folds):
        counted.append(np.bincount(folds + 1).tolist())
        table.entries.fill_(7)
        table.folds = torch.full((4, *table.entries.shape), 8, dtype=torch.int32)
        return table.entries.numel()

    monkeypatch.setattr(train_wm_hires, "fill", fill)
    flags = "--batch-size", "4", "--max-minutes", "1e-6"
    run = train_world_model(tmp_path / "w", data_path, vqvae_run, *flags, "--set", "table_bits=4")
    assert train_wm_hires.main(["--resume", str(run), *flags[2:]]) == 0
    state = checkpoint.load_checkpoint(run / "last.pt", "world_model")
    assert state["step"] == 2 and (state["model"]["patch_table.entries"] == 7).all()
    assert counted == [[2 * 30, 5 * 30, 5 * 30, 4 * 30, 4 * 30]]  # held out, then the four folds
    table = PatchTable(4, 32, (21, 16))
    read_counts(run / train_wm_hires.TABLE_NAME, table)
    assert (table.entries == 7).all() and table.folds.shape == (4, 16, SLOTS)
    assert (table.folds == 8).all()
    with pytest.raises(ValueError, match="tables"):
        read_counts(run / train_wm_hires.TABLE_NAME, PatchTable(5, 32, (21, 16)))
    (run / train_wm_hires.TABLE_NAME).unlink()  # as where a run is carried
    assert train_wm_hires.main(["--resume", str(run), *flags[2:]]) == 0 and len(counted) == 2


def test_a_run_that_begins_with_other_weights_counts_its_own_table(
    vqvae_run, data_path, tmp_path, monkeypatch
):
    fills = iter((7, 9))

    def fill(table, tokens, folds):
        table.entries.fill_(next(fills))
        table.folds = table.entries.expand(4, -1, -1)
        return table.entries.numel()

    monkeypatch.setattr(train_wm_hires, "fill", fill)
    flags = "--batch-size", "4", "--set", "steps=1", "table_bits=4"
    first = train_world_model(tmp_path / "first", data_path, vqvae_run, *flags)
    init = f"init_from={first / 'last.pt'}"
    run = train_world_model(tmp_path / "w", data_path, vqvae_run, *flags, init)
    for weights, filled in ((first, 7), (run, 9)):
        state = checkpoint.load_checkpoint(weights / "last.pt", "world_model")
        assert (state["model"]["patch_table.entries"] == filled).all()


def test_draws_come_with_repetition():
    """So an epoch is no pass over the data, of whatever size."""
    drawn = Rows(np.arange(1000)).draw(np.random.default_rng(0), 1000)
    assert 600 < len(np.unique(drawn)) < 660  # 1 - 1/e of them


def test_rollouts_in_training_are_logged_as_scheduled(
    vqvae_run, tokens_path, data_path, tmp_path, capsys
):
    """The headline `rollout@5` is open loop. A run begun under the name before goes on."""
    run = train_world_model(
        tmp_path / "w", data_path, vqvae_run, "--batch-size", "2", "--rollout-ratio", "1",
        "--rollout-steps", "2", "--set", "steps=10", "rollout_start=0", "rollout_batch_size=2",
    )  # fmt: skip
    assert "\nscheduled_loss " in capsys.readouterr().out
    path, before = run / "metrics.jsonl", '{"step": 5, "rollout_loss": 1.0}\n'
    logged = _metrics(run)
    assert {"scheduled_loss", "scheduled_accuracy"} <= logged[0].keys()
    assert not [name for line in logged for name in line if name.startswith("rollout")]
    path.write_text(before)
    assert train_wm_hires.main(["--resume", str(run), "--set", "steps=20"]) == 0
    assert path.read_text().startswith(before) and _metrics(run)[-1]["step"] == 20


def test_a_run_is_shipped_as_it_is_and_a_smoke_run_never(
    world_run, vqvae_run, data_path, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("v2.data.games.CHECKPOINTS", tmp_path)
    atari = tmp_path / "atari"
    run = Path(shutil.move(world_run, atari / "runs" / world_run.name))
    smoke = train_world_model(atari, data_path, vqvae_run, "--set", "steps=1", "is_smoke=true")
    with pytest.raises(ValueError, match="is a smoke run, which is never shipped"):
        ship.main(["--run", str(smoke)])
    assert not list(atari.glob("*.pt"))
    assert ship.main([]) == 0  # the latest, which the smoke run is not
    assert f"from {run.name}" in capsys.readouterr().out
    kept, shipped = (DreamEngine.load(str(name), device="cpu") for name in (run, "shipped"))
    assert kept.info["sha256"] == shipped.info["sha256"]


def test_shared_weights_are_taken_wherever_weights_are(
    world_run, data_path, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("v2.data.games.CHECKPOINTS", tmp_path)
    folder = tmp_path / "share"
    assert ship.main(["--run", str(world_run), "--to", str(folder)]) == 0
    sums = [line.split() for line in (folder / "SHA256SUMS").read_text().splitlines()]
    assert len(sums) == 5 and all(file_sha256(folder / name) == digest for digest, name in sums)
    assert not list((tmp_path / "atari").glob("*.pt"))  # what is shipped stays
    card = (folder / "README.md").read_text()
    assert "MIT terms" in card and "train_wm_hires.py --set" in card
    kept, shared = (DreamEngine.load(str(name), device="cpu") for name in (world_run, folder))
    assert kept.info["sha256"] == shared.info["sha256"]
    scene, data = load_game_data(folder / "start.npz"), load_game_data(data_path)
    rows = data.rows_of("val")[:30]
    np.testing.assert_array_equal(scene.frames, data.frames[rows])
    np.testing.assert_array_equal(scene.actions[:-1], data.actions[rows[:-1]])
    shared.reset(scene.frames[:4], scene.actions[:3].astype(int))
    flags = ["--data", str(data_path), "--out", str(tmp_path / "t.npz")]
    assert tokenize_atari.main([*flags, "--weights", str(folder)]) == 0
    more = ["--set", "steps=1", f"init_from={folder}", "batch_size=2", "rollout_ratio=0"]
    train_world_model(tmp_path / "more", data_path, folder, *more)
    train_vqvae(tmp_path / "more", data_path, "--set", "steps=1", f"init_from={folder}")
    assert ship.main(["--run", str(folder)]) == 0  # as the shipped ones of this machine
    assert DreamEngine.load("shipped", device="cpu").info["sha256"] == kept.info["sha256"]
    with pytest.raises(FileExistsError, match="name another --to"):
        ship.main(["--run", str(world_run), "--to", str(folder)])


def test_both_weights_are_shipped_or_none(world_run, tmp_path, monkeypatch):
    monkeypatch.setattr("v2.data.games.CHECKPOINTS", tmp_path)
    assert ship.main(["--run", str(world_run)]) == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "atari").glob("*.pt")}
    write, written = checkpoint._write_state, []

    def on_a_full_disk(state, file):
        written.append(state["kind"])
        if len(written) == 2:
            raise OSError(errno.ENOSPC, "no space")
        write(state | {"step": 7}, file)

    monkeypatch.setattr(checkpoint, "_write_state", on_a_full_disk)
    with pytest.raises(OSError, match="what was there is kept"):
        ship.main(["--run", str(world_run)])
    after = {path.name: path.read_bytes() for path in (tmp_path / "atari").glob("*.pt")}
    assert after == before and len(written) == len(before) == 2
    assert DreamEngine.load("shipped", device="cpu")


@pytest.mark.parametrize("game, measured", [
    ("pong", "gold_eval.py --game pong --weights FOLDER --model-card"),
    ("own-ball", "gold_eval.py --game own-ball --weights FOLDER --data DATA.npz --model-card"),
])  # fmt: skip
def test_the_shared_card_says_how_its_game_is_measured(game, measured):
    infos = {kind: {"config": {}} for kind in ("vqvae", "world_model")}
    assert measured in weights_folder._card(game, infos, False)


def test_what_learnt_the_tokens_of_a_smoke_run_is_never_shipped(
    small_models, data_path, tmp_path, monkeypatch
):
    monkeypatch.setattr("v2.data.games.CHECKPOINTS", tmp_path)
    smoke = train_vqvae(tmp_path / "atari", data_path, "--set", "steps=1", "is_smoke=true")
    run = train_world_model(tmp_path / "atari", data_path, smoke, "--set", "steps=1")
    assert run != smoke and not finished_runs(tmp_path / "atari", "world_model")
    with pytest.raises(ValueError, match="is a smoke run, which is never shipped"):
        ship.main(["--run", str(run)])
    config = read_config(run) | {"is_smoke": False}  # as runs before
    (run / "config.json").write_text(json.dumps(config))
    for more in ([], ["--vqvae", str(smoke)]):
        with pytest.raises(ValueError, match="is of a smoke run, which is never shipped"):
            ship.main(["--run", str(run), *more])
    assert not list((tmp_path / "atari").glob("*.pt"))


def test_nothing_shipped_is_replaced_by_what_the_shipped_dtype_cannot_hold(
    vqvae, world_model, tmp_path, monkeypatch
):
    monkeypatch.setattr("v2.data.games.CHECKPOINTS", tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"kind": "world_model", "args": {}}))
    checkpoint.save_checkpoint(
        tmp_path / "vqvae.pt", "vqvae", vqvae, recipe=dataclasses.asdict(VQVAERecipe())
    )
    extra = {
        "vqvae_sha256": tokenizer_sha256(vqvae),
        "recipe": dataclasses.asdict(WorldModelRecipe()),
    }
    with torch.no_grad():
        world_model.position[0, 0] = 1e6
    checkpoint.save_checkpoint(tmp_path / "w.pt", "world_model", world_model, **extra)
    with pytest.raises(ValueError, match="weight position is not finite"):
        ship.main(["--run", str(tmp_path / "w.pt")])
    assert not (tmp_path / "atari").exists()


def test_init_from_another_architecture_is_refused(world_run, vqvae_run, data_path, tmp_path):
    asked = ["--set", "steps=1", f"init_from={world_run / 'last.pt'}", "past_actions=0"]
    with pytest.raises(ValueError, match="reads 3 past actions: past_actions must agree"):
        train_world_model(tmp_path / "x", data_path, vqvae_run, *asked)


def test_a_tokenizer_older_than_its_field_knows_where_tokens_are_and_is_not_gone_on_with(
    data_path, tmp_path
):
    model = VQVAE(VQVAEConfig(**SMALL_VQVAE, encoder_position=True))
    torch.nn.init.normal_(model.encoder.position)
    checkpoint.save_checkpoint(tmp_path / "vqvae.pt", "vqvae", model)
    state = checkpoint.load_checkpoint(tmp_path / "vqvae.pt", "vqvae")
    del state["config"]["encoder_position"]
    rebuilt = build_model(state, tmp_path / "vqvae.pt")
    pixels = torch.rand(1, 3, 84, 64)
    assert torch.equal(rebuilt.encode(pixels), model.encode(pixels))
    with pytest.raises(ValueError, match="encoder_position True, now False"):
        train_vqvae(tmp_path, data_path, "--set", f"init_from={tmp_path / 'vqvae.pt'}")
    today = VQVAE(VQVAEConfig(**SMALL_VQVAE))
    with pytest.raises(ValueError, match="encoder_position True, now False"):  # as with --resume
        checkpoint.restore(today, told(state), tmp_path)


def test_a_scale_of_the_loss_is_no_architecture(world_run, data_path, tmp_path):
    """A config that holds it, as some do, goes on with another, too."""
    for path in (world_run / "last.pt", world_run / "best.pt"):
        state = checkpoint.load_checkpoint(path, "world_model")
        assert state["config"]["false_change_scale"] == 0
        state["config"]["false_change_scale"] = 8.0
        torch.save(state, path)
        path.with_name(f"{path.name}.sha256").write_text(f"{file_sha256(path)}  {path.name}\n")
    changed = ["--set", "steps=3", "false_change_scale=4"]
    assert train_wm_hires.main(["--resume", str(world_run), *changed]) == 0
    flags = wm_flags(tmp_path / "new", data_path, world_run / "vqvae.pt")
    flags += [*changed, f"init_from={world_run / 'best.pt'}"]
    assert train_wm_hires.main(flags) == 0
    assert load_world_model(world_run / "last.pt")[0].config.false_change_scale == 0


def test_a_tokenizer_has_the_colour_that_is_most_usual_in_its_training_games(data_path, tmp_path):
    data = load_game_data(data_path)
    data.frames[:] = np.maximum(data.frames, (144, 72, 17))  # Pong's, where black was
    save_game_data(tmp_path / "brown.npz", data)
    run = train_vqvae(tmp_path, tmp_path / "brown.npz", "--set", "steps=1")
    again = ["--set", "steps=2", f"init_from={run / 'last.pt'}"]
    other = train_vqvae(tmp_path / "black", data_path, *again)
    assert train_vqvae_hires.main(["--resume", str(other), "--set", "steps=3"]) == 0
    for path in (run, other):
        config = load_vqvae(path / "last.pt")[0].config
        assert config.usual_colour == (144 / 255, 72 / 255, 17 / 255)


def test_a_game_on_grey_is_learnt_sooner_by_what_differs_from_grey(
    data_path, tmp_path, monkeypatch
):
    data = load_game_data(data_path)
    data.frames[:] = np.maximum(data.frames, 142)
    save_game_data(tmp_path / "grey.npz", data)

    def best(name: str) -> float:
        flags = ["--set", "steps=30", "eval_steps=30", "batch_size=4"]
        run = train_vqvae(tmp_path / name, tmp_path / "grey.npz", *flags)
        return checkpoint.load_checkpoint(run / "best.pt", "vqvae")["metrics"]["held_out_psnr"]

    with_grey = best("grey")
    monkeypatch.setattr(train_vqvae_hires, "_usual_colour", lambda data: {})
    assert with_grey > best("black") + 3


def test_init_from_weights_with_fewer_convolutions_begins_with_what_they_predict(
    world_run, vqvae_run, data_path, tmp_path, monkeypatch
):
    old = world_run / "last.pt"
    trainers, start = [], train_wm_hires.Trainer.start_from

    def noting(trainer, *args):
        start(trainer, *args)
        trainers.append((trainer, {k: v.clone() for k, v in trainer.model.state_dict().items()}))

    all_layers = functools.partial(WorldModelConfig, **SMALL_WORLD_MODEL | {"local_layers": 2})
    monkeypatch.setattr(train_wm_hires, "WorldModelConfig", all_layers)
    monkeypatch.setattr(train_wm_hires.Trainer, "start_from", noting)
    asked = ["--set", "steps=1", f"init_from={old}"]
    train_world_model(tmp_path / "x", data_path, vqvae_run, *asked)
    trainer, weights = trainers[0]
    windows = read_windows(trainer.tokens, trainer.windows[1].rows[:2], 4, 1)
    trainer.model.load_state_dict(weights)
    with torch.no_grad():
        found = trainer.model(windows.tokens[:, :4], windows.actions)
        before = load_world_model(old)[0](windows.tokens[:, :4], windows.actions)
    assert (found.logits == before.logits).all() and trainer.model.config.local_layers == 2


def test_later_layers_learn_only_once_they_join(vqvae_run, tokens_path, data_path, tmp_path):
    for share, is_learning in (("1", False), ("0.5", True)):
        flags = ["--set", "steps=2", "first_layers=1", f"first_layers_share={share}"]
        run = train_world_model(tmp_path / share, data_path, vqvae_run, *flags)
        state = checkpoint.load_checkpoint(run / "last.pt", "world_model")
        weights = [state["model"][f"blocks.{layer}.contract.weight"] for layer in (0, 1)]
        assert [bool(w.any()) for w in weights] == [True, is_learning]


def test_layers_that_joined_stay_and_weights_that_are_taken_have_all_of_theirs(
    vqvae_run, tokens_path, data_path, tmp_path, monkeypatch
):
    late = ["first_layers=1", "first_layers_share=0.5"]
    run = train_world_model(tmp_path / "a", data_path, vqvae_run, "--set", "steps=2", *late)
    calls, loss = [], WorldModelLoss.__call__

    def noting(self, *args):
        calls.append(args[-1])
        return loss(self, *args)

    monkeypatch.setattr(WorldModelLoss, "__call__", noting)
    assert train_wm_hires.main(["--resume", str(run), "--set", "steps=6"]) == 0
    begun = ["--set", "steps=2", f"init_from={run}", *late]
    train_world_model(tmp_path / "b", data_path, vqvae_run, *begun)
    assert calls == [0] * 4 + [0] * 2  # all


def test_the_recipe_decides_the_model_and_its_table_of_far_changes_is_saved(
    vqvae_run, tokens_path, data_path, tmp_path, capsys
):
    flags = ["--set", "steps=2", "num_cells=64", "has_age=true", "reveal_layer=1"]
    flags += ["num_decided=2", "is_calibrated=true", "rollout_start=0", "--rollout-ratio", "1"]
    flags += ["--rollout-steps", "2"]
    train_world_model(tmp_path / "w", data_path, vqvae_run, *flags)
    assert "held-out games: 64 active cells hold" in capsys.readouterr().out
    run = next((tmp_path / "w" / "runs").iterdir())
    model, info = load_world_model(run / "last.pt")
    config = model.config
    assert (config.num_cells, config.has_age) == (64, True)
    assert (config.reveal_layer, config.num_decided) == (1, 2)
    assert sorted(model.far_rank.tolist()) == list(range(336))
    assert model.far_rank.tolist() != list(range(336))
    assert DreamEngine.load(str(run), device="cpu").world_model.config == config


def test_a_compiled_model_with_wrong_gradients_is_dropped(
    vqvae_run, tokens_path, data_path, tmp_path, monkeypatch, capsys
):
    """As once seen on CUDA: right predictions, wrong gradients."""
    factor = 1

    class Compiled:
        def __init__(self, model):
            self.model, self.config, self.calls = model, model.config, 0
            self.active_cells = model.active_cells

        def __call__(self, *inputs):
            prediction = self.model(*inputs)
            if prediction.logits.requires_grad:
                self.calls += 1
                prediction.logits.register_hook(lambda gradient: factor * gradient)
            return prediction

    made = []
    monkeypatch.setattr(
        train_wm_hires, "compiled", lambda model: made.append(Compiled(model)) or made[-1]
    )
    norms, more = [], ["--set", "steps=10", "rollout_start=0.5", "--rollout-steps", "2"]
    for factor, is_compiled in ((1, False), (1, True), (-1, True)):
        asked = [*more, "--set", f"compile={is_compiled}"]
        run = train_world_model(tmp_path / "w", data_path, vqvae_run, *asked)
        norms.append([line["gradient_norm"] for line in _metrics(run) if "lr" in line])
        is_said = bool(
            re.search(r"gradients are off by [12]\.\d times their size", capsys.readouterr().out)
        )
        assert is_said == (factor < 0)
    assert norms[0] == norms[1] == norms[2]
    assert made[0].calls > 10 and made[1].calls == 1


@pytest.fixture
def other_vqvae(vqvae, tmp_path) -> Path:
    """Weights of a tokenizer that is not `vqvae_run`'s."""
    path = tmp_path / "other.pt"
    checkpoint.save_checkpoint(path, "vqvae", vqvae, recipe=dataclasses.asdict(VQVAERecipe()))
    return path


def test_weights_learnt_on_other_tokens_are_refused(world_run, other_vqvae, data_path, tmp_path):
    asked = ["--set", "steps=1", f"init_from={world_run / 'last.pt'}"]
    with pytest.raises(ValueError, match="was trained on the tokens of VQ-VAE"):
        train_world_model(tmp_path / "x", data_path, other_vqvae, *asked)


def test_stale_tokens_are_made_again(
    vqvae_run, other_vqvae, tokens_path, data_path, tmp_path, capsys
):
    for vqvae, is_made in ((vqvae_run, False), (other_vqvae, True)):
        train_world_model(tmp_path / "w", data_path, vqvae, "--set", "steps=1")
        assert ("making it" in capsys.readouterr().out) == is_made
    assert load_tokens(tokens_path, load_vqvae(other_vqvae)[0], data_path)


def _states_equal(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_states_equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_states_equal, a, b))
    return a == b


EXACT = ("model", "ema", "optimizer", "step", "rng", "best", "num_steps")


def _metrics(run: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if "per_second" not in k} for line in lines]


@pytest.mark.parametrize("kind", ["vqvae", "world_model"])
def test_resume_is_exact(kind, vqvae_run, tokens_path, data_path, tmp_path, monkeypatch):
    """N steps equal k steps, SIGTERM, resume and the rest, with rollouts on and in mid-epoch.

    Step 5 is refused for its loss: that is remembered too."""
    if kind == "vqvae":
        module, flags = train_vqvae_hires, ["--data", str(data_path)]
    else:
        module, flags = train_wm_hires, wm_flags(tmp_path, data_path, vqvae_run)[:-2]
        flags += ["--set", "rollout_start=0.2", "rollout_batch_size=4", "--rollout-steps", "3"]
    flags += ["--batch-size", "8", "--set", "steps=30", "eval_steps=10"]
    original, apply = module.Trainer.train_step, GradientGuard.apply
    at, stops = [], set()

    def noting(trainer):
        at.append(trainer.step)
        if trainer.step in stops:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(trainer)

    def refusing(guard, loss, rate):
        return apply(guard, loss * float("inf") if at[-1] == 5 else loss, rate)

    monkeypatch.setattr(module.Trainer, "train_step", noting)
    monkeypatch.setattr(GradientGuard, "apply", refusing)
    assert module.main([*flags, "--out", str(tmp_path / "through")]) == 0
    stops.add(17)
    assert module.main([*flags, "--out", str(tmp_path / "stopped")]) == 143
    stops.clear()
    runs = [next((tmp_path / name / "runs").iterdir()) for name in ("through", "stopped")]
    assert module.main(["--resume", str(runs[1])]) == 0
    states = [checkpoint.load_checkpoint(run / "last.pt", kind) for run in runs]
    for key in EXACT:
        assert _states_equal(states[0][key], states[1][key]), key
    assert _metrics(runs[0]) == _metrics(runs[1])
    assert [line["skipped"] for line in _metrics(runs[1]) if "skipped" in line][-1] == 1


def test_weights_are_averaged_from_where_a_resumed_run_is_asked_to(
    small_models, data_path, tmp_path
):
    run = train_vqvae(tmp_path, data_path, "--set", "steps=6", "ema=0")
    plain = checkpoint.load_checkpoint(run / "last.pt", "vqvae")
    assert not plain["ema"]
    flags = ["--resume", str(run), "--set", "steps=7", "ema=0.9"]
    assert train_vqvae_hires.main(flags) == 0
    state = checkpoint.load_checkpoint(run / "last.pt", "vqvae")
    name = "encoder.stem.weight"
    average, last, first = state["ema"][name], state["model"][name], plain["model"][name]
    assert torch.allclose(average - first, (last - first) * (1 - 7 / 16), atol=1e-6)
    assert not torch.equal(first, last)


def test_a_decoder_is_trained_on_without_its_tokens(vqvae_run, data_path, tmp_path):
    first = vqvae_run
    state = checkpoint.load_checkpoint(first / "last.pt", "vqvae")
    state["ema"]["encoder.stem.bias"][0] = -0.0
    model = VQVAE(VQVAEConfig(**SMALL_VQVAE))
    model.load_state_dict(state["ema"])
    checkpoint.save_checkpoint(first / "last.pt", "vqvae", model)
    begun = load_vqvae(first / "last.pt")[0]
    begin = f"init_from={first / 'last.pt'}"
    flags = ("--set", "steps=12", "eval_steps=12", "decoder_only=true", begin)
    second = train_vqvae(tmp_path / "b", data_path, *flags)
    for name in ("last.pt", "best.pt"):
        tuned = load_vqvae(second / name)[0]
        assert tokenizer_sha256(tuned) == tokenizer_sha256(begun)
        assert checkpoint.model_sha256(tuned) != checkpoint.model_sha256(begun)
    with pytest.raises(ValueError, match="decoder_only needs init_from"):
        train_vqvae_hires.main(["--data", str(data_path), "--set", "decoder_only=true"])


def test_a_resumed_optimizer_has_the_rates_of_todays_flags():
    def made(scale, decay):
        weight = torch.nn.Parameter(torch.ones(4, 4))
        weight.grad = torch.ones(4, 4)
        group = {"params": [weight], "rate_scale": scale, "weight_decay": decay}
        return Optimizers(adamw=torch.optim.AdamW([group]))

    before, after = made(3.0, 0.1), made(2.0, 0.0)
    before.step()
    after.load_state_dict(before.state_dict())
    (group,) = after.param_groups
    assert (group["rate_scale"], group["weight_decay"]) == (2.0, 0.0)
    states = [each.state_dict()["adamw"]["state"] for each in (before, after)]
    assert _states_equal(*states) and states[0][0]["exp_avg"].any()


def test_muon_takes_matrices_of_a_shape_at_once_as_pytorch_does_each():
    """From an equal state, which is PyTorch's; a matrix without a gradient stays."""
    torch.manual_seed(0)
    shapes = [(24, 8), (8, 24), (24, 8), (8, 8), (24, 8)]
    start = [torch.randn(shape) for shape in shapes]
    trained = {}
    for optimizer in (torch.optim.Muon, Muon):
        matrices = [torch.nn.Parameter(values.clone()) for values in start]
        muon = optimizer(matrices, lr=0.02, weight_decay=0.1)
        for k in range(3):
            for place, matrix in enumerate(matrices[:-1]):
                draw = torch.Generator().manual_seed(10 * k + place)
                matrix.grad = torch.randn(matrix.shape, generator=draw)
            muon.step()
        trained[optimizer] = [m.detach() for m in matrices], muon.state_dict()["state"]
    (expected, state), (found, own_state) = trained.values()
    assert torch.equal(found[-1], start[-1])
    for before, theirs, ours in zip(start, expected, found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-3)  # bfloat16 sums in any order
        assert before is start[-1] or (ours - before).abs().mean() > 4e-3
    assert state.keys() == own_state.keys()
    for key in state:
        torch.testing.assert_close(own_state[key], state[key])


def test_resume_refuses_another_optimizer(world_run, monkeypatch):
    with_muon = has_fast_bfloat16(torch.device("cpu"))
    monkeypatch.setattr("v2.train.optim.has_fast_bfloat16", lambda _: not with_muon)
    with pytest.raises(ValueError, match="saved with .*adamw, and this machine trains with"):
        train_wm_hires.main(["--resume", str(world_run), "--set", "steps=4"])


def test_drawn_rows_are_those_of_choice():
    """The sums are made once, and in double precision, as `choice` makes them each time."""
    chances = np.random.default_rng(0).random(5000)
    chances /= chances.sum()
    rows = np.arange(5000) * 3
    for p in (chances, chances.astype(np.float32), None):
        drawn = Rows(rows, p)
        for step in range(20):
            expected = step_rng(0, step).choice(rows, 16, p=None if p is None else p / p.sum())
            assert np.array_equal(drawn.draw(step_rng(0, step), 16), expected)


def test_resume_refuses_other_data(vqvae_run, game_data, data_path):
    game_data.frames[0, 0, 0, 0] += 1
    save_game_data(data_path, game_data)
    with pytest.raises(ValueError, match="was trained on other data"):
        train_vqvae_hires.main(["--resume", str(vqvae_run)])


def test_an_infinite_gradient_under_a_finite_loss_is_refused(world_model):
    from v2.runtime.errors import DivergedError

    optimizer = torch.optim.AdamW(world_model.parameters())
    guard = GradientGuard(optimizer, 1.0, Workers())
    before = [p.clone() for p in world_model.parameters()]
    for attempt in range(5):
        for parameter in world_model.parameters():
            parameter.grad = torch.full_like(parameter, float("inf"))
        if attempt < 4:
            guard.apply(torch.tensor(1.0), 1e-3)
            assert guard.num_skipped == attempt + 1
    with pytest.raises(DivergedError, match="5 steps in a row"):
        guard.apply(torch.tensor(1.0), 1e-3)
    assert all(map(torch.equal, before, world_model.parameters()))


def test_a_non_finite_gradient_is_never_applied(small_models, data_path, tmp_path, monkeypatch):
    from v2.runtime.errors import DivergedError

    original, calls = ReconstructionLoss.__call__, []

    def infinite(*args):
        loss, metrics = original(*args)
        calls.append(loss)
        return (loss * float("inf") if len(calls) > 3 else loss), metrics

    monkeypatch.setattr(ReconstructionLoss, "__call__", infinite)
    with pytest.raises(DivergedError, match="5 steps in a row"):
        train_vqvae(tmp_path / "v", data_path, "--set", "steps=20", "save_minutes=1e-9")
    run = next((tmp_path / "v" / "runs").iterdir())
    load_vqvae(run / "last.pt")  # refuses weights that are not finite
    assert len(calls) == 3 + 5


@pytest.fixture
def as_the_driver(monkeypatch):
    """Compute in this process as those of `DRIVER` do: in float32, with one thread."""
    for module in ("v2.runtime.device", "v2.train.optim"):
        monkeypatch.setattr(f"{module}.has_fast_bfloat16", lambda device: False)
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.mark.parametrize("kind", [pytest.param("vqvae", marks=pytest.mark.slow), "world_model"])
def test_two_workers_train_as_one(kind, as_the_driver, vqvae_run, tokens_path, data_path, tmp_path):
    """The same global batch gives the same losses and gradients, rollouts too, from one start."""
    script, flags = train_vqvae_hires, ["--data", str(data_path)]
    if kind == "world_model":
        script, flags = train_wm_hires, wm_flags(tmp_path, data_path, vqvae_run)[:-2]
        flags += ["--rollout-steps", "3", "--rollout-ratio", "1"]
    flags += ["--set", "steps=20", "eval_steps=20"]
    assert script.main([*flags, "--out", str(tmp_path / "one")]) == 0
    ranks = _spawn_two(*flags, "--out", str(tmp_path / "two"), kind=kind)
    errors = [process.communicate(timeout=300)[1].decode() for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], errors
    runs = [next((tmp_path / name / "runs").iterdir()) for name in ("one", "two")]
    _assert_alike(*map(_metrics, runs))


def _assert_alike(one: list[dict], two: list[dict]) -> None:
    """Compare losses and norms of gradients, which tell parts of a batch from all of it."""
    assert [line["step"] for line in one] == [line["step"] for line in two]
    for a, b in zip(one, two, strict=True):
        for name in a:
            if "loss" in name or name == "gradient_norm":
                assert a[name] == pytest.approx(b[name], rel=1e-2), (a["step"], name)


def test_a_run_goes_on_with_two_processes_and_back(
    as_the_driver, small_models, data_path, tmp_path
):
    """One process, then two under torchrun, then one: as one process all the way."""
    alone = train_vqvae(tmp_path, data_path, "--set", "steps=10", "eval_steps=10")
    changing = shutil.copytree(alone, tmp_path / "changing")
    driver = tmp_path / "driver.py"
    driver.write_text(DRIVER)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone",
                "--nproc_per_node=2", str(driver), "vqvae"]  # fmt: skip
    for steps in ("20", "30"):
        again = ["--resume", str(changing), "--set", f"steps={steps}"]
        if steps == "20":
            environment = os.environ | QUIET | {"PYTHONPATH": str(ROOT)}
            subprocess.run([*torchrun, *again], env=environment, check=True, timeout=120)
        else:
            assert train_vqvae_hires.main(again) == 0
        assert train_vqvae_hires.main(["--resume", str(alone), "--set", f"steps={steps}"]) == 0
    assert checkpoint.load_checkpoint(changing / "last.pt", "vqvae")["step"] == 30
    _assert_alike(_metrics(alone), _metrics(changing))


@pytest.mark.slow
def test_the_others_end_within_the_time_out_when_a_worker_hangs(data_path, tmp_path):
    flags = ["--data", str(data_path), "--set", "steps=100000", "eval_steps=100000",
             "--set", "save_minutes=0.001", "--out", str(tmp_path)]  # fmt: skip
    ranks = _spawn_two(*flags, environment={"TIMEOUT_SECONDS": "60"})
    deadline = time.monotonic() + 300
    while not list(tmp_path.glob("runs/*/last.pt")) and time.monotonic() < deadline:
        time.sleep(0.1)
    ranks[1].send_signal(signal.SIGSTOP)
    try:
        output = ranks[0].communicate(timeout=300)[1].decode()
    finally:
        for rank in ranks:
            rank.kill()
    assert ranks[0].returncode == 1
    lines = [line for line in output.splitlines() if line.startswith("error:")]
    assert "another of the training processes ended or hangs" in lines[-1], output


@pytest.mark.parametrize("lost", [0, 1])
def test_the_others_end_with_a_line_when_a_worker_is_lost(lost, data_path, tmp_path):
    flags = ["--data", str(data_path), "--set", "steps=100000", "eval_steps=100000",
             "--set", "save_minutes=0.001", "--out", str(tmp_path)]  # fmt: skip
    ranks = _spawn_two(*flags, environment={"ABORT_AT_EXIT": "1"})
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("runs/*/last.pt")) and time.monotonic() < deadline:
        time.sleep(0.1)
    ranks[lost].kill()
    output = ranks[1 - lost].communicate(timeout=60)[1].decode()
    lines = [line for line in output.splitlines() if "error" in line.lower()]
    assert ranks[1 - lost].returncode == 1, output
    assert lines[-1].startswith("error: another of the training processes ended"), output
    checkpoint.load_last(next((tmp_path / "runs").iterdir()), "vqvae")


def _spawn_two(
    *flags, kind: str = "vqvae", environment: dict | None = None
) -> list[subprocess.Popen]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    names = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    names |= environment or {}
    ranks = ({"RANK": rank, "LOCAL_RANK": rank} for rank in ("0", "1"))
    return [_spawn(*flags, kind=kind, environment=names | rank) for rank in ranks]


ROOT = Path(__file__).resolve().parents[1]
QUIET = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
DRIVER = """
import atexit, datetime, os, pytest, sys, torch
from pathlib import Path
from v2.runtime import cli, device
device.has_fast_bfloat16 = lambda device: False  # its rounding depends on the batch's size
from tests.conftest import make_models_small
from v2.train import distributed, train_vqvae_hires as vqvae, train_wm_hires as world_model
distributed.TIMEOUT = datetime.timedelta(seconds=float(os.environ.get("TIMEOUT_SECONDS", "300")))
make_models_small(pytest.MonkeyPatch())
if "ABORT_AT_EXIT" in os.environ:
    atexit.register(os.abort)  # whoever tears down the group is aborted
def end_without_threads():  # those of the group can abort a process that ends
    if any("gloo" in path.read_text() for path in Path("/proc/self/task").glob("*/comm")):
        os._exit(9)
atexit.register(end_without_threads)
if os.environ.get("RANK") == "1":  # begins with weights of its own, which the first's replace
    seed = torch.manual_seed
    torch.manual_seed = lambda number: seed(number + 1)
script = {"vqvae": vqvae, "world_model": world_model}[sys.argv[1]]
cli.run(lambda: script.main(sys.argv[2:]))
"""


def _spawn(*flags, kind: str = "vqvae", environment: dict | None = None) -> subprocess.Popen:
    environment = os.environ | QUIET | (environment or {})
    return subprocess.Popen([sys.executable, "-c", DRIVER, kind, *flags], cwd=ROOT, env=environment,
                            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)  # fmt: skip


def _kill_and_resume(times: int, data_path: Path, tmp_path: Path) -> None:
    flags = ["--data", str(data_path), "--out", str(tmp_path / "k"), "--set", "steps=100000",
             "--set", "save_minutes=0.001", "eval_steps=1000000"]  # fmt: skip
    rng, run, step, stamp = random.Random(0), None, 0, 0
    for _ in range(times):
        process = _spawn(*(["--resume", str(run)] if run else flags))
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            runs = list((tmp_path / "k" / "runs").glob("*/last.pt"))
            if runs and (run is None or runs[0].stat().st_mtime_ns > stamp):
                break
            time.sleep(0.05)
        time.sleep(rng.random() * 0.5)
        process.kill()
        process.wait()
        run = runs[0].parent
        state = checkpoint.load_last(run, "vqvae")
        assert state["step"] > step
        step, stamp = state["step"], runs[0].stat().st_mtime_ns
        steps = [line["step"] for line in _metrics_until(run, step)]
        assert steps == sorted(set(steps))
    RunDir(run).acquire()  # whoever comes next clears what the killed ones left
    assert not list(run.rglob("*.tmp"))


@pytest.mark.slow
def test_a_killed_training_goes_on_exactly(as_the_driver, small_models, data_path, tmp_path):
    """Killed between two saves, resumed to the end, it equals one that was never touched."""
    flags = ["--data", str(data_path), "--batch-size", "8", "--set", "steps=120", "eval_steps=40",
             "--set", "save_minutes=0.001"]  # fmt: skip
    train_vqvae(tmp_path / "through", data_path, *flags[2:-1], "save_minutes=5")
    process = _spawn(*flags, "--out", str(tmp_path / "killed"))
    deadline = time.monotonic() + 60
    while not list((tmp_path / "killed" / "runs").glob("*/last-1.pt")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    runs = [next((tmp_path / name / "runs").iterdir()) for name in ("through", "killed")]
    assert checkpoint.load_last(runs[1], "vqvae")["step"] < 120
    assert train_vqvae_hires.main(["--resume", str(runs[1])]) == 0
    states = [checkpoint.load_checkpoint(run / "last.pt", "vqvae") for run in runs]
    for key in EXACT:
        assert _states_equal(states[0][key], states[1][key]), key
    assert _metrics(runs[0]) == _metrics(runs[1])


def _metrics_until(run: Path, step: int) -> list[dict]:
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [d for d in map(json.loads, lines[:-1]) if d["step"] <= step]


def test_a_resumed_training_that_is_killed_resumes(data_path, tmp_path):
    _kill_and_resume(2, data_path, tmp_path)


@pytest.mark.slow
def test_a_killed_training_resumes_twenty_times(data_path, tmp_path):
    _kill_and_resume(20, data_path, tmp_path)


def test_validation_of_a_short_run_is_short():
    """A clip takes 10 predictions, of turns there are seven kinds; a window trained on takes 3."""
    recipe = WorldModelRecipe()
    assert validate.sizes(recipe.eval_steps * recipe.batch_size) == (40, 200)
    for num_windows in range(1, 4000, 7):
        clips, turns = validate.sizes(num_windows)
        assert clips >= 1 and 10 * clips + 7 * turns <= max(10, num_windows)
        assert turns == 0 or turns >= validate.MIN_TURNS


@NO_OPEN_FILES
def test_both_trainings_of_a_few_steps_validate_on_a_few_frames(
    small_models, data_path, tmp_path, monkeypatch
):
    monkeypatch.setattr(validate, "NUM_CLIPS", 40)
    sizes = []

    def spied(module, name):
        usual = getattr(module, name)

        def noted(first, second, *others):
            sizes.append(len(second))
            return usual(first, second, *others)

        monkeypatch.setattr(module, name, noted)

    spied(train_vqvae_hires, "psnr")
    spied(validate, "quick_scores")
    run = train_vqvae(tmp_path / "v", data_path, "--set", "steps=6", "batch_size=4")
    train_world_model(tmp_path / "w", data_path, run, "--set", "steps=6", "batch_size=8")
    assert sizes == [6 * 4 // 2, 6 * 8 // 20]
