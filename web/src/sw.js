// The service worker: adds the headers that let a page share memory between threads, and keeps
// what was loaded. vite.config.js fills in what stands between double underscores.
// Contract: files of the page's shell come from the build that was installed; others, which carry
// their hash or version in their address, are loaded once. No other page is kept. The shell of the
// build before stays for pages that are still open; a build that is not whole replaces none.

const BUILD = '__BUILD__'
const SHELL = __SHELL__
const SHELL_CACHE = `shell-${BUILD}`
const FILES_CACHE = 'files'
const HEADERS = {
  'Cross-Origin-Opener-Policy': 'same-origin',
  'Cross-Origin-Embedder-Policy': 'require-corp',
  'Cross-Origin-Resource-Policy': 'same-origin',
}

self.addEventListener('install', (event) => {
  self.skipWaiting()
  event.waitUntil(keepShell())
})

self.addEventListener('activate', (event) => event.waitUntil(takeOver()))

self.addEventListener('fetch', (event) => {
  const { request } = event
  if (request.method !== 'GET' || new URL(request.url).origin !== location.origin) return
  event.respondWith(answer(request, event))
})

async function keepShell() {
  try {
    const cache = await caches.open(SHELL_CACHE)
    await cache.addAll(SHELL.map((path) => new Request(path, { cache: 'no-cache' })))
  } catch (error) {
    await tell(error)
    if (self.registration.active && error.name !== 'QuotaExceededError') throw error
    // else the page works without
  }
}

async function takeOver() {
  const shells = (await caches.keys()).filter((key) => key.startsWith('shell-'))
  const others = shells.filter((key) => key !== SHELL_CACHE)
  for (const key of others.slice(0, -1)) await caches.delete(key)
  await forgetOldRuntimes()
  await self.clients.claim()
}

async function forgetOldRuntimes() {
  const cache = await caches.open(FILES_CACHE)
  for (const request of await cache.keys()) {
    if (request.url.includes('/ort/') && !request.url.includes('/ort/__ORT__/'))
      await cache.delete(request)
  }
}

async function answer(request, event) {
  const isPage = request.mode === 'navigate'
  const isFresh = request.cache === 'reload' // asked for by the page where what is kept is damaged
  const kept = !isFresh && (await found(request, { ignoreSearch: isPage }))
  if (kept) return isolated(kept)
  const response = await fetch(request)
  const isOneVersion = request.url.includes('?v=') || request.url.includes('/ort/')
  if (response.status === 200 && isOneVersion) event.waitUntil(keep(request, response.clone()))
  return isolated(response)
}

async function found(request, options) {
  const shell = await caches.open(SHELL_CACHE)
  return (await shell.match(request, options)) ?? (await caches.match(request, options))
}

async function keep(request, response) {
  try {
    await (await caches.open(FILES_CACHE)).put(request, response)
  } catch (error) {
    await tell(error)
  }
}

async function tell(error) {
  if (error.name !== 'QuotaExceededError') return
  for (const client of await self.clients.matchAll({ includeUncontrolled: true }))
    client.postMessage({ kind: 'storage-full' })
}

function isolated(response) {
  if (response.type === 'opaqueredirect' || response.status === 0) return response
  const headers = new Headers(response.headers)
  for (const [name, value] of Object.entries(HEADERS)) headers.set(name, value)
  return new Response(response.body, {
    status: response.status,
    statusText: response.statusText,
    headers,
  })
}
