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

import contextlib
import json
import os

os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")

from v2.data.emulator import make_atari_env
from v2.data.games import EmulatorConfig
from v2.dream import DreamEngine
from v2.play.controllers import Players, player_names
from v2.play.game import PlayGame, PlaySettings
from v2.play.keys import ALIASES, ActionMap
from v2.play.loop import Worker, run_headless, run_window
from v2.play.picture import MAX_SCALE, Pane, View
from v2.play.replay import Replay
from v2.play.session import PlaySession
from v2.play.window import (
    INPUT_KEYS,
    PLAY_ADVICE,
    PLAY_COMMANDS,
    REPLAY_ADVICE,
    REPLAY_COMMANDS,
    Window,
)
from v2.runtime.files import check_output

RECORDING_SCALE, GIF_SCALE = 5, 3


def build_parser():
    parser = cli.parser(__file__)
    weights = parser.add_argument_group("weights").add_mutually_exclusive_group()
    weights.add_argument("--latest", action="store_true",
                         help="newest finished run, else the shipped weights")  # fmt: skip
    weights.add_argument("--run", metavar="NAME", help="a run's folder name")
    weights.add_argument("--checkpoint", metavar="FILE", help="a world model file, or `shipped`")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--temperature", type=cli.temperature, default=0.0,
                        help="of the dreamed tokens; 0 takes the likeliest")  # fmt: skip
    _add_play_options(parser.add_argument_group("play"))
    group = parser.add_argument_group("without a display, and files")
    group.add_argument("--headless", action="store_true", help="no window, as fast as it goes")
    group.add_argument("--steps", type=cli.non_negative_int, default=0, help="end after "
                       "so many; 0: no end, or 300 headless without --keys")  # fmt: skip
    group.add_argument("--record", type=cli.path, metavar="FILE",
                       help="video of all steps: mp4 or gif; "
                       "png keeps the last picture")
    group.add_argument("--save-data", type=cli.path, metavar="FILE.npz",
                       help="save what is played, in the collector's format")  # fmt: skip
    group.add_argument("--clips", type=cli.path, metavar="DIR", default=Path("recordings"),
                       help="where the V key saves the last 10 seconds")  # fmt: skip
    group.add_argument("--replay", type=cli.path, metavar="DATA.npz",
                       help="browse recorded episodes")  # fmt: skip
    group.add_argument("--episode", type=cli.non_negative_int, metavar="K",
                       help="id of the episode to begin with; None: the first")  # fmt: skip
    return parser


def _add_play_options(group) -> None:
    group.add_argument("--game", default=EmulatorConfig().game, help="any ALE game")
    group.add_argument("--fps", type=cli.steps_per_second, metavar="STEPS",
                       help="steps a second; None: the game's real time, 15")  # fmt: skip
    group.add_argument("--scale", type=int, choices=range(MAX_SCALE + 1), default=0,
                       metavar="SCALE", help="size of a frame's pixels, also in --record, "
                       f"up to {MAX_SCALE}; 0: what fits, in files 5 (GIF 3)")  # fmt: skip
    group.add_argument("--seed", type=cli.non_negative_int, default=0,
                       help="of players, of sticky games and of sampled tokens")  # fmt: skip
    group.add_argument("--policy", choices=("human", "random", "scripted"),
                       help="who begins; None: human, and headless without --keys scripted, "
                       "or random where a game has no script")  # fmt: skip
    group.add_argument("--dream-only", action="store_true", help="the real game waits")
    group.add_argument("--keys", metavar="SCRIPT", help='actions to begin with: "RIGHT*10,FIRE"')


def main(argv=None) -> int:
    args = build_parser().parse_args(argv)
    _check_flags(args)
    if args.save_data:
        if args.save_data.exists():
            raise FileExistsError(f"{args.save_data} is there already: name another file")
        check_output(args.save_data)
    if args.record:
        check_output(args.record)
    game, columns = EmulatorConfig(game=args.game).game, 4 if args.replay else 2
    with contextlib.ExitStack() as stack:
        window = None
        if not args.headless:  # first of all: a missing display is said before weights are loaded
            commands, inputs = (REPLAY_COMMANDS, {}) if args.replay else (PLAY_COMMANDS, INPUT_KEYS)
            advice = REPLAY_ADVICE if args.replay else PLAY_ADVICE
            window = Window(f"dream of {game}", commands, inputs, args.scale, columns, advice)
            stack.enter_context(window)
            panes = (Pane("", None, "panel"),) * columns
            title = game.replace("_", " ").title()
            window.show(View(title, panes, "loading the weights ...", columns))
        worker = stack.enter_context(Worker())
        name = args.run or args.checkpoint or "latest"
        sampling = {"temperature": args.temperature, "seed": args.seed}
        engine = worker.call(DreamEngine.load, name, game, args.device, **sampling)
        print(f"weights: {engine.source}", flush=True)
        emulator = emulator_of(engine, game)
        stop = stack.enter_context(cli.StopRequest())
        if args.replay:
            browser = worker.call(
                Replay, args.replay, engine, emulator, args.episode, args.fps, args.clips
            )
            with window:  # closed before a clip is waited for
                run_window(browser, window, worker, stop)
            browser.close()
            return stop.exit_code
        return play(args, emulator, engine, window, worker, stop)


