"""What the page in the browser shows beside its graph: scenes of real games, and how to see a ball.

Contract: a scene is recorded by the scripted player in the real emulator, from seeds that no
training and no gold set has, and is the first that fits its name: none is chosen by how it is
dreamed. It holds the start, the real frames, and the tokens that float32 dreams from it. Knows
nothing of ONNX or of the page.
"""

import dataclasses
import hashlib
import json
import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from v2.data.collector import GameJob, Segment, record_game
from v2.data.dream_starts import STARTS_SEED
from v2.data.emulator import make_atari_env
from v2.data.frames import frames_to_float
from v2.data.games import EmulatorConfig, shown_name
from v2.data.policies import REWIND, SCRIPTED, PolicyConfig
from v2.decoding import advance, known_age, next_age, predict_next
from v2.eval.objects import detector
from v2.eval.objects.base import Objects
from v2.models.temporal_world_model import TemporalWorldModel, WorldModelConfig
from v2.models.vqvae_hires import VQVAE
from v2.runtime.files import atomic_path

FORMAT = 2  # of game.json; web/src/files.js reads this one alone
GAME_NAME = "game.json"
MAX_GAMES = 20
HISTORY = WorldModelConfig.history
MIN_STEPS, MAX_STEPS = 150, 240  # 10 to 16 seconds
PARITY_STEPS = 60
MAX_GAME_STEPS = 6000
BRICKS = 108


@dataclass(frozen=True)
class SceneKind:
    """A name and the rows of a game at which such a scene may begin."""

    name: str
    title: str
    policy: PolicyConfig
    fits: Callable[[Objects], np.ndarray]  # objects of N rows -> bool (N,)


@dataclass
class Scene:
    """T recorded steps from a start of four frames."""

    kind: SceneKind
    seed: int
    tokens: np.ndarray  # uint8 (4, N), oldest first
    past: np.ndarray  # uint8 (3,): the actions between them
    age: np.ndarray  # float32 (N,), see v2.decoding.next_age
    actions: np.ndarray  # uint8 (T,)
    rewards: np.ndarray  # float32 (T,)
    ball: np.ndarray  # float32 (T + 1, 2): from memory, NaN where there is none
    seen_ball: np.ndarray  # float32 (T + 1, 2): by the detector, from the real frames
    frames: np.ndarray  # uint8 (T + 1, 84, 64, 3): the start's last, then those after each step
    real_tokens: np.ndarray  # uint8 (T + 1, N): of the real frames
    dreamed: np.ndarray  # uint8 (60, N): the tokens dreamed under the recorded actions


def _before_serve(objects: Objects) -> np.ndarray:
    """Tell where a game has not begun and a ball comes within 2 to 20 steps."""
    serve = int(_in_flight(objects).argmax())
    row = np.arange(len(objects))
    return (row <= serve - 2) & (row >= serve - 20)


def _in_flight(objects: Objects) -> np.ndarray:
    return ~np.isnan(objects.ball[:, 0])


def _bricks_gone(least: int, most: int) -> Callable[[Objects], np.ndarray]:
    def fits(objects: Objects) -> np.ndarray:
        gone = BRICKS - objects.bricks.sum((1, 2))
        return _in_flight(objects) & (gone >= least) & (gone <= most)

    return fits


