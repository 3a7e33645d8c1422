"""Pairs of neighbours: what the game showed is known, and what it never showed is put right."""

import itertools

import numpy as np
import pytest
import torch

from v2.decoding import ONE_LOOK, Sampling, predict_next
from v2.dream import DreamEngine
from v2.models.pairs import SeenPairs, either, mended, num_unseen, seen_pairs
from v2.models.temporal_world_model import WorldModelConfig
from v2.models.weights import load_world_model, stored_pairs
from v2.runtime import checkpoint

GRID, CODES = (3, 4), 5


def _frames(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, CODES, (count, *GRID), dtype=np.uint8)


def test_pairs_are_those_of_the_frames_in_their_rows():
    frames = _frames(3)
    seen = seen_pairs(frames.reshape(3, -1), np.arange(2), GRID, CODES)
    frames = frames[:2]
    right = {(r, f[r, c], f[r, c + 1]) for f in frames for r in range(3) for c in range(3)}
    assert {tuple(pair) for pair in seen.right.nonzero().tolist()} == right
    below = {(r, f[r, c], f[r + 1, c]) for f in frames for r in range(2) for c in range(4)}
    assert {tuple(pair) for pair in seen.below.nonzero().tolist()} == below
    tokens = torch.from_numpy(frames).long()
    assert num_unseen(tokens, seen).tolist() == [0, 0]
    never = (~seen.right[1, tokens[0, 1, 0]]).nonzero()[0, 0]
    tokens[0, 1, 1] = never
    assert num_unseen(tokens, seen)[0] >= 1 and num_unseen(tokens, seen)[1] == 0


def test_halves_of_two_digits_become_the_likelier_digit():
    """Left and right half of digit d are codes d and d + 2; the left one is less sure."""
    digits = np.array([[0, 2], [1, 3]])
    seen = seen_pairs(digits, np.arange(2), (1, 2), 4)
    scores = torch.full((2, 1, 2, 4), -20.0)
    scores[:, 0, 0, 0], scores[:, 0, 0, 1] = -0.2, -1.7
    scores[:, 0, 1, 2], scores[:, 0, 1, 3] = -5.0, -0.1
    scores[1, 0, 1] = torch.tensor([-20, -20, -0.1, -5.0])
    tokens = scores.argmax(-1)
    assert tokens.tolist() == [[[0, 3]], [[0, 2]]]
    assert mended(tokens, scores, seen).tolist() == [[[1, 3]], [[0, 2]]]


def test_in_a_chain_the_likeliest_frame_is_found():
    rng = torch.Generator().manual_seed(0)
    for _ in range(20):
        right = torch.rand(1, 3, 3, generator=rng) < 0.6
        seen = SeenPairs(right, torch.zeros(0, 3, 3, dtype=torch.bool))
        scores = torch.randn(1, 1, 5, 3, generator=rng)
        found = mended(scores.argmax(-1), scores, seen)
        worth = {
            codes: sum(float(scores[0, 0, k, code]) for k, code in enumerate(codes))
            - 30.0 * sum(not right[0, a, b] for a, b in itertools.pairwise(codes))
            for codes in itertools.product(range(3), repeat=5)
        }
        assert worth[tuple(found.flatten().tolist())] == pytest.approx(max(worth.values()))


def test_either_holds_the_pairs_of_both_recordings():
    frames = _frames(6).reshape(6, -1)
    both = (seen_pairs(frames, rows, GRID, CODES) for rows in (np.arange(4), np.arange(4, 6)))
    of_all = seen_pairs(frames, np.arange(6), GRID, CODES)
    assert all(torch.equal(*tables) for tables in zip(either(*both), of_all, strict=True))


def test_a_frame_is_never_made_worse_and_others_beside_it_stay():
    seen = seen_pairs(_frames(6).reshape(6, -1), np.arange(6), GRID, CODES)
    scores = torch.randn(40, *GRID, CODES, generator=torch.Generator().manual_seed(0))
    scores[:10] = 50 * torch.nn.functional.one_hot(torch.from_numpy(_frames(6)[:5]).long(), CODES)[
        [0, 1, 2, 3, 4, 0, 1, 2, 3, 4]
    ]
    tokens = scores.argmax(-1)
    after = mended(tokens, scores, seen)
    before, left = num_unseen(tokens, seen), num_unseen(after, seen)
    assert (left <= before).all() and left.sum() < before.sum() / 4
    assert (after[before == 0] == tokens[before == 0]).all() and (before[:10] == 0).all()


def test_a_dream_holds_only_pairs_that_were_seen(world_model):
    """One pair of the dream without tables is forbidden: with tables it does not come."""
    history = torch.randint(0, 32, (2, 4, 336), generator=torch.Generator().manual_seed(0))
    actions = torch.zeros(2, 4, dtype=torch.long)
    free = predict_next(world_model, history, actions).tokens.view(2, 21, 16)
    seen = SeenPairs(*(torch.ones(rows, 32, 32, dtype=torch.bool) for rows in (21, 20)))
    same = predict_next(world_model, history, actions, seen=seen).tokens
    assert torch.equal(same, free.flatten(1))
    seen.right[5, free[0, 5, 3], free[0, 5, 4]] = False
    assert num_unseen(free, seen)[0] >= 1
    for sampling in (Sampling(), Sampling(temperature=0.5), Sampling(temperature=0.002), ONE_LOOK):
        step = predict_next(world_model, history, actions, sampling, seen=seen)
        assert num_unseen(step.tokens.view(2, 21, 16), seen).sum() == 0


def test_pairs_are_saved_with_the_world_model(vqvae, world_model, tmp_path):
    config = world_model.config
    tokens = np.random.default_rng(0).integers(0, 32, (9, 336))
    seen = seen_pairs(tokens, np.arange(9), (21, 16), 32)
    engine = DreamEngine(vqvae, world_model, seen=seen)
    assert all(torch.equal(a, b) for a, b in zip(engine.seen, seen, strict=True))
    path = tmp_path / "w.pt"
    for tables, refused in (
        (None, False), (seen._asdict(), False), ({}, True), (seen.right, True),
        ({"right": seen.right}, True), ({"right": seen.right, "below": seen.right}, True),
        ({"right": seen.right, "below": seen.below.to_sparse()}, True),
    ):  # fmt: skip
        checkpoint.save_checkpoint(path, "world_model", world_model, seen_pairs=tables)
        _, info = load_world_model(path)
        if refused:
            with pytest.raises(ValueError, match=r"w.pt: its tables of pairs are damaged"):
                stored_pairs(info, config, path)
        else:
            read = stored_pairs(info, WorldModelConfig(4), path)
            assert read is None if not tables else torch.equal(read.below, seen.below)
