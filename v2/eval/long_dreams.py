"""Long dreams: a scripted policy in the dream that sees only dreamed frames.

Contract: a dream has no memory to read and no truth to meet, so what is asked is whether it still
looks like the game: one ball while one is in play, frames that move, codes used as in the game,
frames that the tokenizer knows. Where it says that its game is over it begins anew, as in play, and
how often it says so is asked too. The same figures of real clips stand beside. Knows the engine
only by v2.eval.engine.Engine.
"""

import numpy as np

from v2.data.atari_dataset import NUM_RAM_BYTES
from v2.data.policies import SCRIPTED, STICKY, make_policy
from v2.decoding import END_PROB
from v2.eval import metrics
from v2.eval.engine import Engine, Progress, Scores, begin, chunks, encode, flat, round_trip
from v2.eval.intervals import Metric, mean_metric
from v2.eval.objects import detector

USAGE_STEPS = (50, 200, 1000)
USAGE_WINDOW = 20  # steps before each of them whose codes are counted
RESIDUAL_EVERY = 50  # steps between two frames whose round trip is measured
FROZEN_STEPS = 100  # the last ones of each recorded game are looked at


def long_dream_scores(
    engine: Engine,
    game: str,
    action_meanings: list[str],
    history: np.ndarray,
    past_actions: np.ndarray,
    episodes: np.ndarray,
    steps: int,
    real_clips: list[np.ndarray],
    real_ends: np.ndarray,
    real_frames: np.ndarray,
    num_codes: int = 32,
    progress: Progress = None,
    ages: np.ndarray | None = None,
) -> tuple[Scores, np.ndarray]:
    """Return the metrics and a few dreamed frames to look at, uint8 (B, 5, 84, 64, 3).

    Args:
        history: uint8 (B, 4, 84, 64, 3); past_actions: (B, 3); ages: (B, N), see `dream`.
        episodes: (B,), the game that each begins in, over which intervals are resampled.
        real_clips: recorded games of the same policy, uint8 (M, 84, 64, 3), for the figures beside.
        real_ends: which of them went on until they were over, bool (number of games,).
        real_frames: recorded ones of boards as late as those that dreams begin on, (R, 84, 64, 3);
            every second one sets the limit of the distribution.
    """
    looks: list = []
    wholes: tuple[list, ...] = looks, [], [], [], []
    for chunk in chunks(len(history)):
        begin(engine, history[chunk], past_actions[chunk], None if ages is None else ages[chunk])
        parts = _play(engine, game, action_meanings, history[chunk, -1], steps, chunk.start,
                      progress)  # fmt: skip
        for whole, part in zip(wholes, parts, strict=True):
            whole.append(part)
    tokens, ends, sampled, pictures = map(np.concatenate, wholes[1:])  # (B, steps, N), (B, steps)
    still = (tokens[:, 1:] == tokens[:, :-1]).all(-1).mean(1)
    scores = {"long/frozen_frames": mean_metric(still, episodes)}
    real_still = [_frozen_share(engine, clip) for clip in real_clips]
    scores["long/frozen_frames"].baselines["real"] = mean_metric(real_still, range(len(real_still)))
    scores["long/games_over"] = _rate(ends.sum(1), episodes, [steps] * len(ends))
    real_row = _rate(real_ends, range(len(real_clips)), [len(clip) - 1 for clip in real_clips])
    scores["long/games_over"].baselines["real"] = real_row
    if detector.has_truth(game):
        scores |= _ball_rows(game, *_games(looks, ends, episodes), real_clips)
    scores |= _distribution_rows(
        engine, tokens, sampled, episodes, real_clips, real_frames, num_codes
    )
    return scores, pictures


def _rate(ends, episodes, lengths) -> Metric:
    """Return how many games end in 1,000 steps."""
    return mean_metric(1000 * np.asarray(ends), episodes, lengths, is_share=False)


def _games(looks, ends: np.ndarray, episodes: np.ndarray) -> tuple[list, np.ndarray]:
    """Cut what B dreams showed where each began anew; return the games and their episodes."""
    games: list[tuple] = []
    origins: list = []
    dreams = (look for batch in looks for look in zip(*batch, strict=True))
    for (num_balls, balls), is_end, episode in zip(dreams, ends, episodes, strict=True):
        cuts = np.flatnonzero(is_end[:-1]) + 1
        parts = zip(np.split(num_balls, cuts), np.split(balls, cuts), strict=True)
        games.extend(parts)
        origins.extend([episode] * (len(cuts) + 1))
    return games, np.array(origins)


def _ball_rows(game: str, dreamed: list, origins: np.ndarray, real_clips: list) -> Scores:
    """Score the balls of dreamed games, beside those of real ones."""
    seen = [detector.read_frames(game, clip) for clip in real_clips]
    real, games = [(objects.num_balls, objects.ball) for objects in seen], np.arange(len(seen))
    scores = {
        "long/one_ball": _one_ball(game, dreamed, origins, starts_in_play=True),
        "long/ball_seen": _ball_seen(dreamed, origins),
    }
    real_row = _one_ball(game, real, games, starts_in_play=False)
    scores["long/one_ball"].baselines["real"] = real_row
    scores["long/ball_seen"].baselines["real"] = _ball_seen(real, games)
    return scores


def _frozen_share(engine: Engine, clip: np.ndarray) -> float:
    """Return the share of steps of a recorded game in whose frames no token changes."""
    part = clip[-FROZEN_STEPS:]
    tokens = encode(engine, part)
    return float((tokens[1:] == tokens[:-1]).all(-1).mean())


