"""Gradients through gates against published surrogates, on small batches, in float64."""

import dataclasses

import jax
import numpy as np
import pytest

from experiments.theory import surrogates, unification
from experiments.theory.options import Options
from rgpo_jax import gates

EXACT = 1e-12


@pytest.fixture(scope="module", params=["CartPole-v1", "Pendulum-v1"])
def samples(request):
    # The seed leads to ratios beyond both ends of the clip range.
    return surrogates.draw(request.param, 2, 1e-2, num_envs=4, num_steps=16, num_updates=1)


@pytest.fixture(scope="module")
def reference(samples):
    return surrogates.published(samples, surrogates.scores(samples))


@pytest.fixture(scope="module")
def findings(samples):
    return unification.measure(samples)


def test_the_network_in_float64_is_the_agents(samples):
    assert 0 < samples.drift < 1e-5
    assert samples.batch.log_prob.dtype == np.float64


def test_each_gate_has_the_published_gradient(findings):
    assert findings.tells, "ratios beyond both ends of the clip range"
    assert findings.to_published.keys() == {"REINFORCE", "PPO", "TRPO"}
    assert max(findings.to_published.values()) < EXACT
    assert findings.to_form.keys() == surrogates.FORMS.keys()
    assert max(findings.to_form.values()) < EXACT
    # For contrast: RGPO's gradient is none of them, and tends to TRPO's as the gate flattens.
    assert min(distance for _, distance in findings.contrast.values()) > 1e-2
    assert findings.distances["TRPO"][0] < findings.distances["TRPO"][-1]


def test_another_gate_does_not_pass(samples, reference):
    wrong = {
        "reinforce": (gates.reinforce(), ("PPO", "TRPO")),
        "importance": (gates.importance(), ("REINFORCE", "PPO")),
        "ppo": (gates.ppo(0.2), ("REINFORCE", "TRPO")),
        "ppo, another clip": (gates.ppo(0.3), ("REINFORCE", "PPO", "TRPO")),
        "rgpo": (gates.rgpo(4.0), ("REINFORCE", "PPO", "TRPO")),
    }
    gradients = surrogates.through_gates(samples, [gate for gate, _ in wrong.values()])
    for gradient, (_, names) in zip(gradients, wrong.values(), strict=True):
        for name in names:
            assert unification.relative_difference(gradient, reference[name]) > 1e-3


def test_the_published_gradients_are_slopes_of_their_objectives(samples, reference):
    """Against central differences of the objectives in NumPy, along a random direction."""
    advantage = samples.batch.advantage

    def density(actor):
        with jax.enable_x64(True):
            return np.asarray(samples.densities(actor))

    old = density(samples.old)
    objectives = {
        "REINFORCE": lambda new: np.mean(np.log(new) * advantage),
        "PPO": lambda new: np.mean(
            np.minimum(new / old * advantage, np.clip(new / old, 0.8, 1.2) * advantage)
        ),
        "TRPO": lambda new: np.mean(new / old * advantage),
    }
    leaves, structure = jax.tree.flatten(samples.params["actor"])
    rng = np.random.default_rng(0)
    direction = [rng.standard_normal(leaf.shape) for leaf in leaves]
    flat_direction = np.concatenate([part.ravel() for part in direction])

    def moved(h):
        parts = [leaf + h * part for leaf, part in zip(leaves, direction, strict=True)]
        return density(jax.tree.unflatten(structure, parts))

    ahead, behind = moved(1e-6), moved(-1e-6)
    for name, objective in objectives.items():
        slope = (objective(ahead) - objective(behind)) / 2e-6
        assert slope == pytest.approx(reference[name] @ flat_direction, rel=1e-5)


@pytest.mark.parametrize("side", ["below", "above"])
def test_ratios_within_the_clip_range_prove_nothing(findings, side):
    near = dataclasses.replace(findings, **{side: 0.0})
    assert not near.tells
    claims = unification._claims({"CartPole-v1": near})
    assert [claim.holds for claim in claims] == [None, None]


@pytest.mark.parametrize(
    ("field", "name", "verdicts"),
    [
        ("to_published", "PPO", [False, True]),
        ("to_form", "TRPO", [False, True]),
        ("to_form", "RGPO, k = 16", [True, False]),
    ],
)
def test_one_difference_refutes_the_claim(findings, field, name, verdicts):
    worse = dataclasses.replace(findings, **{field: {**getattr(findings, field), name: 2e-6}})
    claims = unification._claims({"CartPole-v1": findings, "Pendulum-v1": worse})
    assert [claim.holds for claim in claims] == verdicts


def test_the_study_has_its_figure_and_tables(samples, findings, monkeypatch):
    monkeypatch.setattr(surrogates, "draw", lambda *_: samples)
    monkeypatch.setattr(unification, "measure", lambda _: findings)
    shares = []
    study = unification.run(Options(), shares.append)
    assert len(shares) == 3
    assert shares[-1] == 1.0
    assert [claim.holds for claim in study.claims] == [True, True]
    assert {name for claim in study.claims for name in claim.figures} == {"unification"}
    for table in study.tables:
        assert [row[0] for row in table.rows] == ["CartPole-v1", "Pendulum-v1", "Breakout-MinAtar"]
        assert all(len(row) == len(table.columns) for row in table.rows)
    batches = dict(zip(study.tables[0].columns, study.tables[0].rows[0], strict=True))
    ratio = samples.ratio()
    assert batches["samples"] == 64
    assert batches["share of r < 0.8"] == np.mean(ratio < 0.8)
    assert batches["share of r > 1.2"] == np.mean(ratio > 1.2)
    (figure,) = study.figures
    for panel in figure.panels:
        assert all(len(line.x) == len(line.y) for line in panel.lines)
