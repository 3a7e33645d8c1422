// Which engine runs the graph: WebGPU, else WASM with threads, else one thread; and whether it
// computes what Python computes.
// Contract: an engine is kept only if it gives the tokens that Python stored with the scenes.

import { beginState, CELLS, graphInputs, nextState } from './dream.js'
import { PageError } from './files.js'

export const ENGINES = {
  webgpu: { title: 'WebGPU', graph: 'webgpu', isThreaded: true },
  threads: { title: 'WASM threads', graph: 'wasm', isThreaded: true },
  single: { title: 'WASM, one thread', graph: 'wasm', isThreaded: false },
}
const MAX_THREADS = 8
const PARITY_STEPS = [0, 7, 14, 21] // of each scene, each from the tokens that Python had
const PARITY_MS = 2500 // a slow engine compares fewer steps
const MIN_CASES = 4
const PATIENCE_MS = 20_000 // for one step
const MIN_AGREEMENT = 0.98 // of the tokens that change; floats differ in their last bits between processors

/** Return why an engine cannot run in this browser; '' if it can. */
export function whyNot(name) {
  if (name === 'webgpu' && !navigator.gpu) return 'this browser has no WebGPU'
  if (name === 'threads' && !globalThis.crossOriginIsolated)
    return 'this page may not share memory between threads (open it by https, and not in a private window)'
  if (name === 'threads' && numThreads() < 2) return 'this machine has one core'
  return ''
}

/**
 * Start the first engine that works and agrees with Python; one on a GPU only if it keeps the
 * game's pace or is quicker than the next.
 * @param names engines in the order in which they are tried
 * @param graphOf name of a graph -> its bytes
 * @param onTry called with the title of each
 * @param options paceMs, threads, profile, isChosen (by a person, who may want a slow one)
 * @return {engine, left: [{name, reason}]}
 */
export async function startEngine(names, graphOf, scenes, onTry, options) {
  const left = []
  let best = null
  const leave = (name, reason) => {
    left.push({ name, reason })
    console.info(`${ENGINES[name].title} was left: ${reason}`)
  }
  for (const name of names) {
    if (whyNot(name)) {
      left.push({ name, reason: whyNot(name) })
      continue
    }
    onTry(ENGINES[name].title)
    const engine = new Engine(name)
    try {
      await engine.load(await graphOf(ENGINES[name].graph), options)
      await engine.checkParity(scenes)
    } catch (error) {
      engine.close()
      if (error instanceof PageError) throw error
      leave(name, error.message)
      continue
    }
    const [kept, slower] = best && best.stepMs <= engine.stepMs ? [best, engine] : [engine, best]
    if (slower) {
      slower.close()
      leave(
        slower.name,
        `it takes ${Math.round(slower.stepMs)} ms a step, the other ${Math.round(kept.stepMs)}`,
      )
    }
    best = kept
    if (name !== 'webgpu' || options.isChosen || best.stepMs <= options.paceMs) break
  }
  if (!best) throw nothingWorks(left)
  return { engine: best, left }
}

function nothingWorks(left) {
  const last = left.at(-1)?.reason ?? 'none was tried'
  if (last.startsWith('other version')) {
    return new PageError(
      `The graph is not of this page's version (${last}).`,
      'Run make web again, so that page and games are of one version.',
    )
  }
  const reasons = left.map(({ name, reason }) => `${ENGINES[name].title}: ${reason}`).join('; ')
  return new PageError(
    `No engine runs this dream here. ${reasons}.`,
    'Use a current Chrome, Edge, Firefox or Safari, or choose another engine below.',
  )
}

class Engine {
  constructor(name) {
    this.name = name
    this.agreement = null // {equal, all, changed, changedEqual} tokens of the parity check
    this.waiting = new Map()
    this.worker = new Worker(new URL('./engine.worker.js', import.meta.url), {
      type: 'module',
      name: 'engine',
    })
    this.worker.onmessage = ({ data }) => {
      const { resolve, reject } = this.waiting.get(data.id)
      this.waiting.delete(data.id)
      data.error === undefined ? resolve(data.value) : reject(new Error(data.error))
    }
    this.worker.onerror = (event) => this.fail(event.message || 'its worker cannot be started')
  }

