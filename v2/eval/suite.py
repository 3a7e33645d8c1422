"""The suite: every part of the evaluation, run on one set, as one document.

Contract: the same for the frozen set and for a recording's held-out games; two documents are
compared only if evaluator, data and `Tier` agree. Knows nothing of flags or output.
"""

import dataclasses
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from v2.data.atari_dataset import GameData, spread, window_starts
from v2.data.games import differing_settings
from v2.data.policies import SCRIPTED, STICKY
from v2.data.recordings import Data
from v2.dream import DreamEngine
from v2.eval import documents
from v2.eval.branches import BRANCH_STEPS, SHUFFLE_HORIZONS, branch_scores, shuffle_scores
from v2.eval.engine import (
    BATCH,
    Scores,
    begin_clips,
    decode,
    dream,
    encode,
    known_ages,
    speed_scores,
)
from v2.eval.gold import EvaluationSet, load_gold, load_recorded
from v2.eval.long_dreams import long_dream_scores
from v2.eval.objects import detector
from v2.eval.one_step import LEAD_STEPS, ending_scores, one_step_scores
from v2.eval.rollouts import HORIZONS, Rollouts, rollout_scores
from v2.eval.starts import HISTORY, Clips, cut_clips, even_starts, strata_of
from v2.eval.tokenizer import tokenizer_scores
from v2.eval.turns import turn_scores, turn_starts
from v2.runtime import checkpoint
from v2.runtime.run_dir import OF_A_MACHINE

VERSION = 13  # raise it when a number may change
TARGET_MINUTES = 30
NUM_KINDS = 8  # of turns, at most; more windows of flight count as one
REAL_FRAME_EVERY = 20  # of all games: dreams are measured against these


@dataclass(frozen=True)
class Tier:
    """How much is evaluated; two results are compared only if these agree."""

    tokenizer_frames: int
    one_step_clips: int
    turns: int  # windows of each kind
    rollouts: int
    rollout_steps: int
    long_rollouts: int  # for the horizons beyond; 0: none
    long_rollout_steps: int
    branches: int
    long_dreams: int
    long_dream_steps: int
    timed_steps: int

    def engine_steps(self, num_actions: int, has_branches: bool = True) -> int:
        """Return the world-model steps that all this takes."""
        rollouts = self.rollouts * (self.rollout_steps + max(SHUFFLE_HORIZONS))
        rollouts += self.long_rollouts * self.long_rollout_steps
        branches = self.branches * num_actions * BRANCH_STEPS * has_branches
        long = self.long_dreams * self.long_dream_steps
        return self.one_step_clips + NUM_KINDS * self.turns + rollouts + branches + long


TIERS = {
    "canary": Tier(48, 32, 8, 6, 20, 0, 0, 6, 0, 0, 15),
    "short": Tier(400, 600, 200, 120, 20, 0, 0, 40, 0, 0, 15),
    "gold": Tier(400, 600, 240, 240, 50, 48, 200, 200, 20, 1000, 60),
}


def choose_set(
    game: str, tier: Tier, data: Data | None, which: str = "strata", asked: int | None = None,
    learnt: Collection[Sequence[str]] = (),
) -> EvaluationSet:  # fmt: skip
    """Return the gold set of a game, or what there is to evaluate on in a recording.

    Args:
        which: where rollouts on `data` begin, `strata` or `any` (v2.eval.gold.load_recorded).
        asked: rollouts that were asked for by number; a tier takes what the gold set has.
        learnt: what the models were trained on, as `load_recorded` takes it.
    Raises:
        FileNotFoundError, ValueError: no gold set, data that do not fit, or too few rollouts.
    """
    if data is not None:
        return load_recorded(data, game, tier.rollouts, tier.rollout_steps, which, learnt,
                             tier.long_rollouts, tier.long_rollout_steps,
                             tier.branches)  # fmt: skip
    if which != "strata":
        raise ValueError(f"--starts {which} needs --data: the gold set has its own starts")
    chosen = load_gold(game)
    if asked and asked > len(chosen.starts):
        raise ValueError(
            f"--rollouts must be at most {len(chosen.starts)} on the gold set, got {asked}: "
            "--data FILE has more"
        )
    return chosen


