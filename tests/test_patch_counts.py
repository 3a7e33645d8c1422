"""The counted table: without a window's own game in training, and right about others."""

import numpy as np
import torch

from v2.data.atari_dataset import window_starts
from v2.data.patch_counts import fill, fold_of_rows
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


def _said(table: PatchTable, data: TokenData, rows: np.ndarray, fold=None) -> torch.Tensor:
    """What table, or else a copy, says of the frames after these rows, (n, N)."""
    history = torch.from_numpy(data.tokens[rows[:, None] + np.arange(-3, 1)]).long()
    found = table(history, torch.from_numpy(data.actions[rows]).long(), None, fold)
    last = table.of_last_level(found) % table.num_found
    return torch.where(last > 0, last % table.num_codes, history[:, -1])


def test_games_that_are_not_counted_are_said_as_well():
    """A fold says of its own games, and the whole table of held-out ones, how the ball goes on."""
    data = _balls_in_a_box()
    table, folds = PatchTable(12, 32, GRID), fold_of_rows(data, 4)
    assert fill(table, data, folds) == int((table.entries > 0).sum()) > 0
    assert np.bincount(folds[data.rows_of("train")]).min() > 0.2 * len(data.rows_of("train"))
    assert (folds[data.rows_of("val")] == -1).all()
    rows = window_starts(data.episode_ids, 5)[::7] + 3
    truth = torch.from_numpy(data.tokens[rows + 1]).long()
    assert (torch.from_numpy(data.tokens[rows]).long() == truth).all(1).float().mean() == 0
    is_trained, fold = folds[rows] >= 0, torch.from_numpy(folds[rows])
    for part, of_fold in ((is_trained, fold), (~is_trained, None)):
        said = _said(table, data, rows[part], of_fold if of_fold is None else of_fold[part])
        assert (said == truth[part]).all(1).float().mean() > 0.93
    said = _said(table, data, rows, torch.full((len(rows),), -1))
    assert (said == torch.from_numpy(data.tokens[rows])).all()  # -1 reads nothing


def test_what_one_game_alone_shows_is_not_in_its_own_fold():
    data = _balls_in_a_box()
    lone = np.flatnonzero(data.episode_ids == data.episode_ids[data.rows_of("train")[0]])
    data.tokens[lone] = np.where(data.tokens[lone] == BALL, 9, 0)  # a ball of another colour
    table, folds = PatchTable(12, 32, GRID), fold_of_rows(data, 4)
    fill(table, data, folds)
    rows = lone[3:-1:5]
    last, truth = (torch.from_numpy(data.tokens[rows + k]).long() for k in (0, 1))
    own = torch.from_numpy(folds[rows])
    right = [(_said(table, data, rows, fold) == truth).all(1).float().mean()
             for fold in (own, (own + 1) % 4, None)]  # fmt: skip
    assert right[0] == 0 and min(right[1:]) > 0.9
    assert torch.equal(_said(table, data, rows, own), last)


def test_the_episodes_of_a_game_are_in_one_fold():
    data = _balls_in_a_box()
    for episode in data.meta["episodes"]:  # three in a row are one game, as after rewinds
        episode["seed"] = 10 * (episode["id"] // 3)
    folds, rows = fold_of_rows(data, 4), data.rows_of("train")
    for game in np.unique(data.episode_ids[rows] // 3):
        assert len(np.unique(folds[rows][data.episode_ids[rows] // 3 == game])) == 1
    assert set(folds[rows]) == {0, 1, 2, 3}


def test_equal_games_give_equal_tables_and_full_buckets_keep_what_gains_most():
    data = _balls_in_a_box(8)
    folds, tables = fold_of_rows(data, 2), []
    for bits in (12, 12, 0):
        table = PatchTable(bits, 32, GRID)
        assert fill(table, data, folds) <= SLOTS << bits
        tables.append(torch.cat([table.entries[None], table.folds]))
        if bits == 0:
            assert (tables[-1] > 0).all()
            history = torch.from_numpy(data.tokens[:4])[None].long()
            assert table(history, torch.zeros(1, dtype=torch.long), None).shape == (1, 336, 5)
    assert torch.equal(*tables[:2])


def test_a_lone_game_leaves_the_table_empty():
    data = _balls_in_a_box(1)
    data.meta["episodes"][0]["split"] = "train"
    folds, table = fold_of_rows(data, 4), PatchTable(4, 32, GRID)
    assert len(data.rows_of("train")) == 200 and (folds == -1).all()
    assert fill(table, data, folds) == 0 and not table.entries.any()
    said = _said(table, data, np.array([10]), torch.tensor([-1]))
    assert torch.equal(said, torch.from_numpy(data.tokens[[10]]).long())
