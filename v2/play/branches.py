"""One moment, every future: what each action leads to in the real game and in the dream.

Contract: the session is left exactly as it was, before and after every call.
Knows nothing of windows.
"""

import numpy as np

from v2.play.session import PlaySession

FORK_STEPS = 15  # one second


class Forks:
    """Hold each action from the session's present moment on.

    Both sides start from where they are: the real game from the emulator's state, the dream from
    its own; where tokens are sampled, every action meets the same noise. `real[k]` and `dream[k]`
    are uint8 (A, 84, 64, 3) after k steps.
    """

    def __init__(self, session: PlaySession, num_steps: int = FORK_STEPS):
        self.session, self.num_steps = session, num_steps
        self.num_actions = session.engine.num_actions
        moment = session.moment
        self.real = [np.stack([moment.real_frame] * self.num_actions)]
        self.dream = [np.stack([moment.dream_frame] * self.num_actions)]
        state = session.env.unwrapped.clone_state(include_rng=True)
        self._env_states = [state] * self.num_actions
        self._dream_states = [session.engine.history] * self.num_actions
        self._is_over = [session.is_over] * self.num_actions
        self._rng_state = session.engine.rng_state

    @property
    def is_done(self) -> bool:
        return len(self.dream) > self.num_steps

    def advance(self) -> None:
        """Take one more step with every action."""
        if self.is_done:
            return
        env, engine = self.session.env, self.session.engine
        here, now = env.unwrapped.clone_state(include_rng=True), engine.history
        rng_state = engine.rng_state
        real, dream = self.real[-1].copy(), self.dream[-1].copy()
        for action in range(self.num_actions):
            if not self._is_over[action]:
                env.unwrapped.restore_state(self._env_states[action])
                real[action], _, terminated, truncated, _ = env.step(action)
                self._is_over[action] = terminated or truncated
                self._env_states[action] = env.unwrapped.clone_state(include_rng=True)
            engine.restore(self._dream_states[action], self._rng_state)
            dream[action] = engine.step(action)
            self._dream_states[action] = engine.history
        self._rng_state = engine.rng_state
        env.unwrapped.restore_state(here)
        engine.restore(now, rng_state)
        self.real.append(real)
        self.dream.append(dream)
