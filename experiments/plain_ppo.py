"""A plain PPO to measure against: whole training is one compiled function of a key.

A baseline for `experiments.benchmark`, not an agent of this library, of which it uses nothing but
the reading of flags and the words for a rate. It is written in the manner of PureJaxRL
(github.com/luchris429/purejaxrl, the code base of arXiv 2210.05639): gymnax's own auto-reset; the
critic evaluated in the rollout; a time limit treated as an end; the return of episodes logged at
every step, and all of that handed back; advantages by a reverse scan; minibatches shuffled by a
permutation and gathered; the value loss clipped; Adam over the tree of parameters. It does what
that manner needs, no more and no less.

    python -m experiments.plain_ppo --env CartPole-v1 --num-seeds 8
"""

import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.linen.initializers import orthogonal, zeros
from flax.training.train_state import TrainState
from gymnax.environments import spaces

import envs
from experiments.cli import flags
from experiments.cli.flags import BadInput
from experiments.record.headline import CONTROL
from rgpo_jax.config import Checked, ConfigError
from rgpo_jax.ranges import Count, CountOrZero, NonNegative, Positive, UnitInterval

Array = jax.Array
PROG = "python -m experiments.plain_ppo"
HIDDEN = 64  # units of each of two hidden layers, in actor and critic
# What a step of gymnax 1.x tells, and a step of the gymnax that PureJaxRL is written for does not.
_NEW_IN_INFO = ("terminated", "truncated", "final_observation")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Checked):
    """What to train; the defaults are PureJaxRL's."""

    env: str = "CartPole-v1"
    """A gymnax environment whose observations are numbers."""
    total_steps: Count = 500_000
    """Environment steps of a seed, over all environments."""
    num_envs: Count = 4
    """Environments stepped side by side."""
    num_steps: Count = 128
    """Steps of each environment between two updates."""
    num_epochs: Count = 4
    """Passes over each rollout."""
    num_minibatches: Count = 4
    """Gradient steps a pass; must divide num_envs * num_steps."""
    learning_rate: Positive = 2.5e-4
    """Step size of Adam, which falls linearly to 0 over total_steps."""
    discount: UnitInterval = 0.99
    """Discount factor per step."""
    gae_lambda: UnitInterval = 0.95
    """Lambda of generalised advantage estimation."""
    clip: Positive = 0.2
    """Clip range of ratios, and of the move of values."""
    entropy_coefficient: NonNegative = 0.01
    """Weight of the entropy bonus."""
    value_coefficient: NonNegative = 0.5
    """Weight of the value loss."""
    max_grad_norm: Positive = 0.5
    """Largest global norm of a gradient."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size % self.num_minibatches:
            raise ConfigError(
                "num_minibatches",
                f"{self.num_minibatches}: expected a divisor of num_envs * num_steps = "
                f"{self.batch_size}",
            )
        if self.num_updates < 1:
            raise ConfigError(
                "total_steps",
                f"{self.total_steps}: expected at least num_envs * num_steps = {self.batch_size}",
            )

    @property
    def batch_size(self) -> int:
        """Steps in a rollout, over all environments."""
        return self.num_envs * self.num_steps

    @property
    def num_updates(self) -> int:
        """Updates of the whole run: as many as fit into total_steps."""
        return self.total_steps // self.batch_size


class Categorical:
    """Distribution over actions 0, ..., n - 1.

    Args:
      logits: [..., n].
    """

    def __init__(self, logits: Array):
        self.log_probs = nn.log_softmax(logits)

    def sample(self, seed: Array) -> Array:
        """Actions, int32 [...]."""
        return jax.random.categorical(seed, self.log_probs)

    def log_prob(self, value: Array) -> Array:
        """[...]."""
        chosen = jax.nn.one_hot(value, self.log_probs.shape[-1])
        return jnp.sum(chosen * self.log_probs, axis=-1)

    def entropy(self) -> Array:
        """In nats [...]."""
        return -jnp.sum(jnp.exp(self.log_probs) * self.log_probs, axis=-1)


class MultivariateNormalDiag:
    """Normal distribution with independent elements.

    Args:
      loc: means [..., n].
      scale_diag: standard deviations, broadcast to [..., n].
    """

    def __init__(self, loc: Array, scale_diag: Array):
        self.loc = loc
        self.scale = jnp.broadcast_to(scale_diag, loc.shape)

    def sample(self, seed: Array) -> Array:
        """[..., n]."""
        return self.loc + self.scale * jax.random.normal(seed, self.loc.shape)

    def log_prob(self, value: Array) -> Array:
        """[...]."""
        return jnp.sum(jax.scipy.stats.norm.logpdf(value, self.loc, self.scale), axis=-1)

    def entropy(self) -> Array:
        """In nats [...]."""
        return jnp.sum(0.5 * jnp.log(2 * jnp.pi * jnp.e) + jnp.log(self.scale), axis=-1)


class ActorCritic(nn.Module):
    """Two separate networks with two hidden layers of tanh.

    Attributes:
      num_actions: number of discrete actions, or of elements of a continuous one.
      discrete: which of both.
    """

    num_actions: int
    discrete: bool

    @nn.compact
    def __call__(self, observation: Array) -> tuple[Categorical | MultivariateNormalDiag, Array]:
        def features(x: Array) -> Array:
            for _ in range(2):
                x = nn.tanh(nn.Dense(HIDDEN, kernel_init=orthogonal(np.sqrt(2)))(x))
            return x

        actor = nn.Dense(self.num_actions, kernel_init=orthogonal(0.01))(features(observation))
        value = nn.Dense(1, kernel_init=orthogonal(1.0))(features(observation))[..., 0]
        if self.discrete:
            return Categorical(actor), value
        log_std = self.param("log_std", zeros, (self.num_actions,))
        return MultivariateNormalDiag(actor, jnp.exp(log_std)), value


def apply(network: ActorCritic, params: Any, observation: Array) -> tuple[Any, Array]:
    """Policy and values [...] for observations [..., n]."""
    return network.apply(params, observation)  # type: ignore[return-value]


class OneDone:
    """A gymnax 1.x environment in the protocol of gymnax 0.0: a step has one `done` for both ends.

    All else is the environment's own.
    """

    def __init__(self, env: Any):
        self._env = env

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # a copy in the making has no _env to ask
            raise AttributeError(name)
        return getattr(self._env, name)

    def step(
        self, key: Array, state: Any, action: Array, params: Any = None
    ) -> tuple[Array, Any, Array, Array, dict[str, Any]]:
        """Observation, state, reward, done and info; a finished episode begins anew."""
        observation, state, reward, terminated, truncated, info = self._env.step(
            key, state, action, params
        )
        info = {name: value for name, value in info.items() if name not in _NEW_IN_INFO}
        return observation, state, reward, terminated | truncated, info


class LogState(NamedTuple):
    """The state of an environment and of its log; all fields are scalars but the first."""

    env_state: Any
    episode_return: Array
    episode_length: Array
    returned_episode_return: Array
    returned_episode_length: Array
    timestep: Array


class LoggedEnvironment:
    """A gymnax environment that flattens observations and logs episodes in `info`."""

    def __init__(self, name: str):
        env, self._params = gymnax.make(name)
        self._env = OneDone(env)
        if not isinstance(env.observation_space(self._params), spaces.Box):
            raise ValueError("expected an environment whose observations are numbers")
        self.observation_size = int(np.prod(env.observation_space(self._params).shape))
        self.action_space = env.action_space(self._params)

    def reset(self, key: Array) -> tuple[Array, LogState]:
        """Observation [n] and state."""
        observation, env_state = self._env.reset(key, self._params)
        nought, none = jnp.float32(0), jnp.int32(0)
        return jnp.ravel(observation), LogState(env_state, nought, none, nought, none, none)

    def step(
        self, key: Array, state: LogState, action: Array
    ) -> tuple[Array, LogState, Array, Array, dict[str, Any]]:
        """Observation [n], state, reward, done and info."""
        if isinstance(self.action_space, spaces.Box):
            action = jnp.clip(action, self.action_space.low, self.action_space.high)
        observation, env_state, reward, done, info = self._env.step(
            key, state.env_state, action, self._params
        )
        episode_return = state.episode_return + reward
        episode_length = state.episode_length + 1
        state = LogState(
            env_state,
            jnp.where(done, 0.0, episode_return),
            jnp.where(done, 0, episode_length),
            jnp.where(done, episode_return, state.returned_episode_return),
            jnp.where(done, episode_length, state.returned_episode_length),
            state.timestep + 1,
        )
        info |= {
            "returned_episode": done,
            "returned_episode_return": state.returned_episode_return,
            "returned_episode_length": state.returned_episode_length,
            "timestep": state.timestep,
        }
        return jnp.ravel(observation), state, reward, done, info


class Transition(NamedTuple):
    """A batch of steps, [T, B, ...] or [N, ...]."""

    observation: Array
    action: Array
    log_prob: Array
    value: Array
    reward: Array
    done: Array
    info: dict[str, Array]


class Runner(NamedTuple):
    """Where training stands."""

    train_state: TrainState
    env_state: LogState
    observation: Array
    key: Array


def initial_runner(
    env: LoggedEnvironment, network: ActorCritic, settings: Settings, key: Array
) -> Runner:
    """Fresh parameters, optimiser and episodes."""
    key, network_key, reset_key = jax.random.split(key, 3)

    def learning_rate(count: Array) -> Array:
        updates = count // (settings.num_minibatches * settings.num_epochs)
        return settings.learning_rate * (1.0 - updates / settings.num_updates)

    optimiser = optax.chain(
        optax.clip_by_global_norm(settings.max_grad_norm),
        optax.adam(learning_rate, eps=1e-5),
    )
    params = network.init(network_key, jnp.zeros(env.observation_size))
    train_state = TrainState.create(apply_fn=network.apply, params=params, tx=optimiser)
    observation, env_state = jax.vmap(env.reset)(jax.random.split(reset_key, settings.num_envs))
    return Runner(train_state, env_state, observation, key)


def collect(
    env: LoggedEnvironment, network: ActorCritic, settings: Settings, runner: Runner
) -> tuple[Runner, Transition]:
    """A rollout: the runner after it, and its steps [T, B, ...]."""

    def step(runner: Runner, _: None) -> tuple[Runner, Transition]:
        key, action_key, step_key = jax.random.split(runner.key, 3)
        policy, value = apply(network, runner.train_state.params, runner.observation)
        action = policy.sample(seed=action_key)
        step_keys = jax.random.split(step_key, settings.num_envs)
        observation, env_state, reward, done, info = jax.vmap(env.step)(
            step_keys, runner.env_state, action
        )
        log_prob = policy.log_prob(action)
        transition = Transition(runner.observation, action, log_prob, value, reward, done, info)
        return Runner(runner.train_state, env_state, observation, key), transition

    return jax.lax.scan(step, runner, None, settings.num_steps)


def generalized_advantages(
    reward: Array, value: Array, done: Array, last_value: Array, settings: Settings
) -> Array:
    """Advantages [T, B], step by step from the last.

    Args:
      reward: [T, B].
      value: of the observations that actions answer [T, B].
      done: whether the episode ended with the step [T, B].
      last_value: of the observations after the last step [B].
      settings: discount and lambda.
    """

    def step(carry: tuple[Array, Array], x: tuple[Array, ...]) -> tuple[Any, Array]:
        advantage, next_value = carry
        reward, value, done = x
        goes_on = 1.0 - done
        delta = reward + settings.discount * next_value * goes_on - value
        advantage = delta + settings.discount * settings.gae_lambda * goes_on * advantage
        return (advantage, value), advantage

    start = (jnp.zeros_like(last_value), last_value)
    return jax.lax.scan(step, start, (reward, value, done), reverse=True, unroll=16)[1]


def loss(
    params: Any,
    network: ActorCritic,
    settings: Settings,
    batch: Transition,
    advantage: Array,
    target: Array,
) -> tuple[Array, tuple[Array, Array, Array]]:
    """PPO's loss over a minibatch [N, ...], and its parts: policy, value and entropy."""
    policy, value = apply(network, params, batch.observation)
    moved = batch.value + jnp.clip(value - batch.value, -settings.clip, settings.clip)
    errors = jnp.maximum(jnp.square(value - target), jnp.square(moved - target))
    value_loss = 0.5 * jnp.mean(errors)

    ratio = jnp.exp(policy.log_prob(batch.action) - batch.log_prob)
    clipped = jnp.clip(ratio, 1 - settings.clip, 1 + settings.clip)
    advantage = (advantage - jnp.mean(advantage)) / (jnp.std(advantage) + 1e-8)
    policy_loss = -jnp.mean(jnp.minimum(ratio * advantage, clipped * advantage))
    entropy = jnp.mean(policy.entropy())
    total = (
        policy_loss
        + settings.value_coefficient * value_loss
        - settings.entropy_coefficient * entropy
    )
    return total, (policy_loss, value_loss, entropy)


