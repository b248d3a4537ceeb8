"""``dmt partition``."""

import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from matplotlib.image import imread

from dmt.cli import main
from dmt.partition import Affinity
from dmt.plan import TowerPlan

BASE = ["--affinity", "affinity.npz", "--towers", "2"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    matrix = np.full((6, 6), 0.1) + np.kron(np.eye(2), np.full((3, 3), 0.8))
    costs = {"lookups": [1, 1, 1, 1, 1, 5], "memory": [1, 1, 1, 1, 1, 15]}
    affinity = Affinity(features=list("abcdef"), matrix=matrix, kind="cosine", num_samples=500, costs=costs)
    affinity.save("affinity.npz")
    return tmp_path


def test_a_plan_is_written_and_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "costs.yaml").write_text("{a: 1, b: 2, c: 3, d: 4, e: 5, f: 6}")
    words = ["--affinity", "affinity.npz", "--towers", "2", "--output", "towers.yaml", "--costs", "costs.yaml"]
    main(["partition", *words])
    told = capsys.readouterr().out
    assert "6 features into 2 towers" in told
    assert "mean affinity of two features of a tower 0.900, of any two 0.420" in told
    plan = TowerPlan.load("towers.yaml")
    assert plan.towers == (("a", "b", "c"), ("d", "e", "f")) and plan.method == "coherent"
    record = yaml.safe_load((folder / "towers.yaml").read_text())["record"]
    checksum = Affinity.load("affinity.npz").checksum
    assert record == {
        "seed": 0, "affinity": f"cosine, 500 samples, checksum {checksum}", "features": [3, 3], "costs": [6.0, 15.0],
        "costliest_to_mean": 1.429,
    }  # fmt: skip


def test_options_reach_the_partitioner(folder: Path) -> None:
    (folder / "groups.yaml").write_text("[[a, d]]")
    main(["partition", "--affinity", "affinity.npz", "--towers", "3", "--groups", "groups.yaml", "--output", "g.yaml"])
    assert ("a", "d") in TowerPlan.load("g.yaml").towers
    main(
        [
            "partition",
            "--affinity",
            "affinity.npz",
            "--towers",
            "2",
            "--pin",
            "a=1",
            "--apart",
            "a,b",
            "--output",
            "p.yaml",
        ]
    )
    towers = TowerPlan.load("p.yaml").towers
    assert "a" in towers[1] and "b" in towers[0]
    main(["partition", *BASE, "--method", "strided", "--output", "s.yaml"])
    assert TowerPlan.load("s.yaml").towers == (("a", "c", "e"), ("b", "d", "f"))


def test_costs_of_the_affinity_are_balanced(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["partition", *BASE, "--balance", "lookups", "--ratio", "5", "--output", "towers.yaml"])
    assert TowerPlan.load("towers.yaml").record["costs"] in ([5, 5], [4, 6])
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        main(["partition", *BASE, "--balance", "lookups", "--max-load", "1.1", "--output", "other.yaml"])
    # Three and three: the best has the costly feature and two others in one tower.
    assert "the evenest such towers cost up to 7, 1.400 times the mean of all towers" in capsys.readouterr().err


