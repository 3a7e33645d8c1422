// The last ten seconds as a GIF, the actions under the picture and in a file of their own.

import { applyPalette, GIFEncoder, quantize } from 'gifenc'
import { FRAME_HEIGHT, FRAME_WIDTH, paint } from './picture.js'

const SCALE = 4
const GAP = 8
const STRIP = 28 // pixels below the pictures, for the action
const STEPS_BETWEEN_PAUSES = 5

/**
 * Make a clip: {gif: Blob, actions: Blob}.
 * @param moments [{step, frame, real | null, action}], see Session.lastSeconds
 * @param facts what stands beside the actions, such as game and scene
 */
export async function makeClip(moments, facts, stepsPerSecond, onProgress) {
  const hasReal = moments.some(({ real }) => real)
  const width = FRAME_WIDTH * SCALE * (hasReal ? 2 : 1) + (hasReal ? GAP : 0)
  const height = FRAME_HEIGHT * SCALE + STRIP
  const context = new OffscreenCanvas(width, height).getContext('2d', { willReadFrequently: true })
  const encoder = GIFEncoder()
  const ticks = (steps) => Math.round((100 * steps) / stepsPerSecond)
  for (const [k, moment] of moments.entries()) {
    drawMoment(context, moment, hasReal)
    const { data } = context.getImageData(0, 0, width, height)
    const palette = quantize(data, 256)
    encoder.writeFrame(applyPalette(data, palette), width, height, {
      palette,
      delay: 10 * (ticks(k + 1) - ticks(k)), // a GIF's ticks are whole, and it lasts as long
    })
    if (k % STEPS_BETWEEN_PAUSES === 0) {
      onProgress(k / moments.length)
      await new Promise((resolve) => setTimeout(resolve))
    }
  }
  encoder.finish()
  const steps = {
    ...facts,
    firstStep: moments[0].step,
    actions: moments.map(({ action }) => action),
  }
  return {
    gif: new Blob([encoder.bytes()], { type: 'image/gif' }),
    actions: new Blob([JSON.stringify(steps, null, 1)], { type: 'application/json' }),
  }
}

function drawMoment(context, { step, frame, real, action }, hasReal) {
  const { width, height } = context.canvas
  const [w, h] = [FRAME_WIDTH * SCALE, FRAME_HEIGHT * SCALE]
  context.fillStyle = '#14161c'
  context.fillRect(0, 0, width, height)
  paint(context, frame, 0, 0, w, h)
  if (real) paint(context, real, w + GAP, 0, w, h)
  context.fillStyle = '#e8eaf0'
  context.font = '13px system-ui, sans-serif'
  context.textBaseline = 'middle'
  context.fillText(`dream ${step}`, 8, h + STRIP / 2)
  if (hasReal) context.fillText('real game', w + GAP + 8, h + STRIP / 2)
  context.textAlign = 'right'
  context.fillText(action, w - 8, h + STRIP / 2)
  context.textAlign = 'left'
}