def _check_flags(args) -> None:
    if args.dream_only and args.save_data:
        raise ValueError(
            "--save-data keeps the real game, which waits in --dream-only: leave one of them out"
        )
    if not args.replay and args.episode is not None:
        raise ValueError("--episode needs --replay: of which recording?")
    names = ("headless", "record", "save_data", "steps", "keys", "policy", "dream_only")
    given = [name for name in names if getattr(args, name)]
    if args.replay and given:
        flag = given[0].replace("_", "-")
        raise ValueError(f"--replay only browses, in a window: leave --{flag} out")


def emulator_of(engine, game: str) -> EmulatorConfig:
    """Return the settings of the emulator that the model's data was collected with."""
    try:
        emulator = EmulatorConfig(**engine.info.get("emulator") or {"game": game})
    except TypeError as error:
        raise ValueError(f"{engine.source}: emulator settings of another version") from error
    if emulator.game != game:
        raise ValueError(f"{engine.source} dreams of {emulator.game}: add --game {emulator.game}")
    return emulator


def play(
    args, emulator: EmulatorConfig, engine, window: Window | None, worker: Worker, stop
) -> int:
    """Play until the end, then say what was saved and print the figures as the last line."""
    env = make_atari_env(config=emulator)
    actions = ActionMap(env.action_meanings, ALIASES.get(emulator.game))
    script = list(actions.script(args.keys)) if args.keys else []
    players = Players(emulator.game, actions, args.policy or _first_player(args), args.seed)
    tape, seed = None, args.seed
    if args.save_data:
        tape = tape.EpisodeTape(emulator, env.action_meanings, args.seed, players.name)
        seed = tape.first_game_seed(args.seed)
    session = worker.call(PlaySession, env, engine, seed, tape)
    if args.dream_only:
        session.set_mode("dream")
    fps = args.fps or emulator.steps_per_second
    is_gif = args.record is not None and args.record.suffix.lower() == ".gif"
    scale = args.scale or (GIF_SCALE if is_gif else RECORDING_SCALE)
    settings = PlaySettings(fps, args.clips, scale)
    steps = args.steps or (300 if args.headless and not script else 0)
    video = contextlib.nullcontext()
    if args.record:
        video = video.BackgroundRecording(video.open_recording(args.record, fps))
    game = None
    try:
        with video:
            game = PlayGame(session, players, settings, script, video if args.record else None)
            if window:
                with window:  # closed before anything is saved
                    run_window(game, window, worker, stop, steps)
            else:
                run_headless(game, worker, stop, steps)
            if args.record or args.save_data:
                print("saving ...", flush=True)
    finally:  # whatever ended it: what was played is kept
        if game:
            code = _report(args, game, tape, stop)
    game.close()
    return code


def _first_player(args) -> str:
    if not args.headless or args.keys:
        return "human"
    return player_names(EmulatorConfig(game=args.game).game)[-1]


def _report(args, game: PlayGame, tape, stop) -> int:
    figures = game.figures()
    if args.save_data:
        num_frames, num_episodes, num_left_out = tape.save(args.save_data)
        if num_frames:
            figures["data"] = str(args.save_data)
        saved = args.save_data if num_frames else "nothing was played, no file was written"
        print(f"data: {saved} ({num_frames} frames, {num_episodes} episodes)")
        if num_left_out:
            print(f"left out: {num_left_out}, the same was played before in the other split")
        if not tape.has_held_out_game:
            print("note: training holds out the second game: play two that differ")
    if args.record and game.recording.is_saved:
        figures["record"] = str(args.record)
        print(f"recording: {args.record} ({game.recording.num_frames} frames)")
    print(json.dumps(figures))
    return stop.exit_code


if __name__ == "__main__":
    cli.run(main)