def _distribution_rows(
    engine, tokens, sampled, episodes, real_clips, real_frames, num_codes
) -> Scores:
    """Compare round trips and code usage with those of real frames."""
    kept, real_tokens = round_trip(engine, real_frames)
    residual = _residual(kept, real_frames)
    limit = np.percentile(residual[::2], 99)
    off = _off_distribution(engine, sampled, limit)
    row = mean_metric(off.mean(1), episodes)
    row.baselines["real"] = Metric(float((residual[1::2] > limit).mean()))
    scores = {"long/out_of_distribution": row}
    real_usage = metrics.code_histogram(real_tokens, num_codes)
    middles = [clip[len(clip) // 2 :][:USAGE_WINDOW] for clip in real_clips]
    windows = [encode(engine, middle) for middle in middles]
    real_kl = [metrics.histogram_kl(metrics.code_histogram(t, num_codes), real_usage)
               for t in windows]  # fmt: skip
    for step in (s for s in USAGE_STEPS if s <= tokens.shape[1]):
        late = tokens[:, max(0, step - USAGE_WINDOW) : step]
        kl = [metrics.histogram_kl(metrics.code_histogram(t, num_codes), real_usage) for t in late]
        scores[f"long/code_kl@{step}"] = mean_metric(kl, episodes)
        scores[f"long/code_kl@{step}"].baselines["real"] = mean_metric(real_kl, range(len(real_kl)))
    return scores


def _play(engine, game, meanings, first_frames, steps, first_seed, progress):
    """Dream on, one batch; return balls, tokens, ends, sampled frames and pictures."""
    can_read = detector.has_truth(game)
    config = SCRIPTED if can_read else STICKY
    policies = [make_policy(config, game, meanings, np.random.default_rng(first_seed + k))
               for k in range(len(first_frames))]  # fmt: skip
    num_balls, balls, tokens, ends, sampled = [], [], [], [], []
    shown: list[np.ndarray] = []
    ram = np.zeros((len(first_frames), NUM_RAM_BYTES), np.uint8)
    if can_read:
        _, ram = detector.seen_memory(game, first_frames)
    first_ram = ram
    for step in range(1, steps + 1):
        actions = np.array([policy.act(ram[k]) for k, policy in enumerate(policies)])
        frames = engine.step(actions)
        tokens.append(flat(engine.tokens).astype(np.uint16))
        if can_read:
            objects, ram = detector.seen_memory(game, frames)
            num_balls.append(objects.num_balls)
            balls.append(objects.ball)
        if step % RESIDUAL_EVERY == 0:
            sampled.append(frames)
        if step % max(1, steps // 5) == 0 and len(shown) < 5:
            shown.append(frames)
        ends.append(np.array(engine.last_terminated) > END_PROB)
        if ends[-1].any():
            engine.restart(ends[-1])
            ram = np.where(ends[-1][:, None], first_ram, ram)
        if progress:
            progress(len(frames))
    look = [np.stack(part, 1) for part in (num_balls, balls) if part]
    looked_at = np.stack(sampled, 1) if sampled else frames[:, None]
    return look, np.stack(tokens, 1), np.stack(ends, 1), looked_at, np.stack(shown, 1)


def _one_ball(
    game: str,
    games: list[tuple[np.ndarray, np.ndarray]],
    episodes: np.ndarray,
    starts_in_play: bool,
) -> Metric:
    """Return the share of steps with exactly one ball, of those while one is in play.

    A ball is in play from its first sight until it has been seen where it may leave and then not
    any more; one that vanishes elsewhere stays in play, and is missed, until one is seen again.
    `SERVE_STEPS` after a loss one is in play again, seen or not, since the policy serves.

    Args:
        games: number of balls and place of the strongest at each step, of each game.
        starts_in_play: before the first sight, too, a ball is in play.
    """
    rules, right, counts = detector.of_game(game), [], []
    for num_balls, places in games:
        steps = np.arange(len(num_balls))
        sights = np.maximum.accumulate(np.where(num_balls > 0, steps, -1))
        is_served = ~rules.may_leave(places[sights]) | (steps - sights > rules.SERVE_STEPS)
        in_play = np.where(sights < 0, starts_in_play, (num_balls > 0) | is_served)
        right.append((in_play & (num_balls == 1)).sum())
        counts.append(in_play.sum())
    return mean_metric(right, episodes, counts)


def _ball_seen(games: list[tuple[np.ndarray, np.ndarray]], episodes: np.ndarray) -> Metric:
    seen = [(num_balls > 0).sum() for num_balls, _ in games]
    return mean_metric(seen, episodes, [len(num_balls) for num_balls, _ in games])


def _residual(kept: np.ndarray, frames: np.ndarray) -> np.ndarray:
    errors = [
        np.square(kept[few].astype(np.float32) - frames[few].astype(np.float32)).mean((1, 2, 3))
        for few in chunks(len(kept), 64)  # as floats they take four times the memory
    ]
    return np.concatenate(errors)


def _off_distribution(engine: Engine, sampled: np.ndarray, limit: float) -> np.ndarray:
    flat_frames = sampled.reshape(-1, *sampled.shape[2:])
    kept, _ = round_trip(engine, flat_frames)
    return (_residual(kept, flat_frames) > limit).reshape(sampled.shape[:2])
