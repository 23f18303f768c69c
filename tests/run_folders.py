"""Run folders as `experiments.run` writes them, without the training."""

import json

import numpy as np

THRESHOLDS = (0.02, 0.04, 0.08, 0.16)


def write(
    folder,
    agent="ppo",
    env="CartPole-v1",
    seed=0,
    num_seeds=5,
    final=400.0,
    spread=20.0,
    lines=10,
    done=1.0,
    summary=None,
    metrics=None,
    **settings,
):
    """Writes a run whose return grows linearly from 20 (sampled: 10) to `final`.

    Seed s ends at `final + spread * (s - the middle seed)`. `done` is the share of lines that
    exist; only a run with all of them has a summary, unless one is given. `metrics` are the same
    on all lines but the first.
    """
    folder.mkdir(parents=True)
    total = 1000 * lines
    config = {
        "settings": {
            "agent": agent,
            "gate": None,
            "env": env,
            "backend": None,
            "seed": seed,
            "num_seeds": num_seeds,
            "total_steps": total,
            "learning_rate": 1e-3,
            "hidden_sizes": [64, 64],
            **settings,
        },
        "gate": {"function": f"rgpo_jax.gates.{agent}", "numbers": {}, "options": {}},
        "versions": {"python": "3.12.1", "jax": "0.11.2"},
        "device": "cpu: cpu x 1",
        "machine": "Linux x86_64, 2 CPU cores",
        "git_commit": "0123456789abcdef-dirty",
        "started": "2026-01-01T00:00:00+00:00",
    }
    (folder / "config.json").write_text(json.dumps(config))
    offsets = np.arange(num_seeds) - (num_seeds - 1) / 2
    ends = final + spread * offsets
    with (folder / "metrics.jsonl").open("w") as file:
        for line in range(round(done * lines) + 1):
            share = line / lines
            returns = (20 + share * (ends - 20)).tolist()
            defined = [None] * num_seeds if line == 0 else returns
            content = {
                "env_steps": 1000 * line,
                "updates": 2 * line,
                "wall_seconds": 1.5 * line,
                "episode_return": defined,
                **{
                    name: None if line == 0 else value
                    for name, value in {
                        "effective_sample_size": 0.9,
                        "weight_mean": 0.95,
                        "weight_max": 1.2,
                        "approx_kl": 0.01 * (1 + share),
                        "approx_kl_max": 0.02 * (1 + share),
                        "entropy": 0.5,
                        "first_ratio_deviation": 1e-6,
                        **{f"kl_spike_rate_{t}": 0.5 if line <= 2 else 0.0 for t in THRESHOLDS},
                    }.items()
                },
                **((metrics or {}) if line else {}),
            }
            content = {
                name: value
                if isinstance(value, list) or name in ("env_steps", "updates", "wall_seconds")
                else [value] * num_seeds
                for name, value in content.items()
            }
            if line % 2 == 0:
                content["eval_return"] = returns
                content.setdefault("eval_return_stochastic", [value - 10 for value in returns])
            file.write(json.dumps(content) + "\n")
    if done == 1.0 and summary is None:
        summary = {
            "agent": agent,
            "env": env,
            "total_steps": total,
            "steps_per_second": 12345.6,
        }
    if summary is not None:
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder
