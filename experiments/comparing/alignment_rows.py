"""Which methods of alignment are held against each other."""

from agents import language as methods

ROWS: dict[str, tuple[str, ...]] = {
    "reinforce": ("--method", "reinforce"),
    "rloo": ("--method", "rloo"),
    "grpo-published": ("--method", "grpo", "--kl", "published"),
    "grpo-direct": ("--method", "grpo", "--kl", "direct"),
    "dr_grpo": ("--method", "dr_grpo"),
    "ppo": ("--method", "ppo"),
    "rgpo-product": ("--method", "rgpo", "--dual", "product"),
    "rgpo-geometric": ("--method", "rgpo", "--dual", "geometric"),
    "rgpo-two_sided": ("--method", "rgpo", "--dual", "two_sided"),
    "rgpo-min": ("--method", "rgpo", "--dual", "min"),
    "rgpo-none": ("--method", "rgpo", "--dual", "none"),
    "dual_kl": ("--method", "dual_kl"),
    "dapo": ("--method", "dapo"),
    "gspo": ("--method", "gspo"),
    "cispo": ("--method", "cispo"),
    "sapo": ("--method", "sapo"),
    **{
        name: ("--method", name)
        for name in (*methods.FROM_OWN_PAIRS, *methods.FROM_DATA, *methods.FROM_WINS)
    },
}
"""Row -> the flags of `experiments.align` that make it."""