def check_fits(engine: DreamEngine, data: GameData) -> None:
    """Make sure that weights and data are of one game and one emulator.

    Raises:
        ValueError: they are not.
    """
    if engine.num_actions != data.num_actions:
        raise ValueError(
            f"{engine.source} knows {engine.num_actions} actions and the data {data.num_actions}: "
            "give the game that the weights were trained on"
        )
    emulator = engine.info.get("emulator") or data.meta["emulator"]
    if differing := differing_settings(emulator, data.meta["emulator"]):
        raise ValueError(
            f"{engine.source} was trained with {'; '.join(differing)} as in the data: give weights "
            "and data of the same settings"
        )


class Stopped(Exception):
    """A signal asked for the end."""


def evaluate(
    engine, chosen: EvaluationSet, tier: Tier, name: str, stop=False, flags: str = "",
    played: dict | None = None,
) -> tuple[dict, dict]:  # fmt: skip
    """Run every part of the suite; return the document and the pictures that the report shows.

    Args:
        name: the tier's; flags: those that make the document again.
        stop: asked after every batch of steps.
        played: how frames are decoded, by the names of `DreamEngine.load`.
    Raises:
        Stopped: `stop` became true.
    """
    began = time.perf_counter()
    data = dataclasses.replace(chosen.data, ages=known_ages(engine, chosen.data))
    chosen = dataclasses.replace(chosen, data=data)
    if chosen.rollout_steps:
        tier = dataclasses.replace(tier, rollout_steps=chosen.rollout_steps)
    clips = _clips(chosen.data, chosen.starts, chosen.strata, tier.rollouts, tier.rollout_steps)
    ends = _endings(chosen.data, tier.one_step_clips, 1)
    led = _endings(chosen.data, tier.one_step_clips, LEAD_STEPS)
    num_steps = len(ends) + len(led) * (LEAD_STEPS + 1)
    num_steps += tier.engine_steps(chosen.data.num_actions, chosen.branches is not None)
    _announce(engine, clips, num_steps)
    with tqdm(total=num_steps, unit="step", disable=None, smoothing=0.05) as bar:

        def advance(steps: int) -> None:
            bar.update(steps)
            if stop:
                raise Stopped

        scores, pictures = _all_scores(engine, chosen, tier, clips, ends, led, advance)
    steps_per_second = chosen.data.emulator.steps_per_second
    scores |= speed_scores(engine, clips, steps_per_second, tier.timed_steps)
    document = documents.make_document(
        scores, **_origin(engine, chosen), tier=name, flags=flags, engine=played or {},
        settings=dataclasses.asdict(tier) | {"strata": sorted(set(clips.strata))},
        notes=_notes(chosen, played or {}, name), seconds=round(time.perf_counter() - began, 1),
    )  # fmt: skip
    return document, pictures


def _all_scores(
    engine, chosen: EvaluationSet, tier: Tier, clips: Clips, ends: Clips, led: Clips,
    advance: Callable[[int], object],
) -> tuple[Scores, dict]:  # fmt: skip
    """Run all that dreams.

    Args:
        clips: of the rollouts but the long ones; ends, led: of the last step of games, and of the
            steps before.
    """
    data, num_codes = chosen.data, engine.vqvae.config.num_codes
    scores = tokenizer_scores(engine, _even(data, tier.tokenizer_frames), num_codes)
    scores |= one_step_scores(engine, _even(data, tier.one_step_clips), ends, advance)
    scores |= ending_scores(engine, led, advance)
    game = data.meta["game"]
    if detector.has_truth(game):
        starts, kinds = turn_starts(game, data.ram, data.episode_ids, None, tier.turns)
        if len(starts):
            scores |= turn_scores(engine, cut_clips(data, starts, 1, kinds), advance)
    rows, pictures = _open_loop(engine, chosen, tier, clips, advance)
    scores |= rows
    if chosen.branches is not None:
        branches = chosen.branches.first(tier.branches)
        rows, pictures["branch_dreams"] = branch_scores(engine, branches, advance)
        scores |= rows
        pictures["branches"] = branches
    if tier.long_dreams:
        rows, pictures["long"] = _long(engine, data, clips, tier, num_codes, advance)
        scores |= rows
    return scores, pictures