def _points(least: int, most: int) -> Callable[[Objects], np.ndarray]:
    def fits(objects: Objects) -> np.ndarray:
        points = np.maximum(objects.score // 100, objects.score % 100)  # of the one who leads
        return _in_flight(objects) & (points >= least) & (points <= most)

    return fits


KINDS = {
    "breakout": (
        SceneKind("serve", "Serve", SCRIPTED, _before_serve),
        SceneKind("middle", "Mid-game", SCRIPTED, _bricks_gone(25, 50)),
        SceneKind("late", "Late board", REWIND, _bricks_gone(70, BRICKS)),
    ),
    "pong": (
        SceneKind("serve", "Serve", SCRIPTED, _before_serve),
        SceneKind("middle", "Mid-game", SCRIPTED, _points(5, 10)),
        SceneKind("late", "Late game", SCRIPTED, _points(16, 20)),
    ),
}


def make_scenes(
    emulator: EmulatorConfig, vqvae: VQVAE, world_model: TemporalWorldModel,
    num_steps: int = MAX_STEPS,
) -> list[Scene]:  # fmt: skip
    """Record every scene of a game and dream its first steps, with models in float32.

    Raises:
        ValueError: a game without scenes.
    """
    if emulator.game not in KINDS:
        raise ValueError(f"no scenes for {emulator.game}: there are some for {', '.join(KINDS)}")
    kinds = tqdm(KINDS[emulator.game], unit="scene", disable=None)
    return [_make_scene(emulator, kind, vqvae, world_model, num_steps) for kind in kinds]


def _make_scene(
    emulator: EmulatorConfig, kind: SceneKind, vqvae, world_model, num_steps: int
) -> Scene:
    segment, objects, row = _find(emulator, kind)
    last = min(row + num_steps, len(segment) - 1)
    frames, actions = segment.frames[row : last + 1], segment.actions[row:last]
    encoded = _encode(vqvae, segment.frames[: last + 1])  # from its first on: ages are known
    tokens, past = encoded[row - HISTORY + 1 : row + 1], segment.actions[row - HISTORY + 1 : row]
    (age,) = known_age(encoded[None, : row + 1])
    return Scene(
        kind, segment.seed, _bytes(tokens), past, age.numpy().astype(np.float32), actions,
        segment.rewards[row:last], objects.ball[row : last + 1],
        detector.read_frames(emulator.game, frames).ball, frames, _bytes(encoded[row:]),
        dream_tokens(world_model, tokens, past, age, actions[:PARITY_STEPS]),
    )  # fmt: skip


def _find(emulator: EmulatorConfig, kind: SceneKind) -> tuple[Segment, Objects, int]:
    """Return the first recorded segment with a row at which this scene may begin."""
    for seed in range(STARTS_SEED, STARTS_SEED + MAX_GAMES):
        policy = dataclasses.replace(kind.policy, share=1.0)
        for segment in record_game(GameJob(emulator, policy, seed, MAX_GAME_STEPS)):
            objects = detector.read_ram(emulator.game, segment.ram)
            rows = np.flatnonzero(kind.fits(objects))
            rows = rows[(rows >= HISTORY - 1) & (rows < len(segment) - MIN_STEPS)]
            if len(rows):
                return segment, objects, int(rows[0])
    raise AssertionError(f"{MAX_GAMES} games of {emulator.game} without a scene {kind.name}")


@torch.inference_mode()
def _encode(vqvae: VQVAE, frames: np.ndarray) -> torch.Tensor:
    parts = torch.from_numpy(frames).split(64)
    return torch.cat([vqvae.encode(frames_to_float(part)) for part in parts])


def dream_tokens(world_model: TemporalWorldModel, tokens, past, age, actions) -> np.ndarray:
    """Dream in float32 and return the tokens after each step, uint8 (T, N).

    Args:
        tokens: int64 (4, N); past: the actions between them, (3,); age: int64 (N,).
        actions: (T,).
    """
    taken = torch.from_numpy(past.astype(np.int64))
    steps = float32_steps(world_model, tokens, taken, age, actions)
    return np.stack([_bytes(following) for _, following in steps])


@torch.inference_mode()
def float32_steps(
    world_model: TemporalWorldModel, tokens: torch.Tensor, past: torch.Tensor, age: torch.Tensor,
    actions: np.ndarray,
) -> Iterator[tuple[tuple[torch.Tensor, ...], torch.Tensor]]:  # fmt: skip
    """Dream one dream greedily, in float32; yield each step's inputs and its tokens, int64 (N,).

    Args:
        tokens: int64 (4, N); past: the actions between them, int64 (3,); age: int64 (N,).
        actions: (T,).
    """
    for action in torch.from_numpy(actions.astype(np.int64)):
        taken = torch.cat([past, action[None]])
        following = predict_next(world_model, tokens[None], taken[None], age=age[None]).tokens
        yield (tokens, taken, age), following[0]
        age = next_age(age[None], tokens[-1:], following)[0]
        tokens, past = advance(tokens[None], following)[0], taken[1:]


def _bytes(values: torch.Tensor) -> np.ndarray:
    return values.numpy().astype(np.uint8)


def write_game(
    folder: Path,
    emulator: EmulatorConfig,
    scenes: list[Scene],
    graphs: Mapping[str, Path],
    aliases: Mapping[str, str] | None = None,
    source: str = "",
) -> Path:
    """Write the scenes, the detector's tables and game.json, which names all with their hashes.

    Args:
        graphs: `webgpu` and `wasm` -> the graph that such an engine runs, in the same folder.
        aliases: key -> the key that it stands for in this game.
        source: which weights, in words.
    """
    game = emulator.game
    document = {
        "format": FORMAT,
        "game": game,
        "title": shown_name(game),
        "source": source,
        "actions": make_atari_env(config=emulator).action_meanings,
        "aliases": dict(aliases or {}),
        "stepsPerSecond": emulator.steps_per_second,
        "graphs": {name: _facts(path, folder) for name, path in graphs.items()},
        "detector": _write_arrays(folder / "detector.bin", detector.of_game(game).ball_tables()),
        "scenes": [
            {
                "name": scene.kind.name, "title": scene.kind.title, "seed": scene.seed,
                "policy": scene.kind.policy.name,
                **_write_arrays(folder / f"{scene.kind.name}.bin", _arrays(scene)),
            }
            for scene in scenes
        ],
    }  # fmt: skip
    path = folder / GAME_NAME
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(document, indent=1) + "\n")
    return path


def _arrays(scene: Scene) -> dict[str, np.ndarray]:
    fields = [field.name for field in dataclasses.fields(Scene)][2:]
    arrays = {name: getattr(scene, name) for name in fields}
    frames = scene.frames
    arrays["frames"] = np.concatenate([frames[:1], frames[1:] - frames[:-1]])  # modulo 256
    return arrays


def _write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> dict:
    """Write arrays one after another, floats first, deflated; return what reading them needs."""
    ordered = sorted(arrays.items(), key=lambda item: item[1].dtype != np.float32)
    assert all(array.dtype in (np.float32, np.uint8) for _, array in ordered)
    with atomic_path(path) as temporary:
        content = b"".join(np.ascontiguousarray(array).tobytes() for _, array in ordered)
        temporary.write_bytes(zlib.compress(content, 9))
    listed = [
        {"name": name, "type": str(array.dtype), "shape": list(array.shape)}
        for name, array in ordered
    ]
    assert len(content) == sum(math.prod(a["shape"]) * (4 if a["type"] == "float32" else 1)
                               for a in listed)  # fmt: skip
    return {**_facts(path, path.parent), "arrays": listed}


def _facts(path: Path, folder: Path) -> dict:
    content = path.read_bytes()
    return {
        "file": str(path.relative_to(folder)), "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }  # fmt: skip