def update(network: ActorCritic, settings: Settings, runner: Runner, steps: Transition) -> Runner:
    """All epochs over a rollout [T, B, ...]."""
    _, last_value = apply(network, runner.train_state.params, runner.observation)
    advantage = generalized_advantages(steps.reward, steps.value, steps.done, last_value, settings)
    whole = (steps, advantage, advantage + steps.value)
    flat = jax.tree.map(lambda x: x.reshape(settings.batch_size, *x.shape[2:]), whole)

    def gradient_step(train_state: TrainState, minibatch: Any) -> tuple[TrainState, Any]:
        gradient = jax.value_and_grad(loss, has_aux=True)
        report, grads = gradient(train_state.params, network, settings, *minibatch)
        return train_state.apply_gradients(grads=grads), report

    def epoch(carry: tuple[TrainState, Array], _: None) -> tuple[Any, Any]:
        train_state, key = carry
        key, shuffle_key = jax.random.split(key)
        order = jax.random.permutation(shuffle_key, settings.batch_size)
        shuffled = jax.tree.map(lambda x: jnp.take(x, order, axis=0), flat)
        minibatches = jax.tree.map(
            lambda x: x.reshape(settings.num_minibatches, -1, *x.shape[1:]), shuffled
        )
        train_state, report = jax.lax.scan(gradient_step, train_state, minibatches)
        return (train_state, key), report

    start = (runner.train_state, runner.key)
    (train_state, key), _ = jax.lax.scan(epoch, start, None, settings.num_epochs)
    return runner._replace(train_state=train_state, key=key)