def _origin(engine, chosen: EvaluationSet) -> dict:
    """Return what was evaluated on what: weights, data, machine."""
    hashes = engine.info["sha256"]
    return {
        "evaluator": VERSION, "game": chosen.data.meta["game"], "is_gold": chosen.is_gold,
        "data_sha256": chosen.sha256, "data": chosen.source, "model": engine.source,
        "vqvae_sha256": hashes["vqvae"], "world_model_sha256": hashes["world_model"],
        "num_parameters": engine.num_parameters, "device": str(engine.device),
        "num_cells": engine.info.get("config", {}).get("num_cells"),
        "torch": torch.__version__, "threads": torch.get_num_threads(),
        "emulator": chosen.data.meta["emulator"],
        "training": {"train_vqvae_hires": training_runs(engine.info.get("vqvae", {})),
                     "train_wm_hires": training_runs(engine.info)},
    }  # fmt: skip


def training_runs(info: dict) -> list[dict]:
    """Return how weights were trained, run by run: steps, minutes, the flags that repeat it.

    Flags that a later run has and this one does not are `unknown`: they did not exist then.
    """
    runs, later = [], set()
    for run in reversed(checkpoint.lineage(info)):
        args = run.get("recipe") or run.get("train_args", {})
        flags = {
            name: value for name, value in args.items()
            if name not in OF_A_MACHINE
            and (value is not False or "recipe" in run) and value not in (None, "")
        }  # fmt: skip
        later |= args.keys() - set(OF_A_MACHINE)
        runs.append({"steps": run.get("step"), "minutes": run.get("minutes"), "flags": flags,
                     "is_recipe": "recipe" in run,
                     "unknown": sorted(later - args.keys()),
                     "data": run.get("data_sha256", "")})  # fmt: skip
    return runs[::-1]


def _announce(engine, clips: Clips, num_steps: int) -> None:
    """Time two batches and say how long the whole will take."""
    batch = np.arange(BATCH) % len(clips)
    begin_clips(engine, clips, batch)
    engine.step(clips.actions_to(1)[batch].astype(np.int64))
    began = time.perf_counter()
    engine.step(clips.actions_to(min(2, clips.horizon))[batch].astype(np.int64))
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
    return cut_clips(data, spread(rows[data.terminated[rows + horizon - 1]], most), horizon)


def _clips(data: GameData, starts: np.ndarray, strata: list[str], most: int, steps: int) -> Clips:
    """Cut as many rollouts as wanted, or as there are, evenly spread over the strata."""
    chosen = spread(np.arange(len(starts)), most)
    return cut_clips(data, starts[chosen], steps, [strata[k] for k in chosen])


def _open_loop(
    engine, chosen: EvaluationSet, tier: Tier, clips: Clips, advance: Callable[[int], object]
) -> tuple[Scores, dict]:
    """Score the many rollouts and the few long ones, and show of the longest."""
    near, far = _rollouts(engine, clips, 0, advance), None
    if tier.long_rollouts and len(chosen.long_starts):
        long = _clips(chosen.data, chosen.long_starts, chosen.long_strata, tier.long_rollouts,
                      tier.long_rollout_steps)  # fmt: skip
        far = _rollouts(engine, long, tier.rollout_steps, advance)
    scores = rollout_scores(near, far) | shuffle_scores(engine, clips, near.dreams, advance)
    shown = far or near
    return scores, {"clips": shown.clips, "dreams": shown.dreams}


