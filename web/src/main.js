// The page: loads a game, starts an engine, and lets a person or the recorded player play.

import { BallDetector } from './ball.js'
import { makeClip } from './clip.js'
import { ENGINES, startEngine, whyNot } from './engine.js'
import { fetchArrays, fetchChecked, listGames, megabytes, openGame } from './files.js'
import { ActionMap, command, gameInput, HeldInputs } from './keys.js'
import { prepareOffline } from './offline.js'
import { $, fillChoice, fillKeys, fillPad, fillSelect, isVertical, layOut, listenToPointer, offerClip, setFact, setPaused, show, showLoading, showProblem, showStatus } from './page.js'
import { Session } from './session.js'

const SPEEDS = [
  { value: '0.5', title: 'half' },
  { value: '1', title: 'as the game' },
  { value: '2', title: 'double' },
  { value: '0', title: 'as fast as it goes' },
]
const RATE_STEPS = 15 // over which steps a second are measured

const asked = new URLSearchParams(location.search) // engine, threads, paused, profile
const held = new HeldInputs()
const loaded = { bytes: 0, start: performance.now() }
let games, game, scenes, detector, engine, actions, session
let isPaused = asked.has('paused')
let stepping = null
let timer, draw
let turn = 0 // counts what was chosen, so that what was left does not arrive later
let stepTimes = []

/** What the console and the tests may use. */
globalThis.dreamPage = {
  get session() { return session },
  get engine() { return engine },
  takeStep,
  restart,
} // prettier-ignore

async function begin() {
  setState('loading')
  showProblem(null)
  showLoading('Loading')
  try {
    await prepareOffline(showStatus)
    games ??= await listGames()
    await openFirst()
  } catch (error) {
    fail(error)
  }
}

