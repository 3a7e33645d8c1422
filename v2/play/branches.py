"""One moment, every future: what each action leads to in the real game and in the dream.

Contract: the session is left exactly as it was, before and after every call.
Knows nothing of windows.
"""

import numpy as np

from v2.play.session import PlaySession

BRANCH_STEPS = 15  # one second


class Branches:
    """Counterfactual branches: hold each action from the session's present moment on.

    Both sides start from where they are: the real game from the emulator's state, the dream from
    its own; where tokens are sampled, every action meets the same noise. `real[k]` and `dream[k]`
    are uint8 (A, 84, 64, 3) after k steps.
    """

    def __init__(self, session: PlaySession, num_steps: int = BRANCH_STEPS):
        self.session, self.num_steps = session, num_steps
        self.num_actions = session.engine.num_actions
        moment = session.moment
        self.real = [np.stack([moment.real_frame] * self.num_actions)]
        self.dream = [np.stack([moment.dream_frame] * self.num_actions)]
        # A game that is over has no branches, nor has a recording: its frame stays.
        self._is_over = session.is_over or session.is_recorded
        if not self._is_over:
            self._real_steps = session.env.branch(range(self.num_actions), num_steps)
        self._dream_states = [session.engine.history] * self.num_actions
        self._rng_state = session.engine.rng_state

    @property
    def is_done(self) -> bool:
        return len(self.dream) > self.num_steps

    def advance(self) -> None:
        """Take one more step with every action."""
        if self.is_done:
            return
        real = self.real[-1] if self._is_over else next(self._real_steps).frames
        dream = self._step_dreams()  # both sides have taken the step, or none is shown
        self.real.append(real)
        self.dream.append(dream)

    def _step_dreams(self) -> np.ndarray:
        engine = self.session.engine
        state, rng_state = engine.history, engine.rng_state
        frames = []
        for action in range(self.num_actions):
            engine.restore(self._dream_states[action], self._rng_state)
            frames.append(engine.step(action))
            self._dream_states[action] = engine.history
        self._rng_state = engine.rng_state
        engine.restore(state, rng_state)
        return np.stack(frames)
