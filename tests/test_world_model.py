import functools
import math

import numpy as np
import pytest
import torch

from v2 import decoding
from v2.decoding import (
    GREEDY,
    ONE_LOOK,
    Sampling,
    advance,
    change_probs,
    choose_tokens,
    decide_first,
    predict_next,
)
from v2.dream import DreamEngine
from v2.models.cells import draw_positions
from v2.models.temporal_world_model import Prediction, Subset, TemporalWorldModel, WorldModelConfig
from v2.runtime.device import autocast, choose_device
from v2.train import wm_loss
from v2.train.recipe import WorldModelRecipe
from v2.train.sampling import Windows
from v2.train.token_weights import (
    change_rarity,
    code_distances,
    false_change_weights,
    importance_weights,
)
from v2.train.wm_loss import WorldModelLoss

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


def test_parameters_are_within_the_design():
    model = TemporalWorldModel(WorldModelConfig(num_actions=4))
    assert 8.2e6 <= sum(p.numel() for p in model.parameters()) <= 8.5e6


def test_past_actions_are_read_only_where_asked():
    history, actions = torch.randint(32, (1, 4, 336)), torch.zeros(1, 4, dtype=torch.long)
    for read in (0, 1, 3):
        model = TemporalWorldModel(
            WorldModelConfig(4, dim=16, heads=2, layers=1, ffn_dim=16, past_actions=read)
        )
        torch.nn.init.normal_(model.to_logits.weight)
        seen = []
        for past in range(3):
            other = actions.clone()
            other[0, past] = 2
            logits = model(history, actions).logits
            seen.append(not torch.equal(model(history, other).logits, logits))
        assert seen == [past >= 3 - read for past in range(3)]
    with pytest.raises(ValueError, match="past_actions must be below history"):
        WorldModelConfig(num_actions=4, past_actions=4)


def test_an_untrained_model_copies_the_last_frame():
    model = TemporalWorldModel(WorldModelConfig(num_actions=4))
    history = torch.randint(32, (1, 4, 336))
    with torch.no_grad():
        prediction = model(history, torch.zeros(1, 4, dtype=torch.long))
    assert torch.equal(prediction.logits.argmax(-1), history[:, -1])


def test_every_input_changes_the_prediction(world_model):
    history, actions = torch.randint(32, (1, 4, 336)), torch.zeros(1, 4, dtype=torch.long)
    with torch.no_grad():
        logits = world_model(history, actions).logits
        for slot in range(4):
            changed = history.clone()
            changed[0, slot, 100] = (changed[0, slot, 100] + 1) % 32
            assert not torch.allclose(world_model(changed, actions).logits, logits)
            other = actions.clone()
            other[0, slot] = 2
            assert not torch.allclose(world_model(history, other).logits, logits)


def test_a_dream_does_not_depend_on_its_neighbours_in_the_batch(world_model):
    history, actions = torch.randint(32, (3, 4, 336)), torch.randint(4, (3, 4))
    with torch.no_grad():
        together = world_model(history, actions).logits
        alone = world_model(history[1:2], actions[1:2]).logits
    assert torch.allclose(together[1:2], alone, atol=1e-4)


def test_a_given_token_changes_the_prediction_of_the_others(world_model):
    history, actions = torch.randint(32, (1, 4, 336)), torch.zeros(1, 4, dtype=torch.long)
    none = torch.full((1, 336), 32)
    one = none.clone()
    one[0, 100] = 7
    world_model.given.weight.data[32] = 0  # as training keeps it
    with torch.no_grad():
        free = world_model(history, actions).logits
        assert torch.equal(world_model(history, actions, given=none).logits, free)
        told = world_model(history, actions, given=one).logits
    assert not torch.allclose(told[0, 200:], free[0, 200:], atol=1e-3)


