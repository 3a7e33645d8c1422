"""The picture of play: from what a PlayGame holds to a View.

Contract: a view is made of the game's state between two jobs, and making it changes nothing. Videos
and clips show `video_view`; the window adds hint, help and the sign that a video is written. Knows
no torch, no events and no files.
"""

import math
import time
from dataclasses import replace

from v2.data.games import shown_name
from v2.play.branches import Branches
from v2.play.keys import PLAY_KEYS, help_rows, hint_line, key_of
from v2.play.loop import SLOW_FACTOR
from v2.play.picture import CURVE_STEPS, Curve, Pane, View
from v2.play.session import Divergence

HINT = hint_line(PLAY_KEYS)
MAX_BRANCH_COLUMNS = 9
REST_STEPS = 6  # for which branches show their last frame before they repeat


def window_view(game, hint: str = "") -> View:
    """Return what the window shows.

    Args:
        game: a PlayGame.
        hint: instead of the usual one.
    """
    branches = game.branches  # read once: the thread may end them meanwhile
    if branches is not None:
        view = branches_view(game, branches)
    else:
        sides = {"both": ["real", "dream"], "dream": ["dream"], "real": ["real"]}
        view = video_view(game, sides[game.moment.mode])
        badges = (("REC", "alarm"),) if game.video else ()
        view = replace(view, badges=badges + view.badges, hint=HINT)
    rows = help_rows(PLAY_KEYS) if game.shows_help else ()
    return replace(view, hint=hint or view.hint, help=rows)


def video_view(game, sides: list[str]) -> View:
    """Return what the window, videos and clips show alike."""
    moment = game.moment
    lives = f"   lives {moment.lives}" if moment.lives else ""
    waits = "waits" if moment.mode == "dream" else f"score {moment.score:.0f}{lives}"
    dreams = "not dreaming" if moment.mode == "real" else _agreement(game)
    real = "recording" if game.session.is_recorded else "real game"
    panes = {
        "real": Pane(real, moment.real_frame, "real", waits),
        "dream": Pane("dream", moment.dream_frame, "dream", dreams),
    }
    lost = f"the dream has lost the ball: {key_of(PLAY_KEYS, 'sync')} syncs"
    return View(
        title=_title(game), subtitle=_subtitle(game), columns=len(sides),
        panes=tuple(panes[side] for side in sides), badges=_badges(game),
        inputs=game.actions.inputs(moment.action), action=game.actions.meanings[moment.action],
        stats=_stats(game), chart_title="divergence since the last sync", curves=game.curves,
        notice=game.said or (lost if moment.has_lost_ball else ""),
    )  # fmt: skip


def branches_view(game, branches: Branches) -> View:
    """Return the picture of the branches, which repeats at the game's speed."""
    count, num_actions = len(branches.dream), branches.num_actions
    elapsed = int((time.perf_counter() - game.branches_began) * game.steps_per_second)
    step = min(elapsed % (count + REST_STEPS), count - 1)
    columns = num_actions if num_actions <= MAX_BRANCH_COLUMNS else math.ceil(num_actions / 2)
    sides = (("real", branches.real), ("dream", branches.dream))
    panes = []
    for first in range(0, num_actions, columns):
        group = range(first, min(first + columns, num_actions))
        has_real = game.moment.mode != "dream" and not game.session.is_recorded
        for side, frames in sides if has_real else sides[1:]:
            names = [game.actions.meanings[action] for action in group]
            names[0] = f"{side}: {names[0]}"
            row = [Pane(n, frames[step][a], side) for n, a in zip(names, group, strict=True)]
            panes += row + [Pane("", None, "panel")] * (columns - len(row))
    keys = {name: key_of(PLAY_KEYS, name) for name in ("branches", "help", "quit")}
    return View(
        title=f"{_title(game)}: branches", columns=columns, panes=tuple(panes), has_footer=False,
        subtitle=f"each action held from step {game.moment.step} on: "
        f"{step} of {branches.num_steps} steps",
        hint=f"{keys['branches']} goes back to the game  ·  {keys['help']} keys  ·  "
        f"{keys['quit']} quit",
        notice=game.said or ("" if branches.is_done else "dreaming ..."),
    )  # fmt: skip


def divergence_curves(now: Divergence, has_truth: bool) -> tuple[Curve, ...]:
    """Return the curves of the chart; those of ball and paddle only where they can be seen."""
    percent = [100 * (1 - share) for share in thinned(now.agreement)]
    return (
        Curve("tokens", percent, "tokens", "%"),
        Curve("ball", thinned(now.ball_px), "ball", "px"),
        Curve("paddle", thinned(now.paddle_px), "paddle", "px"),
    )[: 3 if has_truth else 1]


def thinned(values: list[float]) -> list[float]:
    """Return at most as many values as the chart holds, evenly spread, the last one with them."""
    every = max(1, math.ceil(len(values) / CURVE_STEPS))
    return values[(len(values) - 1) % every :: every] if values else []


def _title(game) -> str:
    return shown_name(game.session.game)


def _subtitle(game) -> str:
    engine = game.session.engine
    return f"{sum(engine.num_parameters.values()) / 1e6:.1f} M parameters, {engine.source}"


def _agreement(game) -> str:
    now = game.session.divergence.agreement if game.moment.mode == "both" else []
    return f"{100 * now[-1]:.1f}% of tokens agree" if now else ""


def slow_advice(game) -> str:
    """Say which setting helps a machine that is too slow."""
    wanted, reached = game.steps_per_second, game.speed.steps_per_second
    if game.speed.step_ms(0.5) < 1000 / wanted:
        helps = "a smaller window (--scale) helps"
    elif game.moment.mode == "both":
        helps = f"{key_of(PLAY_KEYS, 'mode')} lets the real game wait, which helps"
    else:
        helps = f"--fps {max(1, reached):.0f} keeps an even pace"
    return f"{reached:.0f} of {wanted:g} steps a second: {helps}"


def _badges(game) -> tuple[tuple[str, str], ...]:
    badges = []
    if 0 < game.real_time_factor < SLOW_FACTOR:
        badges.append(("slower than real time", "ball"))
    if game.is_paused:
        badges.append(("paused", "ball"))
    name = game.controllers.name if game.script_is_over else "script of keys"
    if game.session.is_recorded and game.moment.mode != "dream":
        name = f"as recorded; {key_of(PLAY_KEYS, 'mode')}: you play"
    return (*badges, (name, "real" if name == "human" else "paddle"))


def _stats(game) -> tuple[tuple[str, str], ...]:
    moment = game.moment
    is_dreaming = moment.mode != "real"
    return (
        ("step", f"{moment.step}"),
        ("steps a second", f"{game.speed.steps_per_second:.1f}"),
        ("real time", f"× {game.real_time_factor:.2f}"),
        ("reward", f"{moment.reward:g}" if moment.mode != "dream" else "–"),
        ("dreamed reward", f"{moment.dream_reward:.2f}" if is_dreaming else "–"),
        ("dreamed end", f"{moment.dream_end_prob:.2f}" if is_dreaming else "–"),
    )
