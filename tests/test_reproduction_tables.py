"""Tables of runs, from which the page is made: the same bytes, and damage is refused."""

import csv
import gzip
import hashlib
import json
import os
import shutil
import time

import pytest

from experiments.record import run_table
from experiments.reproduction import __main__ as program
from experiments.reproduction import figures, tables
from tests import run_folders
from tests.reproduction_folders import CHEETAH, HOPPER, WALKER, candidate, write


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data"))


@pytest.fixture
def raw(data, tmp_path):
    """Run folders of rows, of a search and of a study, one of them in two programs."""
    folder = tmp_path / "raw"
    shutil.copytree(data, folder)
    mujoco = folder / "mujoco"
    run_folders.write(mujoco / "ppo" / "more", "ppo", WALKER, seed=5, final=1100, spread=10)
    run_folders.write(mujoco / "sharpness" / "k", "rgpo", CHEETAH, sharpness=2.0, normalize=False)
    settings = {"learning_rate": 3e-4, "num_epochs": 4, "clip": 0.2}
    for task in (CHEETAH, HOPPER):
        candidate(mujoco / "search", "draws", "ppo", task, 1000.1, **settings)
    return folder


def collect(raw, data):
    assert program.main(["--collect", str(raw), "--data", str(data)]) == 0


def test_a_table_gives_the_page_of_its_runs_to_the_byte(raw, tmp_path):
    collect(raw, tmp_path / "data")
    pages = []
    for data in (raw, tmp_path / "data"):
        out = tmp_path / "page-of" / data.name
        assert program.main(["--data", str(data), "--out", str(out)]) == 0
        pages.append({f.relative_to(out): f.read_bytes() for f in out.rglob("*") if f.is_file()})
    assert pages[0] == pages[1]
    assert len(pages[0]) == 7  # the page, returns, training on four tasks, and k


def test_a_table_is_thinned_and_its_manifest_names_the_raw_runs(raw, tmp_path):
    collect(raw, tmp_path)
    family = tmp_path / "mujoco"
    with gzip.open(family / run_table.TABLE, "rt") as file:
        lines = {line["run"]: line for line in map(json.loads, file)}
    with (family / run_table.MANIFEST).open() as file:
        manifest = {line["run"]: line for line in csv.DictReader(file)}
    assert list(lines) == list(manifest)
    for name, line in lines.items():
        content = (raw / "mujoco" / name / "metrics.jsonl").read_bytes()
        assert hashlib.sha256(content).hexdigest() == line["sha256"] == manifest[name]["sha256"]
        original = [json.loads(text) for text in content.splitlines()]
        if name.startswith("search/"):
            original = original[-1:]
            assert line["metrics"][0].keys() == {
                *("env_steps", "updates", "wall_seconds"),
                *("eval_return", "eval_return_stochastic"),
            }
        for ours, theirs in zip(line["metrics"], original, strict=True):
            assert ours.items() <= theirs.items() and "weight_max" not in ours
    assert manifest["ppo/more"]["command"] == (
        "python -m experiments.sweep --file results/mujoco/ppo.yaml --agents ppo "
        f"--envs {WALKER} --seed 5 --num-seeds 5"
    )


def test_tables_keep_what_the_figures_draw():
    assert all(map(tables._is_read, figures._SHOWN))


def test_the_same_runs_make_the_same_table(raw, tmp_path, monkeypatch):
    collect(raw, tmp_path / "a")
    monkeypatch.setattr(time, "time", lambda: 2e9)
    for folder in raw.rglob("*"):
        os.utime(folder, (1, 1))
    collect(raw, tmp_path / "b")
    for name in (run_table.TABLE, run_table.MANIFEST):
        a, b = ((tmp_path / top / "mujoco" / name).read_bytes() for top in "ab")
        assert a == b


def test_runs_join_a_table_and_replace_those_of_their_name(raw, tmp_path):
    data, more = tmp_path / "data", tmp_path / "more"
    collect(raw, data)
    before = tables.read(data / "mujoco", "ppo")
    run_folders.write(more / "mujoco" / "ppo" / "more", "ppo", WALKER, seed=5, final=7)
    run_folders.write(more / "mujoco" / "trpo" / "new", "trpo", WALKER, final=8)
    (more / "mujoco" / "trpo" / "waiting").mkdir()
    config = (more / "mujoco" / "trpo" / "new" / "config.json").read_text()
    (more / "mujoco" / "trpo" / "waiting" / "config.json").write_text(config)

    def finals(key):
        found = tables.read(data / "mujoco", key)
        return {run.name: run.metrics["eval_return"][-1].mean() for run in found.runs}

    shutil.copytree(more / "mujoco" / "ppo", data / "mujoco" / "ppo")  # beside the table
    beside = finals("ppo")
    shutil.rmtree(data / "mujoco" / "ppo")
    collect(more, data)
    assert finals("ppo") == beside and beside["more"] == pytest.approx(7)
    assert beside.keys() == {run.name for run in before.runs}
    assert finals("trpo") == {"new": pytest.approx(8)}
    assert tables.read(data / "mujoco", "awr") is None


DAMAGED_TABLES = {
    "cut off": (lambda table: table[:-20], ""),
    "another body": (lambda table: table[:40] + b"?" * 40 + table[80:], "Error -3"),
    "not packed": (lambda table: b"{}", "Not a gzipped file"),
    "not JSON": (lambda table: gzip.compress(b"{}\n{"), "line 1 is damaged"),
    "not a run": (
        lambda table: gzip.compress(gzip.decompress(table).replace(b'"total_steps"', b'"steps"')),
        "its config.json is not that of a run",
    ),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGED_TABLES.values(), ids=DAMAGED_TABLES)
def test_a_damaged_table_is_refused(damage, message, raw, tmp_path, capsys):
    collect(raw, tmp_path / "data")
    file = tmp_path / "data" / "mujoco" / run_table.TABLE
    file.write_bytes(damage(file.read_bytes()))
    for args in (["--out", str(tmp_path / "page")], ["--collect", str(raw)]):
        if "--collect" in args and message.startswith("its"):
            continue  # is replaced
        with pytest.raises(SystemExit) as refused:
            program.main(["--data", str(tmp_path / "data"), *args])
        assert refused.value.code == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and str(file) in error and message in error


def test_a_damaged_run_is_not_collected(raw, tmp_path, capsys):
    folder = raw / "mujoco" / "ppo" / "more"
    (folder / "metrics.jsonl").write_text("?\n")
    with pytest.raises(SystemExit) as refused:
        program.main(["--collect", str(raw), "--data", str(tmp_path / "data")])
    assert refused.value.code == 2 and not (tmp_path / "data").exists()
    assert f"{folder}: line 1" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        program.main(["--collect", str(tmp_path / "nothing"), "--data", str(tmp_path / "data")])
    assert "--collect" in capsys.readouterr().err
