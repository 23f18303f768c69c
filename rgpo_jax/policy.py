"""A policy to take away: it acts without environment, agent or optimiser.

>>> policy = rgpo_jax.load("runs/cartpole")
>>> action = policy.act(observation)

Runs keep theirs in `policy.npz`, beside the checkpoints; `save` writes that file from a program of
your own.
"""

import functools
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from rgpo_jax import acting, inspection, networks, normalization, policy_file
from rgpo_jax.acting import PolicyState
from rgpo_jax.environment import (
    ActionSpace,
    Box,
    Discrete,
    HostEnvironment,
    MultiDiscrete,
    Observation,
    Spaces,
)
from rgpo_jax.networks import Network
from rgpo_jax.policy_file import About, PolicyError, of_each

if TYPE_CHECKING:  # who only loads does not wait for what trains
    from rgpo_jax.agent import Agent, AgentState
    from rgpo_jax.learner import LearnerState

Array = jax.Array

_SPACES = {kind.__name__: kind for kind in (Discrete, MultiDiscrete, Box)}


class Policy:
    """Observations in, actions out, both in the environment's units.

    Attributes:
      about: environment, shapes, seeds and updates of the file that it came from.
      action_space: of the actions.
      seed: that trained it.
    """

    def __init__(
        self,
        network: Network,
        action_space: ActionSpace,
        about: About,
        state: PolicyState,
        seed: int,
    ):
        self.about = about
        self.action_space = action_space
        self.seed = seed
        self._network = network
        self._state = jax.device_put(state)
        self._respond = jax.jit(functools.partial(_respond, network, action_space))

    def __repr__(self) -> str:
        about = self.about
        return f"<policy for {about.env}, seed {self.seed}, after {about.updates} updates>"

    def act(self, observation: Any, key: Array | None = None, memory: Any = None) -> Any:
        """Acts on one observation, or on a batch of them.

        Each new batch shape is compiled once, which takes a fraction of a second.

        Args:
          observation: as the environment that `envs` made gives it, [*observation_shape] or
            [..., *observation_shape]; a dict of arrays where that gives one.
          key: a typed key, `jax.random.key(0)`; None: the policy's mode.
          memory: of a recurrent policy, that of the step before: `initial_memory` where an episode
            starts.

        Returns:
          The action as a NumPy array: whole numbers [...], or [..., *shape of the action space]. Of
          a recurrent policy, (action, memory after the observation).

        Raises:
          TypeError: the policy is recurrent and there is no memory, or the other way round; or the
            observation is of another type.
          ValueError: observation or memory are of another shape.
        """
        observation, batch_shape = self._read(observation)
        start = self.initial_memory(*batch_shape)
        if memory is not None and start is not None and np.shape(memory) != np.shape(start):
            raise ValueError(f"memory of shape {np.shape(memory)}: expected {np.shape(start)}")
        return jax.device_get(self._respond(self._state, observation, key, memory))

    def _read(self, observation: Any) -> tuple[Observation, tuple[int, ...]]:
        """An observation in arrays of its types, and the shape of its batch."""
        shape, dtype = self.about.observation_shape, self.about.observation_dtype
        if not isinstance(shape, dict):
            return _as_array("observation", observation, shape, str(dtype))
        assert isinstance(dtype, dict)
        read = {
            name: _as_array(*part, shape[name], dtype[name])
            for name, part in acting.parts_of(observation, shape).items()
        }
        batch_shapes = {batch_shape for _, batch_shape in read.values()}
        if len(batch_shapes) > 1:
            raise ValueError(f"observation: its arrays have batches of {sorted(batch_shapes)}")
        return {name: array for name, (array, _) in read.items()}, batch_shapes.pop()

    def function(self, observation: Array, key: Array | None = None, memory: Any = None) -> Any:
        """`act` as a pure function of arrays, to be jitted, vmapped and scanned."""
        return _respond(self._network, self.action_space, self._state, observation, key, memory)

    def distribution(self, observation: Array, memory: Any = None) -> Any:
        """What it would do, as a pure function of arrays, to be jitted, vmapped and differentiated.

        Args:
          observation: [..., *observation_shape].
          memory: of a recurrent policy, before the observation.

        Returns:
          A `rgpo_jax.distributions.Distribution` [...], with `log_prob`, `entropy`, `mode` and
          `sample`: of discrete actions, or of continuous ones before `squash` and before they are
          scaled to the environment's bounds. Of a recurrent policy, (distribution, memory after the
          observation).
        """
        distribution, after = _distribution(self._network, self._state, observation, memory)
        return distribution if after is None else (distribution, after)

    def initial_memory(self, *batch_shape: int) -> np.ndarray | None:
        """What a recurrent policy remembers where an episode starts, zeros; None without."""
        recurrence = self._network.recurrence
        return None if recurrence is None else np.zeros((*batch_shape, recurrence.size), np.float32)

    def export(self, path: str | Path) -> None:
        """Writes the policy's mode for programs that have not this suite; see `rgpo_jax.export`.

        Args:
          path: of the file, which is replaced if it is there: .stablehlo or .onnx.

        Raises:
          PolicyError: the name ends otherwise, or the format cannot say what the policy does.
          ImportError: the format needs the extra `export`.
        """
        from rgpo_jax import export

        path = Path(path).expanduser()
        policy_file.write(path, export.content(self, path.suffix.lower()))

    @property
    def is_recurrent(self) -> bool:
        """Whether it acts with a memory."""
        return self._network.recurrence is not None

    @classmethod
    def of_content(
        cls, content: bytes, seed: int | None = None, network: Network | nn.Module | None = None
    ) -> Self:
        """Of what `pack` gave; see `load`."""
        about, arrays = policy_file.unpack(content)
        if seed is None and about.seeds:
            seed = about.seeds[0]
        if seed not in about.seeds:
            raise PolicyError(f"seed {seed}: it has {', '.join(map(str, about.seeds))}")
        _check_torso(about.torso, network)
        try:
            space = policy_file.space_of_json(about.action_space, _SPACES)
            shape, dtype = about.observation_shape, of_each(np.dtype, about.observation_dtype)
            inspection.check_spaces(Spaces(shape, space, dtype, name=about.env))
            if not isinstance(network, Network) and about.config is not None:
                network = networks.make(shape, space, about.config, torso=network)
        except (KeyError, TypeError, ValueError) as error:
            raise PolicyError(f"no network can be built for it: {error}") from None
        if not isinstance(network, Network):
            raise PolicyError("it has a Network of its own: give it, as network=")
        template = jax.eval_shape(network.init, jax.random.key(0))["actor"]
        is_normalised = any(name.startswith("observation_moments/") for name in arrays)
        moments = of_each(normalization.empty, shape) if is_normalised else None
        like = PolicyState({"actor": template}, moments)
        number = len(about.seeds)
        expected = {name: ((number, *x.shape), x.dtype) for name, x in _named(like).items()}
        found = {name: (x.shape, x.dtype) for name, x in arrays.items()}
        if found != expected:
            wrong = min(name for name in found | expected if found.get(name) != expected.get(name))
            raise PolicyError(f"{wrong} is not that of its network, or there is no such array")
        index = about.seeds.index(seed)
        leaves = [arrays[name][index] for name in _named(like)]
        state = jax.tree.unflatten(jax.tree.structure(like), leaves)
        return cls(network, space, about, state, seed)


