"""The frozen set is what the emulator makes, and the suite evaluates on it end to end."""

import dataclasses
import io
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.canaries import PatchTokenizer
from v2.data import collect_atari
from v2.data.atari_dataset import GOLD_SEED_START, load_game_data, save_game_data
from v2.data.games import EmulatorConfig
from v2.eval import build_gold, documents, gold_eval, html_report, model_card, suite
from v2.eval.branches import _by_paddle
from v2.eval.gold import GOLD_GAMES, gold_path, load_gold, read_set
from v2.eval.intervals import Metric, mean_metric
from v2.eval.objects import detector
from v2.eval.pictures import strip_of
from v2.eval.starts import EVENT_STEPS, HISTORY, strata_of
from v2.models.temporal_world_model import TemporalWorldModel, WorldModelConfig
from v2.models.vqvae_hires import VQVAE, VQVAEConfig
from v2.models.weights import tokenizer_sha256
from v2.runtime import checkpoint
from v2.runtime.files import file_sha256
from v2.train.recipe import WorldModelRecipe, with_settings


@pytest.fixture(scope="module", params=GOLD_GAMES)
def gold_set(request, tmp_path_factory):
    return read_set(gold_path(request.param), tmp_path_factory.mktemp("replays"))


@pytest.mark.slow
def test_a_gold_set_is_as_large_as_promised(gold_set):
    strata = strata_of(gold_set.branches.game)
    assert len(gold_set.branches) >= 200 and len(gold_set.long_starts) == 8 * len(strata)
    assert set(gold_set.strata) == set(gold_set.long_strata) == set(strata)
    assert all(e["seed"] >= GOLD_SEED_START for e in gold_set.data.meta["episodes"])


@pytest.mark.slow
@pytest.mark.parametrize("gold_set", ["breakout"], indirect=True)
def test_breakouts_gold_set_has_boards_of_all_ages(gold_set):
    bricks = detector.read_ram("breakout", gold_set.data.ram).bricks.sum((1, 2)).astype(int)
    starts = bricks[gold_set.starts]
    assert (starts < 20).sum() >= 8 <= ((20 <= starts) & (starts < 80)).sum()


@pytest.mark.slow
def test_the_real_branches_of_branches_are_told_apart_by_the_paddle(gold_set):
    branches = gold_set.branches
    real = detector.read_ram(branches.game, branches.ram[:, :, -1].reshape(-1, 128)).paddle
    right, branch_ids, counts = _by_paddle(*[real.reshape(len(branches), -1)] * 2)
    assert right.all() and counts.mean() > 0.6 and (branch_ids[counts].max(1) == 2).all()


@pytest.mark.slow
@pytest.mark.parametrize("steps", (build_gold.ROLLOUT_STEPS, build_gold.LONG_STEPS))
def test_gold_clips_lose_no_ball_but_in_the_last_stratum_and_in_the_history_of_serves(
    gold_set, steps
):
    """All of a clip is checked: four frames of history, the first step and those after it."""
    starts, strata = gold_set.starts, np.array(gold_set.strata)
    if steps == build_gold.LONG_STEPS:
        starts, strata = gold_set.long_starts, np.array(gold_set.long_strata)
    data, game = gold_set.data, gold_set.branches.game
    first, last = starts + 1 - HISTORY, starts + steps
    assert (data.episode_ids[first] == data.episode_ids[last]).all()
    rules, objects = detector.of_game(game), detector.read_ram(game, data.ram)
    lost, in_play = rules.losses(objects), ~np.isnan(objects.ball[:, 0])
    kept = starts + (rules.KEPT_STEPS or steps)
    is_serve, is_loss = strata == "serve", strata == rules.STRATA[-1]
    assert ((lost[kept] > lost[starts]) == is_loss).all()
    assert (lost[starts + 5] == lost[starts])[is_loss].all()
    assert (lost[starts + 15] > lost[starts])[is_loss].all()
    loses_before = lost[starts] > lost[first]
    assert not loses_before[~is_serve].any()
    history = in_play[first[:, None] + np.arange(HISTORY)]
    assert history[~is_serve].all() and not in_play[starts[is_serve]].any()
    assert in_play[starts[is_serve, None] + 1 + np.arange(EVENT_STEPS)].any(1).all()


