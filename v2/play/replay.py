"""A browser of recorded episodes: real, tokenizer round trip, teacher-forced, open loop.

Contract: all panes show the same time t. The teacher-forced pane is predicted from the four real
frames before t, the open-loop pane from its own frames since the anchor, both with the recorded
actions; frame t is the result of actions[t - 1]. Knows no torch and no events.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter, strftime

import numpy as np

from v2.data.games import EmulatorConfig, RecordedConfig, shown_name
from v2.play.clip_saver import BackgroundClips
from v2.play.episodes import Episode, EpisodeFile
from v2.play.keys import REPLAY_KEYS, ActionMap, help_rows, hint_line
from v2.play.loop import NOTICE_SECONDS, Commanded
from v2.play.picture import CURVE_STEPS, Curve, Pane, View
from v2.play.session import HISTORY_FRAMES

FAR_STEPS = 30
CLIP_SCALE = 4
CLIP_SECONDS = 10
HINT = hint_line(REPLAY_KEYS)


class Predictions:
    """What the models make of one episode; each time is computed once, in single small jobs.

    Args:
        anchor: the open loop starts from the four real frames that end here.
    """

    def __init__(self, episode: Episode, engine, anchor: int = HISTORY_FRAMES - 1):
        self.episode, self.engine = episode, engine
        self.real_tokens: dict[int, np.ndarray] = {}
        self.round_trip: dict[int, np.ndarray] = {}
        self.teacher_forced: dict[int, tuple] = {}  # time -> (frame, token agreement)
        self.restart(anchor)

    def restart(self, anchor: int) -> None:
        """Let the open loop start at another time."""
        self.open_loop = OpenLoop(self, anchor)

    def missing_job(self, time: int) -> Callable | None:
        """Return the next job that completes the panes of a time."""
        if time not in self.round_trip:
            return lambda: self._tokenize(time)
        if time not in self.teacher_forced and time >= HISTORY_FRAMES:
            return lambda: self._predict(time)
        loop = self.open_loop
        return loop.advance if loop.time < time else None

    def start(self, time: int) -> np.ndarray:
        """Start the engine from the four real frames that end at a time."""
        first = time - HISTORY_FRAMES + 1
        frames, actions = self.episode.frames, self.episode.actions
        return self.engine.reset(frames[first : time + 1], actions[first:time].astype(int))

    def agreement(self, time: int) -> float:
        """Return the share of the engine's tokens that equal the real frame's."""
        if time not in self.real_tokens:
            self._tokenize(time)
        return float(np.mean(np.asarray(self.engine.tokens) == self.real_tokens[time]))

    def _tokenize(self, time: int) -> None:
        tokens = self.engine.encode(self.episode.frames[time : time + 1])
        self.real_tokens[time] = tokens[0]
        self.round_trip[time] = self.engine.decode(tokens)[0]

    def _predict(self, time: int) -> None:
        self.start(time - 1)
        frame = self.engine.step(int(self.episode.actions[time - 1]))
        self.teacher_forced[time] = (frame, self.agreement(time))


class OpenLoop:
    """A dream along the recorded actions, one step a job."""

    def __init__(self, predictions: Predictions, anchor: int):
        self.predictions, self.anchor, self.time = predictions, anchor, anchor
        self.frames: dict[int, tuple] = {}  # time -> (frame, token agreement)
        self._state = None

    def advance(self) -> None:
        engine = self.predictions.engine
        if self._state is None:
            self.predictions.start(self.anchor)
        else:
            engine.restore(self._state)
        frame = engine.step(int(self.predictions.episode.actions[self.time]))
        self._state = engine.history
        self.frames[self.time + 1] = (frame, self.predictions.agreement(self.time + 1))
        self.time += 1


class Replay(Commanded):
    """The browser as `v2.play.loop.run_window` sees it.

    Args:
        emulator: what the model was trained on.
        episode_id: the episode to begin with; None: the first.
        clips: directory of the videos that V saves.
    """

    def __init__(self, path: Path, engine, emulator: EmulatorConfig | RecordedConfig,
                 episode_id: int | None = None, fps: float | None = None,
                 clips: Path = Path("recordings")):  # fmt: skip
        self.file, self.engine, self.clips = EpisodeFile(path), engine, clips
        self.file.check_fits(emulator, engine.num_actions)
        self.game = emulator.game
        self.actions = ActionMap(self.file.action_meanings)
        self.steps_per_second = fps or emulator.steps_per_second
        self.is_paused = True
        self.time = HISTORY_FRAMES - 1
        self.num_steps = 0
        self._index = self.file.index_of(episode_id) if episode_id is not None else 0
        self._shown = Predictions(self.file[self._index], engine)
        self._wants_episode = 0
        self._loaded: tuple[int, Predictions] | None = None  # an episode that a job has read
        self._drawn = self.time  # the last time whose panes were whole
        self._writer = BackgroundClips()
        self._notice, self._notice_until = "", 0.0

    @property
    def is_animated(self) -> bool:
        return not self.is_paused

    @property
    def last(self) -> int:
        return len(self._shown.episode.frames) - 1

    def close(self) -> None:
        """Wait for a clip that is being saved."""
        self._writer.close()

    @property
    def commands(self) -> dict[str, Callable[[], None]]:
        """What can be asked, as `v2.play.keys.REPLAY_KEYS` names it."""
        moves = {"back": -1, "on": 1, "far back": -FAR_STEPS, "far on": FAR_STEPS,
                 "first": -self.last, "last": self.last}  # fmt: skip
        return {
            **super().commands,
            **{name: partial(self._move, steps) for name, steps in moves.items()},
            "sync": lambda: self._shown.restart(self.time), "clip": self._save_clip,
            "next": lambda: self._ask_episode(1), "previous": lambda: self._ask_episode(-1),
        }  # fmt: skip

    def _move(self, steps: int) -> None:
        self.is_paused = True
        self.time = min(self.last, max(HISTORY_FRAMES - 1, self.time + steps))

    def _ask_episode(self, step: int) -> None:
        self._wants_episode = step

    def urgent_job(self) -> tuple | None:
        """Return what the panes of this time still lack."""
        if self._wants_episode:
            return (self._change_episode,)
        job = self._shown.missing_job(self.time)
        return None if job is None else (job,)

    def step_job(self, inputs) -> None:
        """Go on by one frame while playing; the frame's jobs are urgent ones."""
        if not self.is_paused:
            self.time, self.num_steps = min(self.last, self.time + 1), self.num_steps + 1
            self.is_paused = self.time == self.last

    def job_done(self, began: float, ended: float) -> None:
        """Take over what a job has left: a new episode, or caches, which the next view reads."""
        if self._loaded is not None:
            self._index, self._shown = self._loaded
            self._loaded, self._wants_episode = None, 0
            self.time = self._drawn = HISTORY_FRAMES - 1

    def _change_episode(self) -> None:
        index = (self._index + self._wants_episode) % len(self.file)
        self._loaded = index, Predictions(self.file[index], self.engine)

    def _save_clip(self) -> None:
        first = max(HISTORY_FRAMES - 1, self.time + 1 - round(CLIP_SECONDS * self.steps_per_second))
        episode = self._shown.episode
        actions = episode.actions[first : self.time].tolist()
        details = {
            "game": self.game, "weights": self.engine.source, "episode": episode.id,
            "first_frame": first, "last_frame": self.time, "actions": actions,
            "open_loop_from": self._shown.open_loop.anchor,
        }  # fmt: skip
        views = [self._view_at(time) for time in range(first, self.time + 1)]
        stamp = strftime("%Y%m%d_%H%M%S")
        name = f"{self.game}_episode{episode.id}_{self.time:06d}_{stamp}.mp4"
        fps = self.steps_per_second
        self._notice = self._writer.save(self.clips / name, views, CLIP_SCALE, fps, details)
        self._notice_until = perf_counter() + NOTICE_SECONDS

    def _shown_notice(self) -> str:
        return self._notice if perf_counter() < self._notice_until else self._writer.notice

    def view(self, hint: str = "") -> View:
        """Return the picture of this time."""
        rows = help_rows(REPLAY_KEYS) if self.shows_help else ()
        if self.is_paused or self._shown.missing_job(self.time) is None:
            self._drawn = self.time  # while playing, a picture stays until the next is whole
        hint = f"click this window first  ·  {HINT}" if hint else HINT
        view = self._view_at(self._drawn)
        return replace(view, notice=self._shown_notice(), hint=hint, help=rows)

    def _view_at(self, time: int) -> View:
        shown = self._shown
        episode, loop = shown.episode, shown.open_loop
        forced, dreamed = shown.teacher_forced.get(time), loop.frames.get(time)
        since = time - loop.anchor
        where = f"{since} steps" if since > 0 else "starts here" if since == 0 else "not yet"
        panes = (
            Pane("real", episode.frames[time], "real", f"frame {time}"),
            Pane("round trip", shown.round_trip.get(time), "ball", "tokenizer"),
            Pane("teacher-forced", forced[0] if forced else None, "paddle", _percent(forced)),
            Pane("open loop", dreamed[0] if dreamed else None, "dream",
                 _percent(dreamed) or where),
        )
        action = int(episode.actions[time]) if time < self.last else 0
        return View(
            title=f"{shown_name(self.game)}: episode {episode.id}", columns=4,
            subtitle=f"{episode.policy}, score {episode.score:.0f}, {self.engine.source}",
            panes=panes, inputs=self.actions.inputs(action),
            badges=(("stopped" if self.is_paused else "playing", "ball"),),
            action=self.actions.meanings[action], stats=self._stats(time, where),
            chart_title="tokens that differ from the real frame", curves=self._curves(time),
        )  # fmt: skip

    def _stats(self, time: int, where: str) -> tuple[tuple[str, str], ...]:
        rewards = self._shown.episode.rewards
        return (
            ("frame", f"{time} of {self.last}"),
            ("score so far", f"{rewards[:time].sum():g}"),
            ("reward of this step", f"{rewards[time]:g}"),
            ("open loop", where),
            ("episodes", f"{self._index + 1} of {len(self.file)}"),
        )

    def _curves(self, time: int) -> tuple[Curve, ...]:
        loop, forced = self._shown.open_loop, self._shown.teacher_forced
        times = range(max(loop.anchor + 1, time + 1 - CURVE_STEPS), time + 1)

        def percent(found: dict[int, tuple]) -> list[float]:
            return [100 * (1 - found[t][1]) if t in found else np.nan for t in times]

        return (
            Curve("open loop", percent(loop.frames), "dream", "%"),
            Curve("teacher-forced", percent(forced), "paddle", "%"),
        )


def _percent(found: tuple | None) -> str:
    return f"{100 * found[1]:.1f}%" if found else ""