def _check_torso(expected: str | None, network: Network | nn.Module | None) -> None:
    """Raises PolicyError where a torso of its own is not given; warns where another one is."""
    if expected is None or isinstance(network, Network):
        return
    if network is None:
        raise PolicyError(f"its torso is {expected}: expected the module itself, as network=")
    given = networks.name_of(network)
    if given != expected:
        warnings.warn(f"its torso is {expected}; the one given is {given}", stacklevel=4)


def _as_array(
    name: str, given: Any, shape: tuple[int, ...], dtype_name: str
) -> tuple[np.ndarray, tuple[int, ...]]:
    """An array of this type, and the shape of its batch.

    Raises:
      ValueError: it has another shape.
      TypeError: it is of another kind of numbers.
    """
    array, dtype = np.asarray(given), np.dtype(dtype_name)
    batch_shape = acting.batch_shape_of(name, array, shape)
    if not np.can_cast(array.dtype, dtype, "same_kind"):
        raise TypeError(f"{name} of {array.dtype}: expected {dtype}")
    return array.astype(dtype), batch_shape


def _distribution(
    network: Network, state: PolicyState, observation: Observation, memory: Any
) -> tuple[Any, Any]:
    """The distribution of actions, and the actor's memory after the observation; None without."""
    policy = functools.partial(acting.policy, network, state)
    before = None if memory is None else {"actor": jnp.asarray(memory)}
    distribution, after = networks.respond(policy, observation, before)
    return distribution, None if after is None else after["actor"]


