"""The dream's API: what it takes, what it refuses, and that it is a guest."""

import dataclasses
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.test_world_model import _model
from v2.data.atari_dataset import load_game_data
from v2.dream import DreamEngine
from v2.eval.engine import begin_clips, known_ages
from v2.eval.starts import cut_clips
from v2.models.weights import tokenizer_sha256
from v2.runtime import checkpoint

ROOT = Path(__file__).resolve().parents[1]
FRAMES = np.random.default_rng(0).integers(0, 256, (2, 4, 84, 64, 3), dtype=np.uint8)


@pytest.fixture
def engine(vqvae):
    return DreamEngine(vqvae, _model(num_cells=96, has_age=True, exact_age=8))


def test_a_batch_of_dreams_equals_single_dreams(engine, vqvae):
    single = DreamEngine(vqvae, engine.world_model)
    engine.reset(FRAMES, np.array([[0, 1, 2], [3, 0, 1]]))
    single.reset(FRAMES[1], np.array([3, 0, 1]))
    for action in (2, 3):
        frame = engine.step(np.array([0, action]))
        assert np.array_equal(frame[1], single.step(action))
    state = single.history
    first = single.step(1)
    single.restore(state)
    assert np.array_equal(first, single.step(1))


def test_some_of_several_dreams_begin_anew(engine):
    engine.reset(FRAMES, np.array([[0, 1, 2], [3, 0, 1]]))
    first = engine.step(np.array([2, 3]))
    engine.step(np.array([1, 1]))
    before = [part[0].clone() for part in engine.history[:3]]
    engine.restart(np.array([False, True]))
    now = [part[0] for part in engine.history[:3]]
    assert all(torch.equal(part, old) for part, old in zip(now, before, strict=True))
    assert np.array_equal(engine.step(np.array([0, 3]))[1], first[1])


def test_a_restored_state_returns_what_it_was_a_batch_or_one(engine):
    engine.reset(FRAMES)
    batch = engine.history
    engine.reset(FRAMES[0])
    one = engine.history
    engine.restore(batch)
    assert engine.step(np.array([1, 1])).shape == (2, 84, 64, 3)
    engine.restore(one)
    assert engine.step(1).shape == (84, 64, 3)


def test_a_known_age_is_read_and_unknown_is_what_the_frames_tell(engine):
    still = np.repeat(FRAMES[0, :1], 4, axis=0)
    found = []
    for age in (None, np.full((21, 16), 40)):
        engine.reset(still, age=age)
        found.append(int(engine.history.age.max()))
        engine.step(0)
        found.append(engine.logits)
    assert found[0] == -3 and found[2] == 40  # for at least three steps
    assert not torch.equal(found[1], found[3])
    assert set(engine.history.age.flatten().tolist()) <= {1, 41}


def test_a_longer_history_gives_back_the_true_age_of_each_token(engine):
    """As a dream that saw the same frames come, step by step, would know it."""
    rng, patches = np.random.default_rng(0), (slice(0, 12), slice(40, 52))
    frames = np.repeat(FRAMES[0, :1], 30, axis=0)
    for t, patch in ((9, patches[0]), (20, patches[1]), (28, slice(60, 72))):
        frames[t:, patch] = rng.integers(0, 256, frames[0, patch].shape)
    actions = rng.integers(0, 4, 29)
    engine.reset(frames, actions)
    long, tokens = engine.history, engine.encode(frames).reshape(30, -1)
    changed = tokens[1:] != tokens[:-1]
    expected = np.where(changed.any(0), changed[::-1].argmax(0) + 1, -29)  # never seen to change
    assert long.age[0].tolist() == expected.tolist() and {2, 10} <= set(expected)
    engine.reset(frames[-4:], actions[-3:])
    four = engine.history
    assert torch.equal(long.tokens, four.tokens) and torch.equal(long.actions, four.actions)
    assert set(four.age.flatten().tolist()) == {-3, 2}


