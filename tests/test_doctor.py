import importlib.metadata

import pytest

from v2 import doctor
from v2.doctor import Finding
from v2.models.weights import tokenizer_sha256
from v2.runtime.device import choose_device


def _names(findings):
    return {finding.name: finding for finding in findings}


def test_a_check_that_fails_is_a_finding_and_hides_no_other(monkeypatch, capsys):
    def check_device():
        raise RuntimeError("libtorch is broken")

    monkeypatch.setattr(doctor, "CHECKS", (check_device, doctor.check_python))
    assert doctor.main([]) == 1
    lines = capsys.readouterr().out
    assert "STOP  device" in lines and "libtorch is broken" in lines and "ok    python" in lines


def test_a_whole_machine_ends_with_0_and_a_stopping_problem_with_1(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "CHECKS", (lambda: [Finding("a", "fine"), Finding("b", "x", "y")],))
    assert doctor.main([]) == 0
    assert capsys.readouterr().out.splitlines()[:2] == ["ok    a              fine",
                                                       "note  b              x"]  # fmt: skip
    monkeypatch.setattr(doctor, "CHECKS", (lambda: [Finding("a", "x", "do this", "play")],))
    assert doctor.main([]) == 1
    assert "(stops play)" in capsys.readouterr().out


def test_every_problem_comes_with_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "_version", lambda name: "")
    monkeypatch.setenv("ALE_ROMS_DIR", str(tmp_path))
    monkeypatch.setattr(doctor, "LITTLE_DISK_GB", 1e9)
    monkeypatch.setattr(doctor.sys, "version_info", (3, 8, 0))
    checks = (doctor.check_python, doctor.check_packages, doctor.check_roms, doctor.check_disk)
    found = [finding for check in checks for finding in check()]
    assert len(found) > len(doctor.PACKAGES) and all(finding.fix for finding in found)
    assert all(_names(found)[name].stops for name in ("python", "torch", "pygame", "ROMs"))


def test_pygame_beside_pygame_ce_is_noted(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.5")
    assert "uninstall" in _names(doctor.check_packages())["pygame clash"].fix


def test_ale_py_without_roms_is_named(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.12.0")
    assert "without ROMs" in _names(doctor.check_packages())["ale-py"].text


@pytest.mark.parametrize("driver", ["dummy", "nonsense"])
def test_a_display_that_nobody_sees_is_noted(driver, monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", driver)
    (finding,) = doctor.check_display()
    assert "--headless" in finding.fix and not finding.stops


def test_the_gain_of_bfloat16_is_measured():
    found = _names(doctor.check_device())
    assert "times as fast" in found["bfloat16"].text
    assert choose_device("auto").type in found["device"].text


def test_shipped_weights_are_checked_as_a_pair(monkeypatch, tmp_path, vqvae, world_model):
    from v2.runtime import checkpoint, run_dir

    monkeypatch.setattr("v2.data.games.CHECKPOINTS", tmp_path)
    (finding,) = doctor.check_weights()
    assert "absent" in finding.text and finding.stops == "play, eval"
    paths = {kind: tmp_path / "atari" / name for kind, name in run_dir.SHIPPED.items()}
    checkpoint.save_checkpoint(paths["vqvae"], "vqvae", vqvae)
    digest = tokenizer_sha256(vqvae)
    for tokenizer, is_whole in ((digest, True), ("f" * 64, False)):
        checkpoint.save_checkpoint(
            paths["world_model"], "world_model", world_model, vqvae_sha256=tokenizer
        )
        (finding,) = doctor.check_weights()
        assert bool(finding.stops) != is_whole and (digest[:12] in finding.text)
    of_pong = {"vqvae_sha256": digest, "emulator": {"game": "pong"}}
    checkpoint.save_checkpoint(paths["world_model"], "world_model", world_model, **of_pong)
    (finding,) = doctor.check_weights()
    assert "dreams of pong" in finding.text and finding.stops
    paths["vqvae"].unlink()  # the other alone is nothing to play with
    (finding,) = doctor.check_weights()
    assert "absent" in finding.text and finding.stops == "play, eval"
    for folder in ("pong", "my backup"):  # of which one is a game's
        checkpoint.save_checkpoint(tmp_path / folder / "x.pt", "vqvae", vqvae)
    assert ["pong" in finding.text for finding in doctor.check_weights()] == [False, True]


def test_a_damaged_recording_stops_no_command(monkeypatch, tmp_path):
    monkeypatch.setattr("v2.data.games.CHECKPOINTS", tmp_path)
    (tmp_path / "pong").mkdir()
    (tmp_path / "pong" / "atari_game_data.npz").write_bytes(b"no zip")
    (finding,) = doctor.check_environments()
    assert "is not an npz file" in finding.text and finding.fix and not finding.stops
