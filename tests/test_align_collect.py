"""Runs of a real model as a table: the same pages as from their folders, and what is committed."""

import csv
import gzip
import hashlib
import json
import shutil
from pathlib import Path

import pytest
from probes import assert_refused

from experiments.align import at_equal_kl, collect, plan, show, stored
from experiments.record import run_table
from experiments.record.run_table import MANIFEST, TABLE
from tests.align_folders import rows_in, write

DATA = Path(__file__).parents[1] / "results" / "alignment" / "data"


@pytest.fixture
def raw(tmp_path):
    """Folders of nine runs."""
    return rows_in(tmp_path / "raw")


@pytest.fixture
def table(raw, tmp_path):
    assert collect.main(["--runs", *map(str, raw), "--out", str(tmp_path / "table")]) == 0
    return tmp_path / "table" / TABLE


def files_of(program, runs, out):
    """Name -> content of what a program writes."""
    assert program.main(["--runs", *map(str, runs), "--out", str(out)]) == 0
    return {file.name: file.read_bytes() for file in out.iterdir()}


@pytest.mark.parametrize("program", [show, at_equal_kl])
def test_a_table_gives_the_page_of_its_folders_to_the_byte(program, raw, table, tmp_path):
    from_folders = files_of(program, sorted(raw), tmp_path / "a")
    assert from_folders == files_of(program, [table], tmp_path / "b")
    assert len(from_folders) == 2


def test_runs_of_a_table_are_chosen_by_their_names(raw, table, tmp_path):
    first = [folder for folder in sorted(raw) if folder.name.endswith("-1")]
    from_folders = files_of(show, first, tmp_path / "a")
    assert from_folders == files_of(show, [table.parent / "*-1"], tmp_path / "b")
    named = [table.parent / folder.name for folder in first]
    assert from_folders == files_of(show, named, tmp_path / "c")
    mixed = [named[0], *first[1:]]
    assert from_folders == files_of(show, mixed, tmp_path / "d")


def test_a_manifest_names_the_raw_runs_and_their_commands(raw, table):
    with gzip.open(table, "rt") as file:
        lines = {line["run"]: line for line in map(json.loads, file)}
    with (table.parent / MANIFEST).open() as file:
        manifest = {line["run"]: line for line in csv.DictReader(file)}
    assert list(lines) == list(manifest) == sorted(folder.name for folder in raw)
    for folder in raw:
        line, content = lines[folder.name], (folder / "metrics.jsonl").read_bytes()
        checksum = hashlib.sha256(content).hexdigest()
        assert checksum == line["sha256"] == manifest[folder.name]["sha256"]
        assert line["config"] == json.loads((folder / "config.json").read_bytes())
        assert all("reward" in at and "sampled_reward" not in at for at in line["metrics"])
    command = manifest["ppo-2"]["command"]
    assert command.startswith("python -m experiments.align --method ppo --world bandit --seed 2 ")
    assert command.endswith(" --kl-coefficient 0.05")  # in bandits it is 1


def test_runs_join_a_table_and_replace_those_of_their_name(raw, table, tmp_path):
    before = table.read_bytes()
    kept = {file: file.read_bytes() for folder in raw for file in folder.iterdir()}
    shutil.rmtree(raw.pop())
    for _ in range(2):
        assert collect.main(["--runs", *map(str, raw), "--out", str(table.parent)]) == 0
        assert table.read_bytes() == before
    assert all(file.read_bytes() == kept[file] for folder in raw for file in folder.iterdir())
    again = write(tmp_path / "again" / "ppo-0", "ppo", 0, [0, 7], [0, 1])
    assert collect.main(["--runs", str(again), "--out", str(table.parent)]) == 0
    page = files_of(show, [table.parent / "ppo-0"], tmp_path / "out")[show.TABLES].decode()
    assert "| ppo | 1 | 7.00 |" in page
    with gzip.open(table) as file:
        assert len(file.readlines()) == 9


