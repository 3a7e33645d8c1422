"""The recipes: every default of training and its unit, once.

Contract: frozen, flat, plain values, checked when made. A recipe is written into its run and into
every checkpoint, so that a run can be repeated from it. Scripts take a preset and change fields by
a few flags and by `--set FIELD=VALUE`. Knows nothing of files, devices or games.
"""

import dataclasses
import difflib
import math
import typing
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from v2.runtime.checks import LARGEST_INT


def _number(default, least: float = 0, most: float = math.inf):
    return field(default=default, metadata={"least": least, "most": most})


def _count(default: int, least: int = 0, most: int = LARGEST_INT):
    return _number(default, least, most)


def _share(default: float):
    return _number(default, 0, 1)


@dataclass(frozen=True)
class Checked:
    """Plain values, each of which must be in its range."""

    def __post_init__(self):
        for each in dataclasses.fields(self):
            least, most = each.metadata.get("least"), each.metadata.get("most", math.inf)
            value = getattr(self, each.name)
            if least is not None and not least <= value <= most:  # also false for nan
                limit = f"{least} to {most}" if most < LARGEST_INT else f"at least {least}"
                raise ValueError(f"{each.name} must be {limit}, got {value}")

    def changes(self, other: "Checked") -> dict:
        """Return the fields in which another recipe differs, with its values."""
        theirs = dataclasses.asdict(other)
        return {k: theirs[k] for k, v in dataclasses.asdict(self).items() if theirs[k] != v}


