"""Play inside the model's prediction, with the real game beside it.

    python v2/play_atari_hires.py --latest
"""

import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from v2.runtime import cli

if __name__ == "__main__":
    cli.explain_errors()

import argparse
import contextlib
import functools
import json
import os

os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")

from v2.agents.players import Player, load_agent_player
from v2.data.emulator import make_atari_env, package_of
from v2.data.games import (
    EmulatorConfig,
    RecordedConfig,
    emulator_dict,
    game_id,
    learnt_config,
    shown_name,
)
from v2.data.recordings import default_data, recorded_files
from v2.export.engine import load_quickest
from v2.play.controllers import AGENT, Controllers, controller_names
from v2.play.game import PlayGame, PlaySettings
from v2.play.keys import ALIASES, PLAY_KEYS, REDRAW, REPLAY_KEYS, ActionMap
from v2.play.loop import ModelThread, run_headless, run_window
from v2.play.picture import MAX_SCALE, Pane, View
from v2.play.recorded import RecordedEnv
from v2.play.replay import Replay
from v2.play.session import PlaySession
from v2.play.tape import EpisodeTape
from v2.play.video import BackgroundVideo, open_video
from v2.play.window import PLAY_ADVICE, REPLAY_ADVICE, Window
from v2.runtime.commands import ROOT
from v2.runtime.files import check_output, free_path
from v2.runtime.lock import Lock
from v2.runtime.run_dir import START_NAME, shown_path

VIDEO_SCALE, GIF_SCALE = 5, 3
HEADLESS_STEPS = 300
NAMES = ("human", "random", "scripted")  # of controllers; any other is an agent's
CLIPS = Path("recordings")  # where the V key saves


def build_parser():
    parser = cli.parser(__file__)
    _add_model_flags(parser.add_argument_group("the model"))
    _add_play_flags(parser.add_argument_group("the game, and who plays"))
    group = parser.add_argument_group("without a display")
    group.add_argument("--headless", action="store_true", help="no window, as fast as it goes")
    group.add_argument("--keys", metavar="SCRIPT", help="actions to begin with, such as "
                       '"RIGHT*10,FIRE"; None: none')  # fmt: skip
    group.add_argument("--steps", type=cli.non_negative_int, default=0, help="end after so many; "
                       f"0: no end, or {HEADLESS_STEPS} headless without --keys")  # fmt: skip
    group = parser.add_argument_group("files")
    group.add_argument("--record", type=cli.path, metavar="FILE", help="save a video of all steps: "
                       "mp4 or gif; png keeps the last picture; None: no video")  # fmt: skip
    group.add_argument("--save-data", type=cli.path, metavar="FILE.npz", help="save what is played "
                       "as a dataset, in the collector's format; None: do not")  # fmt: skip
    group.add_argument("--replay", nargs="+", metavar=("DATA.npz", "EPISODE"), help="browse a "
                       "dataset, from an episode's id on or the first; None: play")  # fmt: skip
    return parser


def _add_model_flags(group) -> None:
    weights = group.add_mutually_exclusive_group()
    weights.add_argument("--latest", action="store_true", help="newest finished run, else the "
                         "shipped weights; so without any of these three")  # fmt: skip
    weights.add_argument("--run", type=cli.name, metavar="RUN",
                        help="a run: its name or folder, or the --out that was trained with")
    weights.add_argument("--checkpoint", "--weights", type=cli.name, metavar="FILE",
                        help="a world model file, a folder of shared weights, or `shipped`")
    group.add_argument("--device", default="auto", help="auto, cpu or cuda")
    group.add_argument("--temperature", type=cli.temperature, default=0.0,
                       help="of the dreamed tokens, 0.001 or more; "
                       "0 takes the likeliest")  # fmt: skip


