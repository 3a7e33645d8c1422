// The page's elements: what is shown where. Knows no engine and no game's rules.

import { KEY_TABLE } from './keys.js'
import { drawCurve, NEAR_PX } from './curve.js'
import { drawFrame, drawRing, FRAME_HEIGHT, FRAME_WIDTH } from './picture.js'

export const $ = (id) => document.getElementById(id)
const REAL_COLOUR = '#5ad1ff'
const PAD_INPUTS = ['UP', 'DOWN', 'LEFT', 'RIGHT', 'FIRE']
const MIN_SCALE = 3
const MAX_SCALE = 8
let fading

/** Show progress of loading; null hides it. */
export function showLoading(text, share = null) {
  $('loading').hidden = text === null
  if (text === null) return
  $('loading-text').textContent = text
  if (share === null) $('progress').removeAttribute('value')
  else $('progress').value = share
}

/** Say what is wrong and what to do, instead of a blank picture. */
export function showProblem(error) {
  showLoading(null)
  $('problem').hidden = !error
  if (!error) return
  $('hint').hidden = true
  $('problem-what').textContent = error.fix ? error.message : `Something broke: ${error.message}`
  $('problem-fix').textContent =
    error.fix ?? 'Reload the page; if it happens again, choose another engine below.'
}

/** Say something over the picture; it fades after a while. */
export function showStatus(text) {
  $('status').textContent = text
  $('status').classList.remove('is-old')
  clearTimeout(fading)
  fading = setTimeout(() => $('status').classList.add('is-old'), 8000)
}

/** Fill a fieldset with radio buttons [{value, title}] and call `onChoice(value)`. */
export function fillChoice(fieldset, options, chosen, onChoice) {
  const hasFocus = fieldset.contains(document.activeElement)
  fieldset.querySelectorAll('label').forEach((label) => label.remove())
  for (const { value, title } of options) {
    const label = document.createElement('label')
    const input = Object.assign(document.createElement('input'), {
      type: 'radio',
      name: fieldset.id,
      value,
      checked: value === chosen,
    })
    input.addEventListener('change', () => onChoice(value))
    label.append(input, Object.assign(document.createElement('span'), { textContent: title }))
    fieldset.append(label)
    if (hasFocus && value === chosen) input.focus()
  }
}

/** Fill a select with [{value, title, isOff}]. */
export function fillSelect(select, options, chosen) {
  select.replaceChildren(
    ...options.map(({ value, title, isOff = false }) => {
      const option = new Option(title, value, false, value === chosen)
      option.disabled = isOff
      return option
    }),
  )
}

/** Build the touch buttons that a game has; `onInput(pointer, input | null)`. */
export function fillPad(actions, onInput) {
  const icons = { UP: 'up', DOWN: 'down', LEFT: 'left', RIGHT: 'right' }
  const shown = PAD_INPUTS.filter(
    (input) => actions.knows(input) && !(isVertical(actions) && ['LEFT', 'RIGHT'].includes(input)),
  )
  $('pad').replaceChildren(
    ...shown.map((input) => {
      const button = Object.assign(document.createElement('button'), {
        type: 'button',
        tabIndex: -1,
      })
      button.dataset.input = input
      button.setAttribute('aria-label', input.toLowerCase())
      if (icons[input])
        button.innerHTML = `<svg aria-hidden="true"><use href="#i-${icons[input]}"/></svg>`
      else button.textContent = 'Fire'
      listenToPointer(button, () => input, onInput)
      return button
    }),
  )
}

/** Let a finger on an element hold an input down. */
export function listenToPointer(element, inputAt, onInput) {
  element.addEventListener('pointerdown', (event) => {
    event.preventDefault()
    element.setPointerCapture(event.pointerId)
    element.classList.add('is-down')
    onInput(event.pointerId, inputAt(event))
  })
  for (const name of ['pointerup', 'pointercancel', 'lostpointercapture']) {
    element.addEventListener(name, (event) => {
      element.classList.remove('is-down')
      onInput(event.pointerId, null)
    })
  }
  element.addEventListener('contextmenu', (event) => event.preventDefault())
}

/** Whether a game's paddle moves up and down. */
export function isVertical(actions) {
  return Object.keys(actions.aliases).includes('UP')
}

/** Choose the largest picture of whole pixels that style.css leaves room for. */
export function layOut() {
  const ratio = globalThis.devicePixelRatio || 1
  const isFull = $('stage').classList.contains('is-full')
  const isNarrow = innerWidth <= 900
  const pad = getComputedStyle($('pad')).display === 'none' ? 0 : 76
  const width = isFull
    ? innerWidth
    : isNarrow
      ? document.body.clientWidth - 28
      : Math.min(innerWidth, 1160) - 540
  const height = innerHeight - (isFull ? pad : isNarrow ? pad + 116 : 206)
  const most = isFull ? 100 : MAX_SCALE
  const room = Math.min(width / FRAME_WIDTH, height / FRAME_HEIGHT, most)
  const scale = Math.max(Math.floor(room * ratio) / ratio, Math.min(MIN_SCALE, width / FRAME_WIDTH))
  document.documentElement.style.setProperty('--scale', scale)
}

/** Draw what a player plays: its session's present moment. */
export function show(player) {
  const { session } = player
  showControls(player)
  const real = session.realFrame()
  drawFrame($('dream'), session.now.frame)
  if (real) {
    drawRing($('dream'), session.realBall(), REAL_COLOUR)
    drawFrame($('real'), real)
  }
  $('recorded').classList.toggle('is-past', !real)
  $('sync').disabled = !real
  const distances = session.distances
  drawCurve($('curve'), distances, session.length, session.game.stepsPerSecond)
  const measured = distances.filter(Number.isFinite)
  const near = measured.filter((px) => px <= NEAR_PX).length
  const last = real ? distances.at(-1) : NaN
  setFact(
    'apart',
    Number.isFinite(last) ? last.toFixed(1) : '–',
    Number.isFinite(last) ? 'px' : why(session, real),
  )
  setFact(
    'near',
    measured.length ? `${Math.round((100 * near) / measured.length)} %` : '–',
    `of ${measured.length} steps`,
  )
  setFact(
    'rate',
    Number.isFinite(player.rate) ? player.rate.toFixed(1) : '–',
    `${Math.round(session.now.ms)} ms each`,
  )
  setFact(
    'scored',
    String(session.now.score).replace('-', '−'),
    real ? `real ${session.realScore()}` : 'in the dream',
  )
}

function why(session, real) {
  if (!real) return 'no real game now'
  if (!session.realBall()) return session.now.ball ? 'the real one is away' : 'no ball'
  return 'no dreamed ball'
}

function setFact(id, value, unit) {
  $(id).replaceChildren(
    `${value} `,
    Object.assign(document.createElement('small'), { textContent: unit }),
  )
}

function showControls({ isPaused, session, actions }) {
  $('pause')
    .querySelector('use')
    .setAttribute('href', isPaused ? '#i-play' : '#i-pause')
  $('pause').querySelector('span').textContent = isPaused ? 'Play' : 'Pause'
  $('players').querySelector(`[value=${session.isWatching ? 'recorded' : 'you'}]`).checked = true
  const isTouch = matchMedia('(pointer: coarse)').matches
  const keys = isVertical(actions) ? '↑ ↓' : '← →'
  $('hint').textContent = isTouch ? 'Touch to take over' : `Press ${keys} to take over`
  $('hint').hidden = !session.isWatching
}

export function fillKeys() {
  $('keys')
    .querySelector('table')
    .replaceChildren(
      ...KEY_TABLE.map((cells) => {
        const row = document.createElement('tr')
        row.append(
          ...cells.map((text) =>
            Object.assign(document.createElement('td'), { textContent: text }),
          ),
        )
        return row
      }),
    )
}

/** Offer a clip's files. */
export function offerClip({ gif, actions }, name) {
  for (const id of ['saved-gif', 'saved-actions']) if ($(id).href) URL.revokeObjectURL($(id).href)
  const [picture, steps] = [gif, actions].map((blob) => URL.createObjectURL(blob))
  $('saved-picture').src = picture
  Object.assign($('saved-gif'), { href: picture, download: `${name}.gif` })
  Object.assign($('saved-actions'), { href: steps, download: `${name}.json` })
  $('saved').showModal()
}
