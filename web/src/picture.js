// Draws frames on canvases, in whole pixels of the screen, and rings where balls are.

export const FRAME_WIDTH = 64
export const FRAME_HEIGHT = 84

const small = new OffscreenCanvas(FRAME_WIDTH, FRAME_HEIGHT)
const smallContext = small.getContext('2d', { willReadFrequently: true })
const image = new ImageData(FRAME_WIDTH, FRAME_HEIGHT)

/** Draw a frame, uint8 (84 * 64 * 3), over a whole canvas. */
export function drawFrame(canvas, frame) {
  fit(canvas)
  paint(canvas.getContext('2d'), frame, 0, 0, canvas.width, canvas.height)
}

/** Draw a frame into a rectangle of a context, without smoothing. */
export function paint(context, frame, x, y, width, height) {
  const { data } = image
  for (let k = 0, j = 0; k < frame.length; k += 3, j += 4) {
    data[j] = frame[k]
    data[j + 1] = frame[k + 1]
    data[j + 2] = frame[k + 2]
    data[j + 3] = 255
  }
  smallContext.putImageData(image, 0, 0)
  context.imageSmoothingEnabled = false
  context.drawImage(small, x, y, width, height)
}

/** Draw a ring around a place [x, y] in pixels of the frame. */
export function drawRing(canvas, place, colour) {
  if (!place) return
  const context = canvas.getContext('2d')
  const scale = canvas.width / FRAME_WIDTH
  context.beginPath()
  context.arc(place[0] * scale, place[1] * scale, 2.6 * scale, 0, 2 * Math.PI)
  context.lineWidth = Math.max(1.5, 0.35 * scale)
  context.strokeStyle = colour
  context.stroke()
}

/** Give a canvas as many pixels as the screen shows of it. */
export function fit(canvas) {
  const ratio = globalThis.devicePixelRatio || 1
  const width = Math.max(1, Math.round(canvas.clientWidth * ratio))
  const height = Math.max(1, Math.round(canvas.clientHeight * ratio))
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height })
  return ratio
}