def test_an_evaluation_begins_with_the_ages_that_all_of_the_game_before_tells(engine, data_path):
    """As play does after R; each clip's are those of a reset with every frame before it."""
    data = load_game_data(data_path)
    data = dataclasses.replace(data, ages=known_ages(engine, data))
    first = int(np.flatnonzero(np.diff(data.episode_ids))[0]) + 1  # of the second episode
    starts = first + np.array([3, 17, 26])
    clips = cut_clips(data, starts, 2)
    for k, start in enumerate(starts):
        whole = slice(first, start + 1)
        engine.reset(data.frames[whole], data.actions[first:start])
        expected = engine.history
        begin_clips(engine, clips, slice(k, k + 1))
        assert all(map(torch.equal, engine.history[:3], expected[:3]))
    assert int(engine.history.age.min()) == -26
    seen = []
    other = SimpleNamespace(reset=lambda *args, **known: seen.append(known))
    begin_clips(other, dataclasses.replace(clips, ages=None), slice(0, 2))
    assert seen == [{}] and known_ages(other, data) is None


@pytest.mark.parametrize("call", [
    lambda e: e.reset(FRAMES[0, :3]), lambda e: e.reset(FRAMES[0].astype(float)),
    lambda e: e.reset(FRAMES[None]), lambda e: e.reset(FRAMES[:0]), lambda e: e.reset(None),
    lambda e: e.reset(FRAMES[0], [1, 2]), lambda e: e.reset(FRAMES, [1, 2, 3]),
    lambda e: e.reset(FRAMES[0], [1, 2, 4]), lambda e: e.reset(FRAMES[0], [1, 2, 0.5]),
    lambda e: e.reset(FRAMES[0], age=np.zeros(3, int)), lambda e: e.reset(FRAMES[0], age=-1),
    lambda e: e.reset(FRAMES[0], age=np.full((21, 16), -256)),
    lambda e: e.step(4), lambda e: e.step(-1), lambda e: e.step(2.9), lambda e: e.step(-0.5),
    lambda e: e.step(1 + 0j), lambda e: e.step("1"), lambda e: e.step(None),
    lambda e: e.step(True), lambda e: e.step([1, 1]), lambda e: e.step([]),
    lambda e: e.restart([True, False]), lambda e: e.restart([1]),
    lambda e: e.reset_tokens(torch.zeros(1, 3, 336, dtype=torch.long)),
    lambda e: e.reset_tokens(torch.full((1, 4, 336), 32)),
    lambda e: e.reset_tokens(torch.zeros(1, 4, 336)),
    lambda e: e.reset_tokens(torch.zeros(0, 4, 336, dtype=torch.long)),
    lambda e: e.reset_tokens(torch.zeros(2, 4, 336, dtype=torch.long), is_batched=False),
    lambda e: e.reset_tokens(3), lambda e: e.step([[1], [1, 2]]),
    lambda e: e.step(torch.tensor(1.0, dtype=torch.bfloat16)),
    lambda e: e.encode(FRAMES[0, :0]), lambda e: e.encode(FRAMES[0, 0]),
    lambda e: e.decode(np.full((1, 21, 16), 32)), lambda e: e.decode(np.zeros((21, 16), int)),
    lambda e: e.decode(np.zeros((1, 21, 16))),
    lambda e: e.restore(None), lambda e: e.restore(e.history, torch.zeros(3, dtype=torch.uint8)),
    lambda e: e.restore(e.history._replace(age=torch.zeros(2, 336, dtype=torch.long))),
])  # fmt: skip
def test_what_is_refused_changes_nothing(call, engine):
    engine.reset(FRAMES[0])
    engine.step(1)
    before, last = engine.history, (engine.last_reward, engine.last_terminated)
    rng_state = engine.rng_state
    with pytest.raises(ValueError, match="must|need|got"):
        call(engine)
    assert engine.history is before and (engine.last_reward, engine.last_terminated) == last
    assert torch.equal(engine.rng_state, rng_state)
    assert engine.step(1).shape == (84, 64, 3)


@pytest.mark.parametrize("one", [1, np.int64(1), np.uint8(1), np.array(1), torch.tensor(1)])
def test_whole_numbers_of_any_kind_are_taken(one, engine):
    engine.reset(FRAMES[0], [one, one, one])
    first = engine.step(one)
    engine.reset(FRAMES[0], [1, 1, 1])
    assert np.array_equal(engine.step(1), first)


def test_only_what_the_last_reset_began_is_begun_anew(engine):
    engine.reset(FRAMES)
    batch = engine.history
    engine.reset(FRAMES[0])
    engine.restore(batch)
    with pytest.raises(ValueError, match="did not begin these 2 dreams"):
        engine.restart(np.array([False, True]))
    assert engine.history is batch


