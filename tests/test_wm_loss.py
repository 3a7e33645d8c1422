"""The loss: rollouts as they are dreamed, importance weights, calibrated logits."""

import dataclasses

import numpy as np
import pytest
import torch

from tests.test_world_model import _model
from v2 import decoding
from v2.data.ages import cut_ages, episode_steps, token_ages
from v2.decoding import dense_logits, known_age, predict_next
from v2.dream import DreamEngine
from v2.models.temporal_world_model import TemporalWorldModel
from v2.runtime.device import autocast
from v2.train import wm_loss
from v2.train.recipe import WorldModelRecipe
from v2.train.sampling import Windows, known_steps
from v2.train.token_weights import (
    candidate_weights,
    change_rarity,
    code_distances,
    false_change_weights,
    importance_weights,
)
from v2.train.wm_loss import NUM_LOSS_DRAWS, WorldModelLoss

GRID = (21, 16)
ONES = torch.ones(32, 32)  # all codes are as far apart


def _windows(steps: int, batch: int = 2, seed: int = 0) -> Windows:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(32, (batch, 1, 336), generator=generator).repeat(1, 4 + steps, 1)
    for t in range(1, 4 + steps):  # a few tokens change a step
        moved = torch.randint(336, (batch, 12), generator=generator)
        new = torch.randint(32, (batch, 12), generator=generator)
        later = (-1, 4 + steps - t, -1)
        moved, new = moved.unsqueeze(1).expand(later), new.unsqueeze(1).expand(later)
        tokens[:, t:] = tokens[:, t:].scatter(2, moved, new)
    actions = torch.randint(4, (batch, 3 + steps), generator=generator)
    return Windows(tokens, actions, torch.ones(batch, steps).long(), torch.zeros(batch, steps))


def _loss(config: WorldModelRecipe) -> WorldModelLoss:
    codebook = torch.randn(32, 8, generator=torch.Generator().manual_seed(5))
    rarity = torch.rand(336, generator=torch.Generator().manual_seed(6))
    return WorldModelLoss(config, codebook, rarity, GRID, torch.device("cpu"))


def test_rollout_with_teacher_probability_one_equals_teacher_forced_loss(world_model):
    windows = _windows(steps=3)
    world_model.zero_grad()
    loss = _loss(WorldModelRecipe())
    total, _ = loss(world_model, windows, torch.ones(2, 3, dtype=torch.bool))
    weights = world_model.to_outcome.weight, world_model.position
    gradients = [weight.grad.clone() for weight in weights]
    world_model.zero_grad()
    expected = 0.0
    for k in range(3):
        with autocast(torch.device("cpu")):
            step = predict_next(
                world_model, windows.tokens[:, k : k + 4], windows.actions[:, k : k + 4]
            )
        part = loss.step_loss(step, windows, k, 4)[0] / 3
        part.backward()
        expected += part.detach()
    assert torch.allclose(total, expected, atol=1e-6)
    for weight, gradient in zip(weights, gradients, strict=True):
        assert gradient.norm() > 0 and torch.allclose(weight.grad, gradient, atol=1e-6)


@pytest.mark.parametrize("max_wrong", [0, 336])
def test_a_rollout_that_left_the_truth_goes_on_from_it(max_wrong, world_model, monkeypatch):
    windows, read = _windows(steps=2), []
    predict = decoding.predict_next

    def note(model, history, *args, **options):
        read.append(history)
        return predict(model, history, *args, **options)

    monkeypatch.setattr(wm_loss, "predict_next", note)
    never = torch.zeros(2, 2, dtype=torch.bool)
    _, metrics = _loss(WorldModelRecipe(max_wrong=max_wrong))(world_model, windows, never)
    assert torch.equal(read[1][:, -1], windows.tokens[:, 4]) == (max_wrong == 0)
    assert metrics["read_unlike_truth"] == (max_wrong > 0)


def test_each_step_learns_its_own_reward_and_end(world_model):
    plain, changed = _windows(steps=3), _windows(steps=3)
    changed.terminated[:, 1], changed.reward_signs[:, 2] = 1, 2
    loss = _loss(WorldModelRecipe())
    with torch.no_grad():
        step = predict_next(world_model, plain.tokens[:, :4], plain.actions[:, :4])
        differs = [loss.step_loss(step, plain, k, 4)[0] != loss.step_loss(step, changed, k, 4)[0]
                   for k in range(3)]  # fmt: skip
    assert differs == [False, True, True]


