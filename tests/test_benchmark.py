import functools
import json

from tests.conftest import SMALL_VQVAE, SMALL_WORLD_MODEL
from v2.eval import benchmark
from v2.models.temporal_world_model import WorldModelConfig
from v2.models.vqvae_hires import VQVAEConfig


def test_the_benchmark_times_every_part_against_the_measured_peak(monkeypatch, tmp_path, capsys):
    for name, config, small in (
        ("VQVAEConfig", VQVAEConfig, SMALL_VQVAE),
        ("WorldModelConfig", WorldModelConfig, SMALL_WORLD_MODEL),
    ):
        monkeypatch.setattr(benchmark, name, functools.partial(config, **small))
    path = tmp_path / "speed.json"
    assert benchmark.main(["--seconds", "0.01", "--device", "cpu", "--json", str(path)]) == 0
    figures = json.loads(path.read_text())
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == figures
    names = " ".join(row["name"] for row in figures["rows"])
    for part in ("dream step, as played", "with a second look", "encode", "VQ-VAE training", "K=5"):
        assert part in names
    work = {row["name"]: row["gflop"] for row in figures["rows"]}
    assert work["dream step, with a second look"] > 1.1 * work["dream step, as played"]
    assert all(0 < row["share_of_peak"] < 1 for row in figures["rows"] if row["gflop"])
