"""Write a game's folder for the page in the browser: the graph of a step and scenes of real games.

    python v2/export/web_game.py --game breakout --weights shipped --out web/public/games/breakout
"""

import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from v2.runtime import cli

if __name__ == "__main__":
    cli.explain_errors()

from v2.data.games import EmulatorConfig, game_id, learnt_config
from v2.export.engine import OnnxDream
from v2.export.graph import GRAPH_NAME, export_graph
from v2.export.scenes import GAME_NAME, KINDS, make_scenes, write_game
from v2.play.keys import ALIASES
from v2.runtime.files import check_writable


def build_parser():
    parser = cli.parser(__file__)
    parser.add_argument("--game", type=game_id, choices=sorted(KINDS), default="breakout")
    parser.add_argument("--weights", type=cli.name, default="shipped",
                        help="latest, shipped, a run or a file")
    parser.add_argument("--out", type=cli.path, required=True, help="directory")
    return parser


def main(argv=None) -> int:
    args = build_parser().parse_args(argv)
    check_writable(args.out)
    engine = OnnxDream.load(args.weights, args.game, "cpu")
    print(f"weights: {engine.source}")
    emulator = learnt_config(engine.info, engine.source, args.game)
    assert isinstance(emulator, EmulatorConfig)  # a game that was only recorded has no scenes
    (args.out / GAME_NAME).unlink(missing_ok=True)  # it names all others; written last
    graph = args.out / GRAPH_NAME
    export_graph(engine.vqvae, engine.world_model, graph, has_half_weights=True)
    print(f"{graph}: {graph.stat().st_size / 1e6:.1f} MB")
    scenes = make_scenes(emulator, engine.vqvae, engine.world_model)
    graphs = {"webgpu": graph, "wasm": graph}
    path = write_game(args.out, emulator, scenes, graphs, ALIASES.get(args.game), engine.source)
    for scene in scenes:
        size = (args.out / f"{scene.kind.name}.bin").stat().st_size
        print(f"{scene.kind.title}: {len(scene.actions)} steps of game {scene.seed}, "
              f"{size / 1e3:.0f} kB")  # fmt: skip
    print(f"results: {path}; next: make web")
    return 0


if __name__ == "__main__":
    cli.run(main)