def test_a_change_to_a_far_code_weighs_more_and_a_false_change_too(world_model):
    codes = torch.tensor([[0.0], [1.0], [3.0]])
    tokens = torch.zeros(1, 5, 1, dtype=torch.long)
    recipe = WorldModelRecipe(event_scale=0, persistence_scale=0, motion_scale=1)
    distances, rarity = code_distances(codes), torch.ones(1)
    stays, near, far = candidate_weights(tokens, recipe, distances, rarity, (1, 1))[0, 0]
    assert stays == 1 and (far - 1) / (near - 1) == pytest.approx(3)
    windows = _windows(steps=1)
    with torch.no_grad():
        step = predict_next(world_model, windows.tokens[:, :4], windows.actions[:, :4])
        recipes = (WorldModelRecipe(false_change_scale=scale) for scale in (0, 8))
        losses = [_loss(recipe).step_loss(step, windows, 0, 4)[0] for recipe in recipes]
    assert losses[1] > losses[0]


def test_what_is_revealed_is_neither_fed_back_nor_counted_as_right(world_model, monkeypatch):
    windows, read = _windows(steps=3), []
    predict = decoding.predict_next

    def note(model, history, actions, *args, **options):
        read.append((history, options["revealed"]))
        return predict(model, history, actions, *args, **options)

    monkeypatch.setattr(wm_loss, "predict_next", note)
    draws = torch.zeros(2, 3, NUM_LOSS_DRAWS + 336)
    draws[..., 1] = 1.0  # all tokens are revealed in all samples ...
    draws[..., NUM_LOSS_DRAWS] = 1.0  # ... but the first
    loss = _loss(WorldModelRecipe(max_wrong=336, revealed_share=0.35))
    never = torch.zeros(2, 3, dtype=torch.bool)
    _, metrics = loss(world_model, windows, never, draws)
    assert [revealed is None for _, revealed in read] == [True, True, False]
    own = read[2][0][:, -2:]
    assert not torch.equal(own, windows.tokens[:, 4:6])
    assert metrics["accuracy"] in (0.0, 0.5, 1.0)  # of the one token that was hidden


@pytest.mark.parametrize("changes", [{}, {"num_cells": 96, "has_age": True, "num_decided": 2}])
def test_a_rollout_without_teacher_equals_the_dream(changes, vqvae, monkeypatch):
    world_model = _model(**changes)
    monkeypatch.setattr("v2.runtime.device.has_fast_bfloat16", lambda device: False)
    windows, steps = _windows(steps=4), []
    predict = decoding.predict_next

    def note(model, history, actions, *args, **options):
        step = predict(model, history, actions, *args, **options)
        steps.append((history, actions, step))
        return step

    monkeypatch.setattr(wm_loss, "predict_next", note)
    never = torch.zeros(2, 4, dtype=torch.bool)
    windows.age = known_age(windows.tokens[:, :4])
    _loss(WorldModelRecipe(max_wrong=336))(world_model, windows, never)
    assert len(steps) == 4
    steps[3] = None  # what nothing follows is not decided further
    engine = DreamEngine(vqvae, world_model)
    engine.reset_tokens(windows.tokens[:, :4], windows.actions[:, :3].numpy())
    for k, (history, actions, step) in enumerate(steps[:3]):
        now = windows.actions[:, 3 + k]
        assert torch.equal(history, engine.history.tokens)
        assert torch.equal(actions, torch.cat([engine.history.actions, now[:, None]], 1))
        engine.step_tokens(now.numpy())
        assert np.array_equal(engine.tokens.reshape(2, -1), step.tokens.numpy())
        assert torch.equal(engine.logits, dense_logits(step, history[:, -1]))
    assert not torch.equal(engine.history.tokens[:, 1:], windows.tokens[:, 4:7])  # its own


def test_normalised_discounted_loss_does_not_depend_on_k(world_model, monkeypatch):
    def constant(self, step, windows, k, history, revealed):
        return 0 * step.prediction.logits.sum() + 2.5, {}

    monkeypatch.setattr(WorldModelLoss, "step_loss", constant)
    for steps in (1, 2, 5):
        is_forced = torch.zeros(2, steps, dtype=torch.bool)
        loss = _loss(WorldModelRecipe(discount=0.7))
        total, _ = loss(world_model, _windows(steps), is_forced)
        assert abs(float(total) - 2.5) < 1e-5


def test_memory_does_not_grow_with_k(world_model):
    saved = []

    def peak(steps):
        alive, most = 0, 0
        saved.clear()

        def pack(tensor):
            nonlocal alive, most
            alive += tensor.numel()
            most = max(most, alive)
            return tensor

        def unpack(tensor):
            nonlocal alive
            alive -= tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            is_forced = torch.zeros(2, steps, dtype=torch.bool)
            _loss(WorldModelRecipe())(world_model, _windows(steps), is_forced)
        return most

    one, five = peak(1), peak(5)
    assert five < 1.2 * one