def _add_play_flags(group) -> None:
    group.add_argument("--game", default=EmulatorConfig().game, help="any ALE game, or the id of "
                       "an environment of Gymnasium")  # fmt: skip
    group.add_argument("--policy", type=cli.name, metavar="NAME",
                        help="who begins to play: human, random, "
                       "scripted, or the file or run of an agent; None: human, and headless "
                       "without --keys scripted, or random where a game has no script")  # fmt: skip
    group.add_argument("--dream-only", action="store_true", help="the real game waits")
    group.add_argument("--seed", type=cli.non_negative_int, default=0, help="of the random and "
                       "scripted controllers, of sticky games and of sampled tokens")  # fmt: skip
    group.add_argument("--fps", type=cli.steps_per_second, metavar="STEPS",
                       help="steps a second; None: the game's real time, 15")  # fmt: skip
    group.add_argument("--scale", type=int, choices=range(MAX_SCALE + 1), default=0,
                       metavar="SCALE", help="screen pixels a pixel of the frame, also in "
                       f"--record, up to {MAX_SCALE}; 0: what fits, in files {VIDEO_SCALE} "
                       f"(GIF {GIF_SCALE})")  # fmt: skip


def main(argv=None) -> int:
    args = build_parser().parse_args(argv)
    data, episode = _replayed(args)
    _check_flags(args)
    game = game_id(args.game)
    with contextlib.ExitStack() as stack:
        if args.save_data:
            stack.enter_context(_claimed(args.save_data))
        window = None
        if not args.headless:  # first of all: a missing display is said before weights are loaded
            window = stack.enter_context(_open_window(game, args.scale, is_replay=bool(data)))
        thread = stack.enter_context(ModelThread())
        name = args.run or args.checkpoint or "latest"
        flags = {"temperature": args.temperature, "seed": args.seed}
        flags |= {"while_waiting": functools.partial(_answer, window)} if window else {}
        engine = thread.call(load_quickest, name, game, args.device, **flags)
        print(f"weights: {engine.source}, steps by {engine.runtime}", flush=True)
        emulator = learnt_config(engine.info, engine.source, game)
        stop = stack.enter_context(cli.StopRequest())
        if data:
            browser = thread.call(Replay, data, engine, emulator, episode, args.fps, CLIPS)
            assert window is not None
            with window:  # closed before a clip is waited for
                run_window(browser, window, thread, stop)
            browser.close()
            return stop.exit_code
        return play(args, emulator, engine, window, thread, stop)


def _replayed(args) -> tuple[Path | None, int | None]:
    """Return the file to browse and the episode to begin with, None where none is named."""
    if not args.replay:
        return None, None
    name, *others = args.replay
    try:
        (episode,) = map(cli.non_negative_int, others) if others else (None,)
        return cli.path(name), episode
    except (argparse.ArgumentTypeError, ValueError) as error:
        got = " ".join(args.replay)
        raise ValueError(f"--replay takes a file and at most one episode, got {got}") from error


def _check_flags(args) -> None:
    if args.dream_only and args.save_data:
        raise ValueError(
            "--save-data keeps the real game, which waits in --dream-only: leave one of them out"
        )
    names = ("headless", "record", "save_data", "steps", "keys", "policy", "dream_only")
    given = [name for name in names if getattr(args, name)]
    if args.replay and given:
        flag = given[0].replace("_", "-")
        raise ValueError(f"--replay only browses, in a window: leave --{flag} out")
    for path in filter(None, (args.save_data, args.record)):
        check_output(path)


