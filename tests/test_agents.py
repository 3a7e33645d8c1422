"""Agents: learning in dreams, playing, scoring and ranking, with small models."""

import dataclasses
import json
import re
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

from tests.conftest import SMALL_VQVAE, synthetic_frame
from tests.fake_engine import FakeEngine
from v2 import play_atari_hires
from v2.agents.dreams import Dreams
from v2.agents.players import AgentPlayer, HeldKey, Named, graded_players, load_agent_player
from v2.data import collect_atari
from v2.data.atari_dataset import make_atari_env
from v2.data.dream_starts import load_starts
from v2.data.emulator import emulator_config
from v2.data.frames import frames_to_float, grey_frames
from v2.data.games import EmulatorConfig, emulator_dict
from v2.dream import DreamEngine
from v2.eval import score_agent
from v2.eval.agent_games import (
    Ranking,
    num_noops,
    play_games,
    returns_inside,
    returns_outside,
    spearman,
)
from v2.eval.intervals import mean_metric
from v2.models.agent_network import AgentConfig, AgentNetwork
from v2.models.temporal_world_model import TemporalWorldModel, WorldModelConfig
from v2.models.vqvae_hires import VQVAE, VQVAEConfig
from v2.models.weights import tokenizer_sha256
from v2.play.controllers import Controllers
from v2.play.keys import ActionMap
from v2.play.session import PlaySession
from v2.runtime import checkpoint
from v2.runtime.run_dir import all_runs
from v2.train import train_agent
from v2.train.recipe import AgentRecipe

ROOT = Path(__file__).resolve().parents[1]
SMALL = ["num_games=4", "rollout_steps=4", "batch_size=8", "max_episode_steps=6"]
MEANINGS = ["NOOP", "FIRE", "RIGHT", "LEFT"]


@pytest.fixture
def agent_path(tmp_path) -> Path:
    torch.manual_seed(0)
    network = AgentNetwork(AgentConfig(num_actions=4))
    checkpoint.save_checkpoint(tmp_path / "agent.pt", "agent", network, game="breakout")
    return tmp_path / "agent.pt"


def paying_models() -> tuple[VQVAE, TemporalWorldModel]:
    """Return models whose dreams stand still and pay for RIGHT while the block is on the left.

    And for LEFT while it is on the right: in each cell the action and the block's code add up.
    """
    torch.manual_seed(0)
    frames = np.stack([synthetic_frame(position, 0) for position in range(8)])
    vqvae = VQVAE(VQVAEConfig(**SMALL_VQVAE)).eval()
    pixels = frames_to_float(torch.from_numpy(frames))
    with torch.no_grad():
        vqvae.decoder.to_rgb.weight.mul_(100)  # so that the block can be seen
        vqvae.quantizer.initialise(vqvae.encoder(pixels), torch.Generator().manual_seed(0))
        tokens = vqvae.encode(pixels).view(8, 21, 16)
    block = {int(tokens[p, 10, 2 * p]) for p in range(8)}
    assert not block & {int(tokens[p, 10, 2 * q]) for p in range(8) for q in range(8) if p != q}
    config = WorldModelConfig(4, dim=32, heads=2, layers=1, ffn_dim=32, local_layers=0,
                              copy_bias=20.0)  # fmt: skip
    model = TemporalWorldModel(config)
    with torch.no_grad():
        for table in (model.token_tables, model.past_action_tables):
            table.weight.zero_()
        model.position.zero_()
        model.position[:, 1] = 4.0  # so that the layer norm leaves the sums apart
        model.spatial_bias.zero_()
        bias = model.spatial_bias.view(4, 21, 16, 32)
        bias[2, 10, :8, 0] = bias[3, 10, 8:, 0] = 1.0
        for code in block:
            model.token_tables.weight[3 * config.num_codes + code, 0] = 1.0
        model.to_outcome.weight[1, 0] = 30.0
        model.to_outcome.bias[1] = -53.0
    return vqvae, model.eval()


