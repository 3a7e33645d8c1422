"""The suite: every part of the evaluation, run on one set, as one document.

Contract: the same for the frozen set and for a recording's held-out games; two documents are
compared only if evaluator, data and `Tier` agree. Knows nothing of flags or output.
"""

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from v2.data.atari_dataset import (
    GameData,
    data_sha256,
    load_game_data,
    split_of_game,
    window_starts,
)
from v2.data.policies import SCRIPTED, STICKY
from v2.dream import DreamEngine
from v2.eval import documents
from v2.eval.branches import BRANCH_STEPS, SHUFFLE_HORIZONS, branch_scores, shuffle_scores
from v2.eval.engine import (
    BATCH,
    Engine,
    Scores,
    decode,
    dream,
    encode,
)
from v2.eval.gold import EvaluationSet
from v2.eval.intervals import Metric
from v2.eval.long_dreams import long_dream_scores
from v2.eval.objects import detector
from v2.eval.one_step import LEAD_STEPS, ending_scores, one_step_scores
from v2.eval.rollouts import HORIZONS, rollout_scores
from v2.eval.starts import (
    ANY,
    HISTORY,
    Clips,
    cut_clips,
    even_starts,
    random_starts,
    strata_of,
    stratified_starts,
)
from v2.eval.tokenizer import tokenizer_scores
from v2.runtime import checkpoint
from v2.runtime.run_dir import OF_A_MACHINE

VERSION = 10  # raise it when a number may change


def speed_scores(engine: Engine, clips: Clips, steps_per_second: float, steps: int = 60) -> Scores:
    """Time single dream steps on this device, after a few to warm up."""
    engine.reset(clips.history[:1], clips.past_actions[:1])
    seconds = []
    for k in range(steps + 5):
        action = clips.actions[:1, k % clips.actions.shape[1]].astype(np.int64)
        began = time.perf_counter()
        engine.step(action)
        seconds.append(time.perf_counter() - began)
    milliseconds = 1000 * np.array(seconds[5:])
    rate = 1000 / milliseconds.mean()
    return {
        "speed/steps_per_second": Metric(float(rate), num_samples=steps),
        "speed/latency_p50_ms": Metric(float(np.percentile(milliseconds, 50)), num_samples=steps),
        "speed/latency_p95_ms": Metric(float(np.percentile(milliseconds, 95)), num_samples=steps),
        "speed/real_time_factor": Metric(float(rate / steps_per_second), num_samples=steps),
    }


TARGET_MINUTES = 30
REAL_FRAME_EVERY = 20  # of all games: dreams are measured against these


@dataclass(frozen=True)
class Tier:
    """How much is evaluated; two results are compared only if these agree."""

    tokenizer_frames: int
    one_step_clips: int
    rollouts: int
    rollout_steps: int
    branches: int
    long_dreams: int
    long_dream_steps: int
    timed_steps: int

    def engine_steps(self, num_actions: int) -> int:
        """Return the world-model steps that all this takes."""
        rollouts = self.rollouts * (self.rollout_steps + max(SHUFFLE_HORIZONS))
        branches = self.branches * num_actions * BRANCH_STEPS
        return self.one_step_clips + rollouts + branches + self.long_dreams * self.long_dream_steps


TIERS = {
    "canary": Tier(48, 32, 6, 20, 6, 0, 0, 15),
    "short": Tier(400, 600, 120, 20, 40, 0, 0, 15),
    "gold": Tier(400, 600, 48, 200, 200, 20, 1000, 60),
}


