// Builds the page into dist/: the page itself, ONNX Runtime as it is published, the games of
// public/games, and the service worker that knows them all.
// DREAM_PUBLIC names another folder than public, as the tests do.

import { createHash } from 'node:crypto'
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const here = dirname(fileURLToPath(import.meta.url))
const publicDir = process.env.DREAM_PUBLIC ?? join(here, 'public')
const ortFolder = dirname(createRequire(import.meta.url).resolve('onnxruntime-web/wasm'))
const ortVersion = JSON.parse(readFileSync(join(ortFolder, '..', 'package.json'))).version
const ortFiles = ['wasm', 'webgpu', 'jspi']
  .map((build) => `ort.${build}.min.mjs`)
  .concat(
    ['', '.asyncify', '.jspi'].flatMap((build) => [
      `ort-wasm-simd-threaded${build}.mjs`,
      `ort-wasm-simd-threaded${build}.wasm`,
    ]),
  )

const isolationHeaders = {
  'Cross-Origin-Opener-Policy': 'same-origin',
  'Cross-Origin-Embedder-Policy': 'require-corp',
}

const hash = (bytes) => createHash('sha256').update(bytes).digest('hex').slice(0, 12)

function listedGames() {
  const folder = join(publicDir, 'games')
  const games = existsSync(folder) ? readdirSync(folder).sort() : []
  return games
    .filter((game) => existsSync(join(folder, game, 'game.json')))
    .map((game) => {
      const text = readFileSync(join(folder, game, 'game.json'))
      return { game, title: JSON.parse(text).title, version: hash(text) }
    })
}

function dreamPage() {
  return {
    name: 'dream-page',
    generateBundle(_, bundle) {
      const emit = (fileName, source) => this.emitFile({ type: 'asset', fileName, source })
      const games = JSON.stringify(listedGames())
      emit('games.json', games)
      for (const file of ortFiles)
        emit(`ort/${ortVersion}/${file}`, readFileSync(join(ortFolder, file)))
      const shell = [
        './',
        'index.html',
        'games.json',
        ...Object.keys(bundle).filter((file) => file.startsWith('assets/')),
      ]
      const build = hash(JSON.stringify(shell) + games + readFileSync(join(here, 'index.html')))
      const worker = readFileSync(join(here, 'src', 'sw.js'), 'utf8')
      emit(
        'sw.js',
        worker
          .replace('__BUILD__', build)
          .replace('__SHELL__', JSON.stringify(shell))
          .replace('__ORT__', ortVersion),
      )
    },
  }
}

export default {
  root: here,
  base: './',
  publicDir,
  plugins: [dreamPage()],
  define: { ORT_VERSION: JSON.stringify(ortVersion) },
  build: {
    target: 'es2022',
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
  },
  worker: { format: 'es' },
  preview: { host: '127.0.0.1', port: 8333, headers: isolationHeaders },
}
