"""The commands of an installed package; pyproject.toml names them.

Contract: each is its script, run as the script is. Knows no script but by name.
"""

import importlib

from v2.runtime import cli


def play() -> None:
    _run("v2.play_atari_hires")


def train() -> None:
    _run("v2.train.pipeline")


def evaluate() -> None:
    _run("v2.eval.gold_eval")


def _run(module: str) -> None:
    cli.explain_errors()
    cli.run(importlib.import_module(module).main)