def set_of_data(path: Path, game: str, tier: Tier, which: str) -> EvaluationSet:
    """Take a recording: its validation games, or all of it where it has none apart.

    Args:
        which: the `--starts` of the rollouts.
    """
    data = load_game_data(path)
    if data.meta["game"] != game:
        raise ValueError(f"{path} holds {data.meta['game']}, not {game}: give --game or other data")
    digest = data_sha256(data.meta)
    rows, split = np.arange(len(data)), "all games"
    if any(split_of_game(episode["seed"]) == "val" for episode in data.meta["episodes"]):
        rows, split = data.rows_of("val"), "held-out games"
    arrays = {name: array[rows] for name, array in data.arrays().items()}
    data = GameData(**arrays, meta=data.meta)
    rng = np.random.default_rng(0)
    try:
        if which == "any":
            starts = random_starts(data, tier.rollouts, tier.rollout_steps, rng)
            strata = [ANY] * len(starts)
        else:
            each = -(-tier.rollouts // len(strata_of(game)))
            starts, strata = stratified_starts(data, each, tier.rollout_steps, rng)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; collect more frames") from error
    return EvaluationSet(data, starts, strata, None, False, digest,
                         f"NOT the gold set but {split} of {path}")  # fmt: skip


def check_fits(engine: DreamEngine, data: GameData) -> None:
    if engine.num_actions != data.num_actions:
        raise ValueError(
            f"{engine.source} knows {engine.num_actions} actions and the data {data.num_actions}: "
            "give the game that the weights were trained on"
        )
    emulator = engine.info.get("emulator")
    if emulator and emulator != data.meta["emulator"]:
        raise ValueError(
            f"{engine.source} was trained with emulator settings {emulator}, the data has "
            f"{data.meta['emulator']}"
        )


class Stopped(Exception):
    """A signal asked for the end."""


def evaluate(
    engine, chosen: EvaluationSet, tier: Tier, name: str, stop=False
) -> tuple[dict, dict]:
    """Run every part of the protocol; return the document and what the report shows.

    Raises:
        Stopped: `stop` became true.
    """
    began, data, game = time.perf_counter(), chosen.data, chosen.data.meta["game"]
    starts = _spread(np.arange(len(chosen.starts)), tier.rollouts)
    clips = cut_clips(data, chosen.starts[starts], tier.rollout_steps,
                      [chosen.strata[k] for k in starts])  # fmt: skip
    ends = _endings(data, tier.one_step_clips, 1)
    led = _endings(data, tier.one_step_clips, LEAD_STEPS)
    num_steps = tier.engine_steps(data.num_actions) + len(ends) + len(led) * (LEAD_STEPS + 1)
    if chosen.branches is None:
        num_steps -= tier.branches * data.num_actions * BRANCH_STEPS
    _announce(engine, clips, num_steps)
    num_codes = engine.vqvae.config.num_codes
    pictures = {"clips": clips}
    with tqdm(total=num_steps, unit="step", disable=None, smoothing=0.05) as bar:

        def advance(steps: int) -> None:
            bar.update(steps)
            if stop:
                raise Stopped

        scores = tokenizer_scores(engine, _even(data, tier.tokenizer_frames), num_codes)
        some = _even(data, tier.one_step_clips)
        scores |= one_step_scores(engine, some, ends, advance)
        scores |= ending_scores(engine, led, advance)
        own = clips.actions[:, HISTORY - 1 :]
        dreams = dream(engine, clips.history, clips.past_actions, own, None, advance)
        scores |= _rollouts(engine, clips, dreams)
        scores |= shuffle_scores(engine, clips, dreams, advance)
        pictures["dreams"] = dreams
        if chosen.branches is not None:
            branches = chosen.branches.first(tier.branches)
            rows, pictures["branch_dreams"] = branch_scores(engine, branches, advance)
            scores |= rows
            pictures["branches"] = branches
        if tier.long_dreams:
            long_scores, pictures["long"] = _long(engine, data, clips, tier, num_codes, advance)
            scores |= long_scores
    scores |= speed_scores(engine, clips, data.emulator.steps_per_second, tier.timed_steps)
    document = documents.make_document(
        scores, evaluator=VERSION, tier=name, game=game, is_gold=chosen.is_gold,
        data_sha256=chosen.sha256, data=chosen.source, model=engine.source,
        vqvae_sha256=engine.info["sha256"]["vqvae"],
        world_model_sha256=engine.info["sha256"]["world_model"],
        num_parameters=engine.num_parameters, device=str(engine.device), torch=torch.__version__,
        threads=torch.get_num_threads(), seconds=round(time.perf_counter() - began, 1),
        settings=dataclasses.asdict(tier) | {"strata": sorted(set(clips.strata))},
        notes=_notes(chosen, game),
        training={"train_vqvae_hires": _training(engine.info.get("vqvae", {})),
                  "train_wm_hires": _training(engine.info)},
    )  # fmt: skip
    return document, pictures


def _training(info: dict) -> list[dict]:
    """Return how weights were trained, run by run: steps, minutes, the flags that repeat it.

    Flags that a later run has and this one does not are `unknown`: they did not exist then.
    """
    runs, later = [], set()
    for run in reversed(checkpoint.lineage(info)):
        args = run.get("train_args", {})
        flags = {
            name: value for name, value in args.items()
            if name not in OF_A_MACHINE and value is not None and value is not False
        }  # fmt: skip
        later |= args.keys() - set(OF_A_MACHINE)
        runs.append({"steps": run.get("step"), "minutes": run.get("minutes"), "flags": flags,
                     "unknown": sorted(later - args.keys()),
                     "averaged_with": run.get("averaged_with", []),
                     "data": run.get("data_sha256", "")})  # fmt: skip
    return runs[::-1]


def _announce(engine, clips: Clips, num_steps: int) -> None:
    """Time two batches and say how long the whole will take."""
    batch = np.arange(BATCH) % len(clips)
    engine.reset(clips.history[batch], clips.past_actions[batch])
    engine.step(clips.actions_to(1)[batch].astype(np.int64))
    began = time.perf_counter()
    engine.step(clips.actions_to(2)[batch].astype(np.int64))
    rate = BATCH / (time.perf_counter() - began)
    minutes = num_steps / rate / 60
    print(f"{num_steps} steps at {rate:.1f} a second: about {minutes:.1f} minutes")
    if minutes > TARGET_MINUTES:
        print(f"more than {TARGET_MINUTES}: --long-dreams and --long-dream-steps make it shorter")


def _even(data: GameData, count: int) -> Clips:
    return cut_clips(data, even_starts(data, count, 1), 1)


def _endings(data: GameData, most: int, horizon: int) -> Clips:
    """Cut the steps that lead to the end of a game, with the four frames before."""
    rows = window_starts(data.episode_ids, HISTORY + horizon) + HISTORY - 1
    return cut_clips(data, _spread(rows[data.terminated[rows + horizon - 1]], most), horizon)


def _spread(rows: np.ndarray, count: int) -> np.ndarray:
    return rows[np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int))]