@contextlib.contextmanager
def _claimed(path: Path):
    """Keep a file's name for this process until it is written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with Lock(path.with_name(f".{path.name}.lock"), f"playing for {path}"):
        if path.exists():
            raise FileExistsError(f"{path} is there already: name another file")
        yield


def _open_window(game: str, scale: int, is_replay: bool) -> Window:
    """Open a window that shows empty panes while the weights are loaded."""
    rows, advice, columns = PLAY_KEYS, PLAY_ADVICE, 2
    if is_replay:
        rows, advice, columns = REPLAY_KEYS, REPLAY_ADVICE, 4
    window = Window(f"dream of {game}", rows, scale, columns, advice)
    panes = (Pane("", None, "panel"),) * columns
    window.show(View(shown_name(game), panes, "loading the weights ...", columns))
    return window


def _answer(window: Window) -> None:
    """Let the window answer while the weights are loaded; leaving it ends the program."""
    commands = window.poll()
    if "quit" in commands:
        window.close()
        raise SystemExit(0)
    if REDRAW in commands:
        window.show_again()


def play(
    args, emulator: EmulatorConfig | RecordedConfig, engine, window: Window | None,
    thread: ModelThread, stop,
) -> int:  # fmt: skip
    """Play until the end, then say what was saved and print the figures as the last line."""
    env = _environment(emulator, engine)
    actions = ActionMap(env.action_meanings, ALIASES.get(emulator.game))
    script = list(actions.script(args.keys)) if args.keys else []
    name = args.policy or _first_controller(args)
    agent = None
    if name not in NAMES:
        agent, name = _load_agent(args.policy, emulator, len(env.action_meanings)), AGENT
    controllers = Controllers(emulator.game, actions, name, args.seed, agent)
    tape, seed = None, args.seed
    if args.save_data:
        if not isinstance(emulator, EmulatorConfig):
            raise ValueError(f"{emulator.game} has no emulator: leave --save-data out")
        tape = EpisodeTape(emulator, env.action_meanings, args.seed, name)
        seed = tape.first_game_seed(args.seed)
    session = thread.call(PlaySession, env, engine, seed, tape)
    if args.dream_only:
        session.set_mode("dream")
    fps = args.fps or emulator.steps_per_second
    is_gif = args.record is not None and args.record.suffix.lower() == ".gif"
    settings = PlaySettings(fps, CLIPS, args.scale or (GIF_SCALE if is_gif else VIDEO_SCALE))
    steps = args.steps or (HEADLESS_STEPS if args.headless and not script else 0)
    video = BackgroundVideo(open_video(args.record, fps)) if args.record else None
    game = None
    try:
        with video or contextlib.nullcontext():
            game = PlayGame(session, controllers, settings, script, video)
            if window:
                with window:  # closed before anything is saved
                    run_window(game, window, thread, stop, steps)
            else:
                run_headless(game, thread, stop, steps)
            if args.record or args.save_data:
                print("saving ...", flush=True)
    finally:  # whatever ended it: what was played is kept
        if game:
            code = _report(args, game, tape, stop)
    game.close()
    return code


def _load_agent(
    name: str, emulator: EmulatorConfig | RecordedConfig, num_actions: int
) -> Player:
    try:
        agent = load_agent_player(name, emulator.game, num_actions)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"--policy is none of {', '.join(NAMES)}: {error}") from error
    agent.check_learnt_with(emulator_dict(emulator), "the game here")
    return agent.player


def _environment(emulator: EmulatorConfig | RecordedConfig, engine):
    """Make the emulator; of a game that was only recorded, take its data in place of one."""
    if isinstance(emulator, EmulatorConfig):
        if emulator.package and (here := package_of(emulator)) != emulator.package:
            print(f"note: {emulator.game} was learnt from {emulator.package}, and here is {here}")
        return make_atari_env(config=emulator)
    weights = ROOT / engine.source
    runs = weights.parent.parent
    data = default_data(emulator.game, runs.parent if runs.name == "runs" else None)
    for place in filter(recorded_files, (data, weights.with_name(START_NAME))):
        print(f"recording: {shown_path(place)}")
        return RecordedEnv(place, emulator)
    raise FileNotFoundError(
        f"no recording of {emulator.game} in {shown_path(data.parent)} nor beside the weights: "
        "v2/data/import_recordings.py makes one"
    )


def _first_controller(args) -> str:
    if not args.headless or args.keys:
        return "human"
    return controller_names(game_id(args.game))[-1]


def _report(args, game: PlayGame, tape, stop) -> int:
    figures = game.figures()
    if args.save_data:
        path = free_path(args.save_data)  # what came meanwhile is kept
        num_frames, num_episodes, num_left_out = tape.save(path)
        if num_frames:
            figures["data"] = str(path)
        saved = path if num_frames else "nothing was played, no file was written"
        print(f"data: {saved} ({num_frames} frames, {num_episodes} episodes)")
        if num_left_out:
            print(f"left out: {num_left_out}, the same was played before in the other split")
        if num_frames and not tape.has_held_out_game:
            print("note: of a single game training holds out the last tenth")
    if args.record and game.video.is_saved:
        figures["record"] = str(args.record)
        print(f"video: {args.record} ({game.video.num_frames} frames)")
    print(json.dumps(figures))
    return stop.exit_code


if __name__ == "__main__":
    cli.run(main)
