"""Score an agent on the real game, beside chance and a script; or compare rankings with a dream's.

    python v2/eval/score_agent.py --game breakout --policy latest --games 30 --json score.json

All see pixels alone. With --ranking, graded players and every --policy play 20 dreams and the real
game from the same starts.
"""

import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from v2.runtime import cli

if __name__ == "__main__":
    cli.explain_errors()

import json

import numpy as np
from tqdm import tqdm

from v2.agents.dreams import make_dreams
from v2.agents.players import (
    Named,
    graded_players,
    has_script,
    load_agent_player,
    random_player,
    scripted_player,
)
from v2.data.dream_starts import starts_path
from v2.data.emulator import make_atari_env
from v2.data.games import EmulatorConfig, emulator_dict
from v2.eval.agent_games import Ranking, num_noops, play_games, returns_inside, returns_outside
from v2.eval.documents import hand_on
from v2.eval.intervals import Metric, mean_metric
from v2.runtime.device import tune_cpu
from v2.runtime.files import atomic_path, check_output

FIRST_SEED = 1_800_000_000  # of the games; of training, gold and starts all are elsewhere
NUM_GAMES, NUM_STARTS = 30, 20
MIN_PLAYERS = 8  # fewer say nothing about a ranking


def build_parser():
    parser = cli.parser(__file__)
    parser.add_argument("--game", default=EmulatorConfig().game, help="any ALE game")
    parser.add_argument("--policy", type=cli.name, nargs="+", action=cli.Gather, default=[],
                        metavar="AGENT",
                        help="files, run folders or names of agents, or latest")  # fmt: skip
    parser.add_argument("--games", type=cli.positive_int,
                        help="real games of each, each with its seed (default: 30)")  # fmt: skip
    parser.add_argument("--max-steps", type=cli.positive_int, help="of a game or a dream "
                        "(default: 10000, with --ranking 500)")  # fmt: skip
    parser.add_argument("--greedy", action="store_true",
                        help="agents take the likeliest action instead of drawing one")  # fmt: skip
    parser.add_argument("--ranking", action="store_true", help="returns inside and outside")
    parser.add_argument("--weights", type=cli.name, help="of the dream: latest, shipped, a run's "
                        "name or a path (default: latest)")  # fmt: skip
    parser.add_argument("--starts", type=cli.positive_int,
                        help="of --ranking, evenly from the committed (default: 20)")  # fmt: skip
    parser.add_argument("--device", help="of the dream: auto, cpu or cuda (default: cpu)")
    parser.add_argument("--json", type=cli.path, metavar="FILE", help="write all figures")
    parser.add_argument("--plot", type=cli.path, metavar="FILE.png",
                        help="of --ranking: the scatter plot")  # fmt: skip
    return parser


def main(argv=None) -> int:
    args = build_parser().parse_args(argv)
    for path in filter(None, (args.json, args.plot)):
        check_output(path)
    _check_flags(args)
    env = make_atari_env(args.game)
    game, num_actions = env.config.game, len(env.action_meanings)
    agents = [load_agent_player(name, game, num_actions, args.greedy) for name in args.policy]
    env = make_atari_env(config=_emulator(agents) or env.config)
    if not agents and not args.ranking:
        raise ValueError("--policy: name an agent, such as latest or a run's folder")
    tune_cpu()
    found = (_ranking if args.ranking else _scores)(args, env, agents)
    hand_on(found, json.dumps(found), args.json)
    return 0


def _check_flags(args) -> None:
    of_other = ("games",) if args.ranking else ("weights", "starts", "device", "plot")
    for name in of_other:
        if (value := getattr(args, name)) is not None:
            advice = "leave it out with --ranking" if args.ranking else "add --ranking"
            raise ValueError(f"--{name} {value} would change nothing: {advice}")


def _emulator(agents: list[Named]) -> EmulatorConfig | None:
    """Return the settings that the agents learnt with, None where none says."""
    known = [(agent, agent.emulator) for agent in agents if agent.emulator]
    for agent, held in known[1:]:
        known[0][0].check_learnt_with(held, f"{agent.name}: score them apart")
    return EmulatorConfig(**known[0][1]) if known else None


