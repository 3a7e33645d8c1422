// The page: loads a game, starts an engine, and lets a person or the recorded player play.

import { BallDetector } from './ball.js'
import { makeClip } from './clip.js'
import { ENGINES, startEngine, whyNot } from './engine.js'
import { fetchArrays, fetchChecked, listGames, megabytes, openGame } from './files.js'
import { ActionMap, command, gameInput } from './keys.js'
import { prepareOffline } from './offline.js'
import {
  $,
  fillChoice,
  fillKeys,
  fillPad,
  fillSelect,
  isVertical,
  layOut,
  listenToPointer,
  offerClip,
  show,
  showLoading,
  showProblem,
  showStatus,
} from './page.js'
import { Player } from './player.js'
import { Session } from './session.js'

const SPEEDS = [
  { value: '0.5', title: 'half' },
  { value: '1', title: 'as the game' },
  { value: '2', title: 'double' },
  { value: '0', title: 'as fast as it goes' },
]

const asked = new URLSearchParams(location.search) // engine, threads, paused, profile
const loaded = { bytes: 0, start: performance.now() }
const player = new Player(asked.has('paused'), { draw, say: showStatus, fail })
let games, game, scenes, detector
let drawing = 0 // the next picture's request
let turn = 0 // counts what was chosen, so that what was left does not arrive later

globalThis.dreamPage = player // for the console and the tests

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

/**
 * Load what was chosen; false where something else was chosen meanwhile, whose affair it then is.
 * @param load takes a function that tells whether it was left
 */
async function newest(load) {
  const mine = ++turn
  const isLeft = () => mine !== turn
  player.leaveEngine()
  setState('loading')
  showProblem(null)
  try {
    await load(isLeft)
  } catch (error) {
    if (!isLeft()) throw error
  }
  return !isLeft()
}

async function openNamed(name, sceneName = '') {
  history.replaceState(null, '', `#${name}/${sceneName}`) // also where it fails: to try again
  const isReady = await newest((isLeft) => loadGame(name, sceneName, isLeft))
  if (isReady) await chooseEngine($('engine').value)
}

async function loadGame(name, sceneName, isLeft) {
  const entry = games.find(({ game: id }) => id === name)
  const listed = games.map(({ game: value, title }) => ({ value, title }))
  fillChoice($('games'), listed, name, (value) => openNamed(value).catch(fail))
  showLoading(`Loading ${entry.title}`)
  player.session = null
  const opened = await openGame(entry)
  const tables = await fetchArrays(opened.folder, opened.detector)
  const arrays = await Promise.all(opened.scenes.map((scene) => fetchArrays(opened.folder, scene)))
  if (isLeft()) return
  game = opened
  scenes = arrays
  detector = new BallDetector(tables)
  document.title = `${game.title}, dreamed`
  player.actions = new ActionMap(game.actions, game.aliases)
  fillPad(player.actions, onPointer)
  openScene(sceneName)
}

function openScene(name) {
  const known = game.scenes.findIndex((scene) => scene.name === name)
  const index = Math.max(0, known)
  const scene = game.scenes[index]
  const listed = game.scenes.map(({ name: value, title }) => ({ value, title }))
  fillChoice($('scenes'), listed, scene.name, openScene)
  history.replaceState(null, '', `#${game.game}/${scene.name}`)
  player.session = new Session(game, scene, scenes[index], detector)
  showStatus('')
  player.restart()
}

async function chooseEngine(choice) {
  const isReady = await newest((isLeft) => loadEngine(choice, isLeft))
  if (isReady) player.run()
}

async function loadEngine(choice, isLeft) {
  const { folder, graphs: listed, stepsPerSecond } = game
  const say = (...words) => isLeft() || showLoading(...words)
  const isChosen = choice !== 'auto'
  const names = Object.keys(ENGINES).sort((a, b) => (b === choice) - (a === choice)) // the others if it fails
  loaded.start = performance.now()
  const graphs = new Map()
  const graphOf = async (kind) => {
    const facts = listed[kind]
    if (!graphs.has(facts.file)) graphs.set(facts.file, await loadGraph(folder, facts, say))
    return graphs.get(facts.file)
  }
  const options = {
    isChosen, paceMs: 1000 / stepsPerSecond,
    threads: Number(asked.get('threads')) || undefined, profile: asked.has('profile'),
  } // prettier-ignore
  const started = await startEngine(
    names,
    graphOf,
    scenes,
    (title) => say(`Starting ${title}`),
    options,
  )
  if (isLeft()) return started.engine.close()
  player.engine = started.engine
  describeEngine(started.engine, started.left)
  showLoading(null)
  setState('ready')
}

async function loadGraph(folder, facts, say) {
  const start = performance.now()
  const graph = await fetchChecked(folder, facts, (bytes) => {
    say(
      `Loading the network, ${megabytes(bytes)} of ${megabytes(facts.bytes)}`,
      bytes / facts.bytes,
    )
  })
  loaded.bytes = facts.bytes
  console.info(
    `${folder}${facts.file}: ${megabytes(facts.bytes)} in ${seconds(performance.now() - start)}`,
  )
  return graph
}

