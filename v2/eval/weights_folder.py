"""Weights as people share them: what stands beside the two checkpoints of a folder.

Contract: `config.json` (what the models are), README.md (the model card), `start.npz` and
`start.png` (frames to dream on from), SHA256SUMS (of all but the card, which may be made anew). The
checkpoints hold all that loading needs; of the rest only `start.npz` is read. Knows no engines.
"""

import json
from pathlib import Path

import numpy as np

from v2.data.atari_dataset import GameData, save_game_data, spread
from v2.data.games import shown_name
from v2.eval.gold import GOLD_GAMES
from v2.eval.model_card import TERMS, training_lines
from v2.eval.pictures import save_grid
from v2.eval.suite import training_runs
from v2.runtime.files import file_sha256, write_text
from v2.runtime.run_dir import SHIPPED, START_NAME

SUMS, NUM_SHOWN = "SHA256SUMS", 8


def describe_folder(folder: Path, game: str, infos: dict[str, dict], scene: GameData | None):
    """Write all but the checkpoints.

    Args:
        infos: kind -> what its checkpoint holds besides weights.
        scene: frames to start from; None: there are none.
    """
    names = [*SHIPPED.values(), "config.json"]
    config = {
        "game": game, "licence": TERMS, "files": SHIPPED,
        "emulator": infos["world_model"].get("emulator"),
        "action_meanings": infos["world_model"].get("action_meanings"),
        **{kind: info["config"] for kind, info in infos.items()},
    }  # fmt: skip
    write_text(folder / "config.json", json.dumps(config, indent=1))
    if scene:
        save_game_data(folder / START_NAME, scene)
        shown = spread(np.arange(len(scene)), NUM_SHOWN)
        save_grid((folder / START_NAME).with_suffix(".png"), [scene.frames[shown]])
        names += [START_NAME, Path(START_NAME).with_suffix(".png").name]
    write_text(folder / "README.md", _card(game, infos, bool(scene)))
    sums = [f"{file_sha256(folder / name)}  {name}\n" for name in names]
    write_text(folder / SUMS, "".join(sums))


def _card(game: str, infos: dict[str, dict], has_scene: bool) -> str:
    of_game = "" if game == "breakout" else f" --game {game}"
    play = f"python v2/play_atari_hires.py{of_game}"
    measured = "" if game in GOLD_GAMES else " --data DATA.npz"
    lines = [
        f"# {shown_name(game)}: VQ-VAE and world model", "",
        f"The dream of a game in {', '.join(infos['world_model'].get('action_meanings') or [])}: "
        "a VQ-VAE turns frames of 84x64 into 21x16 tokens, a transformer predicts the next ones "
        "from the last four and the action.", "", TERMS, "",
        "    sha256sum -c SHA256SUMS", f"    {play} --weights FOLDER",
        *([f"    {play} --weights FOLDER --replay FOLDER/{START_NAME}"] if has_scene else []), "",
        *(["![frames to start from](start.png)", ""] if has_scene else []),
        *_figures({k: v for info in infos.values() for k, v in info.get("metrics", {}).items()}),
        f"`python v2/eval/gold_eval.py{of_game} --weights FOLDER{measured} "
        "--model-card FOLDER/README.md` measures more, with intervals, and writes it here.", "",
        "## Training", "",
        *training_lines({"train_vqvae_hires": training_runs(infos["vqvae"]),
                         "train_wm_hires": training_runs(infos["world_model"])}),
    ]  # fmt: skip
    return "\n".join(lines)


def _figures(metrics: dict[str, float]) -> list[str]:
    if not metrics:
        return []
    rows = [f"| {name} | {value:.4g} |" for name, value in metrics.items()]
    return ["## Held-out figures while it trained", "", "| | |", "|---|---|", *rows, ""]
