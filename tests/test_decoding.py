"""From logits to tokens: copied cells, decided cells, changes that are due, sampling."""

import pytest
import torch

from tests.test_world_model import _model
from v2.decoding import (
    Sampling,
    choose_tokens,
    dense_logits,
    expected_changes,
    predict_next,
)
from v2.models.temporal_world_model import TemporalWorldModel, WorldModelConfig
from v2.train.recipe import WorldModelRecipe
from v2.train.sampling import Windows
from v2.train.wm_loss import NUM_LOSS_DRAWS, WorldModelLoss

SHAPE = (3, 18)  # of the small grid below


def _learnt(next_tokens, **changes):
    """Train a small model on frames of 3 x 18 empty cells that `next_tokens` fills, (64, 54)."""
    torch.manual_seed(0)
    config = WorldModelConfig(4, 4, *SHAPE, dim=32, heads=2, ffn_dim=64, **changes)
    model = TemporalWorldModel(config)
    recipe = WorldModelRecipe(outcome_weight=0.0, revealed_share=0.5, is_calibrated=True)
    loss = WorldModelLoss(recipe, torch.eye(4), torch.ones(54), SHAPE, torch.device("cpu"))
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    for _ in range(300):
        tokens = torch.zeros(64, 5, 54, dtype=torch.long)
        tokens[:, 4] = next_tokens()
        outcome = torch.ones(64, 1, dtype=torch.long), torch.zeros(64, 1)
        windows = Windows(tokens, torch.zeros(64, 4, dtype=torch.long), *outcome)
        draws = torch.rand(64, 1, NUM_LOSS_DRAWS + 54)
        loss(model, windows, torch.zeros(64, 1, dtype=torch.bool), draws)
        optimizer.step()
        optimizer.zero_grad()
    return model.eval(), (windows.tokens[:1, :4], windows.actions[:1])


def test_cells_that_are_not_certain_agree_on_one_outcome_once_one_is_decided():
    """The likeliest token of both is 2, which is never seen in both."""
    outcomes = torch.tensor([[1, 2], [3, 2], [2, 1], [2, 3]])

    def next_tokens():
        tokens = torch.zeros(64, 54, dtype=torch.long)
        tokens[:, 20:22] = outcomes[torch.randint(len(outcomes), (64,))]
        return tokens

    model, start = _learnt(next_tokens, layers=2)
    with torch.no_grad():
        alone = predict_next(model, *start, num_decided=0).tokens
        together = predict_next(model, *start, num_decided=1).tokens
        generator = torch.Generator().manual_seed(0)
        sampled = [
            predict_next(model, *start, Sampling(1.0), generator, num_decided=2).tokens
            for _ in range(30)
        ]
    assert alone[0, 20:22].tolist() == [2, 2]
    assert together[0, 20:22].tolist() in outcomes.tolist() and together.count_nonzero() == 2
    found = {tuple(tokens[0, 20:22].tolist()) for tokens in sampled}
    assert len(found & {tuple(pair) for pair in outcomes.tolist()}) > 1


def test_cells_that_are_not_active_are_copied_and_said_to_be():
    model = _model(num_cells=40, change_weight=30.0, max_missing=400.0)
    history, actions = torch.randint(32, (2, 4, 336)), torch.zeros(2, 4).long()
    with torch.no_grad():
        step = predict_next(model, history, actions)
    is_active = torch.zeros(2, 336, dtype=torch.bool).scatter_(1, step.cells, True)
    last = history[:, -1]
    assert torch.equal(step.tokens[~is_active], last[~is_active])
    logits = dense_logits(step, last)
    assert torch.equal(logits.gather(1, step.cells.unsqueeze(2).expand(-1, -1, 32)),
                       step.prediction.logits)  # fmt: skip
    assert torch.equal(logits.argmax(2), step.tokens)
    assert expected_changes(logits, last, model.config)[~is_active].max() < 1e-6


