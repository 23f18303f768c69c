"""The page of the paper's table: what it shows, of damaged and unfinished runs too."""

import itertools
import json
import re
import shutil

import pytest

from experiments.report import paper
from experiments.reproduction import __main__ as program
from tests import run_folders
from tests.reproduction_folders import ANT, CHEETAH, WALKER, spiking, write


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data"))


@pytest.fixture
def nothing_is_drawn(monkeypatch):
    """Of curves, in pages whose words are looked at."""
    monkeypatch.setattr(paper, "draw", lambda charts, **how: {".png": b"\x89PNG"})


DAMAGED = {
    "metrics cut off": ("metrics.jsonl", lambda text: text[:-300], "is finished at 10,000 steps"),
    "metrics empty": (
        "metrics.jsonl",
        lambda text: "",
        "it is finished, and its metrics.jsonl is empty",
    ),
    "config cut off": ("config.json", lambda text: text[:-9], "config.json: "),
    "summary cut off": ("summary.json", lambda text: text[:-9], "summary.json: "),
    "seconds": (
        "summary.json",
        lambda text: text.replace("{", '{"run_seconds": "x", '),
        "its summary.json is not that of a run",
    ),
}


@pytest.mark.parametrize(("name", "damage", "message"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_run_is_refused(name, damage, message, data, tmp_path, capsys):
    top, out = tmp_path / "data", tmp_path / "page"
    shutil.copytree(data, top)
    file = top / "mujoco" / "ppo" / WALKER.replace("/", "-") / name
    file.write_text(damage(file.read_text()))
    with pytest.raises(SystemExit) as refused:
        program.main(["--data", str(top), "--out", str(out)])
    assert refused.value.code == 2 and not out.exists()
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and str(file.parent) in error and message in error


@pytest.mark.parametrize("folder", ["mujoco", "mujoco/sharpness"])
def test_a_folder_without_runs_is_refused(folder, data, tmp_path, capsys, nothing_is_drawn):
    if folder != "mujoco":
        shutil.copytree(data, tmp_path / "data")
    (tmp_path / "data" / folder).mkdir(parents=True)
    with pytest.raises(SystemExit) as refused:
        program.main(["--data", str(tmp_path / "data"), "--out", str(tmp_path / "page")])
    error = capsys.readouterr().err
    assert refused.value.code == 2 and f"{folder}: expected runs" in error


def test_a_reading_that_cannot_be_read_is_refused(data, tmp_path, capsys, nothing_is_drawn):
    shutil.copytree(data, tmp_path / "data")
    (tmp_path / "data" / "mujoco" / "reading.md").write_bytes(b"\xff")
    with pytest.raises(SystemExit) as refused:
        program.main(["--data", str(tmp_path / "data"), "--out", str(tmp_path / "page")])
    assert refused.value.code == 2 and "reading.md: " in capsys.readouterr().err


def test_the_page_has_claims_table_and_figures(data, tmp_path, capsys):
    out = tmp_path / "page"
    (data / "mujoco" / "reading.md").write_text("What it means.\n")
    assert program.main(["--data", str(data), "--out", str(out)]) == 0
    page = (out / "README.md").read_text()
    assert "\nWhat it means.\n" in page
    assert "**held**: +90 % [" in page
    assert "| Walker2d-v4 | RGPO, k = 4 | 5 | 1900 [" in page
    assert "| 1.00 [1.00, 1.00] |" in page  # of the improvement over PPO
    for name in re.findall(r"\]\((figures/[^)]+)\)", page):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    assert len(re.findall(r"\]\(figures/", page)) == 5  # returns, and training on four tasks
    with pytest.raises(SystemExit) as refused:
        program.main(["--data", str(data), "--out", str(out)])
    assert refused.value.code == 2
    assert "holds README.md" in capsys.readouterr().err


def test_ablations_relatives_and_k_have_tables_of_their_own(data, tmp_path):
    top, out = tmp_path / "data", tmp_path / "page"
    shutil.copytree(data, top)
    (top / "reading.md").write_text("What it means.\n")
    run_folders.write(top / "mujoco" / "sapo" / "a", "sapo", WALKER, final=1200, spread=10)
    for row in ("rgpo_calling_back", "ppo_not_calling_back"):
        gate = f"experiments.reproduction.ablations:{row}"
        folder = top / "mujoco" / row / "a"
        run_folders.write(folder, row.split("_")[0], ANT, gate=gate, final=700, spread=10)
    for k, on in itertools.product((16.0, 2.0), (False, True)):
        folder = top / "mujoco" / "sharpness" / f"{k}-{on}"
        own = {"sharpness": k, "normalize": on}
        run_folders.write(folder, "rgpo", CHEETAH, final=1000 * k + on, spread=10, **own)
    assert program.main(["--data", str(top), "--out", str(out)]) == 0
    page = (out / "README.md").read_text()
    assert page.index("What it means.") < page.index("## Claims")
    table, _, rest = page.partition("### Ablation: the pull-back")
    ablations, _, rest = rest.partition("### Further rows: early stopping")
    beside, _, study = rest.partition("## RGPO's k")
    assert re.findall(r"^\| (\S+) \| ([^|]+) \| 5 \| (\d+)\b", ablations, re.MULTILINE) == [
        ("Ant-v4", "RGPO, k = 4", "500"),
        ("Ant-v4", "PPO", "1000"),
        ("Ant-v4", "RGPO, k = 4, with pull-back", "700"),
        ("Ant-v4", "PPO, without pull-back", "700"),
    ]
    assert "SAPO" not in table + ablations and "| Walker2d-v4 | SAPO | 5 | 1200 [" in beside
    compared = ["RGPO, k = 4", "PPO", "SAPO"]  # on its task alone
    assert re.findall(r"^\| (\S+) \| ([^|]+) \| 5 ", beside, re.MULTILINE) == [
        ("Walker2d-v4", name) for name in compared
    ]
    assert re.findall(r"sharpness=(\d+) normalize=(\w+) \| 5 \| (\d+) ", study) == [
        ("2", "False", "2000"),
        ("2", "True", "2001"),
        ("16", "False", "16000"),
        ("16", "True", "16001"),
    ]
    assert "](figures/mujoco-sharpness.png)" in study
    for name in re.findall(r"\]\((figures/[^)]+)\)", page):
        assert (out / name).read_bytes().startswith(b"\x89PNG")


def test_a_run_that_goes_on_has_no_score_yet(data, tmp_path, nothing_is_drawn):
    shutil.copytree(data, tmp_path / "data")
    folder = tmp_path / "data" / "mujoco" / "rgpo_k4" / WALKER.replace("/", "-")
    shutil.rmtree(folder)
    run_folders.write(folder, "rgpo", WALKER, done=0.5, sharpness=4.0)
    out = tmp_path / "page"
    assert program.main(["--data", str(tmp_path / "data"), "--out", str(out)]) == 0
    page = (out / "README.md").read_text()
    assert "| Walker2d-v4 | RGPO, k = 4 (unfinished at 50%) | 5 |  |  |  |" in page
    assert "| Walker2d-v4 | +81 % | **cannot be told**: unfinished at 50% |" in page


def test_what_was_not_logged_is_left_empty(tmp_path):
    """Runs of one line, without evaluations, of one seed, broken: a page, and no traceback."""
    top = tmp_path / "data" / "mujoco"
    run_folders.write(top / "ppo" / "a", "ppo", WALKER, num_seeds=1)
    run_folders.write(top / "rgpo_k4" / "a", "rgpo", WALKER, done=0.0, sharpness=4.0)
    names = [*spiking(0.0), "approx_kl", "approx_kl_max", "first_ratio_deviation", "eval_return"]
    folder = run_folders.write(top / "rgpo" / "a", "rgpo", WALKER)
    without = [
        {name: value for name, value in json.loads(line).items() if name not in names}
        for line in (folder / "metrics.jsonl").read_text().splitlines()
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in without))
    config = json.loads((folder / "config.json").read_text())
    del config["versions"], config["git_commit"]
    (folder / "config.json").write_text(json.dumps(config))
    broken = {"broken": [{"seed": 0, "update": 3}]}
    run_folders.write(top / "rgpo_k4" / "b", "rgpo", ANT, sharpness=4.0, summary=broken)
    run_folders.write(top / "ppo" / "b", "ppo", ANT, num_seeds=1)
    out = tmp_path / "page"
    assert program.main(["--data", str(tmp_path / "data"), "--out", str(out)]) == 0
    page = (out / "README.md").read_text()
    assert "nan [" not in page and "[nan" not in page
    assert "**cannot be told**: broken at 100%" in page
    assert "b broke: parameters became NaN or infinite (seed 0 at update 3)." in page
    assert "**cannot be told**: never evaluated" in page


def test_no_data_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as refused:
        program.main(["--data", str(tmp_path / "nothing")])
    assert refused.value.code == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "--data" in message and "mujoco" in message
