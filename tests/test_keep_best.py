"""The policy of each seed's best evaluation is kept beside the newest."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from killing import killed_at_save

import rgpo_jax
from experiments import export, run
from experiments.cli.flags import BadInput
from experiments.play import __main__ as play
from experiments.training import best, keeping, trained
from experiments.training.position import Position
from experiments.training.programs import CompiledPrograms
from rgpo_jax.checkpoint import Checkpoints

pytestmark = pytest.mark.usefixtures("programs_are_kept")
TINY = [
    *("--agent", "ppo", "--num-seeds", "2", "--seed", "3", "--num-envs", "2", "--num-steps", "8"),
    *("--num-minibatches", "2", "--num-epochs", "2", "--hidden-sizes", "8"),
    *("--eval-episodes", "2", "--reset-pool-size", "2", "--log-every", "48", "--eval-every", "96"),
    *("--normalize-observations", "--total-steps", "480", "--keep-best"),
]
# Updates -> what an evaluation then says of the two seeds.
SCORES = {
    0: (1.0, 9.0),
    6: (7.0, 8.0),
    12: (float("nan"), 10.0),
    18: (5.0, 2.0),
    24: (7.0, 3.0),
    30: (6.0, 9.5),
}
BEST_AT = (24, 12)  # of equal ones the newest


def leaves(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


@pytest.fixture(scope="module")
def policies():
    """Evaluations say `SCORES`; the policies that they were of: updates -> arrays."""
    seen = {}
    evaluate = CompiledPrograms.evaluate

    def say(self, states, updates, whole):
        seen[updates] = leaves(best.policy_of(states.learner))
        real = evaluate(self, states, updates, whole)
        return real | ({"eval_return": list(SCORES[updates])} if updates in SCORES else {})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CompiledPrograms, "evaluate", say)
        yield seen


def assert_the_best_are_kept(folder, policies):
    loaded = trained.load(str(folder), "--run", which="best")
    assert loaded.env_steps == tuple(16 * updates for updates in BEST_AT)
    found = leaves(best.policy_of(loaded.learners))
    assert len(found) == len(policies[0]) > 8
    for i, array in enumerate(found):
        for member, updates in enumerate(BEST_AT):
            np.testing.assert_array_equal(array[member], policies[updates][i][member])
    newest = leaves(best.policy_of(trained.load(str(folder), "--run").learners))
    for ours, last in zip(newest, policies[30], strict=True):
        np.testing.assert_array_equal(ours, last)


def test_each_seeds_best_is_kept_and_played(policies, whole, tmp_path, capsys):
    assert_the_best_are_kept(whole, policies)
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["best_return"] == [7.0, 10.0]
    assert summary["best_at"] == [16 * updates for updates in BEST_AT]
    capsys.readouterr()
    flags = ["--run", str(whole), "--seed", "4", "--which", "best", "--max-steps", "2"]
    assert play.main([*flags, "--out", str(tmp_path / "x.gif"), "--size", "120"]) == 0
    assert "seed 4, best policy, after 192 steps" in capsys.readouterr().out


def test_the_best_is_exported(policies, whole, tmp_path):
    folder = str(whole)
    out = tmp_path / "best.npz"
    assert export.main(["--run", folder, "--which", "best", "--out", str(out)]) == 0
    newest, kept = rgpo_jax.load(folder, seed=4), rgpo_jax.load(out, seed=4)
    observation = np.linspace(-1, 1, 4).astype(np.float32)
    best_of = trained.load(folder, "--run", which="best")
    learner = jax.tree.map(lambda x: x[1], best_of.learners)
    expected = best_of.agent.act(learner, observation)
    assert kept.act(observation) == int(expected)
    assert kept.about.updates <= newest.about.updates == 30


@pytest.mark.parametrize("saves", [1, 5])  # after update 3, and between two evaluations
def test_a_killed_run_that_goes_on_has_the_same_best(saves, policies, tmp_path):
    with killed_at_save(saves):
        run.main([*TINY, "--checkpoint-every", "0", "--out", str(tmp_path)])
    seldom = ["--checkpoint-every", "3600"]
    assert run.main(["--out", str(tmp_path), "--resume", *seldom]) == 0
    assert_the_best_are_kept(tmp_path, policies)


def test_a_run_that_keeps_no_best_has_none(tmp_path, capsys):
    flags = [*TINY[:-1], "--total-steps", "48", "--out", str(tmp_path)]
    assert run.main(flags) == 0
    assert "best_at" not in json.loads((tmp_path / "summary.json").read_text())
    with pytest.raises(BadInput, match="was begun without --keep-best"):
        trained.load(str(tmp_path), "--run", which="best")
    with pytest.raises(SystemExit) as left:
        play.main(["--run", str(tmp_path), "--which", "best"])
    assert left.value.code == 2


def test_cells_that_are_trained_side_by_side_get_their_own(tmp_path):
    plan = SimpleNamespace(settings=dict)
    folders = [tmp_path / name for name in ("one", "two")]
    recorders = [SimpleNamespace(folder=f, metrics_bytes=lambda: 0) for f in folders]
    for folder in folders:
        folder.mkdir()
    cells = [SimpleNamespace(plan=plan, recorder=recorder) for recorder in recorders]
    parts = [slice(0, 2), slice(2, 3)]
    keeper = keeping.Keeper(tmp_path / "checkpoints", cells, parts, None)
    content = {"learner": jax.numpy.arange(3), best.PART: {"params": jax.numpy.arange(3) * 10.0}}
    keeper.save(
        Position(9, best_scores=[1.0, 2.0, 3.0], best_at=[4, 5, 6]), content, True, lambda *_: None
    )
    for folder, expected in zip(folders, ([4, 5], [6]), strict=True):
        number = len(expected)
        like = {best.PART: {"params": jax.numpy.zeros(number)}}
        restored = Checkpoints(folder / "checkpoints").restore(like)
        assert restored.position["best_at"] == expected
    np.testing.assert_array_equal(restored.parts[best.PART]["params"], [20.0])


@pytest.mark.parametrize(
    ("scores", "before", "broken", "expected"),
    [
        ([1.0, 2.0], [], [], [True, True]),
        ([1.0, 2.0], [1.0, 1.9], [], [True, True]),  # the newest of equal ones
        ([1.0, 2.0], [1.1, 1.9], [], [False, True]),
        ([float("nan"), float("inf")], [], [], [False, False]),
        ([3.0, 3.0], [float("nan"), 1.0], [[1, 7]], [True, False]),
    ],
)
def test_better_is_finite_and_larger(scores, before, broken, expected):
    assert best.are_better(scores, before, broken).tolist() == expected
