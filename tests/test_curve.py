"""The figure of a run."""

import io

import matplotlib.image
import pytest

from experiments.record.curve import learning_curve

LONG = [f"ppo on Ant ({'length=1.0, ' * 200})", f"ppo on my_module:{'Envé' * 30}"]


@pytest.mark.parametrize("title", ["ppo on CartPole-v1", *LONG])
def test_a_title_however_long_lies_within_the_figure(title):
    lines = [
        {"env_steps": n, "episode_return": [0.0, 1.0], "eval_return": [1.0, 2.0]} for n in (0, 9)
    ]
    png = learning_curve(lines, title, "ppo")
    pixels = matplotlib.image.imread(io.BytesIO(png))[..., :3]
    assert pixels.min() < 0.5
    edges = (pixels[:, :4], pixels[:, -4:], pixels[:4], pixels[-4:])
    assert all(edge.min() > 0.99 for edge in edges)
