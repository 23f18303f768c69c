"""Pictures of gymnax's environments by Pillow: a table of drawers.

gymnax's own visualiser needs pygame, makes an environment for every picture, and knows half of the
environments. Positions are drawn as Gymnasium and gymnax draw them.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from PIL import Image, ImageDraw, ImageFont

_OVERSAMPLING = 2  # Pillow draws without anti-aliasing
_INK, _GREY, _RED, _BLUE, _GREEN = "#26323f", "#c3ccd6", "#c8452d", "#5f9fd6", "#3d8b57"
_BROWN = "#b98b5e"
_NIGHT = (24, 30, 38)
# Of the channels of an observation: what comes first is drawn on top.
_CHANNELS = (
    *((240, 240, 240), (200, 69, 45), (230, 170, 60), (95, 159, 214), (61, 139, 87)),
    *((138, 95, 168), (217, 140, 74), (122, 140, 163), (220, 130, 170), (90, 190, 180)),
)

Point = Sequence[Any] | np.ndarray
Drawer = Callable[[Any, Any, Any, np.ndarray, int], Image.Image]


class Canvas:
    """A white picture in an environment's own units, with y pointing up."""

    def __init__(self, size: int, left: float, right: float, bottom: float, top: float):
        """Shows [left, right] x [bottom, top]; the longer side gets `size` pixels."""
        self._left, self._top = left, top
        self._scale = _OVERSAMPLING * size / max(right - left, top - bottom)
        shape = [
            _OVERSAMPLING * round(span * self._scale / _OVERSAMPLING)
            for span in (right - left, top - bottom)
        ]
        self._image = Image.new("RGB", (shape[0], shape[1]), "white")
        self._draw = ImageDraw.Draw(self._image)

    def _pixel(self, point: Point) -> tuple[float, float]:
        x, y = float(point[0]), float(point[1])
        return (x - self._left) * self._scale, (self._top - y) * self._scale

    def polygon(self, points: Sequence[Point], color: str) -> None:
        """A filled one, of its corners."""
        self._draw.polygon([self._pixel(point) for point in points], fill=color)

    def line(self, points: Sequence[Point], color: str, width: float) -> None:
        """From point to point."""
        pixels = [self._pixel(point) for point in points]
        self._draw.line(pixels, fill=color, width=round(width * self._scale), joint="curve")

    def rod(self, points: Sequence[Point], color: str, width: float) -> None:
        """A line with round ends."""
        self.line(points, color, width)
        for point in points:
            self.disc(point, width / 2, color)

    def disc(self, centre: Point, radius: float, color: str) -> None:
        """A filled circle."""
        self._draw.circle(self._pixel(centre), radius * self._scale, fill=color)

    def arc(self, centre: Point, radius: float, angles: Point, color: str, width: float) -> None:
        """Between two angles in degrees, counted from the right, anticlockwise."""
        x, y = self._pixel(centre)
        r = radius * self._scale
        low, high = sorted(-float(angle) for angle in angles)
        box = (x - r, y - r, x + r, y + r)
        self._draw.arc(box, low, high, fill=color, width=round(width * self._scale))

    def finish(self) -> Image.Image:
        """The picture, its edges smoothed."""
        return self._image.reduce(_OVERSAMPLING)


def _cart_pole(env: Any, params: Any, state: Any, observation: np.ndarray, size: int) -> Any:
    edge = params.x_threshold
    canvas = Canvas(size, -1.2 * edge, 1.2 * edge, -0.6, 1.5)
    canvas.line([(-1.2 * edge, 0), (1.2 * edge, 0)], _GREY, 0.02)
    for x in (-edge, edge):
        canvas.line([(x, -0.15), (x, 0.15)], _GREY, 0.02)
    x, y, tip = float(state.x), 0.2, 2 * params.length
    cart = [(-0.2, -0.12), (0.2, -0.12), (0.2, 0.12), (-0.2, 0.12)]
    canvas.polygon([(x + dx, y + dy) for dx, dy in cart], _INK)
    for wheel in (-0.12, 0.12):
        canvas.disc((x + wheel, 0.07), 0.07, _INK)
    top = (x + tip * math.sin(state.theta), y + tip * math.cos(state.theta))
    canvas.rod([(x, y), top], _BROWN, 0.09)
    canvas.disc((x, y), 0.045, _BLUE)
    return canvas.finish()


def _pendulum(env: Any, params: Any, state: Any, observation: np.ndarray, size: int) -> Any:
    canvas = Canvas(size, -1.5, 1.5, -1.25, 1.25)
    tip = (-params.l * math.sin(state.theta), params.l * math.cos(state.theta))
    canvas.rod([(0, 0), tip], _RED, 0.2)
    canvas.disc((0, 0), 0.05, _INK)
    torque = float(np.ravel(state.last_u)[0]) / params.max_torque
    canvas.arc((0, 0), 0.35, (90, 90 + 150 * torque), _BLUE, 0.05)
    return canvas.finish()


