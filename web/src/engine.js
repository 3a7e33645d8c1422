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
const MAX_THREADS = 4
const PARITY_STEPS = [0, 7, 14, 21] // of each scene, each from the tokens that Python had
const MIN_AGREEMENT = 0.999 // of all tokens; a float differs in its last bits between processors

/** Return why an engine cannot run in this browser; '' if it can. */
export function whyNot(name) {
  if (name === 'webgpu' && !navigator.gpu) return 'this browser has no WebGPU'
  if (name === 'threads' && !globalThis.crossOriginIsolated) return 'this page may not share memory between threads'
  if (name === 'threads' && numThreads() < 2) return 'this machine has one core'
  return ''
}

/**
 * Start the first engine that works and agrees with Python.
 * @param names engines in the order in which they are tried
 * @param graphOf name of a graph -> its bytes
 * @param onTry called with (title, reason the one before was left | '')
 */
export async function startEngine(names, graphOf, scenes, onTry, options = {}) {
  const left = []
  for (const name of names) {
    const reason = whyNot(name)
    if (reason) {
      left.push({ name, reason })
      continue
    }
    onTry(ENGINES[name].title)
    const engine = new Engine(name)
    try {
      const graph = await graphOf(ENGINES[name].graph)
      await engine.load(graph, options)
      await engine.checkParity(scenes)
      return { engine, left }
    } catch (error) {
      engine.close()
      if (error instanceof PageError) throw error
      left.push({ name, reason: error.message })
      console.info(`${ENGINES[name].title} was left: ${error.message}`)
    }
  }
  throw nothingWorks(left)
}

function nothingWorks(left) {
  const last = left.at(-1)?.reason ?? 'none was tried'
  if (last.startsWith('other version')) {
    return new PageError(`The graph is not of this page's version (${last}).`, 'Run make web again, so that page and games are of one version.')
  }
  const reasons = left.map(({ name, reason }) => `${ENGINES[name].title}: ${reason}`).join('; ')
  return new PageError(`No engine runs this dream here. ${reasons}.`, 'Use a current Chrome, Edge, Firefox or Safari, or choose another engine below.')
}

class Engine {
  constructor(name) {
    this.name = name
    this.agreement = null // {equal, all} tokens of the parity check
    this.waiting = new Map()
    this.worker = new Worker(new URL('./engine.worker.js', import.meta.url), { type: 'module', name: 'engine' })
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

  async load(graph, { threads, profile = false } = {}) {
    const wanted = ENGINES[this.name].isThreaded && globalThis.crossOriginIsolated ? (threads ?? numThreads()) : 1
    const folder = new URL(`ort/${ORT_VERSION}/`, document.baseURI).href
    const loaded = await this.ask({ kind: 'load', engine: this.name, threads: wanted, folder, graph, profile })
    this.threads = loaded.threads
  }

  /** Take a step: {tokens, reward (-1, 0, 1), end (probability), frame, ms}. */
  step(state, action) {
    return this.ask({ kind: 'step', ...graphInputs(state, action) })
  }

  /** Compare steps with what Python stored; throws where they differ. */
  async checkParity(scenes) {
    let equal = 0
    let all = 0
    for (const scene of scenes) {
      let state = beginState(scene)
      for (let k = 0; k <= PARITY_STEPS.at(-1); k++) {
        const stored = scene.dreamed.subarray(k * CELLS, (k + 1) * CELLS)
        if (PARITY_STEPS.includes(k)) {
          const { tokens } = await this.step(state, scene.actions[k])
          equal += tokens.reduce((sum, token, cell) => sum + (token === stored[cell]), 0)
          all += CELLS
        }
        state = nextState(state, scene.actions[k], stored)
      }
    }
    this.agreement = { equal, all }
    if (equal < MIN_AGREEMENT * all) {
      throw new Error(`parity check failed, ${equal} of ${all} tokens are those of Python`)
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

function numThreads() {
  return Math.min(MAX_THREADS, navigator.hardwareConcurrency || 1)
}