def test_what_cannot_be_collected_is_refused_and_nothing_is_written(raw, tmp_path, capsys):
    out = tmp_path / "out"

    def refused(message, *runs, into=out):
        args = ["--runs", *map(str, runs), "--out", str(into)]
        assert_refused(collect.main, args, message, capsys)

    open_ = write(tmp_path / "open", "ppo", 5, [0, 1], [0, 1])
    (open_ / "summary.json").unlink()
    twin = write(tmp_path / "twin" / raw[0].name, "ppo", 5, [0, 1], [0, 1])
    refused("it is not finished", raw[0], open_)
    refused(f"two folders are called {twin.name}", raw[0], twin)
    elsewhere = write(tmp_path / "elsewhere", "ppo", 5, [0, 1], [0, 1], world="moon")
    refused("no run of experiments.align", tmp_path)
    refused("elsewhere: its config.json is not that of a run: KeyError('moon')", elsewhere)
    held = {file: file.read_bytes() for file in raw[1].iterdir()}
    refused("holds a run; choose another folder", raw[0], into=raw[1])
    assert {file: file.read_bytes() for file in raw[1].iterdir()} == held
    assert not out.exists()


DAMAGED = {
    "cut off": (lambda content: content[:-20], ""),
    "not packed": (lambda content: b"{}", "Not a gzipped file"),
    "not JSON": (lambda content: gzip.compress(gzip.decompress(content) + b"{"), "line 10 is"),
    "of another program": (
        lambda content: gzip.compress(
            gzip.decompress(content).replace(b'"answers": [{', b'"a": [{')
        ),
        "line 1 is damaged",
    ),
    "without settings": (
        lambda content: gzip.compress(gzip.decompress(content).replace(b'"settings"', b'"s"')),
        "grpo-0: no run of experiments.align",
    ),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGED.values(), ids=DAMAGED)
@pytest.mark.parametrize("program", [show, at_equal_kl])
def test_a_damaged_table_is_refused(program, damage, message, table, tmp_path, capsys):
    table.write_bytes(damage(table.read_bytes()))
    args = ["--runs", str(table), "--out", str(tmp_path / "out")]
    assert_refused(program.main, args, message, capsys)
    assert not (tmp_path / "out").exists()


def test_a_name_that_a_table_does_not_have_is_refused(table, tmp_path, capsys):
    for name, reason in (("dpo-*", "neither"), ("ppo", "neither"), ("p" * 400, "no run")):
        path = table.parent / name
        args = ["--runs", str(path), "--out", str(tmp_path / "out")]
        assert_refused(show.main, args, f"--runs {path}: {reason}", capsys)


def test_the_folder_of_a_table_is_the_table(table):
    assert stored.find([str(table.parent)]) == stored.find([str(table)])


# What is committed.


def committed_lines(family):
    with gzip.open(DATA / family / TABLE, "rt") as file:
        return [json.loads(line) for line in file]


@pytest.mark.parametrize("family", ["smollm2", "hh"])
def test_a_manifest_is_that_of_its_table(family):
    written = (DATA / family / MANIFEST).read_bytes()
    assert written == run_table.manifest(committed_lines(family), collect._command)


@pytest.mark.parametrize("family", ["smollm2", "hh"])
def test_a_command_makes_the_run_that_it_names(family):
    for line in committed_lines(family):
        settings = line["config"]["settings"]
        args = collect._command(line).split()[3:]
        made = json.loads(json.dumps(plan.read_plan(args).settings()))
        assert settings.items() <= made.items(), line["run"]


AGAINST = {"smollm2": ["ppo", "grpo kl=published"], "hh": ["ppo", "grpo"]}


@pytest.mark.parametrize("family", AGAINST)
def test_tables_give_the_pages_that_are_committed(family, tmp_path):
    args = ["--runs", str(DATA / family / TABLE), "--row", "rgpo", "--against", *AGAINST[family]]
    assert at_equal_kl.main([*args, "--out", str(tmp_path)]) == 0
    committed = DATA.parent / family / at_equal_kl.PAGE
    assert (tmp_path / at_equal_kl.PAGE).read_bytes() == committed.read_bytes()


def test_the_answers_that_are_committed_are_those_of_the_table(tmp_path):
    files = files_of(show, [DATA / "smollm2" / "*-1"], tmp_path / "out")
    assert (DATA.parent / "smollm2" / show.TABLES).read_bytes().endswith(files[show.TABLES])