def _acrobot(env: Any, params: Any, state: Any, observation: np.ndarray, size: int) -> Any:
    first, second = params.link_length_1, params.link_length_2
    reach = 1.1 * (first + second)
    canvas = Canvas(size, -reach, reach, -reach, reach)
    canvas.line([(-reach, 1), (reach, 1)], _GREEN, 0.02)
    angle = float(state.joint_angle1)
    elbow = (first * math.sin(angle), -first * math.cos(angle))
    angle += float(state.joint_angle2)
    tip = (elbow[0] + second * math.sin(angle), elbow[1] - second * math.cos(angle))
    for link in ([(0, 0), elbow], [elbow, tip]):
        canvas.rod(link, _BLUE, 0.18)
    for joint in ((0, 0), elbow):
        canvas.disc(joint, 0.06, _INK)
    return canvas.finish()


def _mountain_car(env: Any, params: Any, state: Any, observation: np.ndarray, size: int) -> Any:
    def height(x: Any) -> Any:
        return 0.45 * np.sin(3 * x) + 0.55

    left, right = params.min_position, params.max_position
    canvas = Canvas(size, left, right, 0.0, 1.2)
    xs = np.linspace(left, right, 80)
    hill = list(zip(xs, height(xs), strict=True))
    canvas.polygon([(left, 0), *hill, (right, 0)], _GREY)
    canvas.line(hill, _INK, 0.01)
    goal = params.goal_position
    foot, top = (goal, height(goal)), (goal, height(goal) + 0.2)
    canvas.line([foot, top], _INK, 0.01)
    canvas.polygon([top, (goal + 0.09, top[1] - 0.035), (goal, top[1] - 0.07)], _RED)
    x = float(state.position)
    slope = math.atan(1.35 * math.cos(3 * x))
    ahead = np.array((math.cos(slope), math.sin(slope)))
    up = np.array((-ahead[1], ahead[0]))
    centre = np.array((x, height(x)))
    body = [(-0.07, 0.03), (0.07, 0.03), (0.04, 0.09), (-0.04, 0.09)]
    canvas.polygon([centre + a * ahead + b * up for a, b in body], _BLUE)
    for wheel in (-0.045, 0.045):
        canvas.disc(centre + wheel * ahead + 0.025 * up, 0.025, _INK)
    return canvas.finish()


def _point_robot(env: Any, params: Any, state: Any, observation: np.ndarray, size: int) -> Any:
    edge = 1.3 * params.circle_radius
    canvas = Canvas(size, -edge, edge, -0.3, edge)
    canvas.arc((0, 0), params.circle_radius, (0, 180), _INK, 0.02)
    canvas.disc(state.goal, params.goal_radius, _GREY)
    canvas.disc(state.pos, 0.05, _RED)
    return canvas.finish()


def _reacher(env: Any, params: Any, state: Any, observation: np.ndarray, size: int) -> Any:
    angles = np.ravel(state.angles)
    reach = 1.1 * len(angles)
    canvas = Canvas(size, -reach, reach, -reach, reach)
    canvas.disc(state.goal_xy, 0.12, _RED)
    steps = np.stack([np.cos(angles), np.sin(angles)], axis=1)  # each angle is against the ground
    joints = np.concatenate([np.zeros((1, 2)), np.cumsum(steps, axis=0)])
    canvas.rod(list(joints), _BLUE, 0.15)
    canvas.disc(joints[0], 0.06, _INK)
    canvas.disc(joints[-1], 0.06, _INK)
    return canvas.finish()


def _swimmer(env: Any, params: Any, state: Any, observation: np.ndarray, size: int) -> Any:
    canvas = Canvas(size, -1.6, 1.6, -1.6, 1.6)
    for urchin in np.reshape(state.urchin_xys, (-1, 2)):
        canvas.disc(urchin, 0.08, _INK)
    canvas.disc(np.ravel(state.goal_xy), 0.1, _GREEN)
    canvas.disc(np.ravel(state.xy), 0.07, _RED)
    return canvas.finish()


def _maze(env: Any, params: Any, state: Any, observation: np.ndarray, size: int) -> Any:
    walls = np.asarray(env.occupied_map).astype(bool)
    cells = np.where(walls[..., None], _NIGHT, (235, 238, 242))
    cells[tuple(state.goal)] = _CHANNELS[4]
    cells[tuple(state.pos)] = _CHANNELS[1]
    return _grid(cells, size)


def _frozen_lake(env: Any, params: Any, state: Any, observation: np.ndarray, size: int) -> Any:
    from gymnax.environments.misc import frozen_lake

    tiles = np.asarray(env.desc)
    cells = np.full((*tiles.shape, 3), (214, 230, 242))
    cells[tiles == frozen_lake.HOLE] = _NIGHT
    cells[tiles == frozen_lake.GOAL] = _CHANNELS[4]
    cells[divmod(int(state.position), tiles.shape[1])] = _CHANNELS[1]
    return _grid(cells, size)


