"""Play as the loops see it: commands change it, steps are its jobs, a view is its picture.

Contract: `command` only notes what was asked; all work on the session is a job for the loop's
worker, at most one of them waiting, and a view is made of what the last job left. So the loop and
the worker never touch the session together. Knows no torch and no events.
"""

import math
import time
from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from v2.play.branches import Branches
from v2.play.clip_saver import BackgroundClips
from v2.play.controllers import Players
from v2.play.keys import PLAY_KEYS, ActionMap
from v2.play.loop import NOTICE_SECONDS, Speed
from v2.play.picture import CURVE_STEPS, Curve, Pane, View, render
from v2.play.session import REWIND_STEPS, Moment, PlaySession

CLIP_SECONDS = 10
MAX_WAITING = 4  # commands that wait for the step that runs
SLOW_FACTOR = 0.9  # of real time; below it a badge says so
HINT = "H keys  ·  R sync  ·  TAB view  ·  M player  ·  F branches  ·  V clip  ·  Q quit"


@dataclass(frozen=True)
class PlaySettings:
    steps_per_second: float
    clips: Path  # directory of the videos that V saves
    scale: int  # of recordings


class PlayGame:
    """A session with its players, its speed and its recordings.

    Args:
        script: actions to take before the player's, as from `--keys`.
        recording: gets a picture of every step, or None.
    """

    def __init__(self, session: PlaySession, players: Players, settings: PlaySettings,
                 script=(), recording=None):  # fmt: skip
        self.session, self.players, self.settings = session, players, settings
        self.actions: ActionMap = players.actions
        self.recording = recording
        self.speed = Speed()
        self.is_over = self.is_paused = self.shows_help = False
        self.branches: Branches | None = None
        self._branches_began = 0.0
        self._script = list(script)[::-1]
        self._wants_step = False
        self._urgent: deque[tuple] = deque(maxlen=MAX_WAITING)
        self._job = ""
        self._notice, self._notice_until = "", 0.0
        self._starts_in_dream = session.mode == "dream"
        self._clip: deque[tuple[View, dict]] = deque(
            maxlen=round(CLIP_SECONDS * settings.steps_per_second)
        )
        self._clips = BackgroundClips()
        self._look()

    @property
    def steps_per_second(self) -> float:
        return self.settings.steps_per_second

    @property
    def num_steps(self) -> int:
        return self.session.num_steps

    @property
    def is_animated(self) -> bool:
        """Whether the picture changes without a job."""
        return self.branches is not None

    @property
    def script_is_over(self) -> bool:
        return not self._script

    def close(self) -> None:
        """Wait for a clip that is being saved."""
        self._clips.close()

    def command(self, name: str) -> None:
        """Take a command of `v2.play.window.PLAY_COMMANDS`."""
        if name == "quit":
            self.is_over = True
        elif name == "help":
            self.shows_help = not self.shows_help
        elif name in ("pause", "one step") and self.branches is not None:
            return  # the game stands still already
        elif name == "pause":
            self.is_paused = not self.is_paused
            self.speed.interrupted()
        elif name == "one step":
            self.is_paused = self._wants_step = True
            self.speed.interrupted()
        elif name == "player":
            self._say(f"{self.players.next()} plays")
        elif name == "clip":
            self._save_clip()
        elif name == "branches":
            self._urgent.append((self._toggle_branches,))
        elif name == "sync":
            self._urgent.append((self.session.sync,))
        elif name == "rewind":
            self._urgent.append((self.session.rewind, REWIND_STEPS))
        elif name == "mode":
            self._urgent.append((self.session.next_mode,))

    def urgent_job(self) -> tuple | None:
        """Return what is to be done before the next step is due."""
        if self._urgent:
            job, self._job = self._urgent.popleft(), "urgent"
            if job[0] != self._toggle_branches:
                self.branches = None
            return job
        if self.branches is not None and not self.branches.is_done:
            self._job = "branches"
            return (self.branches.advance,)
        return None

    def step_job(self, inputs: list[str]) -> tuple | None:
        """Return the next step, or None while there is none."""
        if self.branches is not None or (self.is_paused and not self._wants_step):
            return None
        self._wants_step, self._job = False, "step"
        if self.session.tape:
            self.session.tape.player = self.players.name
        if self._script:
            return self.session.step, self._script.pop()
        return self.session.step, self.players.act(self.session, inputs)

    def job_done(self, began: float, ended: float) -> None:
        """Take over what a job has left."""
        self._look()
        if self._job != "step":
            self.speed.interrupted()
            if self._job == "urgent":
                self._say(self.moment.notice)
            return
        self.speed.stepped(began, ended)
        if self.moment.notice:
            self._say(self.moment.notice)
        recorded = self._play_view(["dream"] if self._starts_in_dream else ["real", "dream"])
        self._clip.append((recorded, self._clip_line()))
        if self.recording:
            self.recording.write(render(recorded, self.settings.scale))

    def _toggle_branches(self) -> None:
        if self.branches is None and self.session.mode == "real":
            self.session.sync("")  # branch from this moment, not the one when the dream last ran
        self.branches = None if self.branches else Branches(self.session)
        self._branches_began = time.perf_counter()

    def _look(self) -> None:
        """Copy what views show; called while no job runs."""
        self.moment: Moment = self.session.moment
        now = self.session.divergence
        percent = [100 * (1 - share) for share in _thinned(now.agreement)]
        self._curves = (
            Curve("tokens", percent, "tokens", "%"),
            Curve("ball", _thinned(now.ball_px), "ball", "px"),
            Curve("paddle", _thinned(now.paddle_px), "paddle", "px"),
        )[: 3 if self.session.has_truth else 1]

    def _say(self, notice: str) -> None:
        self._notice, self._notice_until = notice, time.perf_counter() + NOTICE_SECONDS

    def _clip_line(self) -> dict:
        agreement = self.session.divergence.agreement
        return {
            "step": self.moment.step, "action": self.moment.action,
            "name": self.actions.meanings[self.moment.action], "mode": self.moment.mode,
            "token_agreement": round(agreement[-1], 4) if agreement else None,
        }  # fmt: skip

    def _save_clip(self) -> None:
        stamp = time.strftime("%Y%m%d_%H%M%S")
        path = self.settings.clips / f"{self.session.game}_{stamp}_{self.moment.step:06d}.mp4"
        details = {
            "game": self.session.game, "weights": self.session.engine.source,
            "steps_per_second": self.steps_per_second, "seed": self.session.seed,
            "actions": [line for _, line in self._clip],
        }  # fmt: skip
        views = [view for view, _ in self._clip]
        scale, fps = self.settings.scale, self.steps_per_second
        self._say(self._clips.save(path, views, scale, fps, details))

    def view(self, hint: str = "") -> View:
        """Return the picture of this moment."""
        branches = self.branches  # read once: the worker may end them meanwhile
        if branches is not None:
            view = self._branches_view(branches)
        else:
            shown = {"both": ["real", "dream"], "dream": ["dream"], "real": ["real"]}
            view = self._play_view(shown[self.moment.mode])
            badges = (("REC", "alarm"),) if self.recording else ()
            view = replace(view, badges=badges + view.badges, hint=HINT)
        if hint:
            view = replace(view, hint=hint)
        return replace(view, help=PLAY_KEYS if self.shows_help else ())

    def _play_view(self, sides: list[str]) -> View:
        """Return what the window, recordings and clips show alike."""
        moment = self.moment
        lives = f"   lives {moment.lives}" if moment.lives else ""
        waits = "waits" if moment.mode == "dream" else f"score {moment.score:.0f}{lives}"
        dreams = "not dreaming" if moment.mode == "real" else self._agreement_text()
        panes = {
            "real": Pane("real game", moment.real_frame, "real", waits),
            "dream": Pane("dream", moment.dream_frame, "dream", dreams),
        }
        action = self.actions.meanings[moment.action]
        return View(
            title=self._title(), subtitle=self._subtitle(), columns=len(sides),
            panes=tuple(panes[side] for side in sides), badges=self._badges(),
            inputs=self.actions.inputs(moment.action), action=action, stats=self._stats(),
            chart_title="divergence since the last sync", curves=self._curves,
            notice=self._shown_notice(),
        )  # fmt: skip

    def _branches_view(self, branches: Branches) -> View:
        count = len(branches.dream)
        elapsed = int((time.perf_counter() - self._branches_began) * self.steps_per_second)
        step = min(elapsed % (count + 6), count - 1)  # rest on the last frame before it repeats
        columns = branches.num_actions if branches.num_actions <= 9 else math.ceil(branches.num_actions / 2)
        sides = (("real", branches.real), ("dream", branches.dream))
        panes = []
        for first in range(0, branches.num_actions, columns):
            group = range(first, min(first + columns, branches.num_actions))
            for side, frames in sides[1:] if self.moment.mode == "dream" else sides:
                names = [self.actions.meanings[action] for action in group]
                names[0] = f"{side}: {names[0]}"
                row = [Pane(n, frames[step][a], side) for n, a in zip(names, group, strict=True)]
                panes += row + [Pane("", None, "panel")] * (columns - len(row))
        return View(
            title=f"{self._title()}: branches", columns=columns, panes=tuple(panes), has_footer=False,
            subtitle=f"each action held from step {self.moment.step} on: "
            f"{step} of {branches.num_steps} steps",
            hint="F goes back to the game  ·  H keys  ·  Q quit",
            notice=self._said() or ("" if branches.is_done else "dreaming ..."),
        )  # fmt: skip

    def _title(self) -> str:
        return self.session.game.replace("_", " ").title()

    def _subtitle(self) -> str:
        engine = self.session.engine
        return f"{sum(engine.num_parameters.values()) / 1e6:.1f} M parameters, {engine.source}"

    def _agreement_text(self) -> str:
        now = self.session.divergence.agreement if self.moment.mode == "both" else []
        return f"{100 * now[-1]:.1f}% of tokens agree" if now else ""

    def _badges(self) -> tuple[tuple[str, str], ...]:
        badges = []
        if 0 < self.real_time_factor < SLOW_FACTOR:
            badges.append(("slower than real time", "ball"))
        if self.is_paused:
            badges.append(("paused", "ball"))
        name = "script of keys" if self._script else self.players.name
        return (*badges, (name, "real" if name == "human" else "paddle"))

    @property
    def real_time_factor(self) -> float:
        return self.speed.steps_per_second / self.session.env.config.steps_per_second

    def _stats(self) -> tuple[tuple[str, str], ...]:
        moment = self.moment
        is_dreaming = moment.mode != "real"
        return (
            ("step", f"{moment.step}"),
            ("steps a second", f"{self.speed.steps_per_second:.1f}"),
            ("real time", f"× {self.real_time_factor:.2f}"),
            ("reward", f"{moment.reward:g}" if moment.mode != "dream" else "–"),
            ("dreamed reward", f"{moment.dream_reward:.2f}" if is_dreaming else "–"),
            ("dreamed end", f"{moment.dream_end_prob:.2f}" if is_dreaming else "–"),
        )

    def _said(self) -> str:
        return self._notice if time.perf_counter() < self._notice_until else ""

    def _shown_notice(self) -> str:
        has_lost_ball = self.moment.has_lost_ball
        return self._said() or ("the dream has lost the ball: R syncs" if has_lost_ball else "")

    def figures(self) -> dict:
        """Return the numbers of the session, for the last line of the program."""
        session = self.session
        factor = self.speed.mean_steps_per_second / session.env.config.steps_per_second
        return {
            "steps": session.num_steps,
            "fps": round(self.speed.mean_steps_per_second, 2),
            "real_time_factor": round(factor, 3),
            "step_ms_median": round(self.speed.step_ms(0.5), 1),
            "step_ms_p95": round(self.speed.step_ms(0.95), 1),
            "mean_token_agreement": _mean(session.agreements),
            "mean_ball_px": _mean(session.ball_errors),
            "ball_px_steps": _num_known(session.ball_errors),  # where both show a ball
            "mean_paddle_px": _mean(session.paddle_errors),
            "score": session.moment.score,
            "weights": session.engine.source,
        }


def _thinned(values: list[float]) -> list[float]:
    """Return at most as many values as the chart holds, evenly spread, the last one with them."""
    every = max(1, math.ceil(len(values) / CURVE_STEPS))
    return values[(len(values) - 1) % every :: every] if values else []


def _num_known(values: list[float]) -> int:
    return sum(not math.isnan(value) for value in values)


def _mean(values: list[float]) -> float | None:
    return round(float(np.nanmean(values)), 4) if _num_known(values) else None