async function openFirst() {
  const [, name, scene] = location.hash.match(/^#([^/]*)\/?(.*)$/) ?? []
  const chosen = games.find((entry) => entry.game === name) ?? games[0]
  await openNamed(chosen.game, scene)
}

async function openNamed(name, sceneName) {
  const mine = ++turn
  clearTimeout(timer)
  setState('loading')
  const entry = games.find(({ game: id }) => id === name)
  fillChoice($('games'), games.map(({ game: value, title }) => ({ value, title })), name, (value) => openNamed(value).catch(fail)) // prettier-ignore
  showProblem(null)
  showLoading(`Loading ${entry.title}`)
  engine?.close()
  engine = session = null
  const opened = await openGame(entry)
  const tables = await fetchArrays(opened.folder, opened.detector)
  const arrays = await Promise.all(opened.scenes.map((scene) => fetchArrays(opened.folder, scene)))
  if (mine !== turn) return // another was chosen meanwhile
  game = opened
  scenes = arrays
  detector = new BallDetector(tables)
  document.title = `${game.title}, dreamed`
  actions = new ActionMap(game.actions, game.aliases)
  fillPad(actions, onPointer)
  openScene(sceneName)
  await chooseEngine($('engine').value)
}

function openScene(name) {
  const index = Math.max(0, game.scenes.findIndex((scene) => scene.name === name)) // prettier-ignore
  const scene = game.scenes[index]
  fillChoice($('scenes'), game.scenes.map(({ name: value, title }) => ({ value, title })), scene.name, openScene) // prettier-ignore
  history.replaceState(null, '', `#${game.game}/${scene.name}`)
  session = new Session(game, scene, scenes[index], detector)
  restart()
}

async function chooseEngine(choice) {
  const mine = ++turn
  clearTimeout(timer)
  setState('loading')
  showProblem(null)
  engine?.close()
  engine = null
  const isChosen = choice !== 'auto'
  const names = Object.keys(ENGINES).sort((a, b) => (b === choice) - (a === choice)) // the others if it fails
  loaded.start = performance.now()
  const graphs = new Map()
  const graphOf = async (kind) => {
    const facts = game.graphs[kind]
    if (!graphs.has(facts.file)) graphs.set(facts.file, await loadGraph(facts))
    return graphs.get(facts.file)
  }
  const options = {
    isChosen, paceMs: 1000 / game.stepsPerSecond,
    threads: Number(asked.get('threads')) || undefined, profile: asked.has('profile'),
  } // prettier-ignore
  const started = await startEngine(names, graphOf, scenes, (title) => showLoading(`Starting ${title}`), options)
  if (mine !== turn) return started.engine.close()
  engine = started.engine
  describeEngine(started.left)
  showLoading(null)
  setState('ready')
  schedule()
}

async function loadGraph(facts) {
  const start = performance.now()
  const graph = await fetchChecked(game.folder, facts, (bytes) => {
    showLoading(`Loading the network, ${megabytes(bytes)} of ${megabytes(facts.bytes)}`, bytes / facts.bytes)
  })
  loaded.bytes = facts.bytes
  console.info(`${game.folder}${facts.file}: ${megabytes(facts.bytes)} in ${seconds(performance.now() - start)}`)
  return graph
}

function describeEngine(left) {
  const { equal, all } = engine.agreement
  const text = [
    `Engine: ${engine.title}`,
    `${equal.toLocaleString('en')} of ${all.toLocaleString('en')} tokens as in Python`,
    `${megabytes(loaded.bytes)} ready in ${seconds(performance.now() - loaded.start)}`,
  ].join(' · ')
  console.info(text)
  const failed = left.filter(({ name, reason }) => whyNot(name) !== reason && !reason.startsWith('no WebGPU'))
  const noThreads = left.find(({ name, reason }) => name === 'threads' && whyNot(name) === reason)
  const notes = failed.map(({ name, reason }) => `${ENGINES[name].title} was left: ${reason}.`)
  if (noThreads && engine.name === 'single') notes.push(`Slower than it could be: ${noThreads.reason}.`)
  if (notes.length) showStatus(notes.join(' '))
  $('engine-facts').textContent = [text, ...notes].join('. ')
  fillEngines(engine.name)
}

function fillEngines() {
  const chosen = $('engine').value || asked.get('engine') || 'auto'
  const options = Object.entries(ENGINES).map(([value, { title }]) => {
    const reason = whyNot(value)
    return { value, title: reason ? `${title}: ${reason}` : title, isOff: Boolean(reason) }
  })
  fillSelect($('engine'), [{ value: 'auto', title: 'the fastest' }, ...options], chosen)
}

// The clock.

/** Go on with steps, or stop, as `isPaused` says. */
function schedule() {
  clearTimeout(timer)
  setPaused(isPaused)
  if (!isPaused && engine) timer = setTimeout(play)
}

/** Take steps until something changes; the picture is drawn while the next step is computed. */
async function play() {
  const mine = timer
  while (mine === timer && !isPaused && engine) {
    const start = performance.now()
    if (session.isWatching && !session.canWatch) {
      return stop('The recording ends here. R shows it again; with an arrow key you play on.')
    }
    await takeStep().catch(fail)
    if (session?.isOver) return stop('The dream says that its game is over. R restarts the scene.')
    const speed = Number($('speed').value)
    const due = speed ? start + 1000 / (speed * game.stepsPerSecond) : 0
    if (due > performance.now()) await new Promise((resolve) => setTimeout(resolve, due - performance.now()))
  }
}

function stop(text) {
  isPaused = true
  showStatus(text)
  show(session)
  schedule()
}

/** Take one step, or wait for the one that is being taken. */
function takeStep() {
  stepping ??= step().finally(() => (stepping = null))
  return stepping
}

/** Step under the recorded action while watching, else under the keys that are down. */
async function step() {
  if (!engine || !session) return
  const [running, played] = [engine, session]
  const own = actions.action(held.take())
  try {
    await played.advance(running, played.isWatching && played.canWatch ? played.recordedAction : own)
  } catch (error) {
    if (running === engine) throw error // else it was stopped for another
  }
  if (played !== session) return
  measureRate()
  draw ??= requestAnimationFrame(() => {
    draw = undefined
    if (session) show(session)
  })
}

function measureRate() {
  stepTimes = [...stepTimes, performance.now()].slice(-RATE_STEPS - 1)
  const rate = (1000 * (stepTimes.length - 1)) / (stepTimes.at(-1) - stepTimes[0])
  const step = `${Math.round(session.now.ms)} ms each`
  setFact('rate', stepTimes.length > 3 && !isPaused ? rate.toFixed(1) : '–', step)
}

// What a person does.

const COMMANDS = {
  pause() {
    isPaused = !isPaused
    stepTimes = []
    showStatus('')
    schedule()
  },
  async step() {
    isPaused = true
    schedule()
    await takeStep().catch(fail)
  },
  restart,
  rewind() {
    const steps = session.rewind()
    if (session.canWatch && steps && $('players').querySelector('[value=recorded]').checked) session.isWatching = true
    showStatus(`Back by ${seconds((1000 * steps) / game.stepsPerSecond)}.`)
    show(session)
    schedule()
  },
  sync() {
    const isDone = session.sync()
    showStatus(isDone ? 'The dream goes on from the real game.' : 'There is no real game beside this moment.')
    show(session)
  },
  player: () => setPlayer(session.isWatching ? 'you' : 'recorded'),
  full: toggleFull,
  clip: saveClip,
  help: () => ($('keys').open ? $('keys').close() : $('keys').showModal()),
  escape: () => $('stage').classList.contains('is-full') && toggleFull(),
}

function restart() {
  session.restart()
  stepTimes = []
  held.releaseAll()
  isPaused = asked.has('paused')
  setPlayer('recorded')
}

function setPlayer(name) {
  if (name === 'recorded' && !session.canWatch) session.restart()
  session.isWatching = name === 'recorded'
  $('players').querySelector(`[value=${name}]`).checked = true
  const touch = matchMedia('(pointer: coarse)').matches
  const keys = isVertical(actions) ? '↑ ↓' : '← →'
  $('hint').textContent = touch ? 'Touch to take over' : `Press ${keys} to take over`
  $('hint').hidden = !session.isWatching
  showStatus(session.isWatching ? '' : 'You play: from here on there is no real game beside the dream.')
  show(session)
  schedule()
}

/** A game key or a finger takes the paddle. */
function takeOver() {
  if (!session) return
  isPaused = isPaused && asked.has('paused')
  if (session.isWatching) setPlayer('you')
  else schedule()
}

function onPointer(pointer, input) {
  if (input === null) return held.release(pointer)
  held.press(pointer, input)
  takeOver()
}

function touchedSide(event) {
  const box = $('dream').getBoundingClientRect()
  const isFirst = isVertical(actions) ? event.clientY < box.top + box.height / 2 : event.clientX < box.left + box.width / 2
  return isVertical(actions) ? (isFirst ? 'UP' : 'DOWN') : isFirst ? 'LEFT' : 'RIGHT'
}

function onKey(event) {
  const isOnControl = event.target.closest?.('button, select, a, input')
  const dialog = document.querySelector('dialog[open]')
  if (event.ctrlKey || event.metaKey || event.altKey || !session) return
  const input = gameInput(event)
  if (input && !dialog) {
    if (isOnControl && (event.code === 'Space' || event.target.matches('select, input'))) return
    event.preventDefault()
    if (event.repeat) return
    held.press(event.code, input)
    takeOver()
    return
  }
  const does = command(event)
  if (!does || event.repeat || (dialog && does !== 'help') || event.target.matches?.('select')) return
  if (does !== 'escape') event.preventDefault()
  COMMANDS[does]()
}

function toggleFull() {
  const isFull = $('stage').classList.toggle('is-full')
  if (isFull) document.documentElement.requestFullscreen?.().catch(() => {}) // else the window alone
  else if (document.fullscreenElement) document.exitFullscreen()
  relay()
}

async function saveClip() {
  const moments = session.lastSeconds
  if (session.moments.length < 2) return showStatus('There is nothing to save yet.')
  $('clip').disabled = true
  const wasPaused = isPaused
  isPaused = true
  schedule()
  const facts = { game: game.game, scene: session.scene.name, weights: game.source, stepsPerSecond: game.stepsPerSecond }
  const clip = await makeClip(moments, facts, game.stepsPerSecond, (share) => showStatus(`Making the clip: ${Math.round(100 * share)} %`))
  showStatus(`Clip of ${moments.length} steps, ${megabytes(clip.gif.size)}.`)
  offerClip(clip, `${game.game}-${session.scene.name}`)
  $('clip').disabled = false
  isPaused = wasPaused
  schedule()
}

function relay() {
  layOut()
  if (session) show(session)
}

function fail(error) {
  turn++
  console.warn(error)
  clearTimeout(timer)
  setState('failed')
  fillEngines()
  showProblem(error)
}

function setState(state) {
  document.documentElement.dataset.state = state
}

const seconds = (ms) => `${(ms / 1000).toFixed(1)} s`

function listen() {
  for (const id of ['pause', 'step', 'rewind', 'sync', 'restart', 'clip', 'full', 'help']) {
    $(id).addEventListener('click', (event) => {
      if (event.detail) $(id).blur() // so that space fires again
      if (session) COMMANDS[id]()
    })
  }
  $('players').addEventListener('change', ({ target }) => session && setPlayer(target.value))
  $('engine').addEventListener('change', () => chooseEngine($('engine').value).catch(fail))
  $('again').addEventListener('click', () => (games ? openFirst().catch(fail) : begin()))
  document.querySelectorAll('.choice, select').forEach((part) => part.addEventListener('pointerup', () => setTimeout(() => document.activeElement?.matches('input') && document.activeElement.blur())))
  listenToPointer($('dream'), touchedSide, onPointer)
  addEventListener('keydown', onKey)
  addEventListener('keyup', (event) => held.release(event.code))
  addEventListener('blur', () => held.releaseAll())
  addEventListener('resize', relay)
  addEventListener('hashchange', () => games && openFirst().catch(fail))
  document.addEventListener('fullscreenchange', () => {
    if (!document.fullscreenElement && $('stage').classList.contains('is-full')) toggleFull()
  })
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', relay)
}

fillKeys()
fillSelect($('speed'), SPEEDS, '1')
fillEngines()
listen()
layOut()
begin()
