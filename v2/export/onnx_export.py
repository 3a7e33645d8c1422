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

from v2.data.dream_starts import load_starts
from v2.data.games import EmulatorConfig, game_id, learnt_config
from v2.export.engine import OnnxDream, open_graph
from v2.export.graph import GRAPH_NAME, INPUTS, export_graph, no_cells
from v2.export.scenes import float32_steps
from v2.runtime.files import check_writable

FLOAT32_NAME = "step-float32.onnx"
NUM_SCENES = 3  # of the committed starts: a serve, the middle of a game, a late board


def build_parser():
    parser = cli.parser(__file__)
    parser.add_argument("--game", default=EmulatorConfig().game, help="name in any spelling")
    parser.add_argument("--weights", type=cli.name, default="shipped",
                        help="latest, shipped, a run or a file")
    parser.add_argument("--out", type=cli.path, required=True, help="directory")
    parser.add_argument("--starts", type=cli.path, metavar="DATA.npz", help="a recording whose "
                        "frames are dreamed on from; None: the committed starts")  # fmt: skip
    parser.add_argument("--steps", type=cli.positive_int, default=200,
                        help="to compare in each of three scenes")  # fmt: skip
    return parser


def main(argv=None) -> int:
    args = build_parser().parse_args(argv)
    check_writable(args.out)
    game = game_id(args.game)
    starts = load_starts(game, args.starts)
    engine = OnnxDream.load(args.weights, game, "cpu")
    learnt_config(engine.info, engine.source, game)  # refuses another game's weights
    print(f"weights: {engine.source}")
    scenes = np.linspace(0, len(starts) - 1, NUM_SCENES).round().astype(int)
    engine.reset(*starts.histories(scenes))
    assert engine.history is not None
    tokens, past, age = engine.history[:3]
    begun = [(tokens[k], past[k], age[k]) for k in range(NUM_SCENES)]
    actions = np.random.default_rng(0).integers(0, engine.num_actions, args.steps)
    for name, has_half_weights in ((GRAPH_NAME, True), (FLOAT32_NAME, False)):
        path = args.out / name
        export_graph(engine.vqvae, engine.world_model, path, has_half_weights)
        session = open_graph(path)
        equal = np.concatenate([
            same_tokens(session, engine, start, actions)
            for start in tqdm(begun, desc=f"comparing {name}", disable=None)
        ])  # fmt: skip
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, {equal.mean():.3%} of the tokens of "
              f"{NUM_SCENES} x {len(actions)} steps as in PyTorch")  # fmt: skip
        if not (equal.all() or has_half_weights):
            raise RuntimeError(f"{path} dreams other tokens than PyTorch in float32")
    print(f"results: {args.out}")
    return 0


def same_tokens(
    session, engine: OnnxDream, start: tuple[torch.Tensor, ...], actions: np.ndarray
) -> np.ndarray:  # fmt: skip
    """Take each step of a dream by PyTorch with the graph, too; bool (steps, N).

    Args:
        start: tokens, past actions and age as `float32_steps` takes them; actions: (steps,).
    """
    tokens, past, age = start
    equal, decoded = [], no_cells(engine.vqvae)
    for inputs, expected in float32_steps(engine.world_model, tokens, past, age, actions):
        values = *(part.numpy() for part in inputs), *decoded
        found, *_, cells = session.run(None, dict(zip(INPUTS, values, strict=True)))
        equal.append(found == expected.numpy())
        decoded = found, cells
    return np.stack(equal)


if __name__ == "__main__":
    cli.run(main)