def _rollouts(engine, clips: Clips, after: int, progress) -> Rollouts:
    """Dream clips under their own actions.

    Args:
        after: the horizons that are scored lie beyond this one.
    """
    own = clips.actions[:, HISTORY - 1 :]
    dreams = dream(engine, clips.history, clips.past_actions, own, None, progress, clips.ages)
    horizons = [h for h in HORIZONS if after < h <= clips.horizon]
    tokens = {h: encode(engine, clips.frames_at(h)) for h in (0, *horizons)}
    kept = {h: decode(engine, tokens[h], engine.grid) for h in horizons}
    return Rollouts(clips, dreams, tokens, kept)


def _has_ball(game: str, ram: np.ndarray) -> np.ndarray:
    """Tell in which frames a ball is in play, also behind bricks, bool (B,)."""
    return np.isfinite(detector.read_ram(game, ram).ball[:, 0])


def _long(engine, data: GameData, clips: Clips, tier: Tier, num_codes: int, progress):
    """Start long dreams where the ball is in play, and show its policy's real games beside them."""
    game = data.meta["game"]
    strata = strata_of(game)
    is_flying = ~np.isin(clips.strata, ("serve", strata[-1])) | (len(strata) == 1)
    if detector.has_truth(game):
        is_flying &= _has_ball(game, clips.ram[:, HISTORY - 1])
    flying = np.flatnonzero(is_flying)
    chosen: tuple[np.ndarray, ...] = (
        clips.history[flying], clips.past_actions[flying], clips.episodes[flying]
    )  # fmt: skip
    ages = None if clips.ages is None else clips.ages[flying]
    missing = tier.long_dreams - len(flying)
    if missing > 0:
        starts = even_starts(data, len(data), 1)
        if detector.has_truth(game) and (has_ball := _has_ball(game, data.ram[starts])).any():
            starts = starts[has_ball]
        more = cut_clips(data, spread(starts, missing), 1)
        chosen = tuple(
            np.concatenate(pair)
            for pair in zip(chosen, (more.history, more.past_actions, more.episodes), strict=True)
        )
        if ages is not None and more.ages is not None:
            ages = np.concatenate([ages, more.ages])
    history, past, episodes = (spread(part, tier.long_dreams) for part in chosen)
    ages = None if ages is None else spread(ages, tier.long_dreams)
    policy = (SCRIPTED if detector.has_truth(game) else STICKY).name
    ids = np.unique(data.episode_ids)
    played = [episode["id"] for episode in data.meta["episodes"] if episode.get("policy") == policy]
    ids = ids[np.isin(ids, played)] if np.isin(ids, played).any() else ids
    firsts, lasts = (np.searchsorted(data.episode_ids, ids, side) for side in ("left", "right"))
    games = [data.frames[first:last] for first, last in zip(firsts, lasts, strict=True)]
    ends = np.array([data.terminated[data.episode_ids == k].any() for k in ids])
    return long_dream_scores(
        engine, game, data.meta["action_meanings"], history, past, episodes,
        tier.long_dream_steps, games, ends, data.frames[::REAL_FRAME_EVERY], num_codes, progress,
        ages,
    )  # fmt: skip


def _notes(chosen: EvaluationSet, played: dict, name: str) -> list[str]:
    """Return what sets these numbers apart from those of the shipped way to dream on gold."""
    game, notes = chosen.data.meta["game"], []
    if not chosen.is_gold:
        notes.append("this is not the gold set")
    if chosen.branches is None:
        notes.append("the emulator does not play this recording again: no counterfactual branches")
    if chosen.rollout_steps and chosen.rollout_steps < TIERS[name].rollout_steps:
        notes.append(f"rollouts are of {chosen.rollout_steps} steps, as long as episodes allow")
    if not detector.has_truth(game):
        notes.append(f"the objects of {game} cannot be read: rows of ball, paddle, bricks and "
                     "digits are left out")  # fmt: skip
    if played.get("temperature"):
        notes.append(f"tokens are sampled at temperature {played['temperature']}")
    return notes