def make_train(settings: Settings) -> Callable[[Array], dict[str, Any]]:
    """The whole training of one seed, to be compiled and vmapped.

    Returns:
      train(key) -> {"runner": where training ended, "metrics": what every step's `info` says,
      each [num_updates, T, B]}.

    Raises:
      ValueError: observations of the environment are no numbers.
    """
    env = LoggedEnvironment(settings.env)
    space = env.action_space
    discrete = isinstance(space, spaces.Discrete)
    network = ActorCritic(int(space.n if discrete else np.prod(space.shape)), discrete)

    def one_update(runner: Runner, _: None) -> tuple[Runner, dict[str, Array]]:
        runner, steps = collect(env, network, settings, runner)
        return update(network, settings, runner, steps), steps.info

    def train(key: Array) -> dict[str, Any]:
        runner = initial_runner(env, network, settings, key)
        runner, metrics = jax.lax.scan(one_update, runner, None, settings.num_updates)
        return {"runner": runner, "metrics": metrics}

    return train


def final_return(metrics: dict[str, Array]) -> float:
    """Mean return of the episodes of one seed that ended in the last tenth of its updates.

    NaN where none did.
    """
    last = -max(1, len(metrics["timestep"]) // 10)
    ended = np.asarray(metrics["returned_episode"][last:])
    returns = np.asarray(metrics["returned_episode_return"][last:])[ended]
    return float(np.mean(returns)) if returns.size else float("nan")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Settings):
    """Train a plain PPO, the baseline of the benchmark; nothing is kept."""

    seed: CountOrZero = 0
    """First seed."""
    num_seeds: Count = 1
    """Seeds trained side by side in one vmapped program: seed, seed + 1, ..."""


