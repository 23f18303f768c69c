"""What the theory bench writes and refuses."""

import csv
import importlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from experiments.record import files
from experiments.theory import __main__ as program
from experiments.theory import catalogue, drawing, family, improvement, keeping
from experiments.theory.options import CONTROL, STUDIES, Options
from experiments.theory.study import Claim, Figure, Line, Panel, Study, say
from tests import browser

ROOT = Path(__file__).parents[1]


def test_values_as_people_read_them():
    said = {
        1234567.0: "1.23e6",
        12345.0: "12,300",
        0.000012: "1.2e-5",
        -0.5: "-0.5",
        math.inf: "∞",
        7: "7",
        54321: "54,321",
        "x": "x",
    }
    assert {value: say(value).replace("\N{MINUS SIGN}", "-") for value in said} == said
    assert say(math.nan) == say(None) == "\N{EN DASH}"
    assert (say(True), say(False)) == ("yes", "no")


def test_a_verdict_is_a_truth_value():
    with pytest.raises(TypeError, match="expected True, False or None"):
        Claim("1 < 2", "ours", np.bool_(True), "", ())


def test_a_figure_in_the_page_takes_the_text_colour_and_its_own_names():
    x = np.array([1.0, 2.0])
    panel = Panel("p", "x", "y", [Line("a", x, x, None), Line("b", x, -x, 1)])
    picture = drawing.svg(Figure("some", "", [panel]))
    assert picture.startswith("<svg viewBox=")
    assert "currentColor" in picture
    names = {part.split('"')[0] for part in picture.split(' id="')[1:]}
    assert names
    assert all(name.startswith("some-") for name in names)
    used = {part.split('"')[0] for part in picture.split('href="#')[1:]}
    used |= {part.split(")")[0] for part in picture.split("url(#")[1:]}
    assert used <= names
    assert drawing.png(Figure("some", "", [panel])).startswith(b"\x89PNG")


SMALL = ("--studies", "family", "improvement", "--mdps", "8")


@pytest.fixture(scope="module")
def few_gates():
    """Those that claims name; of all others tests of their facts are enough."""
    names = (*map(catalogue.rgpo_name, catalogue.SHARPNESSES), "importance", "reinforce", "ppo")
    with pytest.MonkeyPatch.context() as patch:
        chosen = {name: catalogue.GATES[name] for name in (*names, "ppo dual-clip")}
        patch.setattr(catalogue, "GATES", chosen)
        yield


@pytest.fixture(scope="module")
def pictures_are_drawn_once():
    """Of figures as files the first is drawn, and is that of the others; the page has them all."""
    png, drawn = drawing.png, []

    def first(figure):
        if not drawn:
            drawn.append(png(figure))
        return drawn[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "png", first)
        yield


@pytest.fixture(scope="module")
def written(few_gates, pictures_are_drawn_once, tmp_path_factory):
    out = tmp_path_factory.mktemp("theory") / "out"
    assert program.main(["--out", str(out), *SMALL]) == 0
    return out


def test_every_figure_and_table_is_a_file(written):
    names = {path.name for path in written.iterdir()}
    assert {"index.html", "claims.json", "theory.log", "family.png", "improvement.csv"} <= names
    rows = list(csv.reader((written / "family.csv").read_text().splitlines()))
    assert [len(row) for row in rows] == [8] * (1 + len(catalogue.GATES))
    assert rows[1][0] == "rgpo k=1"
    assert float(rows[1][1]) == 0.25
    lines = (written / "improvement_curves.csv").read_text().splitlines()
    curves = list(csv.DictReader(lines))
    assert {row["panel"] for row in curves} >= {"looseness", "certified improvements"}


def test_claims_have_what_others_read(written):
    claims = json.loads((written / "claims.json").read_text())
    assert {claim["study"] for claim in claims} == {"family", "improvement"}
    for claim in claims:
        assert {"claim", "holds", "evidence", "figures", "source"} <= set(claim)
        assert claim["holds"] in (True, False, None)
        assert claim["source"] in ("paper", "summary", "ours")
        assert all((written / f"{figure}.png").exists() for figure in claim["figures"])
    refuted = [claim["claim"][:6] for claim in claims if claim["holds"] is False]
    assert refuted == ["Eq. 40", "Eq. 38"]


