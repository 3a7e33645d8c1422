"""Active cells: which, how many, and what they hold."""

import numpy as np
import pytest
import torch

from v2.data.coverage import choose_count, coverage, far_rank
from v2.data.tokens import TokenData
from v2.models.cells import (
    active_cells,
    distance_from_motion,
    far_changes,
    nearest_cells,
    rank_of,
)

GRID = (21, 16)


def _still() -> torch.Tensor:
    return torch.zeros(1, 4, 336, dtype=torch.long)


def test_cells_are_taken_by_their_distance_from_motion_then_by_far_changes():
    history, rank = _still(), torch.randperm(336, generator=torch.Generator().manual_seed(0))
    history[0, 3, 10 * 16 + 8] = 1
    distance = distance_from_motion(history, GRID)[0]
    assert [int((distance == d).sum()) for d in range(4)] == [1, 8, 16, 311]
    for count in (1, 9, 25, 60, 336):
        cells = active_cells(history, rank, count, GRID)[0]
        assert cells.tolist() == sorted(set(cells.tolist())) and len(cells) == count
        near = int((distance[cells] < 3).sum())
        assert near == min(count, 25)
        far = sorted(rank[cells[distance[cells] == 3]].tolist())
        others = sorted(rank[distance == 3].tolist())
        assert far == others[: count - near]


def test_the_choice_is_the_same_alone_and_in_a_batch():
    histories = torch.randint(3, (5, 4, 336), generator=torch.Generator().manual_seed(1))
    rank = torch.arange(336)
    together = active_cells(histories, rank, 100, GRID)
    for history, cells in zip(histories, together, strict=True):
        assert torch.equal(active_cells(history[None], rank, 100, GRID)[0], cells)


def test_motion_in_any_frame_of_the_history_counts_and_the_edge_has_no_other_side():
    history = _still()
    history[0, 1:, 15] = 1  # the right end of the first row, three steps ago
    distance = distance_from_motion(history, GRID)[0]
    assert distance[15] == 0 and distance[14] == distance[31] == 1
    assert distance[16] == 3  # the next row's left end


def test_changes_far_from_motion_rank_cells():
    history, following = _still(), torch.zeros(1, 336, dtype=torch.long)
    history[0, 3, 100] = following[0, 100] = 1
    following[0, [101, 5, 300]] = 1  # the first beside motion
    changes = far_changes(history, following, GRID)
    assert changes.nonzero().flatten().tolist() == [5, 300]
    changes[300] = 7
    rank = rank_of(changes)
    assert rank[300] == 0 and rank[5] == 1 and sorted(rank.tolist()) == list(range(336))


def _tokens(step) -> TokenData:
    """Twenty games of 60 frames; `step` makes each frame (21, 16) of the one before."""
    rng = np.random.default_rng(0)
    rows, games = [], []
    for game in range(20):
        frame = rng.integers(0, 8, GRID)
        for t in range(60):
            rows.append(frame.copy())
            frame = step(frame, t, rng)
        games.append({"id": game, "seed": game, "frames": 60})
    count = len(rows)
    return TokenData(
        tokens=np.stack(rows).reshape(count, -1).astype(np.uint8),
        actions=np.zeros(count, np.uint8), rewards=np.zeros(count, np.float32),
        terminated=np.zeros(count, bool), truncated=np.zeros(count, bool),
        episode_ids=np.repeat(np.arange(20), 60).astype(np.int32),
        has_action=np.ones(count, bool), meta={"episodes": games},
    )  # fmt: skip


def _spot(frame, t, rng):
    """One cell in a still picture flickers; a counter far from it counts every tenth step."""
    frame = frame.copy()
    frame[10, 8] = t % 8
    frame[0, 1] = (t // 10) % 8
    return frame


def _scrolling(frame, t, rng):
    """All moves to the left, and something new comes in."""
    return np.concatenate([frame[:, 1:], rng.integers(0, 8, (21, 1))], axis=1)


def test_a_still_game_needs_few_cells_and_a_scrolling_one_all():
    still, scrolling = _tokens(_spot), _tokens(_scrolling)
    rank = far_rank(still, GRID)
    assert rank[1] == 0  # the counter
    few = choose_count(still, rank, GRID)
    assert few.count == 32 and few.changed == few.whole == 1
    many = choose_count(scrolling, far_rank(scrolling, GRID), GRID)
    assert many.count == 336 and many.changed == many.whole == 1


def test_coverage_counts_tokens_and_whole_frames():
    """25 cells hold the spot, and the counter only where the table names it."""
    tokens = _tokens(_spot)
    rank = far_rank(tokens, GRID)
    found = coverage(tokens, rank, 25, GRID)
    changes = (
        np.diff(tokens.tokens[60 * 1 : 60 * 2].astype(int), axis=0)[3:] != 0
    )  # a held-out game
    missed = changes[:, 1]
    assert found.changed == 1 - missed.sum() / changes.sum()
    assert found.whole == 1 - missed.mean()
    assert coverage(tokens, rank, 26, GRID).whole == 1


@pytest.mark.parametrize("step", [_spot, _scrolling])
def test_coverage_is_of_the_cells_that_are_chosen(step):
    tokens = _tokens(step)
    rank = far_rank(tokens, GRID)
    held_out = torch.from_numpy(tokens.tokens[tokens.rows_of("val")]).long().view(-1, 60, 336)
    windows = held_out.unfold(1, 5, 1).flatten(0, 1).transpose(1, 2)  # (n, 5, N)
    is_changed = windows[:, 4] != windows[:, 3]
    for count in (16, 25, 200, 330):
        cells = active_cells(windows[:, :4], rank, count, GRID)
        held = is_changed.gather(1, cells).sum(1)
        found = coverage(tokens, rank, count, GRID)
        assert found.changed == held.sum().item() / is_changed.sum().item()
        assert found.whole == (held == is_changed.sum(1)).double().mean().item()


def test_the_nearest_cells_are_those_around_a_cell():
    cells = torch.tensor([[0, 5, 6, 9, 10, 11, 30]])  # of a grid 5 wide
    nearest = nearest_cells(cells, torch.tensor([[10]]), 4, (7, 5))
    assert nearest.tolist() == [[10, 5, 6, 11]]
    assert nearest_cells(cells, torch.tensor([[10]]), 99, (7, 5)).shape == (1, 7)
