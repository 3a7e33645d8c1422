"""The same code on CUDA, with small models; skipped by name without a device.

The other tests hide CUDA devices (conftest.py): `make test-cuda`, or name this file.
"""

import copy
import functools
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from tests.conftest import SMALL_VQVAE, train_vqvae, wm_flags
from tests.test_training import DRIVER, ROOT, _metrics
from v2.data.tokens import encode_frames
from v2.dream import DreamEngine
from v2.models.vqvae_hires import VQVAEConfig
from v2.runtime import device
from v2.train import train_vqvae_hires, train_wm_hires

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device in sight")
CUDA = torch.device("cuda")


@pytest.fixture
def frames(game_data):
    return np.stack([game_data.frames[row : row + 4] for row in (0, 30, 60)])


@needs_cuda
def test_tokens_are_those_of_the_cpu(vqvae, game_data, monkeypatch):
    monkeypatch.setattr(device, "has_fast_bfloat16", lambda device: False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    frames = game_data.frames[:60]
    on_cpu = encode_frames(vqvae, frames, torch.device("cpu"))
    on_cuda = encode_frames(copy.deepcopy(vqvae).to(CUDA), frames, CUDA)
    assert (on_cpu == on_cuda).mean() > 0.999  # sums in another order may decide a tie


@needs_cuda
def test_a_dream_is_that_of_the_cpu(vqvae, world_model, frames, monkeypatch):
    monkeypatch.setattr(device, "has_fast_bfloat16", lambda device: False)
    engines = [DreamEngine(*copy.deepcopy((vqvae, world_model)), name) for name in ("cpu", "cuda")]
    tokens = torch.from_numpy(engines[0].encode(frames.reshape(-1, *frames.shape[2:])))
    logits = []
    for engine in engines:
        engine.reset_tokens(tokens.flatten(1).unflatten(0, (3, 4)))
        engine.step_tokens(np.array([0, 1, 2]))
        logits.append(engine.logits.cpu())
    assert torch.allclose(*logits, atol=1e-2)


@pytest.mark.parametrize("name", [
    pytest.param("cpu", marks=pytest.mark.slow), pytest.param("cuda", marks=needs_cuda),
])  # fmt: skip
def test_a_compiled_dream_is_that_of_the_model(name, vqvae, world_model, frames, monkeypatch):
    """Twelve steps each, with second looks; then another batch size. CUDA replays graphs."""
    monkeypatch.setattr(device, "has_fast_bfloat16", lambda device: False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    plain = DreamEngine(*copy.deepcopy((vqvae, world_model)), name)
    graphed = DreamEngine(*copy.deepcopy((vqvae, world_model)), name).compile()
    assert hasattr(graphed.world_model, "_orig_mod")  # there is a compiler
    for count in (3, 1):
        for engine in (plain, graphed):
            engine.reset(frames[:count])
        for step in range(12):
            graphed.history = plain.history  # so that one token that differs stays one
            seen = [engine.step_tokens(np.full(count, step % 4)) for engine in (plain, graphed)]
            assert (seen[0] == seen[1]).mean() > 0.99, step
            assert torch.allclose(plain.logits, graphed.logits, atol=1e-3)


@needs_cuda
@pytest.mark.parametrize("flags", [[], ["--set", "compile=true"]], ids=["eager", "compiled"])
def test_both_trainings_run_and_resume(flags, small_models, data_path, tmp_path):
    vqvae = train_vqvae(tmp_path / "v", data_path, "--set", "steps=20", "--device", "cuda")
    more = ["--set", "steps=20", "--device", "cuda", "--set", "rollout_start=0.3", *flags]
    assert train_wm_hires.main(wm_flags(tmp_path / "w", data_path, vqvae, *more)) == 0
    run = next((tmp_path / "w" / "runs").iterdir())
    assert train_wm_hires.main(["--resume", str(run), "--set", "steps=40"]) == 0
    assert [line["step"] for line in _metrics(run) if "lr" in line] == list(range(5, 41, 5))


@pytest.mark.parametrize("name", [
    pytest.param("cpu", marks=pytest.mark.slow), pytest.param("cuda", marks=needs_cuda),
])  # fmt: skip
def test_a_compiled_training_has_the_gradients_of_the_model(
    name,
    data_path,
    tmp_path,
    monkeypatch,
):
    """Of its full size: on an H100 those of torch 2.11 were a hundred thousand times too large."""
    small = functools.partial(VQVAEConfig, **SMALL_VQVAE)
    monkeypatch.setattr(train_vqvae_hires, "VQVAEConfig", small)
    vqvae = train_vqvae(tmp_path / "v", data_path, "--set", "steps=10", "--device", name)
    norms = []
    for flags in ([], ["--set", "compile=true"]):
        more = [
            "--set",
            "steps=10",
            "--batch-size",
            "8",
            "--set",
            "num_cells=336",
            "first_cells=0",
            "--device",
            name,
            *flags,
        ]
        folder = tmp_path / ("compiled" if flags else "plain")
        assert train_wm_hires.main(wm_flags(folder, data_path, vqvae, *more)) == 0
        run = next((folder / "runs").iterdir())
        norms.append([line["gradient_norm"] for line in _metrics(run) if "lr" in line])
    assert norms[1] == pytest.approx(norms[0], rel=0.3)


WITHOUT_A_COMPILER = """
import torch
from v2.runtime.device import compiled
model = torch.nn.Linear(1, 1, device="cuda")
assert compiled(model) is model
"""


@needs_cuda
def test_without_a_compiler_a_model_on_cuda_stays_as_it_is(tmp_path):
    caches = {"TRITON_CACHE_DIR": str(tmp_path), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    environment = os.environ | caches | {"PATH": str(tmp_path), "CC": "/nonexistent/cc"}
    command = [sys.executable, "-c", WITHOUT_A_COMPILER]
    subprocess.run(command, env=environment, cwd=ROOT, check=True, timeout=300)


@needs_cuda
def test_a_batch_is_pinned_on_its_way(monkeypatch):
    pinned = []
    pin = torch.Tensor.pin_memory
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda t: pinned.append(1) or pin(t))
    there = device.moved(torch.arange(6), CUDA)
    assert pinned and there.device.type == "cuda" and there.tolist() == list(range(6))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices")
def test_two_devices_train_under_torchrun(data_path, tmp_path):
    driver = tmp_path / "driver.py"
    driver.write_text(DRIVER.replace("has_fast_bfloat16 =", "unchanged ="))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
               str(driver), "vqvae", "--data", str(data_path), "--out", str(tmp_path),
               "--set", "steps=20"]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run(command, env=environment, check=True, timeout=300)
    assert next((tmp_path / "runs").iterdir()).joinpath("last.pt").exists()