def test_a_false_change_weighs_like_a_miss_and_certainty_nothing():
    entropy = torch.tensor([[0.0, 20.0, 20.0]])  # right, and twice surely wrong
    weights = false_change_weights(entropy, torch.tensor([[False, False, True]]), scale=10.0)
    assert torch.allclose(weights, torch.tensor([[1.0, 11.0, 1.0]]))


def test_equal_weights_where_nothing_moves():
    tokens = torch.full((2, 5, 336), 7)
    weights = importance_weights(
        tokens, WorldModelRecipe(), torch.ones(32, 32), torch.ones(336), GRID
    )
    assert torch.equal(weights, torch.ones(2, 336))


def test_weights_have_mean_one_and_keep_the_cap():
    windows = _windows(steps=1)
    distances = code_distances(torch.randn(32, 8))
    config = WorldModelRecipe(motion_scale=100.0, importance_cap=20.0)
    weights = importance_weights(windows.tokens, config, distances, torch.rand(336), GRID)
    assert torch.allclose(weights.mean(1), torch.ones(2))
    assert float((weights.max(1).values / weights.median(1).values).max()) <= 20.001
    is_changed = windows.tokens[:, -1] != windows.tokens[:, -2]
    assert weights[is_changed].min() > weights[~is_changed].max()


def test_rare_positions_and_moving_neighbourhoods_weigh_more():
    tokens = torch.zeros(1, 5, 336, dtype=torch.long)
    tokens[0, 4, [20, 200]] = 1  # two changes now
    tokens[0, 1:, 201] = torch.tensor([1, 2, 3, 3])  # beside the second, changes before
    rarity = torch.zeros(336)
    flat = importance_weights(
        tokens, WorldModelRecipe(motion_scale=0.0, event_scale=0.0), ONES, rarity, GRID
    )
    assert flat[0, 200] > flat[0, 20]
    rarity[20] = 1.0
    rare = importance_weights(
        tokens, WorldModelRecipe(motion_scale=0.0, persistence_scale=0.0), ONES, rarity, GRID
    )
    assert rare[0, 20] > rare[0, 200]


def test_change_rarity_ignores_the_gap_between_episodes():
    tokens = torch.zeros(6, 336, dtype=torch.uint8)
    tokens[3:, 10] = 1  # only between the episodes
    tokens[1, 20] = 1
    is_step = torch.tensor([True, True, False, True, True, False])
    rarity = change_rarity(tokens, is_step)
    assert rarity[10] == rarity[0] == 1.0 and rarity[20] < 1.0


def test_the_weight_of_the_truth_is_that_of_its_code_and_what_stays_weighs_one():
    windows = _windows(steps=1)
    distances, rarity = code_distances(torch.randn(32, 8)), torch.rand(336)
    recipe = WorldModelRecipe()
    of_codes = candidate_weights(windows.tokens, recipe, distances, rarity, GRID)
    last, truth = windows.tokens[:, -2:].unsqueeze(3).unbind(1)
    assert (of_codes.gather(2, last) == 1).all() and of_codes.max() <= recipe.importance_cap
    weights = importance_weights(windows.tokens, recipe, distances, rarity, GRID)
    chosen = of_codes.gather(2, truth).squeeze(2)
    assert torch.allclose(weights, chosen / chosen.mean(1, keepdim=True))
    other = windows.tokens.clone()
    other[:, -1] = 0  # what is predicted is not looked at
    assert torch.equal(candidate_weights(other, recipe, distances, rarity, GRID), of_codes)


@pytest.mark.parametrize("is_calibrated", [False, True])
def test_calibrated_logits_tell_how_often_a_token_changes(is_calibrated):
    """One cell changes in one step of ten; uncorrected it is said to do so far oftener."""
    torch.manual_seed(0)
    model = _model(num_cells=16)
    recipe = WorldModelRecipe(
        is_calibrated=is_calibrated, revealed_share=0.0, false_change_scale=0.0, outcome_weight=0.0
    )
    loss = WorldModelLoss(recipe, torch.eye(32), torch.ones(336), GRID, torch.device("cpu"))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(150):
        tokens = torch.zeros(64, 5, 336, dtype=torch.long)
        tokens[:, 4, 3] = (torch.rand(64) < 0.1).long()
        outcome = torch.ones(64, 1, dtype=torch.long), torch.zeros(64, 1)
        windows = Windows(tokens, torch.zeros(64, 4, dtype=torch.long), *outcome)
        loss(model, windows, torch.zeros(64, 1, dtype=torch.bool))
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        step = predict_next(model, windows.tokens[:1, :4], windows.actions[:1])
        chance = dense_logits(step, windows.tokens[:1, 3]).softmax(-1)[0, 3, 1]
    assert (0.06 < chance < 0.16) if is_calibrated else chance > 0.3