@pytest.mark.slow
def test_a_ball_in_free_flight_keeps_its_velocity_and_others_do_not(gold_set):
    ball = detector.read_ram(gold_set.branches.game, gold_set.data.ram).ball
    starts, strata = gold_set.starts, np.array(gold_set.strata)
    for steps in (1, 5):
        straight = ball[starts] + steps * (ball[starts] - ball[starts - 1])
        misses = np.linalg.norm(straight - ball[starts + steps], axis=1)
        assert (misses[strata == "flight"] < (1 if steps == 1 else 2)).all()  # of whole pixels
    for stratum in {"wall", "paddle", "brick"}.intersection(strata):
        assert (misses[strata == stratum] > 2).mean() > 0.9


def test_a_changed_set_is_refused(tiny_gold):
    path = gold_path("breakout")
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(ValueError, match="git checkout"):
        load_gold("breakout")


class ReplayEngine:
    """Knows the recorded future and ignores actions; evaluated like a DreamEngine."""

    class vqvae:  # noqa: N801
        class config:  # noqa: N801
            num_codes = 4096

    grid, logits, source, device = (21, 16), None, "a replay", "cpu"
    num_parameters = {"vqvae": 0, "world_model": 0}
    info = {"sha256": {"vqvae": "0" * 64, "world_model": "0" * 64}}

    def __init__(self, data):
        self.data, self.tokenizer = data, PatchTokenizer()
        keys = [hash(frame.tobytes()) for frame in data.frames]
        self.rows: dict[tuple, list[int]] = {}
        for k in range(3, len(keys)):
            self.rows.setdefault(tuple(keys[k - 3 : k + 1]), []).append(k)

    def encode(self, frames):
        return self.tokenizer.encode(frames)

    def decode(self, tokens):
        return self.tokenizer.decode(tokens)

    def reset(self, frames, actions=None):
        keys = [tuple(hash(frame.tobytes()) for frame in history) for history in frames]
        self.possible = [self.rows.get(key, [0]) for key in keys]
        return frames[:, -1]

    def step(self, actions):
        for k, action in enumerate(actions):
            fitting = [row for row in self.possible[k] if self.data.actions[row] == action]
            self.possible[k] = [min(row + 1, len(self.data) - 1)
                                for row in fitting or self.possible[k]]  # fmt: skip
        now = np.array([rows[0] for rows in self.possible])
        frames = self.data.frames[now]
        self.tokens = self.encode(frames)
        self.last_reward = np.sign(self.data.rewards[now - 1])
        self.last_terminated = self.data.terminated[now - 1].astype(float)
        return frames


@pytest.fixture(scope="module")
def evaluated(gold_once, tmp_path_factory):
    gold = read_set(gold_once, tmp_path_factory.mktemp("replay"))
    gold.is_gold = True
    tier = suite.Tier(24, 16, 4, 6, 10, 6, 20, 4, 2, 50, 3)
    return suite.evaluate(ReplayEngine(gold.data), gold, tier, "canary")


def test_a_replay_of_the_gold_set_scores_full_marks(evaluated):
    document, _ = evaluated
    for title, value, _ in documents.headline_rows(document):
        assert float(value.split()[0]) >= 0.95, title
    assert document["is_gold"] and document["metrics"]["rollout/psnr@10"]["value"] == 60
    assert document["metrics"]["rollout/psnr@20"]["value"] == 60  # of the long ones
    assert document["metrics"]["rollout/ball_first_miss"]["value"] >= 15


def test_the_result_is_one_line_of_json_and_a_table(evaluated, capsys):
    document, _ = evaluated
    line = documents.one_line(document)
    assert "\n" not in line and json.loads(line)["metrics"]["rollout/psnr@5"]["value"] == 60
    documents.print_table(document)
    printed = capsys.readouterr().out
    assert "ball tracking" in printed and "copy-last" in printed


