"""Files that somebody else wrote, or a disk has damaged: a line, and never a traceback or a hang.

Inputs are generated: values of JSON files are replaced by others of every kind, bytes are flipped.
`-m slow` tries two hundred times as many.
"""

import contextlib
import copy
import io
import json
import math
import shutil
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from experiments.align import plan as align_plan
from experiments.cli import flags
from experiments.cli.flags import BadInput
from experiments.plan.reading import read_plan
from experiments.report import page, runs
from experiments.report.page import Report
from experiments.sweep import grid
from experiments.sweep.kinds import ALIGN, RUN
from experiments.training import trained
from rgpo_jax.checkpoint import Checkpoints

pytestmark = pytest.mark.usefixtures("programs_are_kept")
SECONDS = 20  # of one input; it takes a hundredth
TINY = [
    *("--agent", "ppo", "--env", "CartPole-v1", "--seed", "5", "--total-steps", "64"),
    *("--num-envs", "2", "--num-steps", "8", "--num-minibatches", "2", "--num-epochs", "1"),
    *("--hidden-sizes", "8", "--eval-episodes", "2", "--reset-pool-size", "2"),
]


def many(examples):
    """So many inputs in CI; the same test is slow with two hundred times as many."""
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )


SIZES = [pytest.param(1, id="ci"), pytest.param(200, id="long", marks=pytest.mark.slow)]

ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([10**9, 2**31, 2**63, 10**30, 10**400, -(10**400), 1e308, math.inf, math.nan]),
    st.sampled_from(["", "\0", "\ud800", "--help", "a:b", "os:system", "1e999", "x" * 10_000]),
    st.text(max_size=5),
    st.floats(),
)
VALUES = st.recursive(
    ODD,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


def paths(value, at=()):
    """Where there is something in a JSON value."""
    yield at
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from paths(inner, (*at, key))


@st.composite
def altered(draw, original):
    """A JSON value in which a few parts are others, or are gone."""
    value = copy.deepcopy(original)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.sampled_from(list(paths(value))))
        if not at:
            if draw(st.integers(0, 9)) == 0:
                value = draw(VALUES)
            continue
        place = value
        for key in at[:-1]:
            place = place[key]
        if draw(st.booleans()):
            place[at[-1]] = draw(VALUES)
        else:
            del place[at[-1]]
        if not isinstance(value, dict | list):
            break
    return value


def as_bytes(value):
    return json.dumps(value).encode()


@st.composite
def flipped(draw, original):
    """Bytes of which a few are others."""
    content = bytearray(original)
    for _ in range(draw(st.integers(1, 4))):
        content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    return bytes(content)


@pytest.fixture
def copied(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    return tmp_path / "run"


def in_time(function, *args):
    began = time.monotonic()
    try:
        return function(*args)
    finally:
        assert time.monotonic() - began < SECONDS


def assert_one_line(error):
    said = io.StringIO()
    with contextlib.redirect_stderr(said), pytest.raises(SystemExit):
        flags.refuse(error)
    assert said.getvalue().count("\n") == 1
    assert len(said.getvalue()) < 5000


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["config.json", "summary.json", "metrics.jsonl"])
def test_a_report_passes_over_what_is_no_run(name, size, copied):
    file = copied / name
    original = file.read_bytes()
    first = json.loads(original.splitlines()[0] if name == "metrics.jsonl" else original)
    rest = original.partition(b"\n")[2] if name == "metrics.jsonl" else b""

    def look():
        collection = runs.collect([str(copied)])
        assert collection.runs or collection.notes or collection.waiting
        if collection.cells:
            page.render(Report("title", collection, None), None)

    @many(30 * size)
    @given(st.one_of(altered(first).map(as_bytes), flipped(original)))
    @example(as_bytes({**first, "num_seeds": 10**9, "env_steps": 10**400}))
    @example(as_bytes({**first, "headline": {**first.get("headline", {}), "score": []}}))
    @example(as_bytes({**first, "settings": {**first.get("settings", {}), "backend": True}}))
    def tried(content):
        file.write_bytes(content + b"\n" + rest)
        in_time(look)

    tried()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("read", "kind"), [(read_plan, RUN), (align_plan.read_plan, ALIGN)])
def test_settings_are_read_or_refused(read, kind, size, tmp_path):
    original = kind.read_plan([]).settings()
    file = tmp_path / "config.json"

    @many(50 * size)
    @given(st.one_of(altered(original).map(as_bytes), flipped(as_bytes(original))))
    @example(b"[" * 100_000)
    @example(as_bytes({**original, "seed": 10**400}))
    @example(as_bytes({**original, "learning_rate": 10**400}))
    def tried(content):
        file.write_bytes(content)
        try:
            in_time(read, ["--config", str(file)])
        except BadInput as error:
            assert_one_line(error)

    tried()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", [RUN, ALIGN])
def test_sweep_files_are_read_or_refused(kind, size, tmp_path):
    subjects, places = kind.axes
    original = {
        subjects: ["rgpo", "ppo"],
        places: [kind.places.default],
        "learning_rate": [0.1, 0.2],
        "kl_coefficient" if kind is ALIGN else "entropy_coefficient": {"log_uniform": [0.1, 1]},
        "draws": 2,
        "draw_seed": 1,
    }
    file = tmp_path / "sweep.yaml"

    def expand():
        grid.expand((), (), [], str(file), "sweep", kind)

    @many(30 * size)
    @given(
        st.one_of(
            altered(original).map(lambda x: yaml.safe_dump(x).encode()),
            flipped(yaml.safe_dump(original).encode()),
        )
    )
    @example(yaml.safe_dump({**original, "draws": 10**9}).encode())
    @example(b"[" * 2_000)  # deeper than Python may go
    def tried(content):
        file.write_bytes(content)
        try:
            in_time(expand)
        except BadInput as error:
            assert_one_line(error)

    tried()


@pytest.mark.parametrize("size", SIZES)
def test_damaged_checkpoints_are_passed_over_or_refused(size, copied):
    (newest,) = Checkpoints(copied / "checkpoints").saved()[:1]
    folder = copied / "checkpoints" / str(newest)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    kept = {path: path.read_bytes() for path in files}

    @many(12 * size)
    @given(st.data())
    def tried(data):
        path = data.draw(st.sampled_from([path for path in files if kept[path]]))
        content = data.draw(
            st.one_of(
                st.just(b""), st.just(b"[" * 50_000), VALUES.map(as_bytes), flipped(kept[path])
            )
        )
        path.write_bytes(content)
        try:
            in_time(trained.load, str(copied), "--run")
        except BadInput as error:
            assert_one_line(error)
        finally:
            path.write_bytes(kept[path])

    tried()
    assert Path(folder).is_dir()