def test_a_random_share_of_the_next_tokens_is_revealed_in_a_share_of_the_samples():
    loss, truth = _loss(WorldModelRecipe(revealed_share=0.5)), torch.randint(32, (400, 336))
    revealed = loss._reveal(truth, torch.rand(400, NUM_LOSS_DRAWS + 336))
    is_revealed = revealed < 32
    assert torch.equal(revealed[is_revealed], truth[is_revealed])
    shares = is_revealed.float().mean(1)
    assert 0.4 < (shares > 0).float().mean() < 0.6
    assert shares.max() > 0.9 and shares[shares > 0].min() < 0.1


def test_a_share_of_the_predictions_is_learnt_without_the_table(monkeypatch):
    model, seen = _model(table_bits=4), []
    model.patch_table.folds = model.patch_table.entries.expand(3, -1, -1)
    windows = dataclasses.replace(_windows(steps=3), fold=torch.tensor([2, 1]))
    recipe = WorldModelRecipe(table_dropout=0.25)
    trunk = TemporalWorldModel.trunk
    monkeypatch.setattr(TemporalWorldModel, "trunk",
                        lambda *args: seen.append(args[-2].tolist()) or trunk(*args))  # fmt: skip
    draws = torch.ones(2, 3, NUM_LOSS_DRAWS + 336)
    draws[0, 1, 2], draws[1, :, 2] = 0.2, 0.3
    _loss(recipe)(model, windows, torch.zeros(2, 3, dtype=torch.bool), draws)
    assert seen == [[2, 1], [-1, 1], [2, 1]]


def test_what_is_revealed_is_not_learnt(world_model):
    windows, loss = _windows(steps=1), _loss(WorldModelRecipe(outcome_weight=0.0))
    with torch.no_grad():
        step = predict_next(world_model, windows.tokens[:, :4], windows.actions)
    assert float(loss.step_loss(step, windows, 0, 4, windows.tokens[:, 4])[0]) == 0
    none = torch.full_like(windows.tokens[:, 4], 32)
    assert float(loss.step_loss(step, windows, 0, 4, none)[0]) > 0


def test_ages_count_steps_without_a_change_and_begin_unknown():
    tokens = np.zeros((300, 2), np.uint8)
    tokens[2:, 0] = 1
    tokens[290:, 0] = 2
    ages = token_ages(tokens, np.repeat([0, 1], [295, 5]))
    assert ages[:6, 0].tolist() == [0, 0, 1, 2, 3, 4] and not ages[:, 1].any()
    assert ages[289, 0] == 255 and ages[290:295, 0].tolist() == [1, 2, 3, 4, 5]
    assert not ages[295:].any()  # another game
    history = torch.from_numpy(tokens[:6]).long()[None]
    steps = episode_steps(np.repeat([0, 1], [295, 5]))
    assert steps[[0, 5, 294, 295, 299]].tolist() == [0, 5, 294, 0, 4]
    known = cut_ages(ages[5:6], steps[5:6], np.array([255]))
    assert known.tolist() == known_age(history).tolist() == [[4, -5]]  # -5: for at least 5 steps


@pytest.mark.parametrize("start", [0, 2, 3, 7])
def test_cut_ages_are_those_of_a_dream_that_was_reset_then(start):
    rng = np.random.default_rng(start)
    tokens = (rng.random((40, 60)) < 0.04).cumsum(0).astype(np.uint8)
    known = cut_ages(token_ages(tokens, np.zeros(40, int))[-1:], np.array([39]),
                     np.array([39 - start]))  # fmt: skip
    assert known.tolist() == known_age(torch.from_numpy(tokens[start:]).long()[None]).tolist()
    assert (known < 0).any() and (known > 20).any()


def test_half_of_the_dreams_that_were_reset_were_so_just_now():
    steps = known_steps(np.linspace(0, 1, 1001), 0.2, 4)
    assert (steps[:101] == 3).all() and (steps[200:] == 255).all()
    between = steps[101:200]
    assert (np.diff(between) >= 0).all() and between[0] == 3 and 26 <= between[50] <= 29
    assert (known_steps(np.zeros(3), 0.0, 4) == 255).all()
