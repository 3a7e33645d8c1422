"""The counted table: of games that are not learnt from, and right about others."""

import numpy as np
import torch

from v2.data.atari_dataset import window_starts
from v2.data.patch_counts import counted_rows, fill
from v2.data.tokens import TokenData
from v2.models.patch_table import SLOTS, PatchTable

GRID, BALL = (21, 16), 3


def _balls_in_a_box(num_games: int = 40, length: int = 200) -> TokenData:
    """A ball of one cell that moves by one cell diagonally and turns at the walls."""
    rng = np.random.default_rng(0)
    tokens = np.zeros((num_games, length, *GRID), np.uint8)
    for game in range(num_games):
        place, step = rng.integers((1, 1), (20, 15)), rng.choice([-1, 1], 2)
        for t in range(length):
            tokens[game, t][tuple(place)] = BALL
            step = np.where((place + step < 0) | (place + step >= GRID), -step, step)
            place = place + step
    count = num_games * length
    episodes = [{"id": game, "seed": game, "frames": length, "policy": "none"}
                for game in range(num_games)]  # fmt: skip
    zeros = np.zeros(count)
    return TokenData(
        tokens.reshape(count, -1), rng.integers(4, size=count, dtype=np.uint8),
        zeros.astype(np.float32), zeros.astype(bool), zeros.astype(bool),
        np.repeat(np.arange(num_games), length), zeros.astype(bool), {"episodes": episodes},
    )  # fmt: skip


def _said(table: PatchTable, data: TokenData, rows: np.ndarray) -> torch.Tensor:
    """What table, or else a copy, says of the frames after these rows, (n, N)."""
    history = torch.from_numpy(data.tokens[rows[:, None] + np.arange(-3, 1)]).long()
    found = table(history, torch.from_numpy(data.actions[rows]).long(), None)
    last = table.of_last_level(found) % table.num_found
    return torch.where(last > 0, last % table.num_codes, history[:, -1])


def test_counted_games_say_how_a_ball_of_other_games_goes_on():
    data = _balls_in_a_box()
    table = PatchTable(12, 32, GRID)
    counted = counted_rows(data, 0.5)
    assert fill(table, data, counted) == int((table.entries > 0).sum()) > 0
    rest = np.setdiff1d(data.rows_of("train"), counted)
    assert 0.4 < len(counted) / len(data.rows_of("train")) < 0.6
    assert not np.isin(data.episode_ids[rest], data.episode_ids[counted]).any()
    rows = window_starts(data.episode_ids, 5, rest)[::7] + 3
    truth = torch.from_numpy(data.tokens[rows + 1]).long()
    assert (_said(table, data, rows) == truth).all(1).float().mean() > 0.93
    assert (torch.from_numpy(data.tokens[rows]).long() == truth).all(1).float().mean() == 0


def test_the_episodes_of_a_game_are_all_counted_or_none():
    data = _balls_in_a_box()
    for episode in data.meta["episodes"]:  # three in a row are one game, as after rewinds
        episode["seed"] = 10 * (episode["id"] // 3)
    counted = counted_rows(data, 0.5)
    games, rest = (
        {10 * (k // 3) for k in data.episode_ids[rows].tolist()}
        for rows in (counted, np.setdiff1d(data.rows_of("train"), counted))
    )
    assert games and rest and not games & rest


def test_equal_games_give_equal_tables_and_full_buckets_keep_what_gains_most():
    data = _balls_in_a_box(8)
    rows = counted_rows(data, 0.9)
    tables = []
    for bits in (12, 12, 0):
        table = PatchTable(bits, 32, GRID)
        assert fill(table, data, rows) <= SLOTS << bits
        tables.append(table.entries)
        if bits == 0:
            assert (table.entries > 0).all()
            history = torch.from_numpy(data.tokens[rows[:4]])[None].long()
            assert table(history, torch.zeros(1, dtype=torch.long), None).shape == (1, 336, 5)
    assert torch.equal(*tables[:2])


def test_too_few_games_leave_the_table_empty_and_all_games_to_learn_from():
    data = _balls_in_a_box(1)
    data.meta["episodes"][0]["split"] = "train"
    rows = counted_rows(data, 0.5)
    assert len(data.rows_of("train")) == 200 and len(rows) == 0
    table = PatchTable(4, 32, GRID)
    assert fill(table, data, rows) == 0 and not table.entries.any()