def main(args: Sequence[str] | None = None) -> int:
    """Trains and prints compile time, run time and final return; returns the exit status."""
    try:
        options = flags.read(Options, Options(), sys.argv[1:] if args is None else args, PROG)
        try:
            envs.check_name(options.env)
            if options.env not in envs.GYMNAX:
                raise ValueError("expected an environment of gymnax")
            train = make_train(options)
        except ValueError as error:
            raise BadInput(f"--env {options.env}: {error}") from None
    except (BadInput, ConfigError) as error:
        flags.refuse(error)
    keys = jax.vmap(jax.random.key)(options.seed + jnp.arange(options.num_seeds))
    started = time.perf_counter()
    if options.num_seeds == 1:
        compiled = jax.jit(train).lower(keys[0]).compile()
    else:
        compiled = jax.jit(jax.vmap(train)).lower(keys).compile()
    print(f"compiled in {time.perf_counter() - started:.2f} s", flush=True)
    started = time.perf_counter()
    result = jax.block_until_ready(compiled(keys[0] if options.num_seeds == 1 else keys))
    seconds = time.perf_counter() - started
    steps = options.num_seeds * options.num_updates * options.batch_size
    print(f"trained in {seconds:.2f} s, {CONTROL.unit.a_second(steps / seconds)}", flush=True)
    metrics = jax.device_get(result["metrics"])
    if options.num_seeds == 1:
        metrics = jax.tree.map(lambda x: x[None], metrics)
    finals = [
        final_return(jax.tree.map(lambda x, i=i: x[i], metrics)) for i in range(options.num_seeds)
    ]
    seeds = "1 seed" if options.num_seeds == 1 else f"{options.num_seeds} seeds"
    print(
        f"final return {np.mean(finals):.1f}, {min(finals):.1f} to {max(finals):.1f} over {seeds}, "
        "means of the episodes that ended in the last tenth of updates",
        flush=True,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
