// What is being played: a scene, its dream, what was recorded beside it, and the way back.
// Contract: the real side is shown only while every action was the recorded one. Knows no DOM.

import { beginState, CELLS, nextState } from './dream.js'
import { undoDifferences } from './files.js'

export const SECONDS_BACK = 10
const END_PROB = 0.5 // as in v2/decoding.py
const MAX_STEPS_KEPT = 4500 // five minutes

/** A moment: everything that a step leaves on the page. */
function moment(state, frame, ball, facts = {}) {
  return { state, frame, ball, action: null, isRecorded: true, score: 0, end: 0, ms: 0, ...facts }
}

export class Session {
  constructor(game, scene, arrays, detector) {
    this.game = game
    this.scene = scene
    this.arrays = arrays
    this.detector = detector
    this.length = arrays.actions.length // recorded steps
    this.realFrames = undoDifferences(arrays.frames, this.length + 1)
    this.restart()
  }

  restart() {
    const frame = this.realFrames[0]
    this.moments = [moment(beginState(this.arrays), frame, this.detector.find(frame))]
    this.first = 0 // the step of the first moment that is kept
    this.isWatching = true
  }

  get now() {
    return this.moments.at(-1)
  }

  /** The number of steps taken. */
  get step() {
    return this.first + this.moments.length - 1
  }

  /** Whether the last step, and not the one before, said that the game is over. */
  get hasJustEnded() {
    return this.now.end > END_PROB && !(this.moments.at(-2)?.end > END_PROB)
  }

  /** Whether the recording has a next action for this dream. */
  get canWatch() {
    return this.now.isRecorded && this.step < this.length
  }

  /** Return the recorded action of this step. */
  get recordedAction() {
    return this.arrays.actions[this.step]
  }

  /** Take a step with an engine; a moment that was left meanwhile stays as it is. */
  async advance(engine, action) {
    const before = this.now
    const isRecorded = this.canWatch && action === this.recordedAction
    const made = await engine.step(before.state, action)
    if (this.now !== before) return
    this.moments.push(
      moment(nextState(before.state, action, made.tokens), made.frame, this.detector.find(made.frame), {
        action, isRecorded, score: before.score + made.reward, end: made.end, ms: made.ms,
      }), // prettier-ignore
    )
    if (this.moments.length > MAX_STEPS_KEPT) {
      this.moments.shift()
      this.first++
    }
  }

  /** Go on from the real game's last four frames, as far as the recording goes beside the dream. */
  sync() {
    const frame = this.realFrame()
    if (!frame) return false
    const { real_tokens: tokens, actions } = this.arrays
    let state = beginState(this.arrays)
    for (let step = 1; step <= this.step; step++) {
      state = nextState(state, actions[step - 1], tokens.subarray(step * CELLS, (step + 1) * CELLS))
    }
    this.moments[this.moments.length - 1] = {
      ...this.now,
      state,
      frame,
      ball: this.detector.find(frame),
    }
    return true
  }

  /** The steps of ten seconds. */
  get stepsBack() {
    return Math.round(SECONDS_BACK * this.game.stepsPerSecond)
  }

  /** Go back ten seconds, or to the start. */
  rewind() {
    const steps = Math.min(this.stepsBack, this.moments.length - 1)
    this.moments.length -= steps
    return steps
  }

  /** The real frame beside a moment; null once somebody else plays. */
  realFrame(step = this.step) {
    const at = this.moments[step - this.first]
    return at?.isRecorded && step <= this.length ? this.realFrames[step] : null
  }

  /** Where the real ball was, from the emulator's memory; null if there was none. */
  realBall(step = this.step) {
    const [x, y] = this.arrays.ball.subarray(2 * step, 2 * step + 2)
    return step > this.length || Number.isNaN(x) ? null : [x, y]
  }

  realScore(step = this.step) {
    return this.arrays.rewards.subarray(0, step).reduce((sum, reward) => sum + Math.sign(reward), 0)
  }

  /** How far the balls are apart at each recorded step, in pixels; NaN where one shows none. */
  get distances() {
    const count = this.moments.findIndex((at) => !at.isRecorded)
    return this.moments.slice(0, count < 0 ? undefined : count).map((at, k) => {
      const real = this.realBall(this.first + k)
      return real && at.ball ? Math.hypot(real[0] - at.ball[0], real[1] - at.ball[1]) : NaN
    })
  }

  /** The last ten seconds: [{frame, real, action (a name), step}]. */
  get lastSeconds() {
    const moments = this.moments.slice(1).slice(-this.stepsBack)
    return moments.map((at, k) => {
      const step = this.step - moments.length + 1 + k
      return {
        step,
        frame: at.frame,
        real: this.realFrame(step),
        action: this.game.actions[at.action],
      }
    })
  }
}
