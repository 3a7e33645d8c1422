"""docs/results.md, its plots and README's ten results are what the stored documents say."""

import functools
import json
import re

import numpy as np
import pytest

from v2.eval import documents, games_page, results_page
from v2.eval.intervals import Metric, mean_metric
from v2.eval.pictures import save_grid, strip_of
from v2.eval.rollouts import HORIZONS
from v2.runtime.errors import report_error

MARKED = "# Title\n\n<!-- results -->\nold\n<!-- /results -->\n\nend\n"


@functools.cache
def _document(game: str) -> str:
    """Return a document of the gold set, made up but as whole as gold_eval.py makes one."""
    rng, scores = np.random.default_rng(len(game)), {}

    def add(name: str, scale: float, *baselines: str) -> None:
        draws = scale * rng.random((1 + len(baselines), 46))
        scores[name], *others = (mean_metric(row, np.arange(46) // 2) for row in draws)
        scores[name].baselines = dict(zip(baselines, others, strict=True))

    for h in HORIZONS:
        add(f"{results_page.BALL}@{h}", 1, *results_page.BALL_COLUMNS)
        add(f"{results_page.PSNR}@{h}", 40, "copy_last", "ceiling")
        add(f"rollout/ssim@{h}", 1, "copy_last", "ceiling")
        for stratum in results_page.STRATA if game == "breakout" else ("flight", "wall"):
            add(f"{results_page.BALL}[{stratum}]@{h}", 1, *results_page.BALL_COLUMNS)
    for _, name, _, baseline in results_page.ROWS:
        lacks = "opponent" if game == "breakout" else "brick"
        if name not in scores and lacks not in name:
            add(name, 1, baseline)
    for kind in ("paddle", "flight, speed 4 4"):
        add(f"{results_page.TURNS}{kind}", 1, "copy_last")
    for k in range(200):
        add(f"rollout/other@{k}", 1, "copy_last")
    document = documents.make_document(
        scores, evaluator=10, game=game, is_gold=True, data="gold set", data_sha256="d" * 64,
        model="m.pt", device="cpu", tier="gold", vqvae_sha256="v" * 64, seconds=1.0, notes=[],
        world_model_sha256="w" * 64, settings={}, flags=f" --game {game}",
        training={"train_wm_hires": [{"flags": {"lr": 0.003}}] * 99},
    )  # fmt: skip
    return json.dumps(document)


@pytest.fixture
def wholes(tmp_path):
    paths = {game: tmp_path / f"whole_{game}.json" for game in results_page.GAMES}
    for game, path in paths.items():
        path.write_text(_document(game))
    return paths


@pytest.fixture
def docs(tmp_path):
    (tmp_path / "README.md").write_text(MARKED)
    return tmp_path / "docs"


def _run(docs, *taken) -> int:
    flags = ["--docs", str(docs), "--readme", str(docs.parent / "README.md")]
    return results_page.main([*flags, *(["--take", *map(str, taken)] if taken else [])])


def _everything(docs) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in docs.parent.rglob("*") if path.is_file()}


def test_page_plots_and_readme_are_functions_of_the_documents(wholes, docs):
    assert _run(docs, *wholes.values()) == 0
    first = _everything(docs)
    assert {"results.md", "breakout.png", "pong.png"} <= {path.name for path in docs.rglob("*")}
    assert _run(docs) == 0 and _everything(docs) == first


def test_another_number_makes_another_page_plot_and_readme(wholes, docs):
    _run(docs, *wholes.values())
    before = _everything(docs)
    stored = docs / "results" / "pong.json"
    document = json.loads(stored.read_text())
    document["metrics"]["rollout/ball_hit_2px@10"]["value"] = 0.987654
    stored.write_text(json.dumps(document))
    _run(docs)
    differing = {path for path, content in _everything(docs).items() if content != before[path]}
    names = {"pong.json", "pong.png", "results.md", "README.md"}
    assert {path.rsplit("/")[-1] for path in differing} == names
    assert "| at 10 | 0.99 [" in (docs / "results.md").read_text()


def test_the_ten_results_of_the_readme_are_those_of_the_documents(wholes, docs):
    _run(docs, *wholes.values())
    readme = (docs.parent / "README.md").read_text()
    assert readme.startswith("# Title\n\n<!-- results -->\n|")
    assert readme.endswith("|\n<!-- /results -->\n\nend\n")
    lines = [line for line in readme.splitlines() if line.startswith("| ")]
    head, *rows = (line.removeprefix("| ").removesuffix(" |").split(" | ") for line in lines)
    assert len(rows) == 10 and head == ["", "Breakout", "baseline", "Pong", "baseline"]
    whole = [json.loads(path.read_text())["metrics"] for path in wholes.values()]
    for (label, name, decimals, baseline), row in zip(results_page.README_ROWS, rows, strict=True):
        assert row[0] == label
        for metrics, value, beside in zip(whole, row[1::2], row[2::2], strict=True):
            metric = metrics[name]
            assert value == (f"{metric['value']:.{decimals}f} [{metric['low']:.{decimals}f}, "
                             f"{metric['high']:.{decimals}f}]")  # fmt: skip
            other = metric["baselines"][baseline]["value"]
            assert beside == f"{results_page.BASELINES[baseline]} {other:.{decimals}f}"


def test_every_table_of_the_page_has_its_baseline_and_every_game_its_command(wholes, docs):
    _run(docs, *wholes.values())
    page = (docs / "results.md").read_text()
    heads = [lines for lines in page.split("\n\n") if lines.startswith("|")]
    assert len(heads) == 8
    for table in heads:
        assert any(name in table.splitlines()[0] for name in ("baseline", "copy-last", "constant"))
    for game in results_page.GAMES:
        assert f"    python v2/eval/gold_eval.py --game {game} --json FILE" in page
    assert page.count("evaluator 10") == 2 and "before a brick" in page
    assert "| flight, speed 4 4 | 0." in page


def test_a_kept_document_is_small_and_says_what_the_whole_one_says(wholes, docs):
    _run(docs, *wholes.values())
    for game, path in wholes.items():
        kept = docs / "results" / f"{game}.json"
        assert kept.stat().st_size < 60_000 < path.stat().st_size
        whole, small = documents.read_document(path), documents.read_document(kept)
        assert "training" not in small and "rollout/other@3" not in small["metrics"]
        for name, metric in small["metrics"].items():
            assert metric["value"] == whole["metrics"][name]["value"] and "sums" not in metric
        assert whole["metrics"].keys() > small["metrics"].keys() >= {"long/one_ball"}


def test_a_value_that_was_never_measured_is_a_dash_and_a_gap(wholes, docs):
    _run(docs, *wholes.values())
    stored = docs / "results" / "breakout.json"
    document = json.loads(stored.read_text())
    document["metrics"]["rollout/ball_hit_2px@50"] = Metric(float("nan")).to_dict()
    stored.write_text(json.dumps(document))
    assert _run(docs) == 0
    assert "| at 50 | - | - | - | - |" in (docs / "results.md").read_text()


@pytest.mark.parametrize("spoil, text", [
    (lambda folder: (folder / "pong.json").unlink(), "--game pong --json FILE and then"),
    (lambda folder: (folder / "pong.json").write_text("{"), "pong.json is no JSON document"),
    (lambda folder: (folder / "breakout.json").replace(folder / "pong.json")
     and (folder / "breakout.json").write_bytes((folder / "pong.json").read_bytes()),
     "pong.json is a result of breakout"),
    (lambda folder: (folder / "pong.json").write_text(
        (folder / "pong.json").read_text().replace('"evaluator": 10', '"evaluator": 9')),
     "evaluators 9 and 10"),
    (lambda folder: (folder / "pong.json").write_text(
        (folder / "pong.json").read_text().replace('"flags"', '"other"')), "say its 'flags'"),
    (lambda folder: (folder / "ablations.json").write_text(
        '{"command": "x", "notes": [], "columns": {}}'),
     "its 'rows' is no list"),
    (lambda folder: (folder / "ablations.json").write_text(
        '{"command": "x", "notes": [], "columns": {}, "rows": [{"name": "a"}]}'),
     "its 'metrics' is no dict"),
])  # fmt: skip
def test_documents_that_make_no_page_are_one_clear_line(spoil, text, wholes, docs, capsys):
    _run(docs, *wholes.values())
    before = (docs / "results.md").read_bytes()
    spoil(docs / "results")
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        _run(docs)
    assert report_error(caught.value) == 2
    line = capsys.readouterr().err
    assert text in line and line.count("\n") == 1
    assert (docs / "results.md").read_bytes() == before


def test_only_results_of_the_gold_sets_are_taken(wholes, docs):
    document = json.loads(wholes["pong"].read_text())
    for change in ({"is_gold": False}, {"game": "seaquest"}):
        wholes["pong"].write_text(json.dumps(document | change))
        with pytest.raises(ValueError, match="gold sets of breakout and pong only"):
            _run(docs, wholes["pong"])
    assert not docs.exists()


@pytest.mark.parametrize("readme", ["<!-- results -->", "<!-- /results --> <!-- results -->"])
def test_half_a_mark_in_the_readme_is_refused_and_none_leaves_it(readme, wholes, docs, capsys):
    path = docs.parent / "README.md"
    path.write_text(readme)
    with pytest.raises(ValueError, match="once and then"):
        _run(docs, *wholes.values())
    assert path.read_text() == readme
    path.write_text("no marks\n")
    assert _run(docs) == 0 and path.read_text() == "no marks\n"
    assert "left as it is" in capsys.readouterr().out


def test_ablations_are_a_table_where_there_are_any(wholes, docs):
    _run(docs, *wholes.values())
    assert "Ablations" not in (docs / "results.md").read_text()
    recipe = {"x@10": {"value": 0.5, "low": 0.4, "high": 0.6}}
    table = {
        "command": "python v2/train/ablations.py --budget 9", "notes": ["One seed."],
        "columns": {"ball at 10": "x@10"},
        "rows": [{"name": "the recipe", "metrics": recipe}, {"name": "no rollouts", "metrics": {}}],
    }  # fmt: skip
    (docs / "results" / "ablations.json").write_text(json.dumps(table))
    _run(docs)
    page = (docs / "results.md").read_text()
    assert "## Ablations\n\n    python v2/train/ablations.py --budget 9\n" in page
    assert "\n- One seed.\n\n| change | ball at 10 |\n" in page
    assert "| the recipe | 0.5000 [0.4000, 0.6000] |\n| no rollouts | - |\n" in page


STORED = results_page.ROOT / "docs" / "results"


@pytest.mark.skipif(not (STORED / "breakout.json").exists(), reason="no results are stored yet")
def test_the_stored_page_and_readme_are_made_of_the_stored_documents():
    found = documents.read_results(STORED, results_page.GAMES)
    page = results_page.page_of(found, documents.read_ablations(STORED / "ablations.json"))
    assert page == (STORED.parent / "results.md").read_text("utf-8")
    readme = (results_page.ROOT / "README.md").read_text("utf-8")
    assert results_page.with_results(readme, results_page.readme_table(found))[0] == readme


# The page of all games


@pytest.fixture
def held_out(tmp_path):
    """A result of gold_eval.py on a recording's held-out games, with its strip."""
    metrics = {name: Metric(0.5) for name, *_ in games_page.ROWS.values()}
    metrics["rollout/psnr@10"] = Metric(30.25, 29, 31.5, baselines={"copy_last": Metric(20.04)})
    del metrics["rollout/psnr@50"]  # episodes were too short
    facts = {name: "x" for name in documents.SHOWN} | {"seconds": 9, "notes": ["it is short"]}
    facts |= {"game": "space_invaders", "emulator": {"max_pool": True}, "data_sha256": "d",
              "evaluator": 11, "settings": {}, "num_cells": 144}  # fmt: skip
    path = tmp_path / "games" / "invaders" / "runs" / "1" / "held_out.json"
    path.parent.mkdir(parents=True)
    facts["model"] = str(path.parent / "best.pt")
    path.write_text(json.dumps(documents.make_document(metrics, **facts)))
    save_grid(strip_of(path), [np.zeros((2, 84, 64, 3), np.uint8)] * 2)
    return path


def test_the_page_of_games_has_a_row_and_a_strip_for_each_result(held_out, tmp_path, capsys):
    docs = tmp_path / "docs"
    assert games_page.main(["--take", str(held_out), "--docs", str(docs)]) == 0
    document = json.loads(held_out.read_text())
    document |= {"game": "MinAtar/Breakout-v1", "emulator": {"package": "minatar 1.0.15"}}
    held_out.write_text(json.dumps(document))
    (docs / "games" / "MinAtar_Breakout-v1.txt").write_text("It loses the ball.")
    assert games_page.main(["--take", str(held_out), "--docs", str(docs)]) == 0
    page = (docs / "games.md").read_text()
    for row in (
        "|  | MinAtar/Breakout-v1 | Space Invaders |", "| pooled | no | yes |",
        "| active cells | 144 | 144 |", "| changed tokens, one step | 0.50 | 0.50 |",
        "| PSNR at 10, dB | 30.2 [29.0, 31.5] / 20.0 | 30.2 [29.0, 31.5] / 20.0 |",
        "| PSNR at 50, dB | - / - | - / - |", "| right branch at 8 | 0.50 / - | 0.50 / - |",
    ):  # fmt: skip
        assert row in page
    assert "Figures of runs/1/best.pt on x" in page and str(tmp_path) not in page
    assert "MinAtar/Breakout-v1 of minatar 1.0.15." in page and "It loses the ball." in page
    assert page.count("Note: it is short.") == 2
    shown = re.findall(r"\(games/(.*)\)", page)
    assert shown == ["MinAtar_Breakout-v1.strip.png", "space_invaders.strip.png"]
    assert all((docs / "games" / name).stat().st_size > 100 for name in shown)
    strip_of(held_out).unlink()
    with pytest.raises(FileNotFoundError, match="no strip"):
        games_page.main(["--take", str(held_out), "--docs", str(docs)])
    assert page == (docs / "games.md").read_text()