def test_the_document_is_there_whatever_comes_of_its_pages(evaluated, tmp_path, monkeypatch):
    monkeypatch.setattr(model_card, "model_card", None)  # a full disk, or a signal
    args = SimpleNamespace(json=tmp_path / "a.json", report=None, model_card=tmp_path / "a.md")
    with pytest.raises(TypeError):
        gold_eval._write(args, *evaluated)
    assert documents.read_document(args.json)["is_gold"] and strip_of(args.json).exists()


def test_the_report_is_one_file_that_needs_no_network(evaluated, tmp_path):
    document, pictures = evaluated
    page = html_report.write_report(tmp_path, document, pictures).read_text(encoding="utf-8")
    assert list(tmp_path.iterdir()) == [tmp_path / html_report.REPORT_NAME]
    assert "http" not in page and page.count("<svg") >= 6 and "image/webp" in page
    assert "| ball tracking |" in model_card.model_card(document)


BROWSERS = "chromium", "chromium-browser", "google-chrome"
BROWSER = next((path for name in BROWSERS if (path := shutil.which(name))), "")


@pytest.mark.skipif(not BROWSER, reason="no Chromium: apt-get install chromium")
def test_the_report_opens_in_a_browser_without_a_network(evaluated, tmp_path):
    document, pictures = evaluated
    page = html_report.write_report(tmp_path, document, pictures)
    check = "<script>addEventListener('load', () => { const bad = [...document.images].filter(" \
            "i => !i.complete || !i.naturalWidth).length; document.title = bad + ' of ' + " \
            "document.images.length + ' pictures broken'; })</script>"  # fmt: skip
    page.write_text(page.read_text(encoding="utf-8") + check, encoding="utf-8")
    shown = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--proxy-server=127.0.0.1:9",
         f"--user-data-dir={tmp_path}/profile", "--virtual-time-budget=20000", "--dump-dom",
         page.as_uri()], capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert "<title>0 of " in shown.stdout, shown.stderr[-500:]
    assert "ball tracking" in shown.stdout and "polyline" in shown.stdout


@pytest.fixture
def weights(tmp_path):
    return _untrained(tmp_path, "breakout", num_actions=4)


def _untrained(tmp_path, game, num_actions):
    """Write untrained models of the smallest size into a run folder."""
    torch.manual_seed(0)
    vqvae = VQVAE(VQVAEConfig(latent_dim=8, stem_dim=8, decoder_dim=8, cell_dim=8, pixel_dim=8))
    shape = WorldModelConfig(num_actions, dim=16, heads=2, layers=1, ffn_dim=16)
    vqvae = checkpoint.round_to_shipped(vqvae)
    emulator = dataclasses.asdict(EmulatorConfig(game))
    checkpoint.save_checkpoint(tmp_path / "vqvae.pt", "vqvae", vqvae, emulator=emulator)
    path = tmp_path / "best.pt"
    checkpoint.save_checkpoint(
        path, "world_model", TemporalWorldModel(shape), emulator=emulator,
        vqvae_sha256=tokenizer_sha256(vqvae),
    )  # fmt: skip
    return path


@pytest.mark.filterwarnings("error::ResourceWarning")
@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_the_script_evaluates_writes_and_compares(tiny_gold, weights, tmp_path, capsys):
    written = tmp_path / "a.json"
    asked = ["--checkpoint", str(weights), "--tier", "canary", "--device", "cpu"]
    card = tmp_path / "card.md"
    files = ["--json", str(written), "--report", str(tmp_path), "--model-card", str(card)]
    assert gold_eval.main(asked + files) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert lines[-1] == f"result: {written}" and max(map(len, lines)) < 200
    first = json.loads(written.read_text())
    digest = file_sha256(gold_path("breakout"))
    named = f"gold set breakout-2.npz {digest[:12]}"
    assert first["data_sha256"] == digest and first["data"] == named
    assert first["is_gold"] and "sums" in first["metrics"]["one_step/token_accuracy"]
    assert (tmp_path / "index.html").exists() and "rollout@5" in card.read_text()
    sampled = tmp_path / "b.json"
    asked += ["--temperature", "1"]
    assert gold_eval.main([*asked, "--json", str(sampled)]) == 0
    document = json.loads(sampled.read_text())
    assert document["flags"].endswith("--temperature 1.0")
    assert "temperature 1" in document["notes"][-1]
    accuracy = "one_step/token_accuracy"  # drawn codes are seldom those of the still board
    assert document["metrics"][accuracy]["value"] < first["metrics"][accuracy]["value"]


