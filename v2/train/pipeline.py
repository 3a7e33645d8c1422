"""The full pipeline from zero, one stage after another; run it again to go on where it stopped.

    python v2/train/pipeline.py --game breakout --preset smoke
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
import functools
import shutil
import tempfile
import time
from collections.abc import Mapping

from v2.data.emulator import emulator_config
from v2.data.games import (
    OWN,
    EmulatorConfig,
    differing_settings,
    emulator_dict,
    find_weights,
    game_directory,
    game_id,
    stored_config,
)
from v2.data.npz import read_meta
from v2.data.policies import policy_mix
from v2.data.recordings import (
    DATA_NAME,
    META_FIELDS,
    UNFINISHED,
    check_recorded,
    data_paths,
    default_data,
    list_episodes,
    recorded_files,
    shown,
)
from v2.data.tokens import TOKENS_NAME, recording_sha256, staleness
from v2.eval.flops import count_flops, matrix_products
from v2.eval.gold import GOLD_GAMES
from v2.models.temporal_world_model import TemporalWorldModel, WorldModelConfig, fields_of
from v2.models.vqvae_hires import USUAL_COLOUR, VQVAE, VQVAEConfig
from v2.models.weights import load_vqvae, load_world_model, tokenizer_sha256, told
from v2.runtime import checkpoint
from v2.runtime.commands import command
from v2.runtime.device import choose_device
from v2.runtime.files import check_writable, file_sha256, free_path, write_text
from v2.runtime.lock import Lock
from v2.runtime.run_dir import (
    CARRIED,
    VQVAE_NAME,
    RunDir,
    all_runs,
    is_finished,
    read_config,
    read_status,
)
from v2.train.recipe import (
    VQVAE_PRESETS,
    WORLD_MODEL_PRESETS,
    Recipe,
    VQVAERecipe,
    WorldModelRecipe,
    recipe_of,
)
from v2.train.sampling import step_rng
from v2.train.step_cost import image_work, window_work

COLLECT, TOKENIZE = "data/collect_atari.py", "data/tokenize_atari.py"
TRAIN_VQVAE, TRAIN_WM = "train/train_vqvae_hires.py", "train/train_wm_hires.py"
EVALUATE = "eval/gold_eval.py"
# Of a model's config: what game and recipe decide.
OF_A_RUN = ("num_actions", *fields_of(WorldModelRecipe()), *USUAL_COLOUR)
RECIPES: dict[str, Mapping[str, Recipe]] = {
    "vqvae": VQVAE_PRESETS, "world_model": WORLD_MODEL_PRESETS,
}  # fmt: skip
SOURCES = {"data_sha256": "another recording", "vqvae_sha256": "another VQ-VAE's tokens"}


@dataclasses.dataclass(frozen=True)
class Preset:
    """What surrounds the recipes of that name (v2/train/recipe.py)."""

    frames: int  # to collect
    more_frames: int  # to collect besides, of other games, for the world model alone
    evaluation: tuple[str, ...]  # flags of gold_eval.py on the gold set
    held_out: tuple[str, ...]  # the same on the recording's held-out games, where there is no set


GOLD = ("--tier", "gold", "--long-dreams", "10")
HELD_OUT = ("--tier", "gold", "--long-dreams", "0", "--branches", "60")
PRESETS = {
    "default": Preset(200_000, 0, GOLD, HELD_OUT),
    "smoke": Preset(4000, 0, ("--tier", "canary"), ("--tier", "canary")),
    "long": Preset(1_000_000, 2_000_000, GOLD, HELD_OUT),
    "gpu": Preset(1_000_000, 0, GOLD, HELD_OUT),
}


def build_parser():
    parser = cli.parser(__file__)
    parser.add_argument("--game", default="breakout")
    parser.add_argument("--preset", choices=PRESETS, default="default")
    parser.add_argument("--frames", type=cli.positive_int,
                        help="frames to collect (default: the preset's)")  # fmt: skip
    parser.add_argument("--vqvae", type=cli.name,
                        help="take this one instead of training one: shipped, a run or a file")
    parser.add_argument("--out", type=cli.path, help="directory (default: "
                        "checkpoints/v2/<game>, and runs/smoke in it for smoke)")  # fmt: skip
    return parser


def main(argv=None) -> int:
    args = build_parser().parse_args(argv)
    directory = game_directory(args.game)
    is_smoke = args.preset == "smoke"
    if is_smoke:
        directory = directory / "runs" / "smoke"  # apart from the data and runs that count
    directory = (args.out or directory).resolve()
    check_writable(directory)
    directory.mkdir(parents=True, exist_ok=True)
    with Lock(directory / "pipeline.lock", f"running all stages in {directory}"):
        return _run_all(Pipeline(directory, args.game, args.preset), args)


def _run_all(pipeline: "Pipeline", args: argparse.Namespace) -> int:
    preset = PRESETS[args.preset]
    data = pipeline.directory / f"{DATA_NAME}.npz"
    tokens = pipeline.directory / f"{TOKENS_NAME}.npz"
    vqvae = None
    if args.vqvae:
        vqvae = find_weights(args.vqvae, "vqvae", args.game, pipeline.directory)
        print(f"VQ-VAE: {vqvae}")
    if args.game.startswith(OWN):  # nothing makes it again: smoke learns from it, too
        data = default_data(args.game, pipeline.directory)
        check_recorded(data, args.game)
    else:
        pipeline.collect(pipeline.directory, args.frames or preset.frames)
    num_frames = check_frames(data, args.frames, args.game)
    recordings = [data]
    adds_games = preset.more_frames and not args.frames
    if adds_games and not _is_collected(data):
        print(f"{data} is not what this preset records: no other games are added to it")
    elif adds_games:
        folder = pipeline.directory / "more"
        pipeline.collect(folder, preset.more_frames, "--seed", 1)
        recordings.append(folder / data.name)
        num_frames += check_frames(recordings[1], preset.more_frames, args.game)
    print(f"{num_frames} frames: {shown(recordings)}")
    wanted = {"data_sha256": recording_sha256(data)}
    runs = {}
    if vqvae is None:
        vqvae = runs[TRAIN_VQVAE] = pipeline.train("vqvae", wanted, TRAIN_VQVAE, "--data", data)
    model, _ = load_vqvae(find_weights(str(vqvae), "vqvae", args.game))
    if not tokens.exists() or staleness(tokens, model, recordings):
        pipeline.run(TOKENIZE, "--data", *recordings, "--vqvae", vqvae, "--out", tokens)
    wanted = {"data_sha256": recording_sha256(recordings), "vqvae_sha256": tokenizer_sha256(model)}
    world_model = runs[TRAIN_WM] = pipeline.train(
        "world_model", wanted, TRAIN_WM,
        "--data", *recordings, "--tokens", tokens, "--vqvae", vqvae,
    )  # fmt: skip
    has_gold = game_id(args.game) in GOLD_GAMES
    flags = preset.evaluation if has_gold else ("--data", data, *preset.held_out)
    evaluated = world_model / "best.pt"
    card = world_model / ("gold.md" if has_gold else "held_out.md")
    if not (card.exists() and card.stat().st_mtime > evaluated.stat().st_mtime):
        results = ("--json", card.with_suffix(".json"), "--model-card", card)
        pipeline.run(EVALUATE, "--checkpoint", evaluated, *results, *flags)
    print(f"its results: {card}")
    peak = max(matrix_products(choose_device("auto"), 1.0).values())
    print(f"a matrix product now: {peak:.0f} GFLOP/s")
    print("\n".join(stage_lines(pipeline.seconds, runs, num_frames, peak)))
    play = command("play_atari_hires.py", game=args.game, checkpoint=world_model)
    print(f"next: {play}")
    return 0


def _is_collected(data: Path) -> bool:
    """Tell whether a recording is what `collect_atari.py` makes as the stages call it."""
    meta = read_meta(data_paths(data)[0], META_FIELDS)
    config = stored_config(meta["emulator"])
    if not isinstance(config, EmulatorConfig) or (meta["policy"], meta["seed"]) != ("mix", 0):
        return False
    try:
        usual = emulator_dict(emulator_config(config.game, max_pool=config.max_pool))
    except ValueError:  # it needs an argument
        return False
    return not differing_settings(usual, meta["emulator"])


def check_frames(data: Path, asked: int | None, game: str) -> int:
    """Return how many frames a recording holds; it must be those that were asked for, if any.

    Raises:
        FileExistsError: with both numbers and what to do.
    """
    held = sum(episode["frames"] for episode in list_episodes(data).episodes)
    num_policies = len(policy_mix("mix", game_id(game)))  # each may lack a frame
    if asked and not 0 <= asked - held <= num_policies:
        raise FileExistsError(
            f"{data_paths(data)[0]} is there with {held} frames in all, not {asked}: leave "
            "--frames (FRAMES) out to keep them, delete them to record anew, or give another --out"
        )
    return held


def stage_lines(
    seconds: dict[str, float], runs: dict[str, Path], num_frames: int, peak: float
) -> list[str]:
    """Say how long each stage took: training in all sittings, the others where run in this one."""
    lines = []
    for script in (COLLECT, TRAIN_VQVAE, TOKENIZE, TRAIN_WM, EVALUATE):
        if script in runs:
            minutes, speed = read_status(runs[script])["minutes"], share_of_peak(runs[script], peak)
        elif script in seconds:
            minutes, speed = seconds[script] / 60, ""
            if script in (COLLECT, TOKENIZE):
                speed = f", {num_frames / seconds[script]:.0f} frames a second"
        else:
            continue
        lines.append(f"{script:32s} {minutes:6.1f} minutes{speed}")
    return lines


def share_of_peak(run: Path, peak: float) -> str:
    """Say how fast a run computed, all of its minutes counted, beside a peak in GFLOP/s."""
    config, status = read_config(run), read_status(run)
    num_steps = status["step"]
    if config["kind"] == "world_model":
        recipe = recipe_of(WorldModelRecipe, config["recipe"])
        model, _ = load_world_model(run / "last.pt")
        flops, work = functools.cache(functools.partial(window_flops, model)), 0.0
        for k in range(num_steps):
            windows, steps = recipe.batch_size, 1
            if recipe.unrolls(step_rng(config["args"]["seed"], k), k, num_steps):
                windows, steps = recipe.rollout_batch_size, recipe.rollout_steps
            num_cells = recipe.cells_at(k, num_steps, model.config.num_cells)
            work += windows * steps * flops(steps, num_cells, recipe.layers_at(k, num_steps))
    else:
        batch_size = recipe_of(VQVAERecipe, config["recipe"]).batch_size
        work = num_steps * batch_size * image_flops(VQVAE(VQVAEConfig()))
    rate = work / 1e9 / (60 * status["minutes"])
    return f", {rate:.0f} GFLOP/s: {rate / peak:.0%} of the matrix product"


def image_flops(vqvae: VQVAE) -> float:
    """Count what a training image takes."""
    return count_flops(image_work(vqvae))


def window_flops(model: TemporalWorldModel, steps: int, num_cells: int, num_layers: int) -> float:
    """Count what a predicted frame takes in training."""
    return count_flops(window_work(model, steps, num_cells, num_layers)) / (2 * steps)


class Pipeline:
    """Runs the scripts one after another in one directory."""

    def __init__(self, directory: Path, game: str, preset: str):
        self.directory, self.game, self.preset = directory, game, preset
        self.seconds: dict[str, float] = {}

    def run(self, script: str, *flags) -> None:
        """Run a script and note how long it took."""
        began = time.perf_counter()
        cli.run_script(script, "--game", self.game, *flags)
        self.seconds[script] = time.perf_counter() - began

    def collect(self, folder: Path, frames: int, *flags) -> None:
        """Record, or take the recording that is there; one that was stopped is made again.

        A mark is there while our own recording is unfinished: empty at first, then, once it was
        stopped, with the hashes of what it left, so that what is put there later is kept. Whoever
        finishes a recording there takes it away.
        """
        data, mark = folder / f"{DATA_NAME}.npz", folder / UNFINISHED
        folder.mkdir(exist_ok=True)
        is_ours = mark.exists() and mark.read_text("utf-8") in ("", _hashes(data))
        if recorded_files(data) and not is_ours:
            mark.unlink(missing_ok=True)
            return
        write_text(mark, "")
        again = ["--overwrite"] if recorded_files(data) else []
        try:
            self.run(COLLECT, "--frames", frames, "--out", folder, *flags, *again)
        except SystemExit:
            write_text(mark, _hashes(data))
            raise
        mark.unlink(missing_ok=True)

    def train(self, kind: str, wanted: dict[str, str], script: str, *flags) -> Path:
        """Train, or go on with the newest fitting run where that is unfinished, or take it.

        Args:
            wanted: hashes of the data and the tokenizer that the run must have learnt from.
        """
        self._bring_carried()
        run = self._newest_run(kind, wanted)
        if run is None:
            self.run(script, "--preset", self.preset, "--out", self.directory, *flags)
        elif not is_finished(run):
            self.run(script, "--resume", run, *flags)
        else:
            print(f"{kind}: {run} is finished")
        run = run or self._newest_run(kind, wanted)
        assert run is not None
        return run

    def _bring_carried(self) -> None:
        """Go on here with the runs that `v2/train/carry.py` brought, where they came further.

        What was here of the same run stays beside it, named by its step.
        """
        for carried in sorted((self.directory / CARRIED).glob("*/config.json")):
            run = self.directory / "runs" / carried.parent.name
            state, step = checkpoint.load_last(carried.parent, "world_model"), _step_of(run)
            if state["step"] <= step:
                continue
            with tempfile.TemporaryDirectory(dir=self.directory) as folder:
                copy = Path(shutil.copytree(carried.parent, Path(folder) / run.name))
                if not (copy / VQVAE_NAME).exists():
                    shipped = find_weights("shipped", "vqvae", self.game)
                    shutil.copyfile(shipped, copy / VQVAE_NAME)
                run.parent.mkdir(exist_ok=True)
                if run.exists():
                    RunDir(run).check_free()
                    run.rename(free_path(run.with_name(f"{run.name}_at_{max(0, step)}")))
                copy.rename(run)
            RunDir(run).set_status(
                is_finished=False, step=state["step"], minutes=state.get("minutes", 0.0)
            )  # now the newest
            print(f"brought from {carried.parent}: {run}")

    def _newest_run(self, kind: str, wanted: dict[str, str]) -> Path | None:
        for run in reversed(all_runs(self.directory)):
            config = read_config(run)
            if config["kind"] != kind or not (run / "last.pt").exists():
                continue
            recipe = dataclasses.asdict(RECIPES[kind][self.preset])
            if config.get("recipe") != recipe:
                print(f"{kind}: {run} is left out, it is not of the {self.preset} recipe")
                continue
            state = checkpoint.load_last(run, kind)
            differing = [key for key in wanted if state.get(key, wanted[key]) != wanted[key]]
            if differing:
                print(f"{kind}: {run} is left out, it learnt from {SOURCES[differing[0]]}")
            elif not is_finished(run) and _is_of_older_code(state):
                print(f"{kind}: {run} is left out, unfinished and of another architecture")
            else:
                return run
        return None


def _step_of(run: Path) -> int:
    """Return the step that a world-model run was last saved at, -1 where it never was."""
    if not (run / "last.pt").exists():
        return -1
    return checkpoint.load_last(run, "world_model")["step"]


def _is_of_older_code(state: dict) -> bool:
    """Tell whether training would build another model today, so that it cannot go on with this."""
    today = {"vqvae": VQVAEConfig, "world_model": WorldModelConfig}[state["kind"]](
        **{k: v for k, v in state["config"].items() if k in OF_A_RUN}
    )
    return bool(checkpoint.differing_fields(today, told(state)["config"]))


def _hashes(data: Path) -> str:
    return " ".join(map(file_sha256, recorded_files(data))) or "nothing"


if __name__ == "__main__":
    cli.run(main)