function describeEngine(engine, left) {
  const { equal, all } = engine.agreement
  const text = [
    `Engine: ${engine.title}`,
    `${equal.toLocaleString('en')} of ${all.toLocaleString('en')} tokens as in Python`,
    `${megabytes(loaded.bytes)} ready in ${seconds(performance.now() - loaded.start)}`,
  ].join(' · ')
  console.info(text)
  const failed = left.filter(
    ({ name, reason }) => whyNot(name) !== reason && !reason.startsWith('no WebGPU'),
  )
  const noThreads = left.find(({ name, reason }) => name === 'threads' && whyNot(name) === reason)
  const notes = failed.map(({ name, reason }) => `${ENGINES[name].title} was left: ${reason}.`)
  if (noThreads && engine.name === 'single')
    notes.push(`Slower than it could be: ${noThreads.reason}.`)
  if (notes.length) showStatus(notes.join(' '))
  $('engine-facts').textContent = [text, ...notes].join('. ')
  fillEngines()
}

function fillEngines() {
  const chosen = $('engine').value || asked.get('engine') || 'auto'
  const options = Object.entries(ENGINES).map(([value, { title }]) => {
    const reason = whyNot(value)
    return { value, title: reason ? `${title}: ${reason}` : title, isOff: Boolean(reason) }
  })
  fillSelect($('engine'), [{ value: 'auto', title: 'the fastest' }, ...options], chosen)
}

// What a person does.

const COMMANDS = {
  pause() {
    showStatus('')
    player.pause()
  },
  step: () => player.stepOnce(),
  restart: () => player.restart(),
  rewind: () => player.rewind(),
  sync: () => player.sync(),
  player: () => player.watch(!player.session.isWatching),
  full: toggleFull,
  clip: saveClip,
  help: () => ($('keys').open ? $('keys').close() : $('keys').showModal()),
  escape: () => $('stage').classList.contains('is-full') && toggleFull(),
}

function onPointer(pointer, input) {
  if (input === null) player.held.release(pointer)
  else player.press(pointer, input)
}

function touchedSide(event) {
  const box = $('dream').getBoundingClientRect()
  const isFirst = isVertical(player.actions)
    ? event.clientY < box.top + box.height / 2
    : event.clientX < box.left + box.width / 2
  return isVertical(player.actions) ? (isFirst ? 'UP' : 'DOWN') : isFirst ? 'LEFT' : 'RIGHT'
}

function onKey(event) {
  const isOnControl = event.target.closest?.('button, select, a, input')
  const dialog = document.querySelector('dialog[open]')
  if (event.ctrlKey || event.metaKey || event.altKey || !player.session) return
  const input = gameInput(event)
  if (input && !dialog) {
    if (isOnControl && (event.code === 'Space' || event.target.matches('select, input'))) return
    event.preventDefault()
    if (event.repeat) return
    player.press(event.code, input)
    return
  }
  const does = command(event)
  if (!does || event.repeat || (dialog && does !== 'help') || event.target.matches?.('select'))
    return
  if (does !== 'escape') event.preventDefault()
  COMMANDS[does]()
}

function toggleFull() {
  const isFull = $('stage').classList.toggle('is-full')
  if (isFull)
    document.documentElement.requestFullscreen?.().catch(() => {}) // else the window alone
  else if (document.fullscreenElement) document.exitFullscreen()
  relay()
}

async function saveClip() {
  const { session } = player
  const moments = session.lastSeconds
  if ($('clip').disabled) return // one is being made
  if (!moments.length) return showStatus('There is nothing to save yet.')
  $('clip').disabled = true
  player.halt()
  const facts = {
    game: game.game,
    scene: session.scene.name,
    weights: game.source,
    stepsPerSecond: game.stepsPerSecond,
  }
  try {
    const clip = await makeClip(moments, facts, game.stepsPerSecond, (share) =>
      showStatus(`Making the clip: ${Math.round(100 * share)} %`),
    )
    showStatus(`Clip of ${moments.length} steps, ${megabytes(clip.gif.size)}.`)
    offerClip(clip, `${facts.game}-${facts.scene}`)
  } catch (error) {
    console.warn(error)
    showStatus(`No clip was made: ${error.message}`)
  }
  $('clip').disabled = false
  player.run()
}

function relay() {
  layOut()
  draw()
}

function fail(error) {
  turn++
  console.warn(error)
  player.halt()
  setState('failed')
  fillEngines()
  showProblem(error)
}

/** Draw what is played, before the browser paints next. */
function draw() {
  drawing ||= requestAnimationFrame(() => {
    drawing = 0
    if (player.session) show(player)
  })
}

function setState(state) {
  document.documentElement.dataset.state = state
}

const seconds = (ms) => `${(ms / 1000).toFixed(1)} s`

function listen() {
  for (const id of ['pause', 'step', 'rewind', 'sync', 'restart', 'clip', 'full', 'help']) {
    $(id).addEventListener('click', (event) => {
      if (event.detail) $(id).blur() // so that space fires again
      if (player.session) COMMANDS[id]()
    })
  }
  $('players').addEventListener(
    'change',
    ({ target }) => player.session && player.watch(target.value === 'recorded'),
  )
  $('speed').addEventListener('change', () => (player.speed = Number($('speed').value)))
  $('engine').addEventListener(
    'change', // while a game loads it is read at the end
    () => player.session && chooseEngine($('engine').value).catch(fail),
  )
  $('again').addEventListener('click', () => (games ? openFirst().catch(fail) : begin()))
  document
    .querySelectorAll('.choice')
    .forEach((part) =>
      part.addEventListener('pointerup', () =>
        setTimeout(() => document.activeElement?.matches('input') && document.activeElement.blur()),
      ),
    )
  listenToPointer($('dream'), touchedSide, onPointer)
  addEventListener('keydown', onKey)
  addEventListener('keyup', (event) => player.held.release(event.code))
  addEventListener('blur', () => player.held.releaseAll())
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