@pytest.mark.parametrize("seed", [2.5, -1, True, "1", 2**70])
def test_a_seed_that_is_no_whole_number_is_refused(seed, vqvae):
    assert DreamEngine(vqvae, _model(), seed=np.int64(4)).rng_state.numel()
    with pytest.raises(ValueError, match="seed must be an integer"):
        DreamEngine(vqvae, _model(), seed=seed)


def test_arrays_that_cannot_be_written_are_taken_without_a_warning(engine, recwarn):
    frames = FRAMES[0].copy()
    frames.setflags(write=False)
    engine.reset(frames)
    assert not recwarn.list


def test_a_step_copies_all_it_brought_to_the_host_at_once(engine, monkeypatch):
    frames = np.random.default_rng(0).integers(0, 256, (2, 4, 84, 64, 3), dtype=np.uint8)
    engine.reset(frames)
    copies, copy = [], torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda t: copies.append(t) or copy(t))
    frame = engine.step([1, 2])
    tokens = engine.tokens
    np.testing.assert_array_equal(frame, engine.frame())
    assert len(copies) == 1
    engine.history = engine.history._replace(is_batched=True)  # forgets what lies on the host
    np.testing.assert_array_equal(tokens, engine.tokens)
    np.testing.assert_array_equal(frame, engine.frame())
    assert len(copies) == 3


def test_what_a_user_writes_into_a_frame_changes_no_dream(engine):
    engine.reset(np.zeros((4, 84, 64, 3), np.uint8))
    frame = engine.step(1)
    kept = frame.copy()
    frame[:], engine.tokens[:], engine.frame()[:] = 0, 0, 0
    np.testing.assert_array_equal(engine.frame(), kept)


def test_a_step_before_a_reset_says_so(engine):
    with pytest.raises(ValueError, match=r"call reset\(frames\) first"):
        engine.step(0)


GUEST = """
import hashlib, signal, sys, warnings
import numpy as np, torch
{setting}
def settings():
    tiny = torch.tensor(1e-310, dtype=torch.float64, device="cpu") * 1.0
    return (torch.get_default_dtype(), str(torch.get_default_device()), bool(tiny == 0),
            torch.get_num_threads(), torch.get_num_interop_threads(), torch.initial_seed(),
            hashlib.sha256(torch.get_rng_state().numpy().tobytes()).hexdigest(),
            str(np.random.get_state()), str(warnings.filters), torch.is_grad_enabled(),
            torch.are_deterministic_algorithms_enabled(),
            [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)])
before = settings()
from v2.dream import DreamEngine
with {around}:
    engine = DreamEngine.load(sys.argv[1], device="cpu", temperature={temperature})
    engine.reset(np.load(sys.argv[2]))
    digest = hashlib.sha256()
    for k in range(10):
        engine.step(k % 4)
        digest.update(engine.tokens.tobytes())
after = settings()
assert after == before, [(a, b) for a, b in zip(after, before) if a != b]
print(digest.hexdigest())
"""


def test_a_guest_leaves_the_house_as_it_was_and_dreams_the_same_under_any_setting(vqvae, tmp_path):
    model = _model(num_cells=96, has_age=True)
    checkpoint.save_checkpoint(tmp_path / "vqvae.pt", "vqvae", vqvae)
    bound = {"vqvae_sha256": tokenizer_sha256(vqvae)}
    checkpoint.save_checkpoint(tmp_path / "best.pt", "world_model", model, **bound)
    np.save(tmp_path / "frames.npy", FRAMES[0])
    plain = "__import__('contextlib').nullcontext()"
    found = set()
    for setting, around in (
        ("", plain),
        ("torch.set_default_dtype(torch.float64)", plain),
        ("torch.set_default_dtype(torch.bfloat16)", plain),
        ("torch.set_default_device('meta')", plain),
        ("", "torch.autocast('cpu')"),
    ):
        code = GUEST.format(setting=setting, around=around, temperature=0.0)
        command = [
            sys.executable,
            "-c",
            code,
            str(tmp_path / "best.pt"),
            str(tmp_path / "frames.npy"),
        ]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, (setting, around, done.stderr[-2000:])
        found.add(done.stdout)
    assert len(found) == 1