@pytest.fixture
def paying_weights(tmp_path) -> str:
    vqvae, model = paying_models()
    folder = tmp_path / "paying"
    checkpoint.save_checkpoint(folder / "vqvae.pt", "vqvae", vqvae)
    checkpoint.save_checkpoint(
        folder / "best.pt", "world_model", model, vqvae_sha256=tokenizer_sha256(vqvae),
        emulator=emulator_dict(EmulatorConfig()),
    )  # fmt: skip
    return str(folder / "best.pt")


def train(paying_weights, data_path, folder, *flags) -> Path:
    asked = ["--weights", paying_weights, "--starts", str(data_path), "--out", str(folder)]
    assert train_agent.main([*asked, "--device", "cpu", *map(str, flags)]) == 0
    return all_runs(folder)[-1]


def lines_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_dreams_of_the_small_models_pay_for_the_right_action(data_path):
    vqvae, model = paying_models()
    starts = load_starts("breakout", data_path)
    dreams = Dreams(DreamEngine(vqvae, model), starts, 30)
    dreams.begin(np.arange(30), np.arange(30))
    is_left = starts.frames[starts.rows[:30], 44, :32].any((1, 2))
    assert 0 < is_left.sum() < 30
    for action, pays in ((2, is_left), (3, ~is_left), (1, False)):
        assert np.array_equal(dreams.step(np.full(30, action))[0], pays * np.ones(30))


@pytest.mark.slow
def test_an_agent_learns_in_dreams_alone(paying_weights, data_path, tmp_path, monkeypatch):
    pytest.importorskip("stable_baselines3")
    monkeypatch.setattr(gymnasium, "make", None)  # which would start the emulator
    run = train(
        paying_weights, data_path, tmp_path, "--steps", 8_000, "--set", "num_games=16",
        "rollout_steps=32", "batch_size=64", "passes=8", "max_episode_steps=20", "lr=0.001",
        "discount=0.5", "clip_range=0.2",
    )  # fmt: skip
    returns = [line["episode_return"] for line in lines_of(run) if line["episode_return"]]
    assert returns[0] < 8 < 14 < returns[-1]  # chance: 5 of 20


def test_a_run_keeps_the_agent_and_its_curves_and_goes_on(paying_weights, data_path, tmp_path):
    pytest.importorskip("stable_baselines3")
    run = train(paying_weights, data_path, tmp_path, "--steps", 32, "--set", *SMALL)
    assert [line["step"] for line in lines_of(run)] == [16, 32]
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")
    first = checkpoint.load_last(run, "agent")
    config = json.loads((run / "config.json").read_text())
    config["args"]["steps"] = 64
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="--steps 9 is decided when a run begins"):
        train_agent.main(["--resume", str(run), "--steps", "9"])
    assert train_agent.main(["--resume", run.name, "--out", str(tmp_path)]) == 0
    assert [line["step"] for line in lines_of(run)] == [16, 32, 48, 64]
    last = checkpoint.load_last(run, "agent")
    counts = [state["optimizer"]["state"][0]["step"] for state in (first, last)]
    assert counts[1] == 2 * counts[0] > 0 and last["trained_in"] == "dream"
    assert not torch.equal(first["model"]["to_logits.weight"], last["model"]["to_logits.weight"])
    assert last["dream_sha256"] == DreamEngine.load(paying_weights).info["sha256"]
    checkpoint.save_checkpoint(
        run / "last.pt", "agent", load_agent_player(str(run), "breakout", 4).player.network,
        **{k: v for k, v in last.items() if k not in ("format", "kind", "config", "model")}
        | {"dream_sha256": "another"},
    )  # fmt: skip
    with pytest.raises(ValueError, match="learnt in a dream of other weights than"):
        train_agent.main(["--resume", str(run)])
    kept = sorted(run.glob("step_*.pt"))
    assert [checkpoint.load_checkpoint(path, "agent")["step"] for path in kept] == [16, 32, 48, 64]
    loaded = load_agent_player(str(run), "breakout", 4)
    assert loaded.player.network.config.num_actions == 4


