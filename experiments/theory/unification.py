"""One formula: REINFORCE's, PPO's and TRPO's gradients by their gates and as published."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from experiments.theory import surrogates
from experiments.theory.options import Options
from experiments.theory.study import Claim, Figure, Line, Panel, Progress, Study, Table, say
from experiments.theory.surrogates import CLIP, FORMS, GATES, SHARPNESSES
from rgpo_jax import gates

TOLERANCE = 1e-6  # of a relative difference
_SWEEP = np.geomspace(0.25, 64.0, 13)

# Environment -> Adam's step size on the way from the old policy to the new one: so large that many
# ratios leave the clip range on both sides, since at r = 1 all these gradients are the same.
_TASKS = {"CartPole-v1": 2e-2, "Pendulum-v1": 1e-2, "Breakout-MinAtar": 3e-3}


def relative_difference(a: np.ndarray, b: np.ndarray) -> float:
    """|a - b| / |b|, in the Euclidean norm."""
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Of the angle between two vectors."""
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


@dataclasses.dataclass(frozen=True)
class Findings:
    """What was measured on one batch.

    Attributes:
      below: share of ratios below PPO's clip range.
      above: share above it.
      largest: largest |log r|, in nats.
      to_published: name -> relative difference of the gate's gradient from the published one.
      to_form: name -> that from mean(g'(r) r A grad log pi).
      cosines: name -> cosine of RGPO's gradient with the published one, over `_SWEEP`.
      distances: name -> relative difference of the two.
      contrast: name -> cosine and relative difference of RGPO's at k = 4.
    """

    num_samples: int
    num_params: int
    below: float
    above: float
    largest: float
    drift: float
    to_published: Mapping[str, float]
    to_form: Mapping[str, float]
    cosines: Mapping[str, np.ndarray]
    distances: Mapping[str, np.ndarray]
    contrast: Mapping[str, tuple[float, float]]

    @property
    def tells(self) -> bool:
        """Whether ratios lie beyond both ends of the clip range: at r = 1 all weights agree."""
        return self.below > 0 and self.above > 0


def measure(samples: surrogates.Samples) -> Findings:
    """All comparisons on one batch."""
    score, ratio = surrogates.scores(samples), samples.ratio()
    references = surrogates.published(samples, score)
    all_gates = GATES | {f"RGPO, k = {k:g}": gates.rgpo(k) for k in SHARPNESSES}
    gradients = dict(
        zip(all_gates, surrogates.through_gates(samples, list(all_gates.values())), strict=True)
    )
    sweep = surrogates.through_gates(
        samples, [gates.rgpo(k, normalize=True) for k in _SWEEP.tolist()]
    )
    at_four = gradients["RGPO, k = 4"]
    return Findings(
        num_samples=score.shape[0],
        num_params=score.shape[1],
        below=float(np.mean(ratio < 1.0 - CLIP)),
        above=float(np.mean(ratio > 1.0 + CLIP)),
        largest=float(np.max(np.abs(np.log(ratio)))),
        drift=samples.drift,
        to_published={
            name: relative_difference(gradients[name], reference)
            for name, reference in references.items()
        },
        to_form={
            name: relative_difference(gradient, surrogates.by_weight(samples, score, FORMS[name]))
            for name, gradient in gradients.items()
        },
        cosines={
            name: np.array([cosine(gradient, reference) for gradient in sweep])
            for name, reference in references.items()
        },
        distances={
            name: np.array([relative_difference(gradient, reference) for gradient in sweep])
            for name, reference in references.items()
        },
        contrast={
            name: (cosine(at_four, reference), relative_difference(at_four, reference))
            for name, reference in references.items()
        },
    )


def _panels(found: Mapping[str, Findings]) -> list[Panel]:
    directions, distances = [], []
    for task, findings in found.items():
        against, differences = [], []
        for style, name in enumerate(GATES):
            own = np.full(len(_SWEEP), findings.to_published[name])
            against.append(
                Line(f"RGPO against {name}", _SWEEP, findings.cosines[name], style, marker="o")
            )
            differences += [
                Line(f"RGPO against {name}", _SWEEP, findings.distances[name], style, marker="o"),
                Line(f"{name}'s gate against {name}", _SWEEP, own, style, "--"),
            ]
        sharpness = "sharpness k of RGPO's gate"
        directions.append(
            Panel(task, sharpness, "cosine of the gradients", against, log_x=True, guides=(1.0,))
        )
        distances.append(
            Panel(
                task,
                sharpness,
                "relative difference",
                differences,
                log_x=True,
                log_y=True,
                guides=(TOLERANCE,),
            )
        )
    return directions + distances


