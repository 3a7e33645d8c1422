"""Train an agent by PPO in a batch of dreams, without the game, or in the game itself.

    python v2/train/train_agent.py --game breakout --steps 110000

It needs requirements-agents.txt. Its run folder gets the agent, metrics.jsonl and curves.png.
"""

import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from v2.runtime import cli

if __name__ == "__main__":
    cli.explain_errors()

import argparse
import dataclasses
import json
import time

import torch
from tqdm import tqdm

from v2.data.dream_starts import load_starts
from v2.data.emulator import emulator_config
from v2.data.games import (
    EmulatorConfig,
    RecordedConfig,
    emulator_dict,
    find_weights,
    game_directory,
    game_id,
)
from v2.eval.objects import detector
from v2.models.agent_network import AgentConfig, AgentNetwork
from v2.models.weights import build_model
from v2.runtime import checkpoint
from v2.runtime.commands import command
from v2.runtime.device import choose_device, tune_cpu
from v2.runtime.files import atomic_path, check_writable
from v2.runtime.run_dir import RunDir, find_run, read_config
from v2.train.loop import check_weights
from v2.train.recipe import AgentRecipe, recipe_of, with_settings
from v2.train.sampling import step_rng

OF_THE_START = ("game", "env", "weights", "starts", "steps", "seed")  # flags, as is --set
OF_A_RUN = (*OF_THE_START, "device")
CURVES = {"episode_return": "return of an episode, mean of the last 100",
          "episode_steps": "steps of an episode", "entropy_loss": "negative entropy",
          "explained_variance": "explained variance"}  # fmt: skip


def build_parser():
    parser = cli.parser(__file__)
    parser.add_argument("--game", default=EmulatorConfig().game, help="any ALE game")
    parser.add_argument("--env", choices=("dream", "real"), default="dream",
                        help="where it learns; a dream never touches the emulator")  # fmt: skip
    parser.add_argument("--weights", type=cli.name, default="latest",
                        help="of the dream: latest, shipped, a run's name or a path")  # fmt: skip
    parser.add_argument("--starts", type=cli.path, metavar="DATA.npz", help="a recording that "
                        "dreams begin from, and whose settings --env real takes; None: the "
                        "committed starts")  # fmt: skip
    parser.add_argument("--steps", type=cli.positive_int, default=110_000,
                        help="decisions in all games together")  # fmt: skip
    parser.add_argument("--max-minutes", type=cli.non_negative_float, default=0.0,
                        help="stop and save after so many, for --resume; 0: no limit")  # fmt: skip
    parser.add_argument("--resume", type=cli.name, metavar="RUN",
                        help="continue a run: its name or folder")
    parser.add_argument("--out", type=cli.path, help="folder of runs/ (default: the game's)")
    parser.add_argument("--seed", type=cli.non_negative_int, default=0)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--set", nargs="+", action=cli.Gather, default=[], metavar="FIELD=VALUE",
                        help="change fields of AgentRecipe in v2/train/recipe.py")  # fmt: skip
    return parser


def main(argv=None) -> int:
    args, recipe = _parse(argv)
    args.game = game_id(args.game)
    home = args.out or game_directory(args.game)
    check_writable(args.resume or home / "runs")
    if args.resume:
        RunDir(args.resume).check_free()
    tune_cpu()
    device = choose_device(args.device)
    if args.env == "dream":  # the very file, also when the run is resumed
        args.weights = str(find_weights(args.weights, "world_model", args.game).absolute())
    games, config = make_games(args, recipe, device)
    if args.resume:
        run = RunDir(args.resume)
        run.acquire()
    else:
        run = RunDir.create(home, "agent", _stored(args, recipe))
    try:
        training = AgentTraining(args, recipe, device, games, config, run)
        code = training.learn()
        _report(args, run, training.step)
        return code
    finally:
        games.close()
        run.release()


