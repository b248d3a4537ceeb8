"""Benchmarks run; what they measure is theirs to say."""

import argparse
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection

from tests.commands.runs import write_run, write_trial

ROOT = Path(__file__).parents[1]


def test_relatives_compute_the_same_and_are_compared(tmp_path: Path) -> None:
    small = ["--rows", "50", "--batch-size", "4", "--rounds", "7", "--warm-up", "0", "--compression", "2"]
    command = [sys.executable, "-W", "ignore", "benchmarks/relatives.py", *small, "--rate-mbit", "none"]
    output = tmp_path / "results" / "relatives.md"
    done = subprocess.run(
        [*command, "--output", str(output)], cwd=ROOT, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [line.split(" | ") for line in output.read_text().splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows] == [
        "| variant",
        "| SPTT",
        "| SPTT, by gloo's AlltoAll",
        "| EmbeddingTowerCollection, whole tables",
        "| EmbeddingTowerCollection, tables by row",
        "| flat, table-row-wise",
        "| flat, table-wise",
    ]


def run(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *words], cwd=ROOT, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_interactions_are_compared() -> None:
    table = run("benchmarks/interaction.py", "--shrink", "64", "--rounds", "7", "--dims", "16")
    rows = [line for line in table.splitlines() if line.startswith(("| 16384", "| 2048", "| 512"))]
    assert len(rows) == 8
    heads = next(line for line in table.splitlines() if line.startswith("| B |")).split("|")
    assert [head.strip() for head in heads].count("pairwise") == 2  # forward, and with backward
    assert {len(row.split("|")) for row in rows} == {len(heads)}


def test_parts_of_a_step_are_measured() -> None:
    small = ["--rows", "50", "--batch-size", "8", "--rounds", "2", "--calls", "1", "--sizes", "step", "paper-8t"]
    page = run("benchmarks/components.py", *small, "--modes", "float32", "bf16")
    tables = [[[cell.strip() for cell in line.split("|")[1:-1]] for line in own.splitlines()] for own in _tables(page)]
    assert all(len({len(row) for row in rows}) == 1 for rows in tables)
    steps, *by_size = tables
    assert [row[:2] for row in steps[2:]] == [[s, m] for s in ("step", "paper-8t") for m in ("float32", "bf16")]
    parts = ["embedding lookup", "bottom arch", "dot interaction", "over arch", "loss", "Adam of dense layers"]
    with_towers = [parts[0], "tower modules", *parts[1:]]
    for (times, ceilings), names in zip((by_size[:2], by_size[2:]), (parts, with_towers), strict=True):
        rest = ["sum of the parts", "step less this sum", "**training step**"]
        assert [row[0] for row in times[2:]] == [*names, *rest]
        passes = [f"{name}, {direction}" for name in names[:-1] for direction in ("forward", "backward")]
        assert [row[0] for row in ceilings[2:]] == [*passes, names[-1]]
        found = {row[0]: dict(zip(ceilings[0], row, strict=True)) for row in ceilings[2:]}
        over = [float(found[f"over arch, {direction}"]["GFLOP"]) for direction in ("forward", "backward")]
        assert over[1] == pytest.approx(2 * over[0], rel=0.01)  # gradients of what it reads, and of its weights
        assert found["embedding lookup, forward"]["GFLOP"] == "–"
    # 8 samples: the ids, a distinct row for nearly each, and the output; two multiplications of 26 x 8 x 128 floats.
    assert 0.1 < float(found["embedding lookup, forward"]["MB at least"]) <= (26 * 8 * (8 + 2 * 128 * 4)) / 1e6 + 1e-3


def _tables(page: str) -> list[str]:
    return [block for block in page.split("\n\n") if block.startswith("| ")]


def test_steps_are_compared_with_flat_ones_of_the_same_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    step = importlib.import_module("step")
    seconds = {name: [1.0] * 7 for name in (*step.OTHERS, *step.OURS)}
    seconds |= {"flat DLRM, float32": [6.0] * 7, "flat DLRM, bf16-mixed": [3.0] * 7}
    lines = step.report(seconds, argparse.Namespace(rows=1, batch_size=1, threads=1, rounds=7, steps=1))
    heads, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|")]
    assert {len(row) for row in rows} == {len(heads)} and len(rows) == len(seconds)
    found = {row[0]: row[heads.index("times flat, same precision")] for row in rows}
    assert [found.pop(name) for name in step.FLAT.values()] == ["1", "1"]
    for name, cell in found.items():
        is_ours = name.startswith(("flat", "DMT"))
        assert cell == ("" if not is_ours else "3.00 (3.00 to 3.00)" if "bf16" in name else "6.00 (6.00 to 6.00)"), name


def test_torchrecs_tables_are_trained_as_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    step = importlib.import_module("step")
    made: list[FusedEmbeddingBagCollection] = []

    def make(*arguments: object, **options: object) -> FusedEmbeddingBagCollection:
        made.append(FusedEmbeddingBagCollection(*arguments, **options))
        return made[-1]

    monkeypatch.setattr(step, "FusedEmbeddingBagCollection", make)
    train = step.torchrec_modules(7)
    assert train(next(iter(step.make_data(7, 4).train_dataloader()))).isfinite()
    states = made[0].fused_optimizer().state_dict()["state"]
    assert {tensor.numel() for state in states.values() for tensor in state.values()} == {7}  # one for each row


def test_quality_pairs_seeds(tmp_path: Path) -> None:
    rows = ["trial,state,model.p,seed_everything,seconds,samples_per_second,test/auroc,reason"]
    rows += [f"a{seed},finished,4,{seed},1.0,10,{0.70 + seed / 100},ok" for seed in range(1, 8)]
    rows += [f"b{seed},finished,2,{seed},1.0,10,{0.69 + seed / 100},ok" for seed in range(7, 0, -1)]
    rows += ["c,failed,2,8,1.0,,,exit code 1"]
    (tmp_path / "results.csv").write_text("\n".join(rows) + "\n")
    table = run("benchmarks/quality.py", str(tmp_path), "--baseline", "model.p=4")
    assert "| p=4 | 7 | 0.7400 | 0.0216 |" in table
    assert "| p=2 | 7 | 0.7300 | 0.0216 | -0.01000 | -0.01000 to -0.01000 |" in table


def test_quality_compares_within_a_parameter_and_chooses_by_another_metric(tmp_path: Path) -> None:
    rows = ["trial,state,top.class_path,top.layers,tower.class_path,seed_everything,test/auroc,val/auroc"]
    for top, offset in (("a.DLRM", 0.0), ("a.DCN", 0.1)):
        for tower, gain in (("a.Pass", 0.0), ("a.Gated", 0.01)):
            for seed in range(1, 8):
                test = 0.6 + offset + gain + seed / 1000
                rows += [f"{top}{tower}{seed},finished,{top},[64],{tower},{seed},{test},{0.9 - offset - gain}"]
    (tmp_path / "results.csv").write_text("\n".join(rows) + "\n")
    options = ["--baseline", "tower.class_path=a.Pass", "--within", "top.class_path", "--choose", "val/auroc"]
    table = run("benchmarks/quality.py", str(tmp_path), *options)
    assert table.count("| point | n |") == 2
    for top in ("DLRM", "DCN"):
        assert f"| top={top}, tower=Gated | 7 | {0.614 + 0.1 * (top == 'DCN'):.4f} | 0.0022 | +0.01000 |" in table
    assert "Highest val/auroc: top=DLRM, tower=Pass, 0.9000; its test/auroc: 0.6040." in table


def test_loading_is_measured(tmp_path: Path) -> None:
    table = run(
        "benchmarks/loader.py", "--rows", "20000", "--rounds", "1", "--steps", "1", "--batch-size", "256",
        "--folder", str(tmp_path)
    )  # fmt: skip
    assert "| shuffled |" in table and "| stored order |" in table


def test_conversions_are_compared(tmp_path: Path) -> None:
    rows = ["--rows", "3000", "--torchrec-rows", "500", "--distinct-rows", "500", "--rounds", "1"]
    table = run("benchmarks/ingest.py", *rows, "--folder", str(tmp_path))
    assert "dmt writes 161." in table  # 160 bytes a row, and what is written once
    _, _, *found = [line.split(" | ") for line in table.splitlines() if line.startswith("|")]
    assert [row[0] for row in found] == [
        "| TorchRec tsv_to_npys",
        "| plain polars",
        "| dmt preprocess criteo --min-count 2",
        "| dmt preprocess criteo --min-count 1, no value twice",
        "| dmt preprocess criteo, no value twice",
        "| dmt preprocess criteo",
    ]
    assert all(float(row[1].replace(",", "")) > 0 and int(row[4].strip(" |")) > 0 for row in found)
    assert list(tmp_path.iterdir()) == []


def test_methods_of_towers_are_compared(tmp_path: Path) -> None:
    rows = [
        "trial,state,model.top.class_path,model.tower.class_path,model.num_towers,model.plan,seed_everything,test/auroc,val/auroc"
    ]
    gains = {"": 0.02, "strided": 0.0, "random": 0.001, "p/x_coherent.yaml": 0.019, "p/x_diverse.yaml": -0.01}
    for plan, gain in gains.items():
        for seed in range(1, 10):
            auc = 0.7 + gain + seed / 10_000
            rows.append(f"{plan}{seed},finished,a.DLRM,a.Tower,{4 if plan else 1},{plan},{seed},{auc},{auc}")
    (tmp_path / "results.csv").write_text("\n".join(rows) + "\n")
    table = run("benchmarks/tp_method.py", str(tmp_path))
    assert "| DLRM | 1 | flat | 9 | 0.7205 | 0.0003 |  |  |  |  |" in table
    assert "| DLRM, Tower | 4 | strided | 9 | 0.7005 | 0.0003 |  |  | -0.0200 | -5% |" in table
    assert "| DLRM, Tower | 4 | coherent | 9 | 0.7195 | 0.0003 | +0.0190 | < 0.001 | -0.0010 | 95% |" in table
    # By the first seed's validation AUC, and without it.
    assert "| DLRM, Tower | 4 | auto: coherent | 8 |" in table
    assert "these seeds show a difference of 0.0005 four times of five" in table
    # A sweep that gives no top arch leaves it to its configuration.
    of_one_top = [",".join(row.split(",")[:2] + row.split(",")[3:]) for row in rows]
    (tmp_path / "results.csv").write_text("\n".join(of_one_top) + "\n")
    assert "| Tower | 4 | coherent | 9 | 0.7195 |" in run("benchmarks/tp_method.py", str(tmp_path))


def test_what_towers_save_is_read_from_runs(tmp_path: Path) -> None:
    together, apart = [["c0", "c3"], ["c1", "c2"]], [["c0", "c1"], ["c2", "c3"]]  # as SyntheticClicks plants them
    points = [([["c0", "c1", "c2", "c3"]], 4, 0.80)]
    points += [(together, 2, 0.81), (together, 1, 0.7996), (apart, 2, 0.80), (apart, 1, 0.79)]
    for number, (towers, outputs, auc) in enumerate(points):
        folder = write_trial(tmp_path, number, "finished") / "run" / "version_0"
        write_run(folder, auc, data={"init_args": {"num_features": 4, "num_groups": 2}})
        summary = json.loads((folder / "summary.json").read_text())
        told = [{"features": tower, "out_features": 1, "out_dim": 8 * outputs // len(towers)} for tower in towers]
        summary["description"] |= {"towers": told, "compression_ratio": 4 / outputs}
        (folder / "summary.json").write_text(json.dumps(summary))
    table = run("benchmarks/tp_saves.py", str(tmp_path))
    # A sample's 4 embeddings of 8 floats, there and back, the half that is for the other host: 128 bytes.
    assert "Flat: 0.8000, 1 seeds, 128 bytes." in table
    assert "| 2 | 0.8100 | 0.7996 | 32 (1/4 of flat's) |" in table
    assert "| 0 | 0.8000 | 0.7900 | 64 (1/2 of flat's) |" in table


def test_vocabularies_are_measured(tmp_path: Path) -> None:
    table = run("benchmarks/vocabulary.py", "--values", "3000", "--parts", "3", "--folder", str(tmp_path))
    [row] = [line for line in table.splitlines() if line.startswith("| ") and line[2].isdigit()]
    assert 2900 < int(row.split("|")[1].replace(",", "")) <= 3000  # a few values come twice


def test_encoding_of_a_tabular_log_is_measured(tmp_path: Path) -> None:
    table = run("benchmarks/tabular.py", "--rows", "3000", "--file-rows", "2000", "--folder", str(tmp_path))
    [row] = [line for line in table.splitlines() if line.startswith("| 3,000 |")]
    assert int(row.split("|")[4].replace(",", "")) > 50  # a process with torch in it