def _rollouts(engine, clips: Clips, dreams) -> dict:
    horizons = [h for h in HORIZONS if h <= clips.horizon]
    tokens = {h: encode(engine, clips.frames_at(h)) for h in (0, *horizons)}
    kept = {h: decode(engine, tokens[h], engine.grid) for h in horizons}
    return rollout_scores(clips, dreams, tokens, kept, horizons)


def _long(engine, data: GameData, clips: Clips, tier: Tier, num_codes: int, progress):
    """Start long dreams where the ball is in play, and show its player's real games beside them."""
    strata = strata_of(data.meta["game"])
    flying = np.flatnonzero(~np.isin(clips.strata, ("serve", strata[-1])) | (len(strata) == 1))
    chosen = clips.history[flying], clips.past_actions[flying], clips.episodes[flying]
    missing = tier.long_dreams - len(flying)
    if missing > 0:
        starts = random_starts(data, missing, 1, np.random.default_rng(1))
        more = cut_clips(data, starts, 1)
        chosen = tuple(
            np.concatenate(pair)
            for pair in zip(chosen, (more.history, more.past_actions, more.episodes), strict=True)
        )
    history, past, episodes = (_spread(part, tier.long_dreams) for part in chosen)
    player = (SCRIPTED if detector.has_truth(data.meta["game"]) else STICKY).name
    ids = np.unique(data.episode_ids)
    played = [episode["id"] for episode in data.meta["episodes"] if episode.get("policy") == player]
    ids = ids[np.isin(ids, played)] if np.isin(ids, played).any() else ids
    games = [data.frames[data.episode_ids == k] for k in ids]
    ends = np.array([data.terminated[data.episode_ids == k].any() for k in ids])
    return long_dream_scores(
        engine, data.meta["game"], data.meta["action_meanings"], history, past, episodes,
        tier.long_dream_steps, games, ends, data.frames[::REAL_FRAME_EVERY], num_codes, progress,
    )  # fmt: skip


def _notes(chosen: EvaluationSet, game: str) -> list[str]:
    notes = []
    if not chosen.is_gold:
        notes.append("this is not the gold set; counterfactual branches need one")
    if not detector.has_truth(game):
        notes.append(f"the objects of {game} cannot be read: rows of ball, paddle, bricks and "
                     "digits are left out")  # fmt: skip
    return notes
