"""Play as the loops see it: commands change it, steps are its jobs, a view is its picture.

Contract: `command` only notes what was asked; all work on the session is a job for the loop's
thread, at most one of them waiting, and a view is made of what the last job left. So the loop and
the thread never touch the session together. Knows no torch and no events.
"""

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from v2.data.environments import NoWayBackError
from v2.play.branches import Branches
from v2.play.clip_saver import BackgroundClips
from v2.play.controllers import Controllers
from v2.play.keys import ActionMap
from v2.play.loop import NOTICE_SECONDS, Commanded, Speed
from v2.play.picture import View, render
from v2.play.play_view import divergence_curves, slow_advice, video_view, window_view
from v2.play.session import REWIND_STEPS, Moment, PlaySession

CLIP_SECONDS = 10
MAX_WAITING = 4  # commands that wait for the step that runs


@dataclass(frozen=True)
class PlaySettings:
    steps_per_second: float
    clips: Path  # directory of the videos that V saves
    scale: int  # of videos


class PlayGame(Commanded):
    """A session with its controllers, its speed and its videos.

    Args:
        script: actions to take before the controller's, as from `--keys`.
        video: gets a picture of every step, or None.
    """

    def __init__(self, session: PlaySession, controllers: Controllers, settings: PlaySettings,
                 script=(), video=None):  # fmt: skip
        self.session, self.controllers, self.settings = session, controllers, settings
        self.actions: ActionMap = controllers.actions
        self.video = video
        self.speed = Speed()
        self.branches: Branches | None = None
        self.branches_began = 0.0
        self._script = list(script)[::-1]
        self._wants_step = False
        self._urgent: deque[tuple] = deque(maxlen=MAX_WAITING)
        self._job = ""
        self._notice, self._notice_until = "", 0.0
        self._has_advised = False  # what helps a slow machine, said once
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
    def real_time_factor(self) -> float:
        return self.speed.steps_per_second / self.session.env.config.steps_per_second

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

    @property
    def said(self) -> str:
        """The notice that still stands."""
        return self._notice if time.perf_counter() < self._notice_until else ""

    def close(self) -> None:
        """Wait for a clip that is being saved."""
        self._clips.close()

    @property
    def commands(self) -> dict[str, Callable[[], None]]:
        """What can be asked, as `v2.play.keys.PLAY_KEYS` names it."""
        return {
            **super().commands,
            "one step": self._ask_step, "controller": self._hand_over, "clip": self._save_clip,
            "branches": lambda: self._urgent.append((self._toggle_branches,)),
            "sync": lambda: self._urgent.append((self.session.sync,)),
            "rewind": lambda: self._urgent.append((self.session.rewind, REWIND_STEPS)),
            "mode": lambda: self._urgent.append((self.session.next_mode,)),
        }  # fmt: skip

    def _toggle_pause(self) -> None:
        if self.branches is None:  # else the game stands still already
            super()._toggle_pause()
            self.speed.interrupted()

    def _ask_step(self) -> None:
        if self.branches is None:
            self.is_paused = self._wants_step = True
            self.speed.interrupted()

    def _hand_over(self) -> None:
        self._say(f"{self.controllers.next()} plays")

    def urgent_job(self) -> tuple | None:
        """Return what is to be done before the next step is due."""
        if self._urgent:
            job, self._job = self._urgent.popleft(), "urgent"
            if job[0] != self._toggle_branches:
                self.branches = None
            return job
        if self.branches is not None and not self.branches.is_done:
            self._job = "branches"
            return (self._advance_branches,)
        return None

    def step_job(self, inputs: list[str]) -> tuple | None:
        """Return the next step, or None while there is none."""
        if self.branches is not None or (self.is_paused and not self._wants_step):
            return None
        self._wants_step, self._job = False, "step"
        if self.session.tape:
            self.session.tape.controller = self.controllers.name
        if self._script:
            return self.session.step, self._script.pop()
        return self.session.step, self.controllers.act(self.session, inputs)

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
        elif not self._has_advised and self.speed.is_below(self.steps_per_second):
            self._has_advised = True
            self._say(slow_advice(self))
        shown = video_view(self, ["dream"] if self._starts_in_dream else ["real", "dream"])
        self._clip.append((shown, self._clip_line()))
        if self.video:
            self.video.write(render(shown, self.settings.scale))

    def _toggle_branches(self) -> None:
        if self.branches is None and self.session.mode == "real":
            self.session.sync("")  # branch from this moment, not from the dream's last
        self.branches_began = time.perf_counter()
        self.branches = None if self.branches else Branches(self.session)

    def _advance_branches(self) -> None:
        assert self.branches is not None
        try:
            self.branches.advance()
        except NoWayBackError as error:
            self.branches, self._job = None, "urgent"  # its notice is said
            self.session.begin_anew(f"{error}: a new game")

    def _look(self) -> None:
        """Copy what views show; called while no job runs."""
        self.moment: Moment = self.session.moment
        self.curves = divergence_curves(self.session.divergence, self.session.has_truth)

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
        return window_view(self, hint)

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
            "scores": [*session.moment.past_scores, session.moment.score],  # game by game
            "weights": session.engine.source,
        }


def _num_known(values: list[float]) -> int:
    return sum(not math.isnan(value) for value in values)


def _mean(values: list[float]) -> float | None:
    return round(float(np.nanmean(values)), 4) if _num_known(values) else None
