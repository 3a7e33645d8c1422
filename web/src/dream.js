// The state of a dream between two steps, as v2/dream.py and v2.decoding.next_age keep it.
// Contract: states are never changed, so that going back is keeping them. Knows no engine.

export const HISTORY = 4
export const CELLS = 336
const MAX_AGE = 255

/** Return the state that a scene begins with. */
export function beginState(scene) {
  return {
    history: Array.from({ length: HISTORY }, (_, t) =>
      scene.tokens.subarray(t * CELLS, (t + 1) * CELLS),
    ),
    actions: Array.from(scene.past),
    age: scene.age.slice(), // a message copies all of the buffer that a view looks at
  }
}

/** Return the state after a step that made these tokens. */
export function nextState(state, action, tokens) {
  return {
    history: [...state.history.slice(1), tokens],
    actions: [...state.actions.slice(1), action],
    age: nextAge(state.age, state.history[HISTORY - 1], tokens),
  }
}

/** Return for how many steps each token has not changed; -k: for at least k. */
export function nextAge(age, last, tokens) {
  return age.map((steps, k) => {
    if (tokens[k] !== last[k]) return 1
    return steps > 0 ? Math.min(steps + 1, MAX_AGE) : Math.max(steps - 1, -MAX_AGE)
  })
}

/** Return what a graph reads in a state under an action. */
export function graphInputs(state, action) {
  const tokens = new Uint8Array(HISTORY * CELLS)
  state.history.forEach((frame, t) => tokens.set(frame, t * CELLS))
  return { tokens, actions: [...state.actions, action], age: state.age }
}
