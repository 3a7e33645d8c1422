import functools
import json

import pytest
import torch
from torch.nn import functional

from tests.conftest import SMALL_VQVAE, SMALL_WORLD_MODEL
from v2.eval import benchmark
from v2.eval.flops import count_flops
from v2.models.temporal_world_model import WorldModelConfig
from v2.models.vqvae_hires import VQVAEConfig


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_is_counted_forward_and_backward(dtype):
    q, k, v = torch.randn(3, 2, 8, 336, 32, dtype=dtype, requires_grad=True).unbind()
    forward = 4 * 2 * 8 * 336**2 * 32
    assert count_flops(lambda: functional.scaled_dot_product_attention(q, k, v)) == forward
    bias = torch.zeros(2, 1, 1, 336, dtype=dtype)
    attend = functional.scaled_dot_product_attention
    assert count_flops(lambda: attend(q, k, v, bias).sum().backward()) == 3.5 * forward


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_flops_of_a_convolution_in_groups_are_those_of_its_forward_and_two_gradients(groups):
    layer = torch.nn.Conv2d(8, 8, 3, padding=1, groups=groups)
    x = torch.rand(2, 8, 21, 16, requires_grad=True)
    forward = 2 * (2 * 21 * 16) * 8 * (8 // groups) * 9
    assert count_flops(lambda: layer(x)) == forward
    assert count_flops(lambda: layer(x).sum().backward()) == 3 * forward


def test_the_benchmark_times_every_part_against_the_measured_peak(monkeypatch, tmp_path, capsys):
    for name, config, small in (
        ("VQVAEConfig", VQVAEConfig, SMALL_VQVAE),
        ("WorldModelConfig", WorldModelConfig, SMALL_WORLD_MODEL),
    ):
        monkeypatch.setattr(benchmark, name, functools.partial(config, **small))
    monkeypatch.setattr(benchmark, "FEWER_CELLS", ())
    path = tmp_path / "speed.json"
    assert benchmark.main(["--seconds", "0.01", "--device", "cpu", "--json", str(path)]) == 0
    figures = json.loads(path.read_text())
    assert capsys.readouterr().out.splitlines()[-1] == f"result: {path}"
    names = " ".join(row["name"] for row in figures["rows"])
    for part in ("dream step in PyTorch, 128 cells", "in ONNX Runtime, float32, all cells",
                 "dream step float32, 128 cells", "batch 64, 128 cells, tokens alone", "encode",
                 "1 dreams, rgb", "128 dreams, rgb", "32 dreams, tokens", "the real game",
                 "32 dreams: decoder alone",
                 "token, float32", "image, float32, channels last", "image, autocast",
                 "as trained", "K=1, 128 cells, float32", "K=5, 128 cells, float32"):  # fmt: skip
        assert part in names
    waits = [r for r in figures["rows"] if "training" in r["name"] and "data" not in r["name"]]
    assert all(0 < row["share_waiting_for_data"] for row in waits) and len(waits) == 11
    assert max(row["peak_memory_bytes"] for row in figures["rows"]) == figures["peak_memory_bytes"]
    work = {row["name"]: row["gflop"] for row in figures["rows"]}
    assert work["dream step in PyTorch, 128 cells"] < 0.9 * work["dream step in PyTorch, all cells"]
    assert all(0 < row["share_of_peak"] < 1 for row in figures["rows"] if row["gflop"])