def _grid(cells: np.ndarray, size: int) -> Image.Image:
    """Coloured squares [rows, columns, 3] with lines between them."""
    rows, columns = cells.shape[:2]
    side = max(1, size // max(rows, columns))
    pixels = cells.astype(np.uint8).repeat(side, axis=0).repeat(side, axis=1)
    if side >= 8:
        line = (pixels[::side] // 2 + 45).astype(np.uint8)
        pixels[::side] = line
        pixels[:, ::side] = pixels[:, ::side] // 2 + 45
    return Image.fromarray(pixels)


def _channels(observation: np.ndarray, size: int) -> Image.Image:
    """An observation [rows, columns] or [rows, columns, channels] in [0, 1], a colour a channel."""
    layers = observation.reshape(*observation.shape[:2], -1).clip(0, 1)
    cells = np.full((*layers.shape[:2], 3), _NIGHT, float)
    for i in reversed(range(layers.shape[-1])):
        color = np.array(_CHANNELS[i % len(_CHANNELS)])
        cells += layers[..., i, None] * (color - cells)
    return _grid(cells, size)


def _bars(observation: np.ndarray, size: int) -> Image.Image:
    """The elements of a vector: a bar each, from 0 up or down; its value below."""
    values = np.ravel(observation).astype(float)
    limit = max(1.0, float(np.abs(values).max(initial=0.0)))
    canvas = Canvas(size, 0.0, 1.5, -0.62, 0.5)
    slot = 1.4 / len(values)
    for i, value in enumerate(values):
        left, height = 0.05 + i * slot, 0.45 * value / limit
        right = left + 0.8 * slot
        canvas.polygon([(left, 0), (right, 0), (right, height), (left, height)], _BLUE)
    canvas.line([(0.03, 0), (1.47, 0)], _INK, 0.006)
    picture = canvas.finish()
    if len(values) <= 10:
        font = ImageFont.load_default(max(8, round(size / 28)))
        draw = ImageDraw.Draw(picture)
        for i, value in enumerate(values):
            x = (0.05 + (i + 0.4) * slot) / 1.5 * picture.width
            draw.text((x, picture.height), f"{value:.2f}", _INK, font, anchor="md")
    return picture


_DRAWERS: dict[str, Drawer] = {
    "CartPole-v1": _cart_pole,
    "Pendulum-v1": _pendulum,
    "Acrobot-v1": _acrobot,
    "MountainCar-v0": _mountain_car,
    "MountainCarContinuous-v0": _mountain_car,
    "FourRooms-misc": _maze,
    "MetaMaze-misc": _maze,
    "FrozenLake-misc": _frozen_lake,
    "PointRobot-misc": _point_robot,
    "Reacher-misc": _reacher,
    "Swimmer-misc": _swimmer,
}


def draw(
    name: str, env: Any, params: Any, state: Any, observation: np.ndarray, size: int
) -> np.ndarray:
    """Draws where an environment of gymnax stands.

    Where none of the drawers knows it, its observation is drawn.

    Args:
      name: of the environment.
      env: gymnax's environment.
      params: gymnax's parameters.
      state: gymnax's state, in NumPy arrays.
      observation: in which that state shows itself.
      size: pixels of the longer side, or somewhat more than there will be.

    Returns:
      RGB, uint8 [height, width, 3].
    """
    if name in _DRAWERS:
        return np.asarray(_DRAWERS[name](env, params, state, observation, size))
    return draw_observation(observation, size)


def of(env: Any, state: Any, observation: Any, size: int) -> np.ndarray:
    """What a compiled environment's own `picture` draws; of one without, its observation.

    Not to be compiled. See `draw` for the size and the result.
    """
    if hasattr(env, "picture"):
        return np.asarray(env.picture(state, observation, size))
    return draw_observation(jax.device_get(observation), size)


def draw_observation(observation: Any, size: int) -> np.ndarray:
    """Draws what is seen of an environment that does not draw itself.

    An observation with rows and columns is a grid, a colour a channel; any other is bars. Of a dict
    the first that is such a grid is drawn, else all in one row of bars.

    Args:
      observation: an array, or a dict of arrays.
      size: as of `draw`.

    Returns:
      RGB, uint8 [height, width, 3].
    """
    if isinstance(observation, Mapping):
        parts = [np.asarray(observation[name]) for name in sorted(observation)]
        grids = [part for part in parts if _is_grid(part)]
        observation = grids[0] if grids else np.concatenate([part.ravel() for part in parts])
    seen = np.asarray(observation)
    if not _is_grid(seen):
        return np.asarray(_bars(seen, size))
    pixels = seen.reshape(*seen.shape[:2], -1)
    if seen.dtype == np.uint8:
        if pixels.shape[-1] == 3:
            return np.asarray(_grid(pixels, size))
        pixels = pixels[..., -1:] / 255  # of a stack the newest
    return np.asarray(_channels(pixels, size))


def _is_grid(observation: np.ndarray) -> bool:
    return observation.ndim in (2, 3) and min(observation.shape[:2]) > 1
