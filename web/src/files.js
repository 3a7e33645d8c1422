// Files of a game: fetched with progress, checked against the hashes in game.json, unpacked.
// Contract: what is returned is whole; what is not throws a PageError that a person can act on.

const FORMAT = 2 // of game.json, see v2/export/scenes.py

/** An error with a sentence that says what is wrong, and one that says what to do. */
export class PageError extends Error {
  constructor(what, fix, cause) {
    super(what, { cause })
    this.fix = fix
  }
}

/** Return the games that the folder holds: [{game, title, version}]. */
export async function listGames() {
  const games = parsed(await download('games.json'), 'games.json')
  if (!games.length) {
    throw new PageError(
      'This folder holds no game.',
      'Run make web again: it exports Breakout and Pong first.',
    )
  }
  return games
}

/** Return game.json of a game, with the folder it lies in. */
export async function openGame({ game, version }) {
  const folder = `games/${game}/`
  const facts = parsed(await download(`${folder}game.json?v=${version}`), `${folder}game.json`)
  if (facts.format !== FORMAT) {
    throw new PageError(
      `${folder}game.json has format ${facts.format}, and this page reads ${FORMAT}.`,
      'Run make web again, so that page and games are of one version.',
    )
  }
  await forgetOtherVersions(folder, [version, ...filesOf(facts).map(versionOf)])
  return { ...facts, folder }
}

function parsed(bytes, file) {
  try {
    return JSON.parse(new TextDecoder().decode(bytes))
  } catch (error) {
    throw new PageError(
      `${file} is damaged.`,
      'Reload the page; if that does not help, publish the folder again.',
      error,
    )
  }
}

function filesOf({ graphs, detector, scenes }) {
  return [...Object.values(graphs), detector, ...scenes]
}

const versionOf = ({ sha256 }) => sha256.slice(0, 12)

/** Fetch a file that game.json names, and make sure that it is the one; past the caches if not. */
export async function fetchChecked(folder, facts, onProgress) {
  const url = `${folder}${facts.file}?v=${versionOf(facts)}`
  let bytes
  for (const cache of ['default', 'reload']) {
    bytes = await download(url, onProgress, cache)
    const isWhole =
      bytes.length === facts.bytes && (await sha256(bytes, facts.sha256)) === facts.sha256
    if (isWhole) return bytes
  }
  throw new PageError(
    `${facts.file} is damaged: ${megabytes(bytes.length)} of ${megabytes(facts.bytes)} arrived, or other bytes than were published.`,
    'Reload the page to load it again; if that does not help, publish the folder again.',
  )
}

/** Fetch and unpack arrays: {name: Float32Array | Uint8Array}. */
export async function fetchArrays(folder, facts) {
  const packed = await fetchChecked(folder, facts)
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream('deflate'))
  const buffer = await new Response(stream).arrayBuffer()
  const arrays = {}
  let at = 0
  for (const { name, type, shape } of facts.arrays) {
    const length = shape.reduce((product, size) => product * size, 1)
    const isFloat = type === 'float32'
    arrays[name] = isFloat
      ? new Float32Array(buffer, at, length)
      : new Uint8Array(buffer, at, length)
    at += isFloat ? 4 * length : length
  }
  return arrays
}

/** Return all frames of a scene, each uint8 (84 * 64 * 3), from differences modulo 256. */
export function undoDifferences(frames, count) {
  const size = frames.length / count
  const made = [frames.slice(0, size)]
  for (let t = 1; t < count; t++) {
    const frame = frames.slice(t * size, (t + 1) * size)
    for (let k = 0; k < size; k++) frame[k] += made[t - 1][k]
    made.push(frame)
  }
  return made
}

export function megabytes(bytes) {
  return bytes < 1e6 ? `${Math.ceil(bytes / 1e3)} kB` : `${(bytes / 1e6).toFixed(1)} MB`
}

async function download(url, onProgress, cache = 'default') {
  let response
  try {
    response = await fetch(url, { cache })
  } catch (error) {
    throw new PageError(
      `${name(url)} cannot be loaded: no connection.`,
      'Connect once, so that the page can keep it; then it works offline.',
      error,
    )
  }
  if (!response.ok) {
    throw new PageError(
      `${name(url)} is not there (the server says ${response.status}).`,
      'Publish the whole folder web/dist, or run make web again.',
    )
  }
  try {
    if (!onProgress || !response.body) return new Uint8Array(await response.arrayBuffer())
    return await read(response.body, onProgress)
  } catch (error) {
    throw new PageError(
      `${name(url)} broke off while loading.`,
      'Reload the page to load it again.',
      error,
    )
  }
}

async function read(body, onProgress) {
  const parts = []
  let length = 0
  for (const reader = body.getReader(); ;) {
    const { done, value } = await reader.read()
    if (done) break
    parts.push(value)
    onProgress((length += value.length))
  }
  const bytes = new Uint8Array(length)
  let at = 0
  for (const part of parts) {
    bytes.set(part, at)
    at += part.length
  }
  return bytes
}

async function sha256(bytes, unknown) {
  if (!globalThis.crypto?.subtle) return unknown // an insecure address has no hashes: length alone
  const digest = new Uint8Array(await crypto.subtle.digest('SHA-256', bytes))
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, '0')).join('')
}

/** What the service worker keeps; null where the browser keeps nothing. */
async function keptFiles() {
  try {
    return await caches.open('files')
  } catch {
    return null
  }
}

async function forgetOtherVersions(folder, versions) {
  const cache = await keptFiles()
  for (const { url } of (await cache?.keys()) ?? []) {
    const { pathname, searchParams } = new URL(url)
    if (pathname.includes(`/${folder}`) && !versions.includes(searchParams.get('v')))
      await cache.delete(url)
  }
}

function name(url) {
  return url.split('?')[0]
}