def _parse(argv) -> tuple[argparse.Namespace, AgentRecipe]:
    """Parse flags; with --resume what decides how it learns is the run's own.

    Raises:
        ValueError, FileNotFoundError: a flag that a resumed run cannot take, or no such run.
    """
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.resume is None:
        return args, with_settings(AgentRecipe(), args.set)
    run = find_run(args.resume, args.out or game_directory(args.game))
    config = read_config(run)
    if config.get("kind") != "agent":
        raise ValueError(f"{run} trained a {config.get('kind')}, not an agent")
    if args.set:
        raise ValueError(f"--set {' '.join(args.set)}: a run goes on with its own recipe")
    stored = {name: config["args"][name] for name in OF_A_RUN}
    parser.set_defaults(**stored)
    args = parser.parse_args(argv)
    args.resume = run
    for name in OF_THE_START:
        if str(getattr(args, name)) != str(stored[name]):
            raise ValueError(
                f"--{name} {getattr(args, name)} is decided when a run begins: leave it out with "
                "--resume"
            )
    return args, recipe_of(AgentRecipe, config["recipe"])


def _stored(args, recipe: AgentRecipe) -> dict:
    flags = {name: getattr(args, name) for name in OF_A_RUN}
    flags["starts"] = flags["starts"] and str(flags["starts"].absolute())
    return {"args": flags, "recipe": dataclasses.asdict(recipe)}


def make_games(args, recipe: AgentRecipe, device: torch.device):
    """Return the games to learn in, and the config of an agent for them."""
    from v2.train.agent_env import dream_games, real_games  # needs stable-baselines3

    has_lives = detector.shows_lives(args.game)
    if args.env == "real":
        games = real_games(recipe.num_games, real_emulator(args), has_lives)
    else:
        games = dream_games(recipe.num_games, recipe.max_episode_steps, game=args.game,
                            weights=args.weights, device=str(device), starts=args.starts,
                            episodic_life=has_lives)  # fmt: skip
        print(f"dreams of {games.get_attr('dreams')[0].engine.source}", flush=True)
    return games, AgentConfig(int(games.get_attr("single_action_space")[0].n))


def real_emulator(args) -> EmulatorConfig:
    """Return the settings of the real game: those of `--starts`, else the usual ones."""
    config = load_starts(args.game, args.starts).emulator if args.starts else None
    if isinstance(config, RecordedConfig):
        raise ValueError(f"{args.starts} is of a game without an emulator: leave --env real out")
    if config is None:
        config = emulator_config(args.game)
    return config