@dataclass(frozen=True)
class Recipe(Checked):
    """What the training of both models has in common."""

    epochs: int = _count(100, 1)  # of `samples_per_epoch` draws
    samples_per_epoch: int = _count(800)  # 0: as many draws as there are samples
    steps: int = _count(0)  # instead of `epochs`; 0: by them
    batch_size: int = _count(32, 1, 65_536)
    lr: float = _number(3e-3)
    warmup_steps: int = _count(100)
    decay: float = _share(0.5)  # share of the steps, the last ones, over which the rate falls to 0
    ema: float = _share(0.998)  # decay of the averaged weights, a step; 0: off
    init_from: str = ""  # checkpoint whose weights it begins with, a fresh optimizer; empty: none
    eval_steps: int = _count(400, 1)  # steps between two validations
    save_minutes: float = _number(5.0)  # between two saves
    is_smoke: bool = False  # proves only that all works: never shipped, never latest

    def __post_init__(self):
        super().__post_init__()
        if not self.lr > 0 or math.isinf(self.lr):
            raise ValueError(f"lr must be finite and above 0, got {self.lr}")

    def num_steps(self, num_samples: int) -> int:
        """Return the steps of a training on so many samples."""
        per_epoch = self.samples_per_epoch or num_samples
        return self.steps or max(1, self.epochs * per_epoch // self.batch_size)


SomeRecipe = TypeVar("SomeRecipe", bound=Checked)


@dataclass(frozen=True)
class VQVAERecipe(Recipe):
    """Of `train_vqvae_hires.py`; a sample is a frame."""

    epochs: int = _count(50, 1)
    samples_per_epoch: int = _count(768)
    batch_size: int = _count(16, 1, 65_536)
    lr: float = _number(2e-3)
    warmup_steps: int = _count(50)
    decay: float = _share(0.6)
    eval_steps: int = _count(200, 1)
    decoder_only: bool = False  # keep encoder and codebook, and so the tokens, of `init_from`
    unquantized_steps: int = _count(72, 1)  # first steps without a codebook, a tenth at most
    revive_until: float = _share(0.7)  # share of the steps after which dead codes stay dead
    rarity_scale: float = _number(20.0)  # extra weight near what is unlike the median frame
    motion_scale: float = _number(40.0)  # extra weight near what is unlike the frame before
    rare_motion: float = _share(0.7)  # share of the frames drawn for motion where it is rare
    worst_pixel: float = _number(0.01)  # weight of each image's worst pixel

    def __post_init__(self):
        super().__post_init__()
        if self.decoder_only and not self.init_from:
            raise ValueError("decoder_only needs init_from: whose tokens are kept?")


@dataclass(frozen=True)
class WorldModelRecipe(Recipe):
    """Of `train_wm_hires.py`; a sample is a window of four frames and those that are predicted."""

    samples_per_epoch: int = _count(3072)
    decay: float = _share(0.4)
    muon_lr: float = _number(1e-2)  # of the blocks' matrices; 0: AdamW for all
    weight_decay: float = _number(0.01)
    compile: bool = False  # compile the model first: a minute of waiting for faster steps
    # windows
    event_share: float = _share(0.1)  # share drawn among those with an event; 0: all alike
    history_noise: float = _share(0.15)  # share of the windows with a mistake in their history
    # model
    num_cells: int = _count(0, 0, 336)  # active cells of a frame; 0: as many as coverage needs
    first_cells: int = _count(64, 0, 336)  # fewer, at first; 0: as many as later
    first_cells_share: float = _share(0.88)  # share of the steps with these
    first_layers: int = _count(3, 0)  # fewer layers, at first; 0: all
    first_layers_share: float = _share(0.7)  # share of the steps with these
    memory_bits: int = _count(15, 0, 20)  # of the rows of its learnt tables of patches; 0: none
    memory_width: int = _count(16, 1, 1024)  # numbers in a row of them
    table_bits: int = _count(16, 0, 20)  # of the buckets in its counted table; 0: none
    table_folds: int = _count(4, 2, 100)  # parts of the games, each learnt without its own counts
    table_dropout: float = _share(0.5)  # share of the predictions that do not read the table
    has_age: bool = True  # read for how long each token has not changed
    exact_age: int = _count(64, 0, 255)  # ages up to this have a row each
    unknown_age_share: float = _share(0.2)  # share of the windows whose dream was just reset
    reveal_layer: int = _count(0)  # at which layer revealed tokens enter; 0: at the input
    num_decided: int = _count(0, 0, 64)  # least certain cells that a dream decides in turn
    copy_bias: float = _number(4.0, 0, 4096)  # first logit of the last frame's token
    past_actions: int = _count(3, 0, 3)  # how many it reads before the one taken now
    # rollouts
    rollout_steps: int = _count(5, 1, 1000)  # K
    rollout_ratio: float = _share(0.5)  # share of the batches that unroll K steps
    rollout_batch_size: int = _count(12, 1, 65_536)  # windows; each is predicted K times
    rollout_start: float = _share(0.85)  # share of the steps before the first rollout
    teacher_forcing_prob: float = _share(0.1)  # a rollout's chance a step to see the truth
    max_wrong: int = _count(5)  # tokens of a frame; a rollout with more goes on from the truth
    discount: float = _share(1.0)  # of each further step's loss
    # loss
    outcome_weight: float = _number(0.3)  # of reward and end, beside the tokens
    is_calibrated: bool = False  # add log importance to the logits in the loss (arXiv 2007.07314)
    revealed_share: float = _share(0.0)  # predictions with a random share of the tokens revealed
    motion_scale: float = _number(8.0)  # importance by the distance of the two codes
    event_scale: float = _number(4.0)  # importance by how rare a change is in this cell
    persistence_scale: float = _number(4.0)  # importance by motion nearby in the history
    importance_cap: float = _number(20.0, 1)  # times the weight of a token that stays
    false_change_scale: float = _number(8.0)  # of tokens that stay but were thought to change

    def unrolls(self, rng: np.random.Generator, step: int, num_steps: int) -> bool:
        """Decide, with the step's generator, whether its batch unrolls K steps."""
        return step >= self.rollout_start * num_steps and rng.random() < self.rollout_ratio

    def cells_at(self, step: int, num_steps: int, most: int) -> int:
        """Return how many cells a step learns, of at most so many."""
        is_first = step < self.first_cells_share * num_steps
        return min(self.first_cells, most) if self.first_cells and is_first else most

    def layers_at(self, step: int, num_steps: int) -> int:
        """Return how many layers a step runs; 0: all."""
        return self.first_layers if step < self.first_layers_share * num_steps else 0


@dataclass(frozen=True)
class AgentRecipe(Checked):
    """Of `train_agent.py`: PPO (arXiv 1707.06347); a step is one decision in one game."""

    num_games: int = _count(16, 1, 4096)  # dreams in the batch, or emulators
    max_episode_steps: int = _count(500, 1)  # of a dream, which then begins anew
    rollout_steps: int = _count(64, 1)  # of each game between two updates
    batch_size: int = _count(256, 2, 65_536)  # steps
    passes: int = _count(6, 1)  # over the steps of an update
    lr: float = _number(1e-3, 1e-9, 1)  # falls to 0 by the last step
    discount: float = _share(0.99)
    gae_lambda: float = _share(0.95)
    clip_range: float = _number(0.15, 1e-9, 1)
    entropy_weight: float = _number(0.01)
    value_weight: float = _number(0.5)
    max_grad_norm: float = _number(0.5, 1e-9)
    save_minutes: float = _number(5.0)  # between two saves
    num_kept: int = _count(6, 1)  # agents kept on the way, to be compared

    def __post_init__(self):
        super().__post_init__()
        if self.num_games * self.rollout_steps < 2:
            raise ValueError(
                "num_games times rollout_steps must be at least 2, "
                f"got {self.num_games} and {self.rollout_steps}"
            )


VQVAE_PRESETS = {
    "default": VQVAERecipe(),
    "smoke": VQVAERecipe(steps=90, eval_steps=45, is_smoke=True),
    "long": VQVAERecipe(epochs=500, eval_steps=2000),
    "gpu": VQVAERecipe(epochs=500, batch_size=256, samples_per_epoch=12_288),
}
WORLD_MODEL_PRESETS = {
    "default": WorldModelRecipe(),
    "smoke": WorldModelRecipe(
        steps=40, batch_size=4, eval_steps=40, rollout_steps=3, rollout_batch_size=4, is_smoke=True
    ),
    "long": WorldModelRecipe(  # 144,000 steps
        epochs=1500, decay=0.3, eval_steps=4000, table_bits=18
    ),
    "gpu": WorldModelRecipe(
        epochs=400, batch_size=128, samples_per_epoch=3200, rollout_batch_size=128
    ),
}


def with_settings(recipe: SomeRecipe, settings: Iterable[str]) -> SomeRecipe:
    """Change fields of a recipe as `--set FIELD=VALUE` asks for.

    Raises:
        ValueError: no such field, or a value of another type or range, with what was given.
    """
    types, values = typing.get_type_hints(type(recipe)), {}
    for text in settings:
        name, is_there, value = text.partition("=")
        name = name.strip().replace("-", "_")
        if not is_there or name not in types:
            close = difflib.get_close_matches(name, types, n=3)
            hint = f"did you mean {' or '.join(close)}?" if close else f"e.g. {', '.join(types)}"
            raise ValueError(f"--set {text}: no field {name!r} with a value (FIELD=VALUE); {hint}")
        values[name] = _parsed(text, types[name], value.strip())
    try:
        return dataclasses.replace(recipe, **values)
    except ValueError as error:
        raise ValueError(f"--set {' '.join(settings)}: {error}") from error


def _parsed(text: str, kind: type, value: str):
    if kind is bool:
        known = {"true": True, "1": True, "false": False, "0": False}
        if value.lower() not in known:
            raise ValueError(f"--set {text}: must be true or false")
        return known[value.lower()]
    try:
        return kind(value)
    except ValueError:
        word = {int: "a whole number", float: "a number"}[kind]
        raise ValueError(f"--set {text}: must be {word}") from None


def recipe_of(kind: type[SomeRecipe], stored: dict) -> SomeRecipe:
    """Rebuild a stored recipe; fields that it lacks take today's defaults.

    Raises:
        ValueError: a field that no recipe has, or a value out of its range.
    """
    try:
        return kind(**stored)
    except TypeError as error:
        raise ValueError(f"a recipe of another version ({error})") from error