def _respond(
    network: Network,
    space: ActionSpace,
    state: PolicyState,
    observation: Array,
    key: Array | None,
    memory: Any,
) -> Any:
    distribution, after = _distribution(network, state, observation, memory)
    action = distribution.mode() if key is None else distribution.sample(key)
    env_action = acting.act(distribution, action, space).env_action
    return env_action if after is None else (env_action, after)


def _named(state: PolicyState) -> dict[str, Any]:
    """The arrays by name, in the order of the tree's leaves."""
    tree = {"actor": state.params["actor"], "observation_moments": state.observation_moments}
    # The order is that of `PolicyState`, whose fields these are.
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in leaves}


def describe(
    agent: "Agent", seeds: Sequence[int], updates: int, observation_dtype: Any = None
) -> About:
    """What a file says of an agent's policies.

    Args:
      agent: that they are of.
      seeds: of each policy.
      updates: so far.
      observation_dtype: where it is known; None: a compiled environment is traced for it.
    """
    env: Any = agent.env
    if observation_dtype is None:
        if isinstance(env, HostEnvironment):
            observation_dtype = env.observation_dtype
        else:
            observation = jax.eval_shape(env.reset, jax.random.key(0))[1]
            observation_dtype = jax.tree.map(lambda x: x.dtype, observation)
    return About(
        env.name,
        of_each(tuple, env.observation_shape),
        of_each(_dtype_name, observation_dtype),
        policy_file.space_to_json(env.action_space),
        agent.learner.network.config,
        tuple(seeds),
        updates,
        agent.learner.network.torso,
    )


def _dtype_name(dtype: Any) -> str:
    """Its name; of a float that NumPy alone does not know, such as bfloat16, that of float32."""
    dtype = np.dtype(dtype)
    return "float32" if dtype.kind == "V" else dtype.name


def pack(about: About, learner: acting.Actor) -> bytes:
    """The content of a policy's file.

    Args:
      about: what it is of.
      learner: states batched over its seeds [N, ...]: of the actor and the statistics alone.
    """
    state = PolicyState({"actor": learner.params["actor"]}, learner.observation_moments)
    return policy_file.pack(about, {name: np.asarray(x) for name, x in _named(state).items()})


def _file_of(path: str | Path) -> Path:
    path = Path(path).expanduser()
    return path if path.suffix == ".npz" else path / policy_file.NAME


def save(
    path: str | Path,
    agent: "Agent",
    state: "AgentState | LearnerState",
    seeds: Sequence[int] | None = None,
) -> None:
    """Keeps policies for `load`: parameters of the actor and statistics of observations.

    Args:
      path: a folder, which is made where there is none, and gets a `policy.npz`; or the name of the
        file, ending in .npz. One that is there is replaced.
      agent: that trained them.
      state: of the agent, or of its learner; or states of N seeds, batched by vmap.
      seeds: by which `load` tells the policies apart; None: 0, ..., N - 1.

    Raises:
      ValueError: there is another number of seeds than of states.
      OSError: the file cannot be written.
    """
    learner = acting.learner_of(state)
    updates = np.atleast_1d(np.asarray(learner.updates))
    actor = PolicyState({"actor": learner.params["actor"]}, learner.observation_moments)
    if learner.updates.ndim == 0:
        actor = jax.tree.map(lambda x: x[None], actor)
    seeds = range(updates.size) if seeds is None else seeds
    if len(seeds) != updates.size:
        raise ValueError(f"seeds {tuple(seeds)}: there are {updates.size} states")
    about = describe(agent, seeds, int(updates.max()))
    policy_file.write(_file_of(path), pack(about, actor))


def load(
    path: str | Path, *, seed: int | None = None, network: Network | nn.Module | None = None
) -> Policy:
    """A policy of a run, or of what `save` has written.

    Neither the environment nor the agent is imported, and nothing that the folder names is run.

    Args:
      path: folder of a run, or a `policy.npz`.
      seed: which of those that were trained; None: the first.
      network: that the agent was made with, where it was one of its own; a `Network` or a module.

    Raises:
      PolicyError: there is no such policy, or the file is damaged.
      OSError: the file cannot be read.
    """
    file = _file_of(path)
    if not file.is_file():  # nor a pipe, on which one would wait
        raise PolicyError(
            f"{path}: there is no {file.name}; a run of an earlier version gets one by "
            f"python -m experiments.export --run DIR --out DIR/{policy_file.NAME}"
        )
    try:
        return Policy.of_content(file.read_bytes(), seed, network)
    except PolicyError as error:
        raise PolicyError(f"{file}: {error}") from None