class AgentTraining:
    """PPO, and what it leaves in its run's folder."""

    def __init__(self, args, recipe: AgentRecipe, device, games, config: AgentConfig, run: RunDir):
        from v2.train import ppo  # needs stable-baselines3

        self.args, self.recipe, self.config, self.run = args, recipe, config, run
        self.ppo_module, self.minutes_before = ppo, 0.0
        state, luck = {}, args.seed
        if args.resume:
            state = checkpoint.load_last(run.path, "agent")
            # Games and draws of its own, not those of the sittings before.
            luck = int(step_rng(args.seed, state["step"]).integers(2**31))
        self.ppo = ppo.make_ppo(games, config, recipe, device, luck)
        if args.resume:
            network = build_model(state, run.path / "last.pt")
            assert isinstance(network, AgentNetwork)
            ppo.go_on_from(self.ppo, network, state["optimizer"], state["step"])
            run.forget_after(state["step"])
            self.minutes_before = state["minutes"]
            print(f"resumed {run.path} at step {state['step']}")
        dreams = games.get_attr("dreams")[0] if args.env == "dream" else None
        self.origin = {
            "game": args.game, "trained_in": args.env, "seed": args.seed,
            "recipe": dataclasses.asdict(recipe),
            "dream_sha256": dreams.engine.info["sha256"] if dreams else None,
            "emulator": emulator_dict(dreams.starts.emulator if dreams else real_emulator(args)),
        }  # fmt: skip
        if args.resume and state.get("dream_sha256") != self.origin["dream_sha256"]:
            raise ValueError(
                f"{run.path} learnt in a dream of other weights than {args.weights} is now: "
                "restore them, or begin a new run"
            )
        self.first = self.step = self.ppo.num_timesteps
        self.began = self.saved = time.monotonic()

    @property
    def minutes(self) -> float:
        return self.minutes_before + (time.monotonic() - self.began) / 60

    def learn(self) -> int:
        """Learn to the last step, a stop or the time limit, save, and return the exit code.

        Raises:
            DivergedError: a weight is not finite; what was saved before is kept.
        """
        total = self.args.steps
        with cli.StopRequest() as self.stop, tqdm(total=total, initial=self.step, unit="step",
                                                  disable=None) as self.bar:  # fmt: skip
            try:
                self.ppo_module.learn(self.ppo, total, self._stepped, self._updated)
            except ValueError:  # of torch's distributions, which refuse what is not finite
                check_weights(self.ppo.policy)
                raise
        if self.step > self.first or not (self.run.path / "last.pt").exists():
            self._save()
        return self.stop.exit_code

    def _stepped(self) -> bool:
        self.bar.update(self.recipe.num_games)
        limit = 60 * self.args.max_minutes
        return not (self.stop or 0 < limit < time.monotonic() - self.began)

    def _updated(self, step: int, figures: dict) -> None:
        rate = (step - self.first) / (time.monotonic() - self.began)
        self.run.log(step, **figures, steps_per_second=rate, minutes=self.minutes)
        self.bar.set_postfix(episode_return=f"{figures['episode_return']:.2f}")
        interval = max(1, self.args.steps // self.recipe.num_kept)
        is_kept, self.step = step // interval > self.step // interval, step
        if is_kept or time.monotonic() - self.saved > 60 * self.recipe.save_minutes:
            self._save()
        if is_kept:
            network = self.ppo_module.network_of(self.ppo, self.config)
            path = self.run.path / f"step_{step:09d}.pt"
            checkpoint.save_checkpoint(path, "agent", network, step=step, **self.origin)

    def _save(self) -> None:
        network = self.ppo_module.network_of(self.ppo, self.config)
        check_weights(network)
        optimizer = self.ppo.policy.optimizer.state_dict()
        checkpoint.save_rotating(
            self.run.path / "last.pt", "agent", network, step=self.step, minutes=self.minutes,
            optimizer=optimizer, **self.origin,
        )  # fmt: skip
        draw_curves(self.run.path)
        is_finished = self.step >= self.args.steps
        self.run.set_status(is_finished=is_finished, step=self.step, minutes=self.minutes)
        self.saved = time.monotonic()


def _report(args, run: RunDir, step: int) -> None:
    print(f"{step} of {args.steps} steps: {run.path}, curves.png beside")
    again = command("train/train_agent.py", resume=run.path)
    score = command("eval/score_agent.py", game=args.game, policy=run.path)
    print(f"next: {score if step >= args.steps else again}")


def draw_curves(run: Path) -> None:
    """Draw what metrics.jsonl holds as curves.png beside it."""
    from matplotlib.figure import Figure

    log = run / "metrics.jsonl"  # none before the first update
    text = log.read_text("utf-8") if log.exists() else ""
    lines = [json.loads(line) for line in text.splitlines()]
    figure = Figure(figsize=(10, 6))
    axes = figure.subplots(2, 2, sharex=True)
    for axis, (name, title) in zip(axes.flat, CURVES.items(), strict=True):
        known = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
        axis.plot(*zip(*known, strict=True) if known else ((), ()))
        axis.set(title=title)
        axis.grid(alpha=0.3)
    for axis in axes[1]:
        axis.set(xlabel="steps")
    figure.tight_layout()
    with atomic_path(run / "curves.png") as temporary:
        figure.savefig(temporary, format="png", dpi=90)


if __name__ == "__main__":
    cli.run(main)