def _scores(args, env, agents: list[Named]) -> dict:
    game, meanings = env.config.game, env.action_meanings
    players = [*agents, random_player(game, meanings)]
    if has_script(game):
        players.append(scripted_player(game, meanings))
    seeds = [FIRST_SEED + k for k in range(args.games or NUM_GAMES)]
    found: dict = {"game": game, "is_greedy": args.greedy, "players": {}}
    with tqdm(total=len(players) * len(seeds), unit="game", disable=None) as bar:
        for named in players:
            games = play_games(env, named.player, seeds, args.max_steps or 10_000, bar.update)
            has_luck = env.config.has_luck or named not in agents or not args.greedy
            ids = seeds if has_luck else [num_noops(env, seed) for seed in seeds]  # equal games
            score = mean_metric([g["score"] for g in games], ids, is_share=False)
            found["players"][named.name] = {"score": score.to_dict(), "games": games}
            num_cut = sum(not g["is_over"] for g in games)
            bar.write(f"{named.name:48s} {_shown(score)}" + (f", {num_cut} cut" * bool(num_cut)))
    return found


def _ranking(args, env, agents: list[Named]) -> dict:
    game, num_steps = env.config.game, args.max_steps or 500
    if not starts_path(game).exists():
        raise ValueError(f"--ranking needs committed starts, and {game} has none: leave it out")
    players = [*graded_players(game, env.action_meanings), *agents]
    if len(players) < MIN_PLAYERS:
        raise ValueError(f"{len(players)} players are too few to rank: give --policy more agents")
    asked = args.starts or NUM_STARTS
    dreams = make_dreams(asked, game, args.weights or "latest", args.device or "cpu",
                         None, 0.0, "rgb", False)  # fmt: skip
    for agent in agents:
        agent.check_learnt_with(emulator_dict(dreams.starts.emulator), "the dream")
    num_starts = len(dreams.starts)
    if asked > num_starts:
        raise ValueError(f"--starts must be 1 to {num_starts}, got {asked}")
    starts = np.linspace(0, num_starts - 1, asked).round().astype(int)
    with tqdm(total=len(players) * num_steps, unit="step", disable=None, desc="inside") as bar:
        inside = returns_inside(dreams, players, starts, num_steps, bar.update)
    with tqdm(total=inside.size, unit="game", disable=None, desc="outside") as bar:
        outside = returns_outside(env, dreams, players, starts, num_steps, bar.update)
    ranking = Ranking([named.name for named in players], inside, outside, starts)
    found: dict = {"game": game, "weights": dreams.engine.source, "steps": num_steps,
                   "starts": starts.tolist(), "players": {}}  # fmt: skip
    print(f"{'player':48s} {'inside':24s} outside")
    sides = zip(ranking.names, ranking.metrics(inside), ranking.metrics(outside), strict=True)
    for name, one, other in sides:
        print(f"{name:48s} {_shown(one):24s} {_shown(other)}")
        found["players"][name] = {"inside": one.to_dict(), "outside": other.to_dict()}
    for name, value in ranking.correlations().items():
        print(f"{name:48s} {_shown(value)}")
        found[name] = value.to_dict()
    if args.plot:
        draw_ranking(args.plot, ranking)
        print(f"plot: {args.plot}")
    return found


def draw_ranking(path: Path, ranking: Ranking) -> None:
    """Draw each player's return inside and outside, with intervals; agents as triangles."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.5))
    axis = figure.subplots()
    axis.set_prop_cycle(color=colormaps["tab20"](range(20)))
    sides = zip(ranking.names, ranking.metrics(ranking.inside), ranking.metrics(ranking.outside),
                strict=True)  # fmt: skip
    for name, one, other in sides:
        is_agent = name.endswith(".pt")
        label = " ".join(Path(name).with_suffix("").parts[-2:]) if is_agent else name
        axis.errorbar(one.value, other.value, xerr=_arms(one), yerr=_arms(other), label=label,
                      fmt="^" if is_agent else "o", elinewidth=0.8, alpha=0.8)  # fmt: skip
    ends = axis.get_xlim(), axis.get_ylim()
    low, high = min(e[0] for e in ends), max(e[1] for e in ends)
    axis.plot((low, high), (low, high), color="grey", linewidth=0.8, label="equal")
    told = ", ".join(f"{name} {value.value:.2f}" for name, value in ranking.correlations().items())
    axis.set(xlabel="mean return inside the dream", ylabel="in the real game", title=told)
    axis.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    figure.tight_layout()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def _arms(metric: Metric) -> list[list[float]]:
    return [[max(0, metric.value - metric.low)], [max(0, metric.high - metric.value)]]


def _shown(metric: Metric) -> str:
    return f"{metric.value:.2f} [{metric.low:.2f}, {metric.high:.2f}]"


if __name__ == "__main__":
    cli.run(main)
