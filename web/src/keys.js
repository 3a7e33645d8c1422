// From keys and touch to a game's actions, by their meanings, as v2/play/keys.py does it.

const INPUTS = ['UP', 'DOWN', 'LEFT', 'RIGHT', 'FIRE']
const OPPOSITES = { UP: 'DOWN', DOWN: 'UP', LEFT: 'RIGHT', RIGHT: 'LEFT' }
const GAME_KEYS = {
  ArrowLeft: 'LEFT', ArrowRight: 'RIGHT', ArrowUp: 'UP', ArrowDown: 'DOWN',
  KeyA: 'LEFT', KeyD: 'RIGHT', KeyW: 'UP', KeyS: 'DOWN', Space: 'FIRE',
} // prettier-ignore

export const KEY_TABLE = [
  ['arrows, A D W S', 'move: the paddle is yours from here on'],
  ['space', 'fire (serves in Breakout)'],
  ['P', 'pause'],
  ['.', 'one step'],
  ['T', 'sync: the dream goes on from the real game’s last four frames'],
  ['R', 'restart the scene'],
  ['backspace', 'rewind ten seconds'],
  ['M', 'who plays: you, the recording'],
  ['F', 'full screen'],
  ['V', 'save the last ten seconds'],
  ['H', 'show or hide these keys'],
]
const COMMANDS = {
  KeyP: 'pause', Period: 'step', KeyR: 'restart', KeyT: 'sync', Backspace: 'rewind', KeyM: 'player', KeyF: 'full', KeyV: 'clip',
  KeyH: 'help', Escape: 'escape',
} // prettier-ignore

export const gameInput = (event) => GAME_KEYS[event.code]
export const command = (event) => COMMANDS[event.code] ?? (event.key === '.' ? 'step' : undefined)

/** What is held down, oldest first; a tap between two steps counts for one step. */
export class HeldInputs {
  held = new Map() // key or pointer -> input
  tapped = []

  press(key, input) {
    this.held.delete(key)
    this.held.set(key, input)
    this.tapped.push(input)
  }

  release(key) {
    this.held.delete(key)
  }

  releaseAll() {
    this.held.clear()
    this.tapped = []
  }

  take() {
    const held = [...this.held.values()]
    const seen = [...held, ...new Set(this.tapped.filter((input) => !held.includes(input)))]
    this.tapped = []
    return seen
  }
}

/** Turns inputs into one of a game's actions. */
export class ActionMap {
  constructor(meanings, aliases) {
    this.meanings = meanings
    this.aliases = aliases
    this.actions = new Map()
    meanings.forEach((name, index) => {
      const key = INPUTS.filter((input) => name.includes(input)).join()
      if (!this.actions.has(key)) this.actions.set(key, index)
    })
    this.known = new Set([...this.actions.keys()].flatMap((key) => key.split(',')))
  }

  /** Return the action of the inputs that are down, oldest first; of two opposite ones the newer. */
  action(inputs) {
    let chosen = []
    for (const input of inputs.map((name) => this.aliases[name] ?? name)) {
      if (!this.known.has(input)) continue
      chosen = [...chosen.filter((other) => other !== input && other !== OPPOSITES[input]), input]
    }
    while (chosen.length && !this.actions.has(written(chosen))) chosen.shift()
    return this.actions.get(written(chosen)) ?? 0
  }

  /** Tell whether a game listens to an input. */
  knows(input) {
    return this.known.has(this.aliases[input] ?? input)
  }
}

function written(inputs) {
  return INPUTS.filter((input) => inputs.includes(input)).join()
}
