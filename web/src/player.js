// The clock and the controls: steps at the game's pace, pause, rewind, sync, who plays.
// Contract: one step at a time; what an engine or a session that was left still answers is dropped.
// Knows no element of the page: `on` has draw(), say(text) and fail(error).

import { HeldInputs } from './keys.js'

const RATE_STEPS = 15 // over which steps a second are measured

export class Player {
  session = null
  engine = null
  actions = null // the game's ActionMap
  held = new HeldInputs()
  speed = 1 // times the game's pace; 0: as fast as it goes
  #timer
  #stepping = null
  #isWaiting = false // stopped by itself, and not by a person
  #times = []

  constructor(isPaused, on) {
    this.startsPaused = this.isPaused = isPaused
    this.on = on
  }

  /** Steps a second over the last second; NaN while too few are known. */
  get rate() {
    const [first, last] = [this.#times[0], this.#times.at(-1)]
    return this.#times.length > 3 && !this.isPaused
      ? (1000 * (this.#times.length - 1)) / (last - first)
      : NaN
  }

  /** Go on with steps, or stop, as `isPaused` says. */
  run() {
    this.halt()
    if (!this.isPaused && this.engine) this.#timer = setTimeout(() => this.#play())
    this.on.draw()
  }

  /** Take no further step by itself. */
  halt() {
    clearTimeout(this.#timer)
    this.#timer = undefined
    this.#times = []
  }

  /** Close the engine; a step that it was taking is forgotten. */
  leaveEngine() {
    this.halt()
    this.engine?.close()
    this.engine = null
  }

  async #play() {
    const mine = this.#timer
    while (mine === this.#timer && this.engine) {
      const start = performance.now()
      if (this.session.isWatching && !this.session.canWatch) {
        return this.#wait('The recording ends here. Restart shows it again; or play on yourself.')
      }
      await this.takeStep().catch(this.on.fail)
      const pace = this.speed && 1000 / (this.speed * this.session?.game.stepsPerSecond)
      const left = start + pace - performance.now()
      if (left > 0) await new Promise((resolve) => setTimeout(resolve, left))
    }
  }

  #wait(text) {
    this.isPaused = this.#isWaiting = true
    this.on.say(text)
    this.run()
  }

  /** Take one step, or wait for the one that is being taken. */
  takeStep() {
    this.#stepping ??= this.#step().finally(() => (this.#stepping = null))
    return this.#stepping
  }

  /** Step under the recorded action while watching, else under the keys that are down. */
  async #step() {
    const { session, engine } = this
    if (!engine || !session) return
    const own = this.actions.action(this.held.take())
    const isRecorded = session.isWatching && session.canWatch
    try {
      await session.advance(engine, isRecorded ? session.recordedAction : own)
    } catch (error) {
      if (engine === this.engine) throw error // else it was stopped for another
    }
    if (session !== this.session) return
    this.#times = [...this.#times, performance.now()].slice(-RATE_STEPS - 1)
    if (session.hasJustEnded)
      this.on.say('The dream says that its game is over. Restart begins the scene again.')
    this.on.draw()
  }

  pause(isPaused = !this.isPaused) {
    this.isPaused = isPaused
    this.#isWaiting = false
    this.run()
  }

  async stepOnce() {
    if (!this.isPaused) this.pause(true)
    await this.takeStep().catch(this.on.fail)
  }

  restart() {
    this.session.restart()
    this.held.releaseAll()
    this.pause(this.startsPaused)
  }

  rewind() {
    const { session } = this
    const seconds = session.rewind() / session.game.stepsPerSecond
    this.on.say(`Back by ${seconds.toFixed(1)} s.`)
    this.run()
  }

  sync() {
    const isDone = this.session.sync()
    this.on.say(
      isDone
        ? 'The dream goes on from the real game.'
        : 'There is no real game beside this moment.',
    )
    this.on.draw()
  }

  /** Let the recording play, from the start if somebody else has played, or a person. */
  watch(isWatching) {
    const { session } = this
    if (isWatching && !session.canWatch) session.restart()
    session.isWatching = isWatching
    this.on.say(isWatching ? '' : 'You play: from here on there is no real game beside the dream.')
    if (this.#isWaiting) this.pause(false)
    else this.run()
  }

  /** A game key or a finger takes the paddle. */
  press(key, input) {
    if (!this.session) return
    this.held.press(key, input)
    if (this.session.isWatching || this.#isWaiting) this.watch(false)
  }
}