def test_a_run_that_stops_before_its_first_update_goes_on_by_the_printed_line(
    paying_weights, data_path, tmp_path, capsys
):
    pytest.importorskip("stable_baselines3")
    flags = ["--steps", 16, "--max-minutes", 1e-9, "--set", *SMALL]
    run = train(paying_weights, data_path, tmp_path, *flags)
    assert f"--resume {run}" in capsys.readouterr().out
    assert train_agent.main(["--resume", str(run), "--max-minutes", "0"]) == 0
    assert checkpoint.load_last(run, "agent")["step"] == 16


def test_the_rate_of_the_last_update_is_not_negative(paying_weights, data_path):
    pytest.importorskip("stable_baselines3")
    from v2.train.agent_env import dream_games
    from v2.train.ppo import make_ppo

    games = dream_games(2, 9, weights=paying_weights, device="cpu", starts=data_path)
    ppo = make_ppo(games, AgentConfig(4), AgentRecipe(rollout_steps=8, batch_size=8), "cpu", 0)
    assert ppo.lr_schedule(0.5) == AgentRecipe.lr / 2 and ppo.lr_schedule(-0.3) == 0
    games.set_options({"start": 3})
    games.reset()
    assert [info["start"] for info in games.unwrapped.reset_infos] == [3, 3]
    for _ in range(9):
        seen, _, over, infos = games.step(np.array([0, 1]))
    assert over.all() and {"start", "terminal_observation", "episode"} <= infos[0].keys()
    assert infos[0]["TimeLimit.truncated"]  # so that PPO adds the value of what would have come
    assert not np.array_equal(infos[0]["terminal_observation"], seen[0])
    games.close()


def test_the_same_agent_trains_in_the_emulator_of_the_same_settings(tmp_path):
    pytest.importorskip("stable_baselines3")
    data = tmp_path / "data"
    flags = ["--frames", "200", "--frameskip", "3", "--workers", "1", "--out", str(data)]
    assert collect_atari.main(["--game", "breakout", *flags]) == 0
    starts = str(data / "atari_game_data.npz")
    flags = ["--env", "real", "--steps", "48", "--out", str(tmp_path), "--device", "cpu"]
    assert train_agent.main([*flags, "--starts", starts, "--set", *SMALL]) == 0
    run = all_runs(tmp_path)[-1]
    state = checkpoint.load_last(run, "agent")
    assert state["trained_in"] == "real" and state["emulator"]["frameskip"] == 3
    first = checkpoint.load_checkpoint(sorted(run.glob("step_*.pt"))[0], "agent")
    assert not torch.equal(first["model"]["to_logits.weight"], state["model"]["to_logits.weight"])
    agent = load_agent_player(str(run), "breakout", 4)
    assert score_agent._emulator([agent]).frameskip == 3
    with pytest.raises(ValueError, match="frameskip 3, not 4 as in b: score them apart"):
        other = dataclasses.replace(agent, name="b", emulator={"frameskip": 4})
        score_agent._emulator([agent, other])


@pytest.mark.parametrize("game", ["backgammon", "CartPole-v1", "Acrobot-v1"])
def test_a_game_whose_first_action_is_no_noop_is_learnt_in_at_its_own_settings(game, tmp_path):
    pytest.importorskip("stable_baselines3")
    flags = ["--game", game, "--env", "real", "--steps", "16", "--device", "cpu"]
    assert train_agent.main([*flags, "--out", str(tmp_path), "--set", *SMALL]) == 0
    state = checkpoint.load_last(all_runs(tmp_path)[-1], "agent")
    assert state["emulator"] == emulator_dict(emulator_config(game))


def test_each_sitting_learns_in_dreams_of_its_own(paying_weights, data_path, tmp_path, monkeypatch):
    pytest.importorskip("stable_baselines3")
    from v2.train.agent_env import OfVectorEnv

    begun, reset = [], OfVectorEnv.reset

    def told(games):
        seen = reset(games)
        begun.append([info["start"] for info in games.reset_infos])
        return seen

    monkeypatch.setattr(OfVectorEnv, "reset", told)
    for folder in ("one", "two"):
        run = train(paying_weights, data_path, tmp_path / folder, "--steps", 32, "--set", *SMALL)
    config = json.loads((run / "config.json").read_text())
    config["args"]["steps"] = 64
    (run / "config.json").write_text(json.dumps(config))
    assert train_agent.main(["--resume", str(run)]) == 0
    assert begun[0] == begun[1] != begun[2]


