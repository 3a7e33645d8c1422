"""Recipes and the flags that change them: what is asked for is what is trained with and kept."""

import argparse
import dataclasses
import json
import typing
from pathlib import Path

import pytest

from tests.conftest import train_vqvae
from v2.runtime import checkpoint
from v2.runtime.run_dir import read_config
from v2.train import flags, train_vqvae_hires, train_wm_hires
from v2.train.recipe import (
    VQVAE_PRESETS,
    WORLD_MODEL_PRESETS,
    Recipe,
    VQVAERecipe,
    WorldModelRecipe,
    recipe_of,
    with_settings,
)

KINDS = {
    "vqvae": (train_vqvae_hires, VQVAERecipe, VQVAE_PRESETS),
    "world_model": (train_wm_hires, WorldModelRecipe, WORLD_MODEL_PRESETS),
}
of_both = pytest.mark.parametrize("kind", KINDS)


def _parsed(kind: str, *asked) -> flags.Parsed:
    script, _, presets = KINDS[kind]
    return flags.parse(script.build_parser(), presets, list(map(str, asked)))


def _ranges(kind: str) -> dict[str, tuple[float, float]]:
    """Return the fields that have a range, with its ends."""
    fields = {field.name: field.metadata for field in dataclasses.fields(KINDS[kind][1])}
    return {name: (each["least"], each["most"]) for name, each in fields.items() if each}


@of_both
def test_a_recipe_is_flat_frozen_and_of_plain_values(kind):
    recipe = KINDS[kind][1]()
    assert all(type(value) in (int, float, bool, str) for value in vars(recipe).values())
    assert set(typing.get_type_hints(KINDS[kind][1]).values()) <= {int, float, bool, str}
    assert json.loads(json.dumps(dataclasses.asdict(recipe))) == dataclasses.asdict(recipe)
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.lr = 1.0


@of_both
def test_every_number_has_a_range_and_is_refused_beyond_its_ends_by_name(kind):
    recipe, ranges = KINDS[kind][1](), _ranges(kind)
    numbers = {name for name, value in vars(recipe).items() if type(value) in (int, float)}
    assert ranges.keys() == numbers
    for name, ends in ranges.items():
        for value in (ends[0] - 1, ends[1] + 1, float("nan")):
            if value < float("inf"):
                with pytest.raises(ValueError, match=f"^{name} must be .*, got {value}$"):
                    dataclasses.replace(recipe, **{name: value})
    for value in (0.0, float("inf")):
        with pytest.raises(ValueError, match=f"lr must be finite and above 0, got {value}"):
            dataclasses.replace(recipe, lr=value)


def test_fields_that_need_another_are_refused_without_it():
    with pytest.raises(ValueError, match="decoder_only needs init_from"):
        VQVAERecipe(decoder_only=True)


@of_both
def test_presets_differ_where_they_say(kind):
    _, recipe, presets = KINDS[kind]
    for name, preset in presets.items():
        assert _parsed(kind, "--preset", name).recipe == preset
    assert _parsed(kind).recipe == presets["default"] == recipe()
    changed = {name: set(recipe().changes(preset)) for name, preset in presets.items()}
    rollouts = {"rollout_batch_size", "rollout_steps", "batch_size"}
    own = rollouts if kind == "world_model" else set()
    assert changed["smoke"] == {"steps", "eval_steps", "is_smoke"} | own
    more = {"decay", "table_bits"} if kind == "world_model" else set()
    assert changed["long"] == {"epochs", "eval_steps"} | more
    assert changed["gpu"] >= {"epochs", "batch_size", "samples_per_epoch"}
    samples = 10**6
    steps = {name: preset.num_steps(samples) for name, preset in presets.items()}
    assert steps["smoke"] < 100 < steps["default"] < steps["long"]
    assert [name for name, preset in presets.items() if preset.is_smoke] == ["smoke"]


@pytest.mark.parametrize("steps, epochs, per_epoch, batch, expected", [
    (7, 100, 800, 32, 7), (0, 3, 800, 32, 75), (0, 3, 0, 32, 93), (0, 1, 10, 32, 1),
])  # fmt: skip
def test_steps_are_given_or_epochs_of_samples_in_batches(steps, epochs, per_epoch, batch, expected):
    recipe = Recipe(steps=steps, epochs=epochs, samples_per_epoch=per_epoch, batch_size=batch)
    assert recipe.num_steps(1000) == expected


@of_both
def test_every_field_is_set_by_its_name(kind):
    """In the type it has: a text becomes a number, a truth value or stays what it is."""
    recipe = KINDS[kind][1](init_from="a.pt")
    for name, value in vars(recipe).items():
        other = {bool: not value, int: 11, float: 0.25, str: "x.pt"}[type(value)]
        other = {"past_actions": 2, "importance_cap": 1.5}.get(name, other)
        changed = with_settings(recipe, [f"{name.replace('_', '-')} = {other}"])
        assert getattr(changed, name) == other and type(getattr(changed, name)) is type(value)
        assert recipe.changes(changed) == {name: other}


def test_truth_values_are_words_or_digits():
    for text, value in (("true", True), ("1", True), ("False", False), ("0", False)):
        recipe = with_settings(WorldModelRecipe(compile=not value), [f"compile={text}"])
        assert recipe.compile is value