@pytest.mark.skipif(browser.find() is None, reason="no Chromium here")
def test_the_page_opens_by_itself(written, tmp_path):
    page = browser.Browser(tmp_path)
    try:
        for width, dark in ((1200, False), (390, True)):
            page.open(written / "index.html", width=width, dark=dark)
            assert page.complaints == []
            assert [url for url in page.requests if not url.startswith("file:")] == []
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            drawn = "[...document.querySelectorAll('.figure svg')].map(s => s.clientWidth)"
            assert len(page.evaluate(drawn)) == 4
            assert min(page.evaluate(drawn)) > 300
            assert page.evaluate("document.querySelectorAll('.verdict.no').length") == 2
        ink = "getComputedStyle(document.querySelector('#figure-family svg text')).fill"
        page.scheme("light")
        light = page.evaluate(ink)
        page.scheme("dark")
        assert page.evaluate(ink) != light
    finally:
        page.close()


def test_nothing_is_replaced_without_being_asked(written, capsys):
    before = (written / "index.html").read_bytes()
    with pytest.raises(SystemExit) as refused:
        program.main(["--out", str(written), *SMALL])
    assert refused.value.code == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (written / "index.html").read_bytes() == before


def test_what_an_earlier_call_drew_goes_when_it_is_replaced(tmp_path):
    (tmp_path / "index.html").write_text("old")
    (tmp_path / "variance.png").write_text("old")
    (tmp_path / "mine.png").write_text("mine")
    arguments = ["--out", str(tmp_path), "--overwrite", "--studies", "improvement", "--mdps", "2"]
    assert program.main(arguments) == 0
    assert not (tmp_path / "variance.png").exists()
    assert (tmp_path / "mine.png").read_text() == "mine"
    assert (tmp_path / "improvement.png").exists()


BAD = [
    ("--studies", "varianz"),
    ("--studies",),
    ("--samples", "100"),
    ("--samples", "x"),
    ("--replicates", "1"),
    ("--mdps", "0"),
    ("--pairs", "1.5"),
    ("--seed", "-1"),
    ("--out", ""),
    ("--out", "a\0b"),
    ("--out", "/proc/nowhere"),
    ("--sample", "1"),
    ("more",),
]


