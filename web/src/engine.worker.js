// Runs the graph of a step in ONNX Runtime, away from the page's thread.
// Contract: answers each message {id, kind, ...} by {id, value} or {id, error}. Knows no game.

import { CELLS, HISTORY } from './dream.js'

const INPUTS = ['tokens', 'actions', 'age', 'decoded', 'cells']
const OUTPUTS = ['next_tokens', 'reward_logits', 'end_prob', 'frame', 'next_cells']
const NOT_DECODED = -1

let ort, session
let decoded, cells // tokens, and what the graph keeps of their frame

self.onmessage = async ({ data }) => {
  try {
    const value = await { load, step, endProfile }[data.kind](data)
    self.postMessage(
      { id: data.id, value },
      value?.frame ? [value.tokens.buffer, value.frame.buffer] : [],
    )
  } catch (error) {
    self.postMessage({ id: data.id, error: String(error?.message ?? error) })
  }
}

async function load({ folder, engine, threads, graph, profile, isChosen }) {
  const isGpu = engine === 'webgpu'
  const build = !isGpu ? 'wasm' : 'Suspending' in WebAssembly ? 'jspi' : 'webgpu'
  ort = await import(/* @vite-ignore */ `${folder}ort.${build}.min.mjs`)
  ort.env.wasm.wasmPaths = folder
  ort.env.wasm.numThreads = threads
  if (isGpu) await checkAdapter(isChosen)
  session = await ort.InferenceSession.create(graph, {
    executionProviders: [isGpu ? 'webgpu' : 'wasm'],
    graphOptimizationLevel: 'all',
    extra: { session: { intra_op: { allow_spinning: '0' } } },
    enableProfiling: Boolean(profile),
    logSeverityLevel: 3,
  })
  const has = [session.inputNames, session.outputNames].map((names) => [...names].sort().join(', '))
  const needs = [INPUTS, OUTPUTS].map((names) => [...names].sort().join(', '))
  if (has[0] !== needs[0] || has[1] !== needs[1]) {
    throw new Error(
      `other version: the graph reads ${has[0]} and gives ${has[1]}, not ${needs[0]} and ${needs[1]}`,
    )
  }
  const { shape } = session.inputMetadata.find(({ name }) => name === 'cells')
  decoded = integers(new Array(CELLS).fill(NOT_DECODED), [CELLS])
  cells = new ort.Tensor('float32', new Float32Array(shape[0] * shape[1]), shape)
  return { threads: ort.env.wasm.numThreads }
}

/** Write what ONNX Runtime measured, an operator a line, to the console. */
function endProfile() {
  session.endProfiling()
}

async function checkAdapter(isChosen) {
  const adapter = await navigator.gpu?.requestAdapter()
  if (!adapter) throw new Error('no WebGPU adapter answers')
  const isSoftware = adapter.info?.isFallbackAdapter || adapter.info?.architecture === 'swiftshader'
  if (isSoftware && !isChosen) throw new Error('its adapter is software, slower than WASM')
}

async function step({ tokens, actions, age }) {
  const start = performance.now()
  const feeds = {
    tokens: integers(tokens, [HISTORY, CELLS]),
    actions: integers(actions, [HISTORY]),
    age: integers(age, [CELLS]),
    decoded,
    cells,
  }
  const made = await session.run(feeds)
  const value = {
    tokens: Uint8Array.from(made.next_tokens.data, Number),
    reward: argmax(made.reward_logits.data) - 1,
    end: made.end_prob.data[0],
    frame: new Uint8Array(made.frame.data),
  }
  const kept = [made.next_tokens, made.next_cells]
  for (const tensor of [...Object.values(made), decoded, cells]) {
    if (!kept.includes(tensor)) tensor.dispose()
  }
  ;[decoded, cells] = kept
  return { ...value, ms: performance.now() - start }
}

function integers(values, shape) {
  return new ort.Tensor('int64', BigInt64Array.from(values, BigInt), shape)
}

function argmax(values) {
  return values.reduce((best, value, k) => (value > values[best] ? k : best), 0)
}