def test_all_cells_are_predicted_bit_for_bit_as_without_a_choice(world_model):
    history, actions = torch.randint(32, (2, 4, 336)), torch.randint(4, (2, 4))
    with torch.no_grad():
        step, plain = predict_next(world_model, history, actions), world_model(history, actions)
    assert step.cells is None and torch.equal(step.prediction.logits, plain.logits)
    assert torch.equal(step.tokens, choose_tokens(plain.logits, history[:, -1]))


def test_revealed_tokens_stand_in_the_frame(world_model):
    history, actions = torch.randint(32, (2, 4, 336)), torch.zeros(2, 4).long()
    revealed = torch.full((2, 336), 32)
    revealed[:, 7] = (history[:, -1, 7] + 5) % 32
    with torch.no_grad():
        step = predict_next(world_model, history, actions, revealed=revealed, num_decided=1)
    assert torch.equal(step.tokens[:, 7], revealed[:, 7])


def _copying(**changes) -> TemporalWorldModel:
    """A model of the first edition that copies, but doubts code 1 a little: 1 or 2."""
    model = _model(change_weight=30.0, false_change_scale=8.0, **changes)
    torch.nn.init.zeros_(model.to_logits.weight)
    torch.nn.init.zeros_(model.to_logits.bias)
    model.copy_table.weight.data = 20 * torch.eye(32)
    model.copy_table.weight.data[1, :3] = torch.tensor([-20.0, 20.2, 20.0])
    return model


@pytest.mark.parametrize("num_cells", [0, 60])
def test_a_change_that_is_missing_is_decided_and_the_frame_predicted_again(num_cells):
    """Ten cells may each change with one chance in ten: each by itself would rather stay."""
    model = _copying(num_cells=num_cells, max_missing=0.5)
    history, actions = torch.zeros(2, 4, 336, dtype=torch.long), torch.zeros(2, 4).long()
    history[0, :, 5:15] = 1
    last, calls = history[:, -1], []
    model.register_forward_hook(lambda _, inputs, __: calls.append(len(inputs[0])))
    with torch.no_grad():
        step = predict_next(model, history, actions)
        rate = expected_changes(dense_logits(step, last), last, model.config)[0, 5]
    assert 0.05 < rate < 0.2 and calls == [2, 1]  # again only where something is missing
    changed = step.tokens != last
    assert changed.sum(1).tolist() == [1, 0] and step.tokens[0, 5:15].max() == 2
    patient = _copying(num_cells=num_cells, max_missing=5.0)
    with torch.no_grad():
        assert torch.equal(predict_next(patient, history, actions).tokens, last)


def test_calibrated_weights_have_no_change_decided_for_them():
    model, history = _model(), torch.randint(32, (1, 4, 336))
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        predict_next(model, history, torch.zeros(1, 4).long())
    assert len(calls) == 1


def test_greedy_is_the_limit_of_sampling():
    logits = torch.randn(2, 50, 32)
    generator = torch.Generator().manual_seed(0)
    cold = choose_tokens(100 * logits, None, Sampling(temperature=1e-3), generator)
    assert torch.equal(cold, logits.argmax(-1))
    warm = choose_tokens(logits, None, Sampling(temperature=5.0), generator)
    assert not torch.equal(warm, cold)


@pytest.mark.parametrize("temperature", [-1.0, 1e-38, float("inf"), float("nan")])
def test_a_temperature_that_cannot_be_divided_by_is_refused(temperature):
    with pytest.raises(ValueError, match=f"must be 0 or at least 0.001, got {temperature}"):
        Sampling(temperature)


def test_what_surely_moves_but_may_be_either_of_two_codes_does_not_vanish():
    last = torch.tensor([[0, 0, 5]])
    probs = torch.full((1, 3, 32), 1e-6)
    probs[0, 0, [0, 1, 2]] = torch.tensor([0.4, 0.35, 0.25])  # stays in .4, changes in .6
    probs[0, 1, [0, 1]] = torch.tensor([0.55, 0.45])
    probs[0, 2, [5, 6]] = torch.tensor([0.45, 0.55])
    assert choose_tokens(probs.log(), last).tolist() == [[1, 0, 6]]
    assert choose_tokens(probs.log(), None).tolist() == [[0, 0, 6]]