def test_settings_given_at_two_places_all_count(paying_weights, data_path, tmp_path):
    pytest.importorskip("stable_baselines3")
    flags = ["--steps", 16, "--set", *SMALL[:3], "--set", *SMALL[3:], "passes=1"]
    run = train(paying_weights, data_path, tmp_path, *flags)
    recipe = json.loads((run / "config.json").read_text())["recipe"]
    names = ("num_games", "rollout_steps", "batch_size", "max_episode_steps", "passes")
    assert [recipe[name] for name in names] == [4, 4, 8, 6, 1]


def test_what_is_saved_acts_as_what_was_trained(paying_weights, data_path, tmp_path):
    pytest.importorskip("stable_baselines3")
    from v2.train.agent_env import dream_games
    from v2.train.ppo import make_ppo, network_of
    from v2.train.recipe import AgentRecipe

    games = dream_games(2, 5, weights=paying_weights, starts=data_path)
    config = AgentConfig(num_actions=4)
    ppo = make_ppo(games, config, AgentRecipe(batch_size=8, rollout_steps=4), "cpu", 0)
    seen = games.reset()
    player = AgentPlayer(network_of(ppo, config), is_greedy=True)
    player.begin(2, 0)
    frames = games.get_attr("dreams")[0].frames()
    for action in ([0, 1], [2, 3], [1, 1]):
        expected, _ = ppo.predict(seen, deterministic=True)
        assert np.array_equal(player.act(frames), expected)
        assert np.array_equal(player.stack.transpose(0, 2, 3, 1), seen)
        values = ppo.policy.predict_values(ppo.policy.obs_to_tensor(seen)[0])
        own = player.network(torch.from_numpy(player.stack).float() / 255)[1]
        assert torch.allclose(values.flatten(), own, atol=1e-5)
        seen, *_ = games.step(np.array(action))


@pytest.mark.parametrize("flags, told", [
    (["--game", "seaquest"], "no shipped weights .*seaquest"),
    (["--weights", "no/such"], "no run or checkpoint"),
    (["--set", "num_games=0"], "num_games must be"),
    (["--set", "games=3"], "did you mean"),
    (["--set", "num_games=1", "rollout_steps=1"], "times rollout_steps must be at least 2"),
    (["--resume", "no/such"], "no run 'no/such'"),
])  # fmt: skip
def test_bad_flags_of_training_are_refused_before_a_run_is_made(flags, told, tmp_path):
    pytest.importorskip("stable_baselines3")
    with pytest.raises((ValueError, FileNotFoundError), match=told):
        train_agent.main([*flags, "--out", str(tmp_path), "--device", "cpu"])
    assert not list(tmp_path.iterdir())


def test_the_documented_example_runs(paying_weights, data_path):
    pytest.importorskip("stable_baselines3")
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/agents.md").read_text(), re.S)
    assert len(code.strip().splitlines()) <= 12
    for text, small in (('"latest"', repr(paying_weights)), ("num_envs=16", "num_envs=2"),
                        ("n_steps=64", "n_steps=4"), ("batch_size=256", "batch_size=8"),
                        ("110_000", "16")):  # fmt: skip
        assert text in code
        code = code.replace(text, small)
    names: dict = {}
    exec(code, names)
    assert names["agent"].num_timesteps == 16


# Playing


