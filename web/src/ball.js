// Sees the ball in a frame, by the tables of v2/eval/objects: what bricks and paddle explain is
// subtracted, and a compact spot of what is left is a ball.
// Contract: the same ball as v2.eval.objects.detector.read_frames, to a hundredth of a pixel.

const HEIGHT = 84
const WIDTH = 64

export class BallDetector {
  constructor(tables) {
    this.tables = tables
    this.residual = new Float32Array(HEIGHT * WIDTH * 3)
  }

  /** Return the strongest ball [x, y] of a frame, uint8 (84 * 64 * 3); null if there is none. */
  find(frame) {
    const { background, filter, bands } = this.tables
    const residual = this.residual
    for (let k = 0; k < residual.length; k++) residual[k] = frame[k] - background[k]
    const paddle = bands ? this.#paddleColumns() : null
    if (bands) this.#subtractBricks()
    const coverage = new Float32Array(HEIGHT * WIDTH)
    for (let k = 0; k < coverage.length; k++) {
      for (let c = 0; c < 3; c++) coverage[k] += residual[3 * k + c] * filter[3 * k + c]
    }
    for (let y = paddle ? bands[2] : 0; paddle && y < bands[3]; y++) {
      for (let x = 0; x < WIDTH; x++) if (paddle[x]) coverage[y * WIDTH + x] = 0
    }
    return this.#strongestBall(coverage)
  }

  /** Return the columns that a paddle covers or touches; null where none is seen. */
  #paddleColumns() {
    const { filter, paddles, touched, bands, limits } = this.tables
    const row = (bands[2] + 1) * WIDTH
    const coverage = new Float32Array(WIDTH)
    for (let x = 0; x < WIDTH; x++) {
      for (let c = 0; c < 3; c++)
        coverage[x] += this.residual[3 * (row + x) + c] * filter[3 * (row + x) + c]
    }
    let best = { score: -Infinity }
    for (let p = 0; p < paddles.length / WIDTH; p++) {
      let match = 0
      let energy = 0
      for (let x = 0; x < WIDTH; x++) {
        const template = paddles[p * WIDTH + x]
        match += coverage[x] * template
        energy += template * template
      }
      const score = 2 * match - energy
      if (score > best.score) best = { score, p, amount: match / energy }
    }
    return best.amount >= limits[2] ? touched.subarray(best.p * WIDTH, (best.p + 1) * WIDTH) : null
  }

  /** Subtract bricks: how much of each is there by least squares, those half dreamed as they are. */
  #subtractBricks() {
    const { brickX, brickXInverse, brickY, brickYInverse, bands, limits } = this.tables
    const columns = brickX.length / WIDTH
    const size = 3 * (bands[1] - bands[0]) // rows times colours
    const rows = brickY.length / size
    const at = (k, x) => 3 * ((bands[0] + Math.floor(k / 3)) * WIDTH + x) + (k % 3)
    const amounts = new Float32Array(rows * columns)
    for (let column = 0; column < columns; column++) {
      const band = new Float32Array(size)
      for (let k = 0; k < size; k++) {
        for (let x = 0; x < WIDTH; x++)
          band[k] += this.residual[at(k, x)] * brickXInverse[column * WIDTH + x]
      }
      for (let row = 0; row < rows; row++) {
        let amount = 0
        for (let k = 0; k < size; k++) amount += brickYInverse[row * size + k] * band[k]
        amounts[row * columns + column] = amount < limits[0] ? 0 : amount > limits[1] ? 1 : amount
      }
    }
    for (let k = 0; k < size; k++) {
      const painted = new Float32Array(columns)
      for (let column = 0; column < columns; column++) {
        for (let row = 0; row < rows; row++)
          painted[column] += brickY[k * rows + row] * amounts[row * columns + column]
      }
      for (let x = 0; x < WIDTH; x++) {
        for (let column = 0; column < columns; column++) {
          this.residual[at(k, x)] -= painted[column] * brickX[x * columns + column]
        }
      }
    }
  }

  /** Search windows of 3 x 2 pixels, the heaviest first; a ball's centre is taken over 5 x 4. */
  #strongestBall(coverage) {
    const [top, bottom, left, right] = this.tables.field
    const [noise, minMass, minPeak, minShare, maxBalls] = this.tables.ball
    const height = bottom - top + 4
    const width = right - left + 4
    const field = new Float32Array(height * width) // two pixels of nothing around it
    for (let y = top; y < bottom; y++) {
      for (let x = left; x < right; x++) {
        const value = coverage[y * WIDTH + x]
        if (value > noise) field[(y - top + 2) * width + x - left + 2] = Math.min(value, 1)
      }
    }
    const whole = field.slice() // what is cleared below still counts as surroundings
    for (let round = 0; round < maxBalls + 2; round++) {
      const place = heaviest(field, height, width)
      if (place.mass < minMass) return null
      const patch = measure(field, whole, width, place)
      if (patch.peak >= minPeak && patch.inner >= minShare * patch.around) {
        return [patch.x / patch.total + left - 1.5, patch.y / patch.total + top - 1.5]
      }
      clear(field, width, place)
    }
    return null
  }
}

/** Return the window whose 3 x 2 pixels weigh most, by the corner of its surroundings. */
function heaviest(field, height, width) {
  let best = { mass: 0 }
  for (let y = 1; y <= height - 4; y++) {
    for (let x = 1; x <= width - 3; x++) {
      let mass = 0
      for (let dy = 0; dy < 3; dy++) {
        const k = (y + dy) * width + x
        mass += field[k] + field[k + 1]
      }
      if (mass > best.mass) best = { mass, y: y - 1, x: x - 1 }
    }
  }
  return best
}

function measure(field, whole, width, { y, x }) {
  const sums = { total: 0, inner: 0, around: 0, peak: 0, x: 0, y: 0 }
  for (let dy = 0; dy < 5; dy++) {
    for (let dx = 0; dx < 4; dx++) {
      const k = (y + dy) * width + x + dx
      const value = field[k]
      sums.total += value
      sums.around += whole[k]
      sums.x += value * (x + dx)
      sums.y += value * (y + dy)
      if (dy >= 1 && dy <= 3 && dx >= 1 && dx <= 2) {
        sums.inner += value
        sums.peak = Math.max(sums.peak, value)
      }
    }
  }
  return sums
}

function clear(field, width, { y, x }) {
  for (let dy = 0; dy < 5; dy++) field.fill(0, (y + dy) * width + x, (y + dy) * width + x + 4)
}