def _tables(found: Mapping[str, Findings]) -> list[Table]:
    difference = "relative difference from"
    return [
        Table(
            "unification",
            "The batches, and the relative difference |g1 \N{MINUS SIGN} g2| / |g2| of the gate's "
            "gradient from the published surrogate's.",
            (
                "environment",
                "samples",
                "parameters",
                f"share of r < {1.0 - CLIP:g}",
                f"share of r > {1.0 + CLIP:g}",
                "largest |log r| (nats)",
                *(f"{difference} {name}" for name in GATES),
            ),
            [
                (
                    task,
                    findings.num_samples,
                    findings.num_params,
                    findings.below,
                    findings.above,
                    findings.largest,
                    *(findings.to_published[name] for name in GATES),
                )
                for task, findings in found.items()
            ],
        ),
        Table(
            "unification_weights",
            "Relative difference of the gate's gradient from mean(g\N{PRIME}(r) r A "
            "\N{NABLA}log \N{GREEK SMALL LETTER PI}), with g written in r.",
            ("environment", *FORMS),
            [
                (task, *(findings.to_form[name] for name in FORMS))
                for task, findings in found.items()
            ],
        ),
        Table(
            "unification_contrast",
            "What is not equal: RGPO's gradient at k = 4 and the published ones.",
            (
                "environment",
                *(f"cosine with {name}" for name in GATES),
                *(f"{difference} {name}" for name in GATES),
            ),
            [
                (task, *(findings.contrast[name][i] for i in range(2) for name in GATES))
                for task, findings in found.items()
            ],
        ),
    ]


def _claims(found: Mapping[str, Findings]) -> list[Claim]:
    return [_published_are_choices_of_w(found), _gradient_is_of_w(found)]


def _verdict(found: Mapping[str, Findings], largest: float) -> bool | None:
    """None where all weights agree, whatever the difference."""
    tells = all(findings.tells for findings in found.values())
    return largest <= TOLERANCE if tells else None


def _batches(found: Mapping[str, Findings]) -> str:
    shares = ", ".join(
        f"{say(findings.below)} and {say(findings.above)} on {task}"
        for task, findings in found.items()
    )
    return f"float64; shares of ratios below and above [{1.0 - CLIP:g}, {1.0 + CLIP:g}]: {shares}"


def _published_are_choices_of_w(found: Mapping[str, Findings]) -> Claim:
    largest = max(
        difference
        for findings in found.values()
        for name in GATES
        for difference in (findings.to_published[name], findings.to_form[name])
    )
    contrast = min(
        difference for findings in found.values() for _, difference in findings.contrast.values()
    )
    return Claim(
        "The policy gradients of TRPO, PPO and REINFORCE correspond to choices of "
        "w(r) = g\N{PRIME}(r) r.",
        "paper",
        _verdict(found, largest),
        f"Through the gate, from the published surrogate and from the weight written in r: "
        f"largest relative difference {say(largest)} on {len(found)} environments "
        f"({_batches(found)}). RGPO's own gradient at k = 4 differs from each of the three by at "
        f"least {say(contrast)} there.",
        ("unification",),
    )


def _gradient_is_of_w(found: Mapping[str, Findings]) -> Claim:
    largest = max(
        findings.to_form[name] for findings in found.values() for name in FORMS.keys() - GATES
    )
    return Claim(
        "The gradient of the gated surrogate is the mean of w(r) A \N{NABLA}log "
        "\N{GREEK SMALL LETTER PI} with w(r) = g\N{PRIME}(r) r, also for RGPO's gate.",
        "paper",
        _verdict(found, largest),
        f"Largest relative difference {say(largest)} at k = "
        f"{', '.join(f'{k:g}' for k in SHARPNESSES)} on {len(found)} environments "
        f"({_batches(found)}).",
    )


def _study(found: Mapping[str, Findings]) -> Study:
    drift = max(findings.drift for findings in found.values())
    return Study(
        title="One formula for REINFORCE, PPO and TRPO",
        text=(
            "A PPO agent trains for a few updates; its policy of then draws a batch, whose "
            "advantages are estimated and normalised as the agent does. More updates on that very "
            "batch give the new policy, far enough from the old one that many ratios lie outside "
            "PPO's clip range, on both sides: at r = 1 the three weights are the same, and nothing "
            "would be tested. On this batch the gradient through each gate, by the library's "
            "objective, is held against the surrogate of its source, written without gates: "
            "REINFORCE by scores of single samples, PPO by its clipped minimum, TRPO by a quotient "
            "of probabilities. All of it is in float64, in which the log-probabilities of the old "
            f"policy are computed anew (the rollout's differ by at most {say(drift)} nats).",
            "The abstract introduces g as an acceptance gate in [0, 1], and none of these three "
            "gates maps into [0, 1]: log r and r are unbounded, and PPO's exceeds 1. They belong "
            "to the family by their weight alone. And the weight is all that is equal: TRPO's step "
            "is a natural gradient with a line search, and differs from PPO's in the step and not "
            "in this formula.",
        ),
        claims=_claims(found),
        figures=[
            Figure(
                "unification",
                "RGPO's gradient (scaled so that w(1) = 1) against the three published ones, by "
                "direction and by relative difference; dashed, each method's own gate against its "
                f"published gradient; the thin line below is the tolerance of {say(TOLERANCE)}.",
                _panels(found),
                columns=max(1, len(found)),
            )
        ],
        tables=_tables(found),
    )


def run(options: Options, progress: Progress) -> Study:
    """Compares gradients on one batch from each of three environments."""
    found: dict[str, Findings] = {}
    for task, step_size in _TASKS.items():
        found[task] = measure(surrogates.draw(task, options.seed, step_size))
        progress(len(found) / len(_TASKS))
    return _study(found)