  get title() {
    return this.name === 'threads' ? `WASM, ${this.threads} threads` : ENGINES[this.name].title
  }

  async load(graph, { threads, profile, isChosen }) {
    const wanted =
      ENGINES[this.name].isThreaded && globalThis.crossOriginIsolated
        ? (threads ?? numThreads())
        : 1
    const folder = new URL(`ort/${ORT_VERSION}/`, document.baseURI).href
    const loaded = await this.ask({
      kind: 'load',
      engine: this.name,
      threads: wanted,
      folder,
      graph,
      profile,
      isChosen,
    })
    this.threads = loaded.threads
  }

  /** Take a step: {tokens, reward (-1, 0, 1), end (probability), frame, ms}. */
  step(state, action) {
    return this.ask({ kind: 'step', ...graphInputs(state, action) })
  }

  /** Compare steps with what Python stored; throws where they differ. */
  async checkParity(scenes) {
    const times = []
    const counts = { equal: 0, all: 0, changed: 0, changedEqual: 0 }
    const began = performance.now()
    for (const { state, action, stored } of parityCases(scenes)) {
      const { tokens, ms } = await inTime(this.step(state, action))
      count(counts, state.history.at(-1), stored, tokens)
      times.push(ms)
      if (times.length >= MIN_CASES && performance.now() - began > PARITY_MS) break
    }
    this.agreement = counts
    this.stepMs = times.sort((a, b) => a - b)[times.length >> 1]
    const { changed, changedEqual } = counts
    if (changedEqual < MIN_AGREEMENT * changed) {
      throw new Error(
        `parity check failed, ${changedEqual} of ${changed} changes are those of Python`,
      )
    }
  }

  ask(message) {
    const id = (this.lastId = (this.lastId ?? 0) + 1)
    return new Promise((resolve, reject) => {
      this.waiting.set(id, { resolve, reject })
      this.worker.postMessage({ id, ...message })
    })
  }

  fail(reason) {
    for (const { reject } of this.waiting.values()) reject(new Error(reason))
    this.waiting.clear()
  }

  close() {
    this.worker.terminate()
    this.fail('the engine was stopped')
  }
}

/** Return the steps that are compared, of all scenes in turn: [{state, action, stored}]. */
function parityCases(scenes) {
  const cases = scenes.flatMap((scene) => {
    let state = beginState(scene)
    return Array.from({ length: PARITY_STEPS.at(-1) + 1 }, (_, k) => {
      const [action, stored] = [
        scene.actions[k],
        scene.dreamed.subarray(k * CELLS, (k + 1) * CELLS),
      ]
      const before = state
      state = nextState(state, action, stored)
      return { k, state: before, action, stored }
    })
  })
  return PARITY_STEPS.flatMap((k) => cases.filter((one) => one.k === k))
}

/** Count equal tokens, and among them those that change by either. */
function count(counts, last, stored, made) {
  made.forEach((token, cell) => {
    const isEqual = token === stored[cell]
    const isChanged = token !== last[cell] || stored[cell] !== last[cell]
    counts.all++
    counts.equal += isEqual
    counts.changed += isChanged
    counts.changedEqual += isEqual && isChanged
  })
}

function inTime(promise) {
  const late = new Promise((_, reject) => {
    setTimeout(
      () => reject(new Error(`a step takes more than ${PATIENCE_MS / 1000} s`)),
      PATIENCE_MS,
    )
  })
  return Promise.race([promise, late])
}

/** All of a few cores; of many, half: those that browsers count are mostly half a core each. */
function numThreads() {
  const cores = navigator.hardwareConcurrency || 1
  return cores <= 4 ? cores : Math.min(MAX_THREADS, Math.max(4, cores >> 1))
}