def _learnt(next_tokens):
    """Train a small model on frames of 3 x 18 empty cells that `next_tokens` fills, (64, 54)."""
    torch.manual_seed(0)
    height, width = 3, 18
    model = TemporalWorldModel(
        WorldModelConfig(4, 4, height, width, dim=32, heads=2, layers=2, ffn_dim=64)
    )
    loss = WorldModelLoss(
        WorldModelRecipe(outcome_weight=0.0, revealed_share=0.5), torch.eye(4), torch.ones(54),
        (height, width), torch.device("cpu"),
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    for _ in range(300):
        tokens = torch.zeros(64, 5, 54, dtype=torch.long)
        tokens[:, 4] = next_tokens()
        outcome = torch.ones(64, 1, dtype=torch.long), torch.zeros(64, 1)
        windows = Windows(tokens, torch.zeros(64, 4, dtype=torch.long), *outcome)
        is_forced, reveal_draws = torch.zeros(64, 1, dtype=torch.bool), torch.rand(64, 1, 2)
        loss(model, windows, is_forced, reveal_draws=reveal_draws)
        optimizer.step()
        optimizer.zero_grad()
    return model.eval(), (windows.tokens[:1, :4], windows.actions[:1])


def test_an_open_outcome_becomes_one_whole_object():
    """An object of three cells appears somewhere; each cell alone would rather stay empty."""

    def next_tokens(places=6):
        first = 18 + 3 * torch.randint(places, (64, 1))
        parts = torch.arange(3)
        empty = torch.zeros(64, 54, dtype=torch.long)
        return empty.scatter(1, first + parts, parts.expand(64, 3) + 1)

    model, start = _learnt(next_tokens)
    with torch.no_grad():
        tokens, *_ = predict_next(model, *start)
        generator = torch.Generator().manual_seed(0)
        sampled = [predict_next(model, *start, Sampling(0.5), generator) for _ in range(20)]
    first = tokens[0].nonzero()[0].item()
    assert tokens[0].nonzero().flatten().tolist() == [first, first + 1, first + 2]
    assert tokens[0, first : first + 3].tolist() == [1, 2, 3]
    assert len({tuple(tokens[0].tolist()) for tokens, *_ in sampled}) > 2
    assert sum((tokens > 0).sum() == 3 for tokens, *_ in sampled) >= 16


def test_cells_that_are_not_sure_agree_on_one_outcome():
    """The likeliest token of both is 2, which is never seen in both."""
    outcomes = torch.tensor([[1, 2], [3, 2], [2, 1], [2, 3]])

    def next_tokens():
        tokens = torch.zeros(64, 54, dtype=torch.long)
        tokens[:, 20:22] = outcomes[torch.randint(len(outcomes), (64,))]
        return tokens

    model, start = _learnt(next_tokens)
    with torch.no_grad():
        alone, *_ = predict_next(model, *start, Sampling(min_sure=0.0))
        together, *_ = predict_next(model, *start)
    assert alone[0, 20:22].tolist() == [2, 2]
    assert together[0, 20:22].tolist() in outcomes.tolist() and together.count_nonzero() == 2


def test_one_token_that_is_not_sure_needs_no_second_look():
    """What it is given would be itself. The least sure change is decided, never one that stays."""
    last = torch.zeros(4, 6, dtype=torch.long)
    probs = torch.full((4, 6, 4), 0.001)
    probs[..., 0] = 0.997  # all stay, surely
    for row, cell, token, chance in (
        (0, 1, 2, 0.7),
        (1, 1, 2, 0.7), (1, 4, 3, 0.6),
        (2, 1, 2, 0.7), (2, 4, 0, 0.5),
        (3, 1, 2, 0.9), (3, 4, 3, 0.9),
    ):  # fmt: skip
        probs[row, cell] = (1 - chance) / 3
        probs[row, cell, token] = chance
    zero = torch.zeros(4, 6)
    given = decide_first(probs.log(), zero, last, zero)
    assert [row.tolist() for row in (given < 4).nonzero()] == [[1, 4], [2, 1]]
    assert given[1, 4] == 3 and given[2, 1] == 2


def test_a_frame_without_doubt_is_predicted_once(world_model):
    calls = []
    world_model.register_forward_hook(lambda *_: calls.append(1))
    torch.nn.init.zeros_(world_model.to_logits.weight)
    torch.nn.init.zeros_(world_model.to_logits.bias)
    world_model.copy_table.weight.data = 20 * torch.eye(32)
    history = torch.randint(32, (2, 4, 336))
    with torch.no_grad():
        tokens, *_ = predict_next(world_model, history, torch.zeros(2, 4, dtype=torch.long))
    assert len(calls) == 1 and torch.equal(tokens, history[:, -1])


def _dream(model, history, actions, sampling=GREEDY) -> list[torch.Tensor]:
    frames, doubt = [], None
    for k in range(actions.shape[1] - 3):
        step = predict_next(model, history, actions[:, k : k + 4], sampling, doubt=doubt)
        history, doubt = advance(history, step.tokens), step.doubt
        frames.append(step.tokens)
    return frames


def test_a_token_that_is_doubted_for_long_changes_when_it_is_overdue(world_model):
    torch.nn.init.zeros_(world_model.to_logits.weight)
    torch.nn.init.zeros_(world_model.to_logits.bias)
    world_model.copy_table.weight.data = 20 * torch.eye(32)
    world_model.copy_table.weight.data[1, :3] = torch.tensor([-20.0, 20.2, 20.0])  # 1 or 2
    history = torch.zeros(2, 4, 336, dtype=torch.long)
    actions = torch.zeros(2, 33, dtype=torch.long)
    history[0, :, 5] = 1
    with torch.no_grad():
        rate = change_probs(world_model(history, actions[:, :4]).logits, history[:, -1])[0, 5]
        assert 0.05 < rate < 0.2
        steps = _dream(world_model, history, actions)
        patient = _dream(world_model, history, actions, Sampling(max_doubt=float("inf")))
    changes = [int(tokens[0, 5]) for tokens in steps]
    assert changes == [1] * math.ceil(1 / rate - 1) + [2] * (30 - math.ceil(1 / rate - 1))
    assert all(torch.equal(tokens, history[:, 0]) for tokens in patient)
    assert not any(tokens[1].any() for tokens in steps)  # nothing is doubted there


def test_what_training_gives_is_a_token_that_changes(world_model):
    windows, loss = _windows(steps=1, batch=64), _loss(WorldModelRecipe(revealed_share=0.5))
    weights, draws = loss.weights(windows, 0, 4), torch.rand(64, 2)
    given = loss._give(weights, windows, 0, 4, draws)
    target, last = windows.tokens[:, 4], windows.tokens[:, 3]
    is_given = given < 32
    assert is_given.sum(1).tolist() == (draws[:, 0] < 0.5).long().tolist()
    assert (target != last)[is_given].all() and torch.equal(given[is_given], target[is_given])


def test_rollout_with_teacher_probability_one_equals_teacher_forced_loss(world_model):
    windows = _windows(steps=3)
    world_model.zero_grad()
    loss = _loss(WorldModelRecipe())
    total, _ = loss(world_model, windows, torch.ones(2, 3, dtype=torch.bool))
    expected = 0.0
    with torch.no_grad(), autocast(torch.device("cpu")):
        for k in range(3):
            prediction = world_model(windows.tokens[:, k : k + 4], windows.actions[:, k : k + 4])
            weights = loss.weights(windows, k, 4)
            expected += loss.step_loss(prediction, windows, k, 4, weights)[0] / 3
    assert torch.allclose(total, expected, atol=1e-6)


def test_rollout_with_teacher_probability_zero_equals_the_dream(vqvae, world_model, monkeypatch):
    monkeypatch.setattr("v2.runtime.device.has_fast_bfloat16", lambda device: False)
    windows, steps = _windows(steps=4), []
    predict = decoding.predict_next

    def note(model, history, actions, *args, **options):
        step = predict(model, history, actions, *args, **options)
        steps.append((history, actions, step))
        return step

    monkeypatch.setattr(wm_loss, "predict_next", note)
    never = torch.zeros(2, 4, dtype=torch.bool)
    _loss(WorldModelRecipe(max_wrong=336))(world_model, windows, never)
    assert len(steps) == 4
    engine = DreamEngine(vqvae, world_model, sampling=ONE_LOOK)
    engine.reset_tokens(windows.tokens[:, :4], windows.actions[:, :3].numpy())
    for k, (history, actions, step) in enumerate(steps):
        now = windows.actions[:, 3 + k]
        assert torch.equal(history, engine.history.tokens)
        assert torch.equal(actions, torch.cat([engine.history.actions, now[:, None]], 1))
        engine.step_tokens(now.numpy())
        assert np.array_equal(engine.tokens.reshape(2, -1), step.tokens.numpy())
        assert torch.equal(engine.logits, step.prediction.logits)
    assert not torch.equal(steps[3][0][:, 1:], windows.tokens[:, 4:7])  # its own, not the truth


def test_a_rollout_goes_on_from_the_truth_where_it_left_it_or_predicted_nothing():
    loss = _loss(WorldModelRecipe(max_wrong=2))
    truth, tokens = torch.zeros(4, 336, dtype=torch.long), torch.zeros(4, 336, dtype=torch.long)
    tokens[0, :2] = tokens[1, :3] = tokens[2, :1] = 7
    is_forced = torch.tensor([False, False, True, False])
    fed = loss._fed_back(tokens, truth, is_forced, None)
    assert torch.equal(fed[0], tokens[0]) and not fed[1:].any()
    tokens[:, 5:] = 9
    seen = Subset(torch.arange(5).expand(4, 5), torch.ones(4, 5))
    assert torch.equal(loss._fed_back(tokens, truth, is_forced, seen), fed)


def test_what_is_given_stands_in_the_frame_that_is_fed_back(world_model):
    history, actions = torch.randint(32, (2, 4, 336)), torch.zeros(2, 4, dtype=torch.long)
    given = torch.full((2, 336), 32)
    given[:, 7] = (history[:, -1, 7] + 5) % 32
    seen = Subset(torch.tensor([[3, 7, 9]] * 2), torch.ones(2, 3))
    with torch.no_grad():
        step = predict_next(world_model, history, actions, ONE_LOOK, subset=seen, given=given)
    assert torch.equal(step.tokens[:, 7], given[:, 7])
    rest = torch.ones(336, dtype=torch.bool)
    rest[[3, 7, 9]] = False
    assert torch.equal(step.tokens[:, rest], history[:, -1, rest])
    assert torch.equal(step.tokens[:, 3], step.prediction.logits[:, 0].argmax(-1))


def test_normalised_discounted_loss_does_not_depend_on_k(world_model, monkeypatch):
    def constant(self, prediction, windows, k, history, weights, subset):
        return 0 * prediction.logits.sum() + 2.5, {}

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


def test_a_subset_of_all_positions_predicts_as_without(world_model):
    windows = _windows(steps=1)
    history, actions = windows.tokens[:, :4], windows.actions[:, :4]
    for parameter in world_model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    order = torch.stack([torch.randperm(336), torch.randperm(336)])
    with torch.no_grad():
        dense = world_model(history, actions)
        subset = world_model(history, actions, Subset(order, torch.ones(2, 336)))
    moved = dense.logits.gather(1, order.unsqueeze(2).expand(-1, -1, 32))
    assert torch.allclose(subset.logits, moved, atol=1e-4)
    assert torch.allclose(subset.reward_logits, dense.reward_logits, atol=1e-4)


def test_drawn_positions_stand_for_those_left_out(world_model):
    """Where all positions but one are the same, 96 of them give what all 336 give."""
    for place in (world_model.position, world_model.spatial_bias):
        torch.nn.init.zeros_(place)
    for block in world_model.blocks:
        block.local = None
    history = torch.full((1, 4, 336), 3)
    history[:, :, 7] = 5
    actions = torch.ones(1, 4, dtype=torch.long)
    drawn = torch.tensor([[7, *range(100, 195)]])
    chances = torch.full((1, 96), 95 / 335)
    chances[0, 0] = 1
    with torch.no_grad():
        dense = world_model(history, actions)
        few = world_model(history, actions, Subset(drawn, chances))
    assert torch.allclose(few.logits[0], dense.logits[0, drawn[0]], atol=1e-4)
    assert not torch.allclose(few.logits[0, 0], few.logits[0, 1], atol=1e-2)
    assert torch.allclose(few.reward_logits, dense.reward_logits, atol=1e-4)
    assert torch.allclose(few.terminated_logits, dense.terminated_logits, atol=1e-4)


def test_positions_are_drawn_with_the_stated_chances():
    history = torch.zeros(1, 4, 336, dtype=torch.long)
    history[0, 2:, [40, 200]] = 1
    moved = (history[0, 1:] != history[0, :-1]).any(0)
    history = history.expand(4000, -1, -1)
    draws = torch.rand(4000, 336, generator=torch.Generator().manual_seed(1))
    positions, chances = draw_positions(history, 144, GRID, draws)
    assert (positions.sort(1).values.diff(dim=1) > 0).all()  # none twice
    drawn = torch.zeros(336).index_add_(0, positions.flatten(), torch.ones(positions.numel()))
    stated = torch.zeros(336).scatter(0, positions.flatten(), chances.flatten())
    assert torch.allclose(drawn / 4000, stated, atol=0.04)
    assert (stated[moved] == 1).all() and (stated < 1).sum() == 336 - 50


def test_the_nearer_to_motion_the_likelier_and_none_impossible():
    history = torch.zeros(1, 4, 336, dtype=torch.long)
    history[0, 3, [116, 120, 124, 210, 214, 218]] = 1  # six cells; 48 within one, 60 within two
    draws = torch.rand(4000, 336, generator=torch.Generator().manual_seed(1))
    for count in (8, 64):
        positions, chances = draw_positions(history.expand(4000, -1, -1), count, GRID, draws)
        stated = torch.zeros(336).scatter(0, positions.flatten(), chances.flatten())
        drawn = torch.bincount(positions.flatten(), minlength=336) / 4000
        assert torch.allclose(drawn, stated, atol=0.04) and stated.min() > 0
        assert stated[116] >= stated[117] > stated[118]
        assert (1 / chances).sum(1).mean() == pytest.approx(336, rel=1e-3)
    assert stated[116] == 1 and stated[117] > 0.7  # of 64


def test_what_is_rare_in_the_frame_is_drawn_sooner_than_other_far_places():
    history = torch.zeros(1, 4, 336, dtype=torch.long)
    history[0, :, [1, 2, 3, 4, 9, 10]] = torch.tensor([3, 3, 4, 5, 6, 7])  # digits in a corner
    history[0, :, 320:328] = 2  # eight alike: no rare ones
    history[0, 3, [116, 120, 124, 210, 214, 218]] = 1
    draws = torch.rand(4000, 336, generator=torch.Generator().manual_seed(1))
    positions, chances = draw_positions(history.expand(4000, -1, -1), 64, GRID, draws)
    stated = torch.zeros(336).scatter(0, positions.flatten(), chances.flatten())
    drawn = torch.bincount(positions.flatten(), minlength=336) / 4000
    assert torch.allclose(drawn, stated, atol=0.04)
    assert (stated[[1, 2, 3, 4, 9, 10]] == 1).all() and 0 < stated[320:328].max() < 0.1


def test_certain_positions_are_drawn_and_the_others_stand_for_what_is_left():
    history = torch.zeros(1, 4, 336, dtype=torch.long)
    history[0, 2:, [40, 200]] = 1
    draws = torch.rand(4000, 336, generator=torch.Generator().manual_seed(1))
    for num_certain, count in ((20, 144), (60, 96), (30, 40), (1, 9)):
        is_certain = torch.zeros(1, 336, dtype=torch.bool)
        is_certain[0, 20 : 20 + num_certain] = True  # some of them near what moved
        positions, chances = draw_positions(
            history.expand(4000, -1, -1), count, GRID, draws, is_certain.expand(4000, -1)
        )
        assert (positions.sort(1).values.diff(dim=1) > 0).all()
        drawn = torch.zeros(336).index_add_(0, positions.flatten(), torch.ones(positions.numel()))
        stated = torch.zeros(336).scatter(0, positions.flatten(), chances.flatten())
        assert torch.allclose(drawn / 4000, stated, atol=0.04)
        assert (stated[is_certain[0]] == 1).all() and stated.min() > 0
    many = torch.ones(1, 336, dtype=torch.bool)  # more than are drawn: the least draws of them
    positions, chances = draw_positions(history, 96, GRID, draws[:1], many)
    assert set(positions[0].tolist()) == set(draws[0].argsort()[:96].tolist())
    assert (chances == 1).all()


def test_a_second_look_sees_what_is_given_and_stands_for_the_frame(world_model, monkeypatch):
    history, actions = torch.randint(32, (3, 4, 336)), torch.zeros(3, 4, dtype=torch.long)
    history[:, 1:] = history[:, :1]
    given = torch.full((3, 336), 32)
    given[[0, 1, 2], [0, 170, 335]] = 5
    change = torch.zeros(3, 336)
    change[1, 20:50], change[2] = 0.1, 0.5  # some places open, and more than it looks at
    seen = []
    forward = TemporalWorldModel.forward
    monkeypatch.setattr(
        TemporalWorldModel, "forward", lambda *args: seen.append(args[3]) or forward(*args)
    )
    with torch.no_grad():
        second, positions = decoding._look_again(world_model, history, actions, change, given)
    assert second.logits.shape == (3, decoding.NUM_REVISED, 32)
    assert (given.gather(1, positions) < 32).sum(1).tolist() == [1, 1, 1]
    assert {20, 49, 169, 170, 171, 186} <= set(positions[1].tolist())
    assert torch.allclose((1 / seen[0].chances)[:2].sum(1), torch.full((2,), 336.0), rtol=1e-3)


def test_a_second_look_leaves_alone_what_was_sure(world_model, monkeypatch):
    """It sees 64 positions of 336, and may be wrong about what the first look was sure of."""
    chances = torch.tensor([0.985, 0.975, 0.6, 0.7])  # the last two open the frame
    logits = torch.full((1, 336, 32), 0.001 / 31).log()
    logits[..., 0] = math.log(0.999)
    logits[0, 20:24] = ((1 - chances) / 31).log().unsqueeze(1)
    logits[0, 20:24, 1] = chances.log()
    twos = torch.full((1, 64, 32), -20.0).index_fill(2, torch.tensor(2), 0.0)
    outcomes = torch.zeros(1, 3), torch.zeros(1)
    answers = [Prediction(logits, *outcomes), Prediction(twos, *outcomes)]
    monkeypatch.setattr(TemporalWorldModel, "forward", lambda *_: answers.pop(0))
    zeros = torch.zeros(1, 4, dtype=torch.long)
    tokens, *_ = predict_next(world_model, zeros.unsqueeze(2).expand(1, 4, 336), zeros)
    assert tokens[0, 20:24].tolist() == [1, 2, 1, 2]  # the third is what was given
    assert tokens.count_nonzero() == 4 and not answers


def test_without_a_second_look_every_frame_is_predicted_once(world_model):
    calls = []
    world_model.register_forward_hook(lambda *_: calls.append(1))
    history, actions = torch.randint(32, (1, 4, 336)), torch.zeros(1, 4, dtype=torch.long)
    with torch.no_grad():
        for max_missing, expected in ((0.0, 2), (float("inf"), 3)):
            predict_next(world_model, history, actions, Sampling(max_missing=max_missing))
            assert len(calls) == expected


def test_few_positions_give_the_loss_of_all_on_average(world_model):
    windows = _windows(steps=1, batch=1)
    parts = {name: part for name, part in vars(windows).items() if part is not None}
    repeated = Windows(**{name: t.expand(600, *t.shape[1:]) for name, t in parts.items()})
    loss = _loss(WorldModelRecipe(outcome_weight=0.0))
    for parameter in world_model.parameters():  # no attention: its estimate is not unbiased
        torch.nn.init.normal_(parameter, std=0.1)
    for block in world_model.blocks:
        torch.nn.init.zeros_(block.attended.weight)
        block.local = None
    draws = torch.rand(600, 1, 336, generator=torch.Generator().manual_seed(2))
    is_forced = torch.zeros(1, 1, dtype=torch.bool)
    few, _ = loss(world_model, repeated, is_forced.expand(600, 1), 144, draws)
    every, _ = loss(world_model, windows, is_forced)
    assert float(few) == pytest.approx(float(every), rel=0.02)


def test_a_rollout_at_every_position_learns_what_a_dense_one_does(world_model):
    windows, loss = _windows(steps=3), _loss(WorldModelRecipe())
    is_forced = torch.tensor([[True, False, False], [False, False, False]])
    results, reveal_draws = [], torch.rand(2, 3, 2)
    for learn in (loss, functools.partial(loss, count=336, draws=torch.rand(2, 3, 336))):
        world_model.zero_grad()
        total, _, _ = learn(world_model, windows, is_forced, reveal_draws=reveal_draws)
        results.append([total, *(p.grad.clone() for p in world_model.parameters())])
    for dense, sparse in zip(*results, strict=True):
        assert (dense - sparse).norm() <= 0.05 * dense.norm()  # attention in other precisions


def test_numbers_too_small_to_matter_cost_nothing():
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot")
    torch.set_flush_denormal(False)
    tiny = torch.full((4,), 1e-30)
    assert (tiny * 1e-10 > 0).all()
    choose_device("cpu")
    assert (tiny * 1e-10 == 0).all()


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


def test_greedy_is_the_limit_of_sampling_and_top_k_bounds_it():
    logits = torch.randn(2, 50, 32)
    generator = torch.Generator().manual_seed(0)
    cold = choose_tokens(100 * logits, Sampling(temperature=1e-3), generator)
    assert torch.equal(cold, logits.argmax(-1))
    warm = choose_tokens(logits, Sampling(temperature=5.0, top_k=3), generator)
    assert not torch.equal(warm, cold)
    assert (logits.topk(3).indices == warm.unsqueeze(-1)).any(-1).all()


@pytest.mark.parametrize("temperature", [-1.0, 1e-38, float("inf"), float("nan")])
def test_a_temperature_that_cannot_be_divided_by_is_refused(temperature):
    with pytest.raises(ValueError, match=f"must be 0 or at least 0.001, got {temperature}"):
        Sampling(temperature)


@pytest.mark.parametrize("frames", [np.zeros((3, 84, 64, 3), np.uint8), np.zeros((4, 84, 64, 3))])
def test_a_dream_refuses_foreign_frames(vqvae, world_model, frames):
    with pytest.raises(ValueError, match="frames must be uint8"):
        DreamEngine(vqvae, world_model).reset(frames)


def test_a_dream_refuses_actions_it_does_not_have(vqvae, world_model):
    engine = DreamEngine(vqvae, world_model)
    engine.reset(np.zeros((4, 84, 64, 3), np.uint8))
    with pytest.raises(ValueError, match="action must be 0 to 3"):
        engine.step(4)


def test_a_batch_of_dreams_equals_single_dreams(vqvae, world_model):
    frames = np.random.default_rng(0).integers(0, 256, (2, 4, 84, 64, 3), dtype=np.uint8)
    batched, single = DreamEngine(vqvae, world_model), DreamEngine(vqvae, world_model)
    batched.reset(frames, np.array([[0, 1, 2], [3, 0, 1]]))
    single.reset(frames[1], np.array([3, 0, 1]))
    for action in (2, 3):
        frame = batched.step(np.array([0, action]))
        assert np.array_equal(frame[1], single.step(action))
    state = single.history
    first = single.step(1)
    single.restore(state)
    assert np.array_equal(first, single.step(1))


def test_a_dream_may_go_on_from_what_its_picture_is_read_as(vqvae, world_model):
    frames = np.random.default_rng(0).integers(0, 256, (4, 84, 64, 3), dtype=np.uint8)
    plain = DreamEngine(vqvae, world_model)
    again = DreamEngine(vqvae, world_model, retokenize=True)
    for engine in (plain, again):
        engine.reset(frames)
    for action in (2, 3):
        tokens = plain.step_tokens(action)
        read = plain.encode(plain.decode(tokens[None]))[0]
        assert not np.array_equal(read, tokens)
        assert np.array_equal(again.step_tokens(action), read)
        plain.restore(again.history)


def test_some_of_several_dreams_begin_anew(vqvae, world_model):
    frames = np.random.default_rng(0).integers(0, 256, (2, 4, 84, 64, 3), dtype=np.uint8)
    engine = DreamEngine(vqvae, world_model)
    engine.reset(frames, np.array([[0, 1, 2], [3, 0, 1]]))
    first = engine.step(np.array([2, 3]))
    engine.step(np.array([1, 1]))
    before = [part[0].clone() for part in engine.history]
    engine.restart(np.array([False, True]))
    assert all(torch.equal(part[0], old) for part, old in zip(engine.history, before, strict=True))
    assert np.array_equal(engine.step(np.array([0, 3]))[1], first[1])
