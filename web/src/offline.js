// The service worker from the page's side: it brings the headers that threads need where a host
// cannot send them, and keeps the page for offline use.

const PATIENCE_MS = 4000
const RELOADED = 'reloaded-for-threads'

/**
 * Register the service worker and wait until it serves this page.
 * @param onTrouble called with a sentence when the browser cannot keep the page
 */
export async function prepareOffline(onTrouble) {
  if (!navigator.serviceWorker) {
    onTrouble(
      'This address is not secure (https or localhost): no threads, and nothing is kept for offline use.',
    )
    return
  }
  navigator.serviceWorker.addEventListener('message', ({ data }) => {
    if (data.kind === 'storage-full') {
      onTrouble(
        'The browser has no room to keep this page for offline use. It plays on; free some space and reload to keep it.',
      )
    }
  })
  try {
    await navigator.serviceWorker.register('sw.js')
    await controlled()
  } catch (error) {
    onTrouble(
      `The browser does not keep this page for offline use (${error.message}). It plays on.`,
    )
    return
  }
  if (
    !globalThis.crossOriginIsolated &&
    navigator.serviceWorker.controller &&
    !sessionStorage.getItem(RELOADED)
  ) {
    sessionStorage.setItem(RELOADED, 'yes')
    location.reload()
    await new Promise(() => {}) // the page that comes goes on
  }
}

async function controlled() {
  if (navigator.serviceWorker.controller) return
  const claimed = new Promise((resolve) => {
    navigator.serviceWorker.addEventListener('controllerchange', resolve, { once: true })
  })
  await Promise.race([claimed, new Promise((resolve) => setTimeout(resolve, PATIENCE_MS))])
}