def test_an_agent_plays_headless_and_says_so(agent_path, paying_weights, capsys):
    flags = ["--checkpoint", paying_weights, "--headless", "--steps", "5", "--device", "cpu"]
    assert play_atari_hires.main([*flags, "--policy", str(agent_path)]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["steps"] == 5
    with pytest.raises(FileNotFoundError, match="none of human, random, scripted.*'robot'"):
        play_atari_hires.main([*flags, "--policy", "robot"])


def test_an_agent_that_learnt_by_other_settings_is_not_played_here(tmp_path, paying_weights):
    network, path = AgentNetwork(AgentConfig(num_actions=4)), tmp_path / "agent.pt"
    pooled = emulator_dict(EmulatorConfig(max_pool=True))
    checkpoint.save_checkpoint(path, "agent", network, game="breakout", emulator=pooled)
    flags = ["--headless", "--steps", "2", "--weights", paying_weights, "--policy", str(path)]
    with pytest.raises(ValueError, match="learnt with max_pool True, not False as in the game"):
        play_atari_hires.main(flags)


def test_an_agent_sees_the_real_frame_or_the_dreamed_one():
    class Watcher(HeldKey):
        def act(self, frames):
            self.seen = frames
            return super().act(frames)

    session, agent = PlaySession(make_atari_env("breakout"), FakeEngine()), Watcher(2)
    actions = ActionMap(session.env.action_meanings)
    controllers = Controllers("breakout", actions, "agent", seed=0, agent=agent)
    session.step(1)
    assert controllers.act(session, inputs=["LEFT"]) == 2
    assert np.array_equal(agent.seen[0], session.moment.real_frame)
    session.set_mode("dream")
    session.step(1)
    controllers.act(session, inputs=[])
    assert np.array_equal(agent.seen[0], session.moment.dream_frame)
    assert not np.array_equal(agent.seen[0], session.moment.real_frame)
    assert [controllers.next() for _ in range(4)] == ["human", "random", "scripted", "agent"]


def test_an_agent_sees_its_last_four_frames_in_grey(agent_path):
    player = load_agent_player(str(agent_path), "breakout", 4).player
    frames = np.random.default_rng(0).integers(0, 256, (5, 2, 84, 64, 3), dtype=np.uint8)
    player.begin(2, seed=0)
    for each in frames:
        player.act(each)
    assert np.array_equal(player.stack, grey_frames(frames[1:])[..., 0].swapaxes(0, 1))
    grey = frames.astype(float) @ [0.299, 0.587, 0.114]
    assert np.abs(grey - grey_frames(frames)[..., 0]).max() < 1.6


def test_an_agent_of_another_game_is_refused(agent_path):
    with pytest.raises(ValueError, match="plays breakout with 4 actions, not pong with 6"):
        load_agent_player(str(agent_path), "pong", 6)


# Scores and the ranking


def test_an_agent_is_scored_beside_chance_and_a_script(agent_path, tmp_path):
    path = tmp_path / "score.json"
    flags = ["--policy", str(agent_path), "--games", "2", "--max-steps", "40", "--json", str(path)]
    assert score_agent.main(flags) == 0
    found = json.loads(path.read_text())["players"]
    names = list(found)
    assert len(names) == 3 and names[0].endswith("agent.pt") and names[1] == "random"
    games = found["random"]["games"]
    assert [game["steps"] for game in games] == [40, 40] and games[0]["seed"] != games[1]["seed"]
    before = path.read_text()
    assert score_agent.main(flags) == 0 and path.read_text() == before
    with pytest.raises(ValueError, match="--policy: name an agent"):
        score_agent.main([])


def test_games_that_are_the_same_count_once(agent_path, monkeypatch):
    given = []
    monkeypatch.setattr(score_agent, "mean_metric",
                        lambda values, ids, **k: given.append(ids) or mean_metric(values, ids, **k))
    asked = ["--policy", str(agent_path), "--games", "12", "--max-steps", "1"]
    for greedy in ([], ["--greedy"]):
        assert score_agent.main([*asked, *greedy]) == 0
    seeds = [score_agent.FIRST_SEED + k for k in range(12)]
    assert given[:3] == [seeds] * 3 == [seeds, *given[4:]]
    assert given[3] == [num_noops(make_atari_env("breakout"), seed) for seed in seeds]


def test_a_game_that_ends_among_its_noops_begins_anew_and_one_without_them_has_none():
    player = HeldKey(1)
    player.begin(1, 0)
    hands = play_games(make_atari_env("Blackjack-v1"), player, list(range(12)), 9, lambda n: None)
    assert all(hand["score"] in (-1, 0, 1) and hand["steps"] >= 1 for hand in hands)
    pole = make_atari_env("CartPole-v1")
    assert pole.noop is None and make_atari_env("Acrobot-v1").noop == 1
    games = play_games(pole, player, list(range(12)), 200, lambda n: None)
    assert all(game["score"] == game["steps"] >= 7 for game in games)  # pushed to one side


def test_players_are_ranked_inside_and_outside_from_the_same_starts(
    agent_path, paying_weights, tmp_path, capsys
):
    flags = ["--ranking", "--weights", paying_weights, "--policy", str(agent_path), "--starts", "2",
             "--max-steps", "2"]  # fmt: skip
    files = ["--json", str(tmp_path / "r.json"), "--plot", str(tmp_path / "r.png")]
    assert score_agent.main([*flags, *files]) == 0
    found = json.loads((tmp_path / "r.json").read_text())
    assert len(found["players"]) >= score_agent.MIN_PLAYERS and found["starts"] == [0, 95]
    assert {"pearson", "spearman"} <= found.keys()
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")
    assert "pearson" in capsys.readouterr().out


@pytest.mark.parametrize("flags, told", [
    (["--weights", "no/such"], "--weights no/such would change nothing: add --ranking"),
    (["--starts", "9"], "--starts 9 would change nothing: add --ranking"),
    (["--plot", "a.png"], "--plot a.png would change nothing: add --ranking"),
    (["--ranking", "--game", "seaquest"], "committed starts, and seaquest has none: leave it out"),
    (["--ranking", "--games", "3"], "--games 3 would change nothing: leave it out with --ranking"),
])  # fmt: skip
def test_a_flag_that_would_change_nothing_is_refused(flags, told):
    with pytest.raises(ValueError, match=told):
        score_agent.main(flags)


def test_graded_players_differ_in_skill_by_name_and_number():
    players = graded_players("breakout", MEANINGS)
    assert len(players) == len({named.name for named in players}) >= score_agent.MIN_PLAYERS
    assert len(graded_players("seaquest", ["NOOP", "FIRE"])) == 2


def test_returns_outside_are_those_of_the_real_game_from_the_start():
    starts, env = load_starts("breakout"), make_atari_env("breakout")
    players = [Named("noop", HeldKey(0)), Named("right", HeldKey(2))]
    dreams = type("Some", (), {"starts": starts})()
    found = returns_outside(env, dreams, players, np.array([30, 80]), 25, lambda n: None)
    for row, action in ((0, 0), (1, 2)):
        for column, start in ((0, 30), (1, 80)):
            env.reset()
            for taken in starts.replays[start]:
                env.step(int(taken))
            rewards = [env.step(action)[1] for _ in range(25)]
            assert found[row, column] == np.sign(rewards).sum()
    assert found.any()


def test_returns_inside_end_with_the_dream(data_path):
    vqvae, model = paying_models()
    dreams = Dreams(DreamEngine(vqvae, model), load_starts("breakout", data_path), 3)
    players = [Named("right", HeldKey(2)), Named("left", HeldKey(3))]
    found = returns_inside(dreams, players, np.array([0, 30, 60]), 7, lambda n: None)
    assert set(found.flatten()) == {0.0, 7.0} and (found.sum(0) == 7).all()
    with torch.no_grad():
        model.to_outcome.bias[2] = 9.0  # every step ends the game
    found = returns_inside(dreams, players, np.array([0, 30, 60]), 7, lambda n: None)
    assert (found.sum(0) == 1).all()


def test_correlations_are_those_of_the_means():
    rng = np.random.default_rng(0)
    skill = np.arange(9.0)
    inside = skill[:, None] + rng.normal(0, 0.1, (9, 20))
    ranking = Ranking(list("abcdefghi"), inside, np.exp(inside), np.arange(20))
    found = ranking.correlations()
    assert found["spearman"].value == 1 > found["pearson"].value > 0.6
    assert found["pearson"].low <= found["pearson"].value <= found["pearson"].high
    assert spearman(np.array([1.0, 1, 2]), np.array([2.0, 2, 1])) == pytest.approx(-1)
    flat = Ranking(["a", "b"], np.ones((2, 3)), np.ones((2, 3)), np.arange(3))
    assert np.isnan(flat.correlations()["pearson"].value)