def test_a_person_reads_a_table_and_where_the_file_is(
    tiny_gold, weights, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("v2.data.games.CHECKPOINTS", tmp_path / "own")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    found = {"rollout/token_accuracy@5": mean_metric(np.arange(9.0), range(9))}
    document = documents.make_document(found, data_sha256="a", evaluator=10, settings={}, notes=[])
    monkeypatch.setattr(gold_eval, "evaluate", lambda *_: (document, {}))
    strip = np.zeros((2, 3, 84, 64, 3), np.uint8)
    monkeypatch.setattr(html_report, "median_strip", lambda pictures: list(strip))
    assert gold_eval.main(["--checkpoint", str(weights), "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "{" not in printed and "rollout@5" in printed
    (file,) = (tmp_path / "own" / "atari" / "results").glob("*.json")
    assert file.with_name(f"{file.stem}.strip.png").exists()
    assert printed.endswith(f"result: {file}\n") and documents.read_document(file) == document


@pytest.fixture
def two_results(tmp_path):
    facts = {"data_sha256": "a", "evaluator": 10, "settings": {}}
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    for path, shift in zip(paths, (0.0, 0.5), strict=True):
        found = {"x/y": mean_metric(np.arange(9) + shift, range(9))}
        path.write_text(json.dumps(documents.make_document(found, **facts)))
    return list(map(str, paths))


@pytest.mark.parametrize("is_terminal", (True, False))
def test_json_is_shown_where_no_person_reads(is_terminal, two_results, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal)
    assert gold_eval.main(["--compare", *two_results]) == 0
    printed = capsys.readouterr().out
    assert "x/y" in printed and "[+0.5000, +0.5000] *" in printed
    assert ("{" in printed) != is_terminal and ("--json FILE" in printed) == is_terminal
    if not is_terminal:
        assert json.loads(printed.splitlines()[-1]) == {"x/y": "+0.5000 [+0.5000, +0.5000]"}


def test_json_goes_to_its_file_and_nowhere_else(two_results, tmp_path, capsys):
    file = tmp_path / "differences.json"
    assert gold_eval.main(["--compare", *two_results, "--json", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "{" not in printed and printed.endswith(f"result: {file}\n")
    assert json.loads(file.read_text()) == {"x/y": "+0.5000 [+0.5000, +0.5000]"}


def test_a_path_that_is_not_utf_8_ends_in_a_whole_report(tiny_gold, tmp_path, monkeypatch):
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/w\xffide")
    try:
        os.mkdir(folder)
    except OSError:
        pytest.skip("this disk knows no such names")
    weights = _untrained(Path(folder), "breakout", num_actions=4)
    shown = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace")
    monkeypatch.setattr(sys, "stdout", shown)  # as cli.run has it
    files = {name: Path(folder) / name for name in ("a.json", "card.md", "index.html")}
    assert gold_eval.main([
        "--checkpoint", str(weights), "--tier", "canary", "--device", "cpu", "--report", folder,
        "--json", str(files["a.json"]), "--model-card", str(files["card.md"]),
    ]) == 0  # fmt: skip
    for name, path in files.items():
        assert r"w\udcffide" in path.read_text("utf-8").replace(r"\\", "\\"), name


def test_gold_eval_has_no_more_flags_than_a_person_reads():
    flags = {action.dest for action in gold_eval.build_parser()._actions}
    assert len(flags - {"help"}) <= 18


@pytest.mark.parametrize("asked", [
    "--run 20260101_000000 --data /d/'two words.npz' --tier short --rollouts 30",
    "--checkpoint /c/best.pt --game pong --device cpu --long-dreams 0",
    "--checkpoint shipped --temperature 0.5",
    "--checkpoint shipped --tier canary",
])  # fmt: skip
def test_the_card_names_a_command_that_makes_it_again(asked):
    parser = gold_eval.build_parser()
    args = parser.parse_args(shlex.split(asked))
    again = gold_eval._flags(args, "/c/best.pt")
    assert parser.parse_args(shlex.split(again)) == args
    latest = parser.parse_args(shlex.split(gold_eval._flags(parser.parse_args([]), "/c/best.pt")))
    assert latest.checkpoint == "/c/best.pt"


def test_the_card_says_which_flags_a_run_could_not_have():
    first = {"steps": 9, "rarity": 20.0, "smoke": False}
    last = {"steps": 5, "rarity": 60.0, "ema": 0.998, "rare_motion": 0.0, "data": "/d.npz"}
    info = {"earlier": [{"train_args": first, "step": 9}], "train_args": last, "step": 5}
    runs = suite.training_runs(info)
    assert [run["unknown"] for run in runs] == [["ema", "rare_motion"], []]
    lines = model_card.training_lines({"train_vqvae_hires": runs})
    assert "Trained for 9 steps, before there was --ema, --rare-motion:" in lines
    assert "Trained for 5 steps:" in lines and "did not exist then" in lines[0]


def test_the_card_repeats_a_run_that_began_with_anothers_weights_and_without_an_age():
    first, last = WorldModelRecipe(), WorldModelRecipe(has_age=False, init_from="/old/best.pt")
    runs = [{"recipe": dataclasses.asdict(recipe), "step": 9} for recipe in (first, last)]
    lines = model_card.training_lines(
        {"train_wm_hires": suite.training_runs(runs[1] | {"earlier": runs[:1]})}
    )
    commands = [line.strip() for line in lines if line.startswith("    python")]
    for command, recipe in zip(commands, (first, last), strict=True):
        settings = shlex.split(command)[3:]
        again = with_settings(WorldModelRecipe(has_age=True), settings)
        assert again == dataclasses.replace(recipe, init_from="ABOVE" if recipe is last else "")


def _evaluated_untrained(tmp_path, capsys, game, num_actions, *played, flags=()):
    """Record a game, evaluate untrained weights on it; return what was asked and the last line."""
    weights = _untrained(tmp_path, game, num_actions)
    data = tmp_path / game / "atari_game_data.npz"
    out = ["--game", game, "--seed", "3", "--out", str(data.parent)]
    assert collect_atari.main([*out, *played]) == 0
    asked = ["--data", str(data), "--checkpoint", str(weights), "--tier", "canary"]
    assert gold_eval.main([*asked, "--game", game, "--device", "cpu", *flags]) == 0
    return asked, json.loads(capsys.readouterr().out.strip().splitlines()[-1])


def test_a_game_without_an_object_detector_is_evaluated_by_tokens_and_pixels(tmp_path, capsys):
    played = ["--frames", "400", "--policy", "random"]
    asked, last = _evaluated_untrained(tmp_path, capsys, "seaquest", 18, *played)
    assert not last["is_gold"]
    assert last["notes"][0] == "this is not the gold set"
    assert "objects of seaquest cannot be read" in last["notes"][1]
    names = " ".join(last["metrics"])
    assert {"branches/right_branch_pixels@8", "rollout/changed_accuracy@10",
            "tokenizer/worst_patch_psnr"} <= last["metrics"].keys()  # fmt: skip
    assert "one_step/changed_accuracy" in names and "psnr" in names and "ball" not in names
    with pytest.raises(ValueError, match="holds seaquest, not breakout"):
        gold_eval.main(asked)


def test_pong_is_evaluated_by_its_ball_and_paddles_too(tmp_path, capsys):
    dreams = ["--long-dreams", "2", "--long-dream-steps", "20", "--report", str(tmp_path)]
    played = ["--frames", "900", "--policy", "scripted"]
    _, last = _evaluated_untrained(tmp_path, capsys, "pong", 6, *played, flags=dreams)
    assert not [note for note in last["notes"] if "cannot be read" in note]
    names = last["metrics"].keys()
    assert {"tokenizer/ball_recall", "rollout/ball_hit_2px@5", "rollout/paddle_error_px@5",
            "rollout/opponent_error_px@5", "long/one_ball"} <= names  # fmt: skip
    assert "brick" not in (tmp_path / "index.html").read_text(encoding="utf-8")
    assert any("[paddle]" in name for name in names)
    assert not [name for name in names if "brick" in name or "lives" in name]


def test_starts_at_any_moment_are_of_no_stratum_and_need_data(tiny_gold, tmp_path, capsys):
    played = ["--frames", "900", "--policy", "scripted"]
    flags = ["--starts", "any"]
    asked, last = _evaluated_untrained(tmp_path, capsys, "pong", 6, *played, flags=flags)
    assert last["settings"]["strata"] == ["any"] and "--starts any" in last["flags"]
    assert "rollout/ball_hit_2px@5" in last["metrics"]
    assert not [name for name in last["metrics"] if "[" in name or "loss_in_time" in name]
    assert any(name.startswith("turns/") for name in last["metrics"])
    data = load_game_data(Path(asked[1]))
    data.ram[:] = data.ram[0]  # nothing ever turns, and there is no ball
    save_game_data(Path(asked[1]), data)
    assert gold_eval.main([*asked, "--game", "pong", *flags]) == 0
    last = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert not any(name.startswith("turns/") for name in last["metrics"])
    with pytest.raises(ValueError, match="--starts any needs --data"):
        gold_eval.main(["--checkpoint", "shipped", "--starts", "any"])
    with pytest.raises(ValueError, match="--rollouts must be at most .* on the gold set, got 99"):
        gold_eval.main(["--checkpoint", "shipped", "--rollouts", "99"])


def test_results_of_other_data_refuse_to_be_compared():
    facts = {"data_sha256": "a", "evaluator": 1, "settings": {}}

    def document(digest, shift=0.0):
        metrics = {"x/y": mean_metric(np.arange(9) + shift, range(9)), "x/z": Metric(float("nan"))}
        return documents.make_document(metrics, **facts | {"data_sha256": digest})

    rows = documents.compare(document("a"), document("a", 0.5))
    assert rows == [("x/y", "+0.5000 [+0.5000, +0.5000]", "*")]
    alone = [documents.make_document({"x": Metric(v)}, **facts) for v in (1.0, 3.0)]  # no interval
    assert documents.compare(*alone) == [("x", "+2.0000", "")]
    with pytest.raises(ValueError, match="cannot be compared"):
        documents.compare(document("a"), document("b"))
    newer = document("a") | {"evaluator": 2, "settings": {"other": 1}}
    with pytest.raises(ValueError, match="evaluators 1 and 2.*gold_eval.py again"):
        documents.compare(document("a"), newer)


def test_a_comparison_shows_what_only_one_of_two_results_has():
    """As a reward head that never fired and now does, or a part that was left out."""

    def document(**values):
        metrics = {name: Metric(value) for name, value in values.items()}
        return documents.make_document(metrics, data_sha256="a", evaluator=1, settings={})

    never = float("nan")
    before = document(fires=never, fired=0.25, both=never, gone=2.0)
    after = document(fires=0.5, fired=never, both=never, new=1.0)
    assert documents.compare(before, after) == [
        ("fires", "- -> 0.5000", ""), ("fired", "0.2500 -> -", ""), ("gone", "2 -> -", ""),
        ("new", "- -> 1", ""),
    ]  # fmt: skip


def test_a_game_without_a_gold_set_says_what_to_do():
    with pytest.raises(FileNotFoundError, match="--data"):
        load_gold("seaquest")