def test_a_baseline_is_bounded_only_where_asked(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["partition", *BASE, "--balance", "lookups", "--method", "contiguous", "--output", "towers.yaml"]
    with pytest.raises(SystemExit, match="2"):
        main([*words, "--max-load", "1.25"])
    assert "tower 1 of method contiguous costs 1.400 times the mean, 12.0% too much" in capsys.readouterr().err
    main(words)
    assert TowerPlan.load("towers.yaml").record["costs"] == [3, 7]


@pytest.mark.parametrize("name", ["report.html", "report.png"])
def test_a_report_is_drawn(folder: Path, name: str) -> None:
    main(["partition", *BASE, "--output", "towers.yaml", "--report", name])
    told = (folder / name).read_bytes()
    if name.endswith("png"):
        assert told.startswith(b"\x89PNG")
        return
    page = told.decode()
    for words in (
        "6 features in 2 towers",
        '<td class="left">a, b, c</td>',
        "Strongest pairs",
        '<td class="left">a and b</td>',
        "Method: coherent",
    ):
        assert words in page
    assert page.count("data:image/svg+xml;base64,") == 3
    assert "like ones near each other; towers were made of these points" in page
    main(["partition", *BASE, "--method", "diverse", "--dims", "3", "--output", "d.yaml", "--report", "d.html"])
    assert (
        "like ones near each other; placed for this picture, towers were made otherwise" in Path("d.html").read_text()
    )


def test_a_feature_is_pinned_to_one_tower(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["partition", *BASE, "--output", "new.yaml", "--pin", "a=0", "--pin", "b=0", "--pin", "a=1"])
    assert "--pin a=1: it is pinned to tower 0 too; give one" in capsys.readouterr().err
    assert not Path("new.yaml").exists()


@pytest.mark.parametrize("name", ["report.html", "report.png"])
def test_a_report_of_names_with_the_signs_of_formulas_is_drawn(folder: Path, name: str) -> None:
    names = ["$_^$", "a$b$", "c_$", "d"]
    affinity = Affinity(features=names, matrix=np.full((4, 4), 0.5), kind="$^$", num_samples=1)
    affinity.save("signs.npz")
    main(["partition", "--affinity", "signs.npz", "--towers", "2", "--output", "towers.yaml", "--report", name])
    assert sorted(TowerPlan.load("towers.yaml").feature_names) == sorted(names) and (folder / name).exists()


def test_towers_are_told_in_full_whatever_their_names(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["[/x]", "[red]y", ":smile:", "z[b]"]
    affinity = Affinity(
        features=names,
        matrix=np.full((4, 4), 0.5),
        kind="cosine",
        num_samples=1,
        costs={kind: [123456789.0] * 4 for kind in ("lookups", "memory", "outputs")},
    )
    affinity.save("signs.npz")
    main(["partition", "--affinity", "signs.npz", "--towers", "2", "--output", "towers.yaml"])
    told = capsys.readouterr().out
    assert told.count("246,913,578") == 6 and "…" not in told
    # A narrow terminal folds names, but loses none of their signs.
    words = "".join(character for character in told if character not in "│ \n")
    assert all(name in words for name in names)


def test_no_name_is_cut_off_at_the_edge_of_a_picture(folder: Path) -> None:
    names = [*"abcdefg", "d" * 60]
    Affinity(features=names, matrix=np.full((8, 8), 0.5), kind="cosine", num_samples=1).save("long.npz")
    main(["partition", "--affinity", "long.npz", "--towers", "2", "--output", "towers.yaml", "--report", "long.png"])
    picture = imread("long.png")[..., :3]
    for edge in (picture[0], picture[-1], picture[:, 0], picture[:, -1]):
        assert (edge == 1).all()


def test_a_tower_of_one_feature_has_no_mean_affinity(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["partition", "--affinity", "affinity.npz", "--towers", "6", "--output", "towers.yaml"])
    told = capsys.readouterr().out
    assert "no two features share a tower; mean affinity of any two 0.420" in told and "0.000" not in told


def test_no_plan_is_left_where_the_report_fails(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("dmt.commands.partition.draw", fail)
    with pytest.raises(SystemExit, match="2"):
        main(["partition", *BASE, "--output", "towers.yaml", "--report", "report.png"])
    assert not (folder / "towers.yaml").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--affinity none.npz", "affinity none.npz: no such file"),
        ("--towers 7", "towers=7: 6 features fill between 1 and 6 towers"),
        ("--output old.yaml", "--output old.yaml: it exists; give another name"),
        ("--output none/new.yaml", "--output none/new.yaml: there is no folder none; make it"),
        ("--costs none.yaml", "--costs none.yaml: .* give a YAML file"),
        ("--costs old.yaml", "--costs old.yaml: give numbers of at least 0 by name"),
        ("--costs empty.yaml", "--costs empty.yaml: give numbers of at least 0 by name"),
        ("--groups empty.yaml", "--groups empty.yaml: give a list of lists of features"),
        ("--groups hollow.yaml", "--groups hollow.yaml: give a list of lists of features"),
        ("--method greedy", "--method greedy: it deals features out by what they cost; give --balance KIND or --costs"),
        ("--groups old.yaml", "--groups old.yaml: give a list of lists of features"),
        ("--costs binary", "--costs binary: .* give a YAML file"),
        ("--costs dates.yaml", "--costs dates.yaml: .* give a YAML file"),
        ("--costs true.yaml", "--costs true.yaml: give numbers of at least 0 by name"),
        ("--costs infinite.yaml", "--costs infinite.yaml: give numbers of at least 0 by name"),
        ("--costs huge.yaml", "--costs huge.yaml: give numbers of at least 0 by name"),
        ("--groups binary", "--groups binary: .* give a YAML file"),
        ("--pin a", "--pin a: write NAME=TOWER"),
        ("--pin a=²", "--pin a=²: write NAME=TOWER"),
        ("--apart a", "--apart a: write two names"),
        ("--method best", "--method: invalid choice: 'best'"),
        ("--method auto", "--method auto: it trains a model with towers; give its configuration"),
        ("--report new.txt", "--report new.txt: give a name that ends in .html"),
        ("--report old.html", "--report old.html: it exists"),
        ("--report none/new.html", "--report none/new.html: there is no folder none"),
        ("--balance rows", "--balance rows: the affinity has no such costs; it knows lookups, memory"),
        ("--balance memory --costs old.yaml", "--balance memory: --costs old.yaml says it too"),
        (
            "--balance memory",
            "--max-load 1.25: feature 'f' alone costs 1.50 times the mean .*; cut .* into 2",
        ),
        ("--save-affinity new.npz", "--save-affinity new.npz: nothing is measured; give --checkpoint"),
        ("--probe cosine", "--probe cosine: nothing is measured; give --checkpoint"),
        ("--batches 3", "--batches 3: nothing is measured; give --checkpoint"),
        ("--config c.yaml", "--config c.yaml: nothing is measured or trained; give --checkpoint or --method auto"),
        ("--steps 5", "--steps 5: nothing is trained; give --method auto"),
        ("--dims 4 --method spectral", "--dims 4: spectral places no points; give --method coherent, diverse or auto"),
        ("--dims 2 --method strided", "--dims 2: strided places no points"),
        ("--dims 0", "--dims 0: give"),
        ("--steps 0 --method auto --config c.yaml", "--steps 0: give at least 1"),
        ("--output new.html --report ./new.html", "--report new.html: --output is the same file; give another name"),
        ("--checkpoint x --save-affinity new.yaml", "--save-affinity new.yaml: --output is the same file"),
        ("--checkpoint x --towers 0", "towers=0: give a whole number"),
        ("--pin a=2", "--pin a=2: give a tower from 0 to 1"),
        ("--checkpoint none.ckpt", "--checkpoint: not allowed with argument --affinity"),
    ],
)
def test_wrong_input_is_named(folder: Path, words: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("old.yaml", "old.html"):
        (folder / name).write_text("towers")
    (folder / "binary").write_bytes(b"\xff\xfe\x00abc")
    (folder / "empty.yaml").write_text("")
    (folder / "hollow.yaml").write_text("[[]]")
    for name, cost in {"dates": "2024-13-45", "true": "true", "infinite": ".inf", "huge": "9" * 400}.items():
        (folder / f"{name}.yaml").write_text(f"{{a: {cost}, b: 1}}")
    given = dict(zip(words.split()[::2], words.split()[1::2], strict=True))
    options = {"--affinity": "affinity.npz", "--towers": "2", "--output": "new.yaml"} | given
    if words.startswith("--checkpoint x"):
        del options["--affinity"]
    with pytest.raises(SystemExit, match="2"):
        main(["partition", *(word for option in options.items() for word in option)])
    assert re.search(told, capsys.readouterr().err)
    assert (folder / "old.yaml").read_text() == "towers" and not (folder / "new.yaml").exists()
