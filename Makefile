# make play | test | test-slow | test-cuda | test-lowest | lint
# make train [PRESET=smoke] | eval | ship
# make web | web-serve | test-web
.PHONY: play test test-slow test-cuda test-lowest lint train eval ship web web-serve test-web

VENV ?= .venv
PYTHON := $(VENV)/bin/python
READY := $(VENV)/.ready
READY_DEV := $(VENV)/.ready-dev
GAME ?= breakout
PRESET ?= default
FRAMES ?=
LOWEST_PYTHON ?= python3

$(READY): requirements.txt
	@test -x $(PYTHON) || python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(READY_DEV): $(READY) requirements-dev.txt
	$(PYTHON) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

play: $(READY)
	@if [ -n "$$DISPLAY$$WAYLAND_DISPLAY" ] || [ "$$(uname)" = Darwin ]; then \
	  $(PYTHON) v2/play_atari_hires.py --game $(GAME) --latest; \
	else \
	  echo "no display here: playing 300 steps without one and recording a video"; \
	  $(PYTHON) v2/play_atari_hires.py --game $(GAME) --latest --headless --steps 300 --record recordings/play.mp4; \
	fi

lint: $(READY_DEV)
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy

test: $(READY)
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -q -n auto --dist worksteal

test-slow: $(READY)
	$(PYTHON) -m pytest -q -m slow

test-cuda: $(READY)
	$(PYTHON) -m pytest -q tests/test_cuda.py

test-lowest:
	$(LOWEST_PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet -r requirements.txt -c requirements-lowest.txt
	.venv-lowest/bin/python -m pytest -q

train: $(READY)
	$(PYTHON) v2/train/pipeline.py --game $(GAME) --preset $(PRESET) $(if $(FRAMES),--frames $(FRAMES)) $(if $(VQVAE),--vqvae $(VQVAE))

eval: $(READY)
	$(PYTHON) v2/eval/gold_eval.py --game $(GAME) --latest

ship: $(READY)
	$(PYTHON) v2/train/ship.py --game $(GAME)

GAMES := web/public/games
NODE_READY := web/node_modules/.ready

$(NODE_READY): web/package-lock.json
	@command -v npm > /dev/null || { echo "no npm here: install Node.js 20.19 or newer"; exit 2; }
	cd web && npm ci --ignore-scripts --no-audit --no-fund
	@touch $@

$(GAMES)/%/game.json: checkpoints/v2/*/*.pt v2/export/*.py | $(READY)
	$(PYTHON) v2/export/web_game.py --game $* --out $(GAMES)/$*

web: $(NODE_READY) $(GAMES)/breakout/game.json $(GAMES)/pong/game.json
	cd web && npx vite build
	@echo "results: web/dist; next: make web-serve, or copy the folder to any static host (docs/web.md)"

web-serve: web
	cd web && npx vite preview

test-web: $(READY)
	-@$(PYTHON) -m pip install --quiet --disable-pip-version-check -r requirements-web.txt
	$(PYTHON) -m pytest -q -rs -m "web and not slow" tests/test_web.py
