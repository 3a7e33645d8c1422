"""The transformer: every input matters, and only where it should."""

import pytest
import torch

from tests.conftest import SMALL_WORLD_MODEL
from v2.decoding import predict_next
from v2.models import by_hand as by_hand_module
from v2.models import temporal_world_model
from v2.models.patch_hash import hash_patches
from v2.models.patch_memory import PatchMemory
from v2.models.patch_table import LEVELS, PatchTable
from v2.models.temporal_world_model import TemporalWorldModel, WorldModelConfig, age_limits


def _model(**changes) -> TemporalWorldModel:
    """A small model whose every table and matrix matters."""
    torch.manual_seed(1)
    model = TemporalWorldModel(WorldModelConfig(num_actions=4, **SMALL_WORLD_MODEL | changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def test_parameters_are_within_the_design():
    model = TemporalWorldModel(WorldModelConfig(num_actions=4))
    assert 8.2e6 <= sum(p.numel() for p in model.parameters()) <= 8.5e6


def test_layers_that_join_later_begin_as_nothing():
    torch.manual_seed(0)
    model = TemporalWorldModel(WorldModelConfig(4, dim=16, heads=2, layers=3, ffn_dim=16))
    torch.nn.init.normal_(model.to_logits.weight)
    batch = torch.randint(32, (2, 4, 336)), torch.zeros(2, 4, dtype=torch.long)
    logits = [model(*batch, num_layers=n).logits for n in (1, 3, 0)]
    assert not torch.allclose(logits[0], logits[1]) and torch.equal(logits[1], logits[2])
    model.leave_for_later(1)
    first, whole = (model(*batch, num_layers=n).logits for n in (1, 0))
    assert torch.equal(first, whole)


def _rows_of(memory, history) -> torch.Tensor:
    """The memory's output without its matrix: one column for each number that is looked up."""
    with torch.no_grad():
        memory.to_dim.weight.copy_(torch.eye(len(memory.to_dim.weight)))
        return memory(history, None)


def test_a_memory_knows_a_patch_wherever_it_is_and_nothing_beyond_it():
    width = 2
    memory = PatchMemory(10, width, 6 * width, history=4, num_codes=32, grid=(21, 16))
    history = torch.randint(32, (1, 4, 21, 16))
    history[:, :, 12:19, 8:15] = history[:, :, 2:9, 1:8]  # the same, ten down and seven right
    rows = _rows_of(memory, history.flatten(2)).view(21, 16, 6 * width)
    assert torch.equal(rows[4:7, 3:6], rows[14:17, 10:13])
    assert not torch.allclose(rows[5, 4], rows[5, 5])
    patches, pairs = slice(0, 4 * width), slice(4 * width, None)
    for frame, row, column, changes_patch, changes_pair in [
        (0, 5, 4, True, False), (3, 6, 5, True, True), (3, 7, 4, False, False),
        (2, 7, 6, False, True), (2, 8, 4, False, False), (1, 5, 4, True, False),
    ]:  # fmt: skip
        other = history.clone()
        other[0, frame, row, column] = (other[0, frame, row, column] + 1) % 32
        seen = _rows_of(memory, other.flatten(2)).view(21, 16, -1)[5, 4]
        assert torch.equal(seen[patches], rows[5, 4, patches]) == (not changes_patch)
        assert torch.equal(seen[pairs], rows[5, 4, pairs]) == (not changes_pair)
    at_two = memory(history.flatten(2), torch.tensor([[84, 200]]))
    assert torch.equal(at_two[0], rows.flatten(0, 1)[[84, 200]])


def test_a_models_memory_reaches_its_prediction():
    model = _model(memory_bits=6, memory_width=4)
    batch = torch.randint(32, (2, 4, 336)), torch.zeros(2, 4, dtype=torch.long)
    logits = model(*batch).logits
    with torch.no_grad():
        model.memory.pairs.weight.add_(1.0)
    assert not torch.allclose(model(*batch).logits, logits)


@pytest.mark.parametrize("steps", [1, 2])
def test_gradients_made_by_hand_are_those_of_autograd(monkeypatch, steps):
    """Also where a second prediction reads what the first one's gradients are yet to be made of."""
    model = _model(num_cells=40).double()
    history = torch.randint(32, (3, 4, 336))
    history[:, 3] = history[:, 2].roll(1, 0)

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        losses = []
        for step in range(steps):
            cells = model.active_cells(history.roll(step, 0))
            prediction = model(history, torch.full((3, 4), step), cells)
            losses.append(prediction.logits.sin().mean())
        sum(losses).backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    by_hand = gradients()
    for module in (temporal_world_model, by_hand_module):
        monkeypatch.setattr(module, "is_training", lambda: False)
    for one, other in zip(by_hand, gradients(), strict=True):
        assert other.abs().max() > 0 and torch.allclose(one, other, rtol=1e-9, atol=1e-12)


def _keys(history: torch.Tensor, action: int = 0) -> torch.Tensor:
    table = PatchTable(10, 32, (21, 16))
    return table.keys(history.flatten(2), torch.tensor([action])).view(21, 16, len(LEVELS))


def test_a_key_is_of_its_patch_wherever_that_is_and_of_nothing_beyond_it():
    history = torch.randint(32, (1, 4, 21, 16))
    history[:, :, 12:19, 8:15] = history[:, :, 2:9, 1:8]  # the same, ten down and seven right
    keys = _keys(history)
    assert torch.equal(keys[5, 4], keys[15, 11])
    assert (keys[5, 4] != keys[5, 5]).all()
    for frame, row, column, changes in [  # of levels 1,1; 2,2; 2,3; 2,3,2; 2,2 with the action
        (0, 5, 4, "....."), (1, 5, 4, "...x."), (3, 5, 5, "xxxxx"), (3, 7, 4, ".xxxx"),
        (3, 8, 4, "....."), (2, 5, 6, ".xxxx"), (2, 8, 4, "..xx."), (2, 9, 4, "....."),
    ]:  # fmt: skip
        other = history.clone()
        other[0, frame, row, column] = (other[0, frame, row, column] + 1) % 32
        assert (_keys(other)[5, 4] != keys[5, 4]).tolist() == [c == "x" for c in changes]
    assert (_keys(history, action=1)[5, 4] != keys[5, 4]).tolist() == [False] * 4 + [True]


@pytest.mark.parametrize("radius", [1, 2, 3])
def test_no_two_places_of_a_patch_count_alike(radius):
    width = 2 * radius + 1
    frames = torch.eye(width * width, dtype=torch.long)  # one token in each place, none elsewhere
    middle = width * width // 2
    numbers = hash_patches(frames, radius, outside=32, grid=(width, width))[:, middle]
    assert len(numbers.unique()) == len(frames)


def test_keys_of_motion_leave_out_what_stands_but_for_the_cell_itself():
    history = torch.randint(32, (1, 4, 21, 16))
    history[:, 2] = history[:, 3]
    history[:, 2, 5, 5] = (history[:, 3, 5, 5] + 1) % 32  # one cell beside (5, 4) has moved
    keys, still = _keys(history), history.clone()
    still[:, :, 6, 4] = (still[:, :, 6, 4] + 1) % 32
    assert (_keys(still)[5, 4] != keys[5, 4]).tolist() == [False] * 4 + [True]
    assert (_keys(still)[6, 4] != keys[6, 4]).all()


def test_a_models_table_reaches_its_prediction():
    model = _model(table_bits=6)
    history, actions = torch.randint(32, (2, 4, 336)), torch.zeros(2, 4, dtype=torch.long)
    before = model(history, actions).logits
    table = model.patch_table
    bucket, rest = table.place(table.keys(history, actions[:, -1])[1, 100, 2])
    table.entries[bucket, 3] = rest * table.num_found + 5 * table.num_codes + 7
    found = table(history, actions[:, -1], None)
    assert found[1, 100].tolist() == [0, 0, 5 * 32 + 7, 0, 0] and int((found > 0).sum()) == 1
    of_last = table.of_last_level(found)
    assert int(of_last[1, 100]) == 2 * table.num_found + 5 * 32 + 7
    cells = torch.tensor([[1, 2, 3], [99, 100, 101]])
    assert torch.equal(table(history, actions[:, -1], cells)[1], found[1, 99:102])
    changed = (model(history, actions).logits != before).any(2)
    assert changed[1, 100] and not changed[0].any()
    table.folds = torch.stack([torch.zeros_like(table.entries), table.entries])
    whole = model(history, actions).logits
    for fold, expected in ((-1, before), (0, before), (1, whole)):
        logits = model(history, actions, fold=torch.tensor([1, fold])).logits
        assert torch.equal(logits, expected)
    still = history[:, -1:].expand(-1, 4, -1)
    assert not table.is_near_motion(still).any()


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


def test_a_revealed_token_changes_the_prediction_of_the_others(world_model):
    history, actions = torch.randint(32, (1, 4, 336)), torch.zeros(1, 4, dtype=torch.long)
    none = torch.full((1, 336), 32)
    one = none.clone()
    one[0, 100] = 7
    world_model.given.weight.data[32] = 0  # as training keeps it
    with torch.no_grad():
        free = world_model(history, actions).logits
        assert torch.equal(world_model(history, actions, revealed=none).logits, free)
        told = world_model(history, actions, revealed=one).logits
    assert not torch.allclose(told[0, 200:], free[0, 200:], atol=1e-3)


def test_all_cells_in_any_order_predict_as_the_dense_model(world_model):
    history, actions = torch.randint(32, (2, 4, 336)), torch.randint(4, (2, 4))
    cells = torch.stack([torch.randperm(336), torch.randperm(336)])
    with torch.no_grad():
        dense, few = world_model(history, actions), world_model(history, actions, cells)
    moved = dense.logits.gather(1, cells.unsqueeze(2).expand(-1, -1, 32))
    assert torch.allclose(few.logits, moved, atol=1e-4)
    assert torch.allclose(few.reward_logits, dense.reward_logits, atol=1e-4)


def test_a_game_that_needs_all_cells_may_begin_with_fewer():
    dense, model = _model(), _model(num_cells=336)
    model.load_state_dict(dense.state_dict() | {"far_rank": model.far_rank})
    history, actions = torch.randint(32, (2, 4, 336)), torch.randint(4, (2, 4))
    assert dense.active_cells(history, 64) is None and model.active_cells(history) is None
    assert model.active_cells(history, 64).shape == (2, 64)
    with torch.no_grad():
        all_cells = model(history, actions, model.active_cells(history)).logits
        assert torch.equal(all_cells, dense(history, actions).logits)


def test_what_is_not_active_is_neither_predicted_nor_seen():
    model = _model(num_cells=40)
    history, actions = torch.randint(32, (1, 1, 336)).repeat(1, 4, 1), torch.zeros(1, 4).long()
    history[0, 3, 100] = (history[0, 2, 100] + 1) % 32
    cells = model.active_cells(history)
    assert cells.shape == (1, 40) and 100 in cells
    outside = next(cell for cell in range(336) if cell not in cells)
    other = history.clone()
    other[0, :, outside] = (other[0, :, outside] + 1) % 32
    with torch.no_grad():
        first = model(history, actions, cells).logits
        assert first.shape == (1, 40, 32)
        assert torch.equal(model(other, actions, cells).logits, first)


def test_the_age_is_read_step_by_step_then_in_logarithmic_buckets_and_only_where_asked():
    assert age_limits(0) == [1, 2, 3, 4, 6, 9, 13, 19, 28, 41, 60, 88, 129, 190]  # older weights
    assert age_limits(64) == [*range(1, 65), 94, 138, 203]
    history, actions = torch.randint(32, (1, 4, 336)), torch.zeros(1, 4).long()
    ages = [torch.full((1, 336), age) for age in (-70, -42, -41, 0, 1, 2, 41, 42, 60, 255)]
    for settings, expected in (
        ({}, [False] * 9),
        ({"has_age": True}, [False] * 3 + [True, True, True, False, True, True]),
        ({"has_age": True, "exact_age": 50}, [True] * 9),
    ):
        model = _model(**settings)
        with torch.no_grad():
            logits = [model(history, actions, age=age).logits for age in ages]
            unknown = model(history, actions).logits
        assert torch.equal(unknown, logits[3])
        differ = [not torch.equal(a, b) for a, b in zip(logits, logits[1:], strict=False)]
        assert differ == expected


def test_revealed_tokens_enter_at_their_layer_and_cost_only_what_follows():
    history, actions = torch.randint(32, (1, 4, 336)), torch.zeros(1, 4).long()
    model = _model(reveal_layer=1)
    model.given.weight.data[32] = 0  # as training keeps it
    calls = []
    for number, block in enumerate(model.blocks):
        block.register_forward_hook(lambda *_, number=number: calls.append(number))
    revealed = torch.full((1, 336), 32)
    revealed[0, :150] = 7
    with torch.no_grad():
        trunk = model.trunk(history, actions)
        free, told = model.finish(trunk), model.finish(trunk, None, revealed)
    assert calls == [0, 1, 1]
    assert not torch.allclose(told.logits[0, 200:], free.logits[0, 200:], atol=1e-3)


def test_a_shallow_start_runs_no_layer_more_for_what_is_revealed_later():
    model, calls = _model(reveal_layer=2, layers=3), []
    for number, block in enumerate(model.blocks):
        block.register_forward_hook(lambda *_, number=number: calls.append(number))
    history, actions = torch.randint(32, (1, 4, 336)), torch.zeros(1, 4).long()
    with torch.no_grad():
        predict_next(model, history, actions, num_decided=1, num_layers=1)
    assert calls == [0]


@pytest.mark.parametrize("change, text", [
    ({"num_cells": 337}, "num_cells must be at most 336, got 337"),
    ({"reveal_layer": 10}, "reveal_layer must be below layers, got 10 and 10"),
    ({"num_decided": -1}, "num_decided must be at least 0, got -1"),
])  # fmt: skip
def test_a_config_that_cannot_be_is_refused(change, text):
    with pytest.raises(ValueError, match=text):
        WorldModelConfig(num_actions=4, **change)