@pytest.mark.parametrize("text, message", [
    ("num_cell=9", "no field 'num_cell' with a value .FIELD=VALUE.; did you mean num_cells"),
    ("xyz=1", "no field 'xyz' with a value .FIELD=VALUE.; e.g. epochs, samples_per_epoch"),
    ("lr", "no field 'lr' with a value"),
    ("steps=1.5", "must be a whole number"), ("lr=fast", "must be a number"),
    ("compile=yes", "must be true or false"), ("decay=2", "decay must be 0 to 1, got 2.0"),
])  # fmt: skip
def test_a_setting_that_cannot_be_is_refused_with_what_was_given(text, message):
    with pytest.raises(ValueError, match=f"--set {text}: {message}"):
        with_settings(WorldModelRecipe(), [text])


def test_changes_are_the_fields_that_differ_with_the_others_values():
    first, second = WorldModelRecipe(lr=1e-3, num_cells=64), WorldModelRecipe(lr=2e-3)
    assert first.changes(second) == {"lr": 2e-3, "num_cells": 0}
    assert first.changes(first) == {}


def test_a_stored_recipe_is_rebuilt_and_what_it_lacks_is_todays_default():
    stored = dataclasses.asdict(WorldModelRecipe(lr=1e-4, max_wrong=3))
    assert recipe_of(WorldModelRecipe, stored) == WorldModelRecipe(lr=1e-4, max_wrong=3)
    del stored["max_wrong"], stored["discount"]
    assert recipe_of(WorldModelRecipe, stored) == WorldModelRecipe(lr=1e-4)
    with pytest.raises(ValueError, match="a recipe of another version .*'colour'"):
        recipe_of(WorldModelRecipe, stored | {"colour": 1})
    with pytest.raises(ValueError, match="decay must be 0 to 1, got 3"):
        recipe_of(WorldModelRecipe, stored | {"decay": 3})


def test_flags_of_their_own_change_the_recipe_and_epochs_undo_steps():
    asked = ["--preset", "smoke", "--lr", "1e-4", "--rollout-steps", "7", "--set", "max_wrong=2"]
    found = WORLD_MODEL_PRESETS["smoke"].changes(_parsed("world_model", *asked).recipe)
    assert found == {"lr": 1e-4, "rollout_steps": 7, "max_wrong": 2}
    assert _parsed("vqvae", "--preset", "smoke", "--epochs", "2").recipe.steps == 0
    assert _parsed("vqvae", "--epochs", "2", "--set", "steps=5").recipe.steps == 5


@of_both
def test_the_help_says_the_defaults_that_the_recipe_has(kind):
    script, recipe, _ = KINDS[kind]
    shown = " ".join(script.build_parser().format_help().split())
    for name in flags.KINDS:
        flag, has_field = f"--{name.replace('_', '-')} ", hasattr(recipe(), name)
        assert (flag in shown) == has_field
        assert not has_field or f"(default: {getattr(recipe(), name)})" in shown.split(flag, 1)[1]


def test_kept_flags_are_plain_and_hold_from_any_folder():
    args = argparse.Namespace(data=[Path("a/b.npz")], seed=3, lr=1.0, set=["x=1"], preset="smoke")
    assert flags.plain_args(args) == {"data": str(Path("a/b.npz").absolute()), "seed": 3}
    args.data.append(Path("c"))
    assert flags.plain_args(args)["data"] == [str(path.absolute()) for path in args.data]


def test_the_recipe_that_was_trained_with_is_in_the_run_and_in_its_weights(
    small_models, data_path, tmp_path
):
    asked = ["--lr", "1e-3", "--batch-size", "4", "--set", "steps=2", "eval_steps=1", "decay=0.25"]
    run = train_vqvae(tmp_path / "v", data_path, *asked, "--preset", "long")
    expected = dataclasses.replace(
        VQVAE_PRESETS["long"], lr=1e-3, batch_size=4, steps=2, eval_steps=1, decay=0.25
    )
    stored = [read_config(run)["recipe"]]
    stored += [checkpoint.load_checkpoint(run / f"{name}.pt", "vqvae")["recipe"]
               for name in ("last", "best")]  # fmt: skip
    assert all(each == dataclasses.asdict(expected) for each in stored)


@of_both
def test_resume_uses_the_runs_recipe_but_for_what_is_given(kind, vqvae_run, world_run):
    run = {"vqvae": vqvae_run, "world_model": world_run}[kind]
    stored = read_config(run)
    plain = _parsed(kind, "--resume", run)
    assert dataclasses.asdict(plain.recipe) == stored["recipe"] and plain.changed == {}
    assert plain.recipe.steps != KINDS[kind][1]().steps
    assert list(map(str, plain.args.data)) == [stored["args"]["data"]]
    again = _parsed(kind, "--resume", run, "--lr", "0.125", "--max-minutes", "5", "--seed", "4")
    assert again.recipe == dataclasses.replace(plain.recipe, lr=0.125)
    assert again.changed == {"lr": 0.125, "seed": 4}  # a limit of this sitting is no change
    with pytest.raises(ValueError, match="--preset is decided when a run begins"):
        _parsed(kind, "--resume", run, "--preset", "default")
