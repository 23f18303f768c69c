"""Draws the gates' weights for the README: `python -m experiments.plot docs/weights.png`."""

import sys

import numpy as np
from matplotlib.figure import Figure

from experiments.record.colors import of_agents
from experiments.record.curve import png


def gate_weights() -> bytes:
    """Draws w(r) of the gates for both signs of the advantage; a PNG."""
    import jax.numpy as jnp

    from rgpo_jax import gates

    shown = {
        "PPO (clip 0.2)": ("ppo", gates.ppo(), "-", 4.5),
        "RGPO (k = 4)": ("rgpo", gates.rgpo(), "-", 2.4),
        "REINFORCE": ("reinforce", gates.reinforce(), "-", 1.4),
        "importance (TRPO)": ("trpo", gates.importance(), "-", 1.4),
        "SAPO (t = 1, 1.05)": ("sapo", gates.sapo(), "--", 1.4),
    }
    colors = of_agents([agent for agent, *_ in shown.values()])
    ratio = np.linspace(0.01, 2.5, 800, dtype=np.float32)
    figure = Figure(figsize=(9, 3.6), dpi=150, layout="constrained")
    for axes, sign in zip(figure.subplots(1, 2, sharey=True), (1.0, -1.0), strict=True):
        for label, (agent, gate, style, width) in shown.items():
            w = np.array(gates.weight(gate)(jnp.log(ratio), jnp.full(ratio.shape, sign)))
            w[1:][np.abs(np.diff(w)) > 0.1] = np.nan  # a jump is no slope
            axes.plot(ratio, w, color=colors[agent], linestyle=style, linewidth=width, label=label)
        axes.axvline(1.0, color="black", linewidth=0.6, alpha=0.4)
        # Where a step uphill brings the ratio nearer to 1.
        left, right = (0.0, 1.0) if sign > 0 else (1.0, 2.5)
        axes.axvspan(left, right, color="black", alpha=0.06, linewidth=0)
        axes.text((left + right) / 2, -0.2, "moves r back to 1", ha="center", fontsize=9)
        axes.set_title(f"advantage {'positive' if sign > 0 else 'negative'}", fontsize=10)
        axes.set_xlabel("ratio r")
        axes.set_ylim(-0.3, 2.1)
        axes.set_xlim(0, 2.5)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("weight w(r) of a sample's gradient")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=9)
    return png(figure)


if __name__ == "__main__":
    from pathlib import Path

    if len(sys.argv) != 2:
        sys.exit("usage: python -m experiments.plot FILE.png  (weights of the gates)")
    Path(sys.argv[1]).write_bytes(gate_weights())
