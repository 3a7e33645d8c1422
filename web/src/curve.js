// Draws the distance between the two balls over the steps of a scene.

import { fit } from './picture.js'

const MAX_PX = 12 // further apart is drawn at the top
export const NEAR_PX = 2 // what the evaluation counts as a hit

/** Draw distances in pixels, one a step, NaN where there is none; `length` steps wide. */
export function drawCurve(canvas, distances, length, stepsPerSecond) {
  const ratio = fit(canvas)
  const style = getComputedStyle(canvas)
  const colour = (name) => style.getPropertyValue(name)
  const context = canvas.getContext('2d')
  context.setTransform(ratio, 0, 0, ratio, 0, 0)
  const width = canvas.width / ratio
  const height = canvas.height / ratio
  const [left, bottom, top] = [26, 18, 6]
  const x = (step) => left + (step / Math.max(length, 1)) * (width - left - 6)
  const y = (px) => top + (1 - Math.min(px, MAX_PX) / MAX_PX) * (height - bottom - top)
  context.clearRect(0, 0, width, height)

  context.fillStyle = colour('--near')
  context.fillRect(x(0), y(NEAR_PX), x(length) - x(0), y(0) - y(NEAR_PX))
  context.fillStyle = colour('--faint')
  context.strokeStyle = colour('--line')
  context.lineWidth = 1
  context.font = `11px ${style.fontFamily}`
  context.textBaseline = 'middle'
  context.textAlign = 'right'
  for (const px of [0, NEAR_PX, 6, MAX_PX]) {
    context.fillText(px, left - 6, y(px))
    line(context, [[x(0), y(px)], [x(length), y(px)]]) // prettier-ignore
  }
  context.textAlign = 'center'
  context.textBaseline = 'bottom'
  for (let second = 0; second * stepsPerSecond <= length; second += 5) {
    context.fillText(`${second} s`, Math.min(x(second * stepsPerSecond), width - 14), height)
  }

  context.strokeStyle = context.fillStyle = colour('--accent')
  context.lineWidth = 2
  context.lineJoin = 'round'
  let run = []
  for (let step = 0; step <= distances.length; step++) {
    if (Number.isFinite(distances[step])) {
      run.push([x(step), y(distances[step])])
      continue
    }
    line(context, run)
    run = []
  }
  const last = distances.length - 1
  if (Number.isFinite(distances[last])) {
    context.beginPath()
    context.arc(x(last), y(distances[last]), 3.5, 0, 2 * Math.PI)
    context.fill()
  }
}

function line(context, points) {
  context.beginPath()
  points.forEach(([x, y], k) => (k ? context.lineTo(x, y) : context.moveTo(x, y)))
  context.stroke()
}
