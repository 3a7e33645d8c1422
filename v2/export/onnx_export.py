"""Export the step of a dream as one ONNX graph, and compare it with PyTorch on real starts.

    python v2/export/onnx_export.py --game breakout --weights shipped --out exported
"""

import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from v2.runtime import cli

if __name__ == "__main__":
    cli.explain_errors()

import numpy as np
import torch
from tqdm import tqdm

from v2.data.emulator import make_atari_env
from v2.data.games import EmulatorConfig, game_id
from v2.data.policies import make_policy, policy_mix
from v2.decoding import advance, next_age
from v2.dream import DreamState
from v2.export.engine import OnnxDream, open_graph
from v2.export.graph import INPUTS, StepGraph, export_graph
from v2.runtime.files import check_writable

NAME, HALF_NAME = "step.onnx", "step-half.onnx"
HISTORY = 4  # frames
SCENES = (30, 150, 400)  # steps of a real game before the dream begins
SEED = 990_000  # of no dataset


def build_parser():
    parser = cli.parser(__file__)
    parser.add_argument("--game", default=EmulatorConfig().game, help="any ALE game")
    parser.add_argument("--weights", default="shipped", help="latest, shipped, a run or a file")
    parser.add_argument("--out", type=cli.path, required=True, help="directory")
    parser.add_argument("--steps", type=cli.positive_int, default=200,
                        help="to compare in each of three scenes")  # fmt: skip
    return parser


def main(argv=None) -> int:
    args = build_parser().parse_args(argv)
    check_writable(args.out)
    engine = OnnxDream.load(args.weights, args.game, "cpu")
    print(f"weights: {engine.source}")
    plain, starts = StepGraph(engine.vqvae, engine.world_model), []
    for frames, past in real_starts(args.game, EmulatorConfig(**engine.info["emulator"])):
        engine.reset(frames, past)
        starts.append(engine.history)
    actions = np.random.default_rng(0).integers(0, engine.num_actions, args.steps)
    for name, has_half_weights in ((HALF_NAME, True), (NAME, False)):
        path = args.out / name
        export_graph(engine.vqvae, engine.world_model, path, has_half_weights)
        session = open_graph(path)
        equal = np.concatenate([same_tokens(session, plain, start, actions) for start in tqdm(
            starts, desc=f"comparing {name}", disable=None
        )])  # fmt: skip
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, {equal.mean():.3%} of the tokens of "
              f"{len(starts)} x {len(actions)} steps as in PyTorch")  # fmt: skip
        if not (equal.all() or has_half_weights):
            raise RuntimeError(f"{path} dreams other tokens than PyTorch in float32")
    print(f"results: {args.out}; next: make web")
    return 0


def real_starts(game: str, config: EmulatorConfig) -> list[tuple[np.ndarray, np.ndarray]]:
    """Play real games; return four frames (4, 84, 64, 3) and three actions (3,) of each scene."""
    env, starts = make_atari_env(config=config), []
    for number, length in enumerate(SCENES):
        rng = np.random.default_rng(SEED + number)
        policy = make_policy(
            policy_mix("mix", game_id(game))[0], game_id(game), env.action_meanings, rng
        )
        frame, _ = env.reset(seed=SEED + number)
        actions: list[int] = []
        frames, is_over = [frame], False
        while not (is_over or len(actions) == length):
            actions.append(policy.act(env.ram))
            frame, _, is_over, *_ = env.step(actions[-1])
            frames.append(frame)
        starts.append((np.stack(frames[-HISTORY:]), np.array(actions[1 - HISTORY :])))
    return starts


@torch.inference_mode()
def same_tokens(session, plain: StepGraph, start: DreamState, actions) -> np.ndarray:
    """Take each step of a dream by PyTorch and by the graph, too; bool (steps, N).

    Args:
        start: of one dream; actions: (steps,).
    """
    tokens, past, age = (part[0] for part in start[:3])
    equal = []
    for action in torch.from_numpy(actions):
        taken = torch.cat([past, action[None]])
        expected = plain(tokens, taken, age)[0]
        values = (tokens.numpy(), taken.numpy(), age.numpy())
        found = session.run(None, dict(zip(INPUTS, values, strict=True)))[0]
        equal.append(found == expected.numpy())
        age = next_age(age[None], tokens[-1:], expected[None])[0]
        tokens, past = advance(tokens[None], expected[None])[0], taken[1:]
    return np.stack(equal)


if __name__ == "__main__":
    cli.run(main)