@pytest.mark.parametrize("args", BAD, ids=" ".join)
def test_bad_input_is_one_line(args, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as refused:
        program.main(list(args))
    captured = capsys.readouterr()
    assert refused.value.code == 2
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_a_run_or_is_a_file_is_refused(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").touch()
    (tmp_path / "file").touch()
    for name, reason in (("run", "holds a run"), ("file", "is a file")):
        with pytest.raises(SystemExit) as refused:
            program.main(["--out", str(tmp_path / name), "--overwrite", *SMALL])
        assert refused.value.code == 2
        assert reason in capsys.readouterr().err


@pytest.mark.parametrize("when", ["at once", "later"])
def test_a_full_disk_is_said(when, tmp_path, capsys, monkeypatch):
    def refuse(folder, needed):
        raise OSError("no room")

    if when == "at once":
        monkeypatch.setattr(files, "require_space", refuse)
    else:  # the log is replaced by the device that is always full
        monkeypatch.setattr(program, "LOG", "full")
        (tmp_path / "full").symlink_to("/dev/full")
    with pytest.raises(SystemExit) as refused:
        program.main(["--out", str(tmp_path), "--studies", "improvement", "--mdps", "2"])
    assert refused.value.code == 2
    captured = capsys.readouterr()
    assert "cannot be written" in captured.err
    assert ("improvement" in captured.out) == (when == "later")
    assert not (tmp_path / "index.html").exists()


# Of many small steps, after each of which a signal is seen.
LONG = ("--studies", "improvement", "--mdps", "8000")


def test_an_interrupt_leaves_nothing_half_written(tmp_path):
    out = tmp_path / "out"
    process = subprocess.Popen(
        [*(sys.executable, "-m", "experiments.theory", "--out", str(out)), *LONG],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    deadline = time.monotonic() + 120
    while not (out / "theory.log").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(2.0)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert {path.name for path in out.iterdir()} == {".lock", "theory.log"}


def test_the_studies_have_modules():
    for name in STUDIES:
        assert (ROOT / "experiments" / "theory" / f"{name}.py").exists()


@pytest.mark.slow  # studies of which the suite has tests of their own
def test_every_study_is_kept_and_found_as_it_was(tmp_path):
    options = Options(samples=10_000, replicates=2, mdps=2, pairs=2)
    for name in CONTROL:
        study = importlib.import_module(f"experiments.theory.{name}").run(
            options, lambda share: None
        )
        keeping.keep(tmp_path, name, study, {"seed": 0})
        assert_same(keeping.find(tmp_path, name, {"seed": 0}), study)


def assert_same(found, study):
    """As the page and its files have them."""
    assert found.title == study.title and list(found.claims) == list(study.claims)
    for one, other in zip(found.tables, study.tables, strict=True):
        assert one.name == other.name
        assert program._csv(one.columns, one.rows) == program._csv(other.columns, other.rows)
    for one, other in zip(found.figures, study.figures, strict=True):
        numbers = [program._csv(*drawing.numbers(figure)) for figure in (one, other)]
        assert one.caption == other.caption and numbers[0] == numbers[1]


def test_a_bench_that_was_stopped_goes_on_after_the_studies_that_are_done(
    written, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "out"
    args = ["--out", str(out), "--studies", "improvement", "family", *SMALL[3:]]
    with monkeypatch.context() as patch:
        # Studies come in their own order: family before improvement.
        patch.setattr(improvement, "run", lambda *args: os.kill(os.getpid(), signal.SIGTERM))
        assert program.main(args) == 128 + signal.SIGTERM
    said = capsys.readouterr().out
    assert "what is done is kept; go on with" in said
    assert (out / ".studies" / "family.json").exists()
    with monkeypatch.context() as patch:
        patch.setattr(family, "run", lambda *args: 1 / 0)
        # Pictures are of numbers that are compared.
        patch.setattr(drawing, "png", lambda figure: b"")
        patch.setattr(drawing, "svg", lambda figure: "")
        assert program.main(args) == 0
    assert "family: " in (said := capsys.readouterr().out)
    assert "kept by an earlier call" in said
    assert not (out / ".studies").exists()
    for name in ("claims.json", *(path.name for path in written.glob("*.csv"))):
        assert (out / name).read_bytes() == (written / name).read_bytes()


def test_a_study_of_other_settings_is_made_anew(tmp_path):
    study = Study("t", ("text",), (Claim("1 < 2", "ours", True, ""),), (), ())
    keeping.keep(tmp_path, "cost", study, {"seed": 0})
    assert keeping.find(tmp_path, "cost", {"seed": 0}) == study
    assert keeping.find(tmp_path, "cost", {"seed": 1}) is None
    assert keeping.find(tmp_path, "bias", {"seed": 0}) is None
    (tmp_path / ".studies" / "cost.json").write_text('{"made_by": [], "study": {}}')
    assert keeping.find(tmp_path, "cost", {"seed": 0}) is None


class Bar:
    def __init__(self, disable):
        self.disable, self.shares = disable, []

    def update(self, task, completed):
        self.shares.append(completed)


def test_where_there_is_no_bar_lines_say_how_far_a_study_is(monkeypatch):
    now, said, checks = [0.0], [], []
    monkeypatch.setattr(program.time, "monotonic", lambda: now[0])
    bars = [Bar(disable) for disable in (True, False)]
    told, shown = (
        program._Progress("cost", bar, 0, said.append, lambda: checks.append(1), None)
        for bar in bars
    )
    # The first share may have been kept by an earlier call: by it no time is reckoned.
    shares = ((70.0, 0.5), (90.0, 0.55), (160.0, 0.6), (180.0, 0.65), (250.0, 0.75), (300.0, 1.0))
    for now[0], share in shares:
        told(share)
        shown(share)
    assert said == [
        "cost: 50%",
        "cost: 60%, about 6 min left",
        "cost: 75%, about 3 min left",
    ]
    assert len(checks) == 12
    assert bars[0].shares == bars[1].shares == [share for _, share in shares]


def test_a_part_is_kept_to_the_bit_and_found_by_its_settings_alone(tmp_path):
    arrays = {"a": np.array([[0.1, np.nan]]), "b": np.arange(3)}
    keeping.keep_part(tmp_path, "cost", "row.1", arrays, {"seed": 0})
    found = keeping.find_part(tmp_path, "cost", "row.1", {"seed": 0})
    for name, x in arrays.items():
        np.testing.assert_array_equal(found[name], x)
        assert found[name].dtype == x.dtype
    assert keeping.find_part(tmp_path, "cost", "row.1", {"seed": 1}) is None
    assert keeping.find_part(tmp_path, "cost", "row.2", {"seed": 0}) is None
    (tmp_path / keeping.FOLDER / "cost.row.1.json").write_text("{")
    assert keeping.find_part(tmp_path, "cost", "row.1", {"seed": 0}) is None
    keeping.forget(tmp_path)
    assert not (tmp_path / keeping.FOLDER).exists()
