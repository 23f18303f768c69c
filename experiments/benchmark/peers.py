"""What a benchmark is paired with: a plain PPO, or that of a user's checkout of another suite.

PureJaxRL (github.com/luchris429/purejaxrl) and Rejax (github.com/keraJLi/rejax) are written for
the gymnax of one `done`, and import packages that few have. Stand-ins give them what they need, and
are removed once their programs are compiled. Brax (github.com/google/brax) runs as it is. The
code is theirs, found in a folder that the user names; none of it is here.

Importing this loads no JAX.
"""

import abc
import contextlib
import dataclasses
import functools
import importlib
import queue
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import envs
from experiments.cli.flags import BadInput
from experiments.comparing.timing import Program
from experiments.training import devices
from rgpo_jax.config import Config

PLAIN = "plain"
_EXPECTED = f"expected {PLAIN}, or a checkout of PureJaxRL, Rejax or Brax"
# Training takes at least so many times as long as what it begins with: fresh parameters, resets.
_LEAST_OVER_START = 100
# Steps of an epoch of Brax's, so that what its host does between two costs next to nothing.
_LEAST_EPOCH = 16_384
_MOST_EPOCHS = 1_000_000


class Peer(abc.ABC):
    """A PPO of another make.

    Attributes:
      title: its name for people.
      environments: those that it can be measured on.
    """

    title: str
    environments: tuple[str, ...] = envs.GYMNAX

    def check(self, env: str, config: Config, num_seeds: int) -> None:
        """Raises BadInput for what this peer cannot be measured on. Loads no JAX."""
        if env not in self.environments:
            library = "gymnax" if self.environments == envs.GYMNAX else "Brax"
            raise BadInput(f"--env {env}: {self.title} is measured on environments of {library}")

    @abc.abstractmethod
    def program(
        self, env: str, config: Config, num_seeds: int, seed_devices: int, seconds: float
    ) -> Program:
        """Compiles training of some seeds, with the sizes of our rollout and update.

        Args:
          env: name of an environment.
          config: whose num_envs, num_steps, num_epochs and num_minibatches count.
          num_seeds: trained in one program.
          seed_devices: over which they are spread; 1: the peer as its users run it.
          seconds: that a repetition may take, about.

        Raises:
          BadInput: the peer does not run here.
        """


class WholeTraining(Peer):
    """A peer whose training is one function of a key, with so many updates compiled in."""

    @abc.abstractmethod
    def make_train(self, env: str, config: Config, num_updates: int) -> Callable[[Any], Any]:
        """The function."""

    @contextlib.contextmanager
    def runnable(self) -> Iterator[None]:
        """Within it the function can be made and compiled."""
        yield

    def program(
        self, env: str, config: Config, num_seeds: int, seed_devices: int, seconds: float
    ) -> Program:
        compiled = functools.partial(self._compiled, env, config, num_seeds, seed_devices)
        with self.runnable():
            one = compiled(1).least_seconds()
            num_updates = max(2, round(2 * seconds / one))
            program = compiled(num_updates)
            # What the beginning takes, and what an update, follows from both.
            whole = program.least_seconds()
            update = max(whole - one, 0.1 * whole) / (num_updates - 1)
            least = round(_LEAST_OVER_START * (one - update) / update)
            return program if num_updates >= least else compiled(least)

    def _compiled(
        self, env: str, config: Config, num_seeds: int, seed_devices: int, num_updates: int
    ) -> Program:
        import jax
        import numpy as np

        from experiments.training.programs import SEEDS, memory_of

        function = self.make_train(env, config, num_updates)
        keys: Any
        if seed_devices > 1:
            layout = devices.Layout(seed_devices)
            function = devices.over_seeds(function, layout, (SEEDS,), SEEDS)
            keys = devices.seed_keys(layout.mesh(), range(num_seeds))
        elif num_seeds > 1:
            function = jax.vmap(function)
            keys = jax.vmap(jax.random.key)(np.arange(num_seeds))
        else:
            keys = jax.random.key(0)
        started = time.perf_counter()
        compiled = jax.jit(function).lower(keys).compile()
        compile_seconds = time.perf_counter() - started

        def run(keys: Any, count: int) -> None:
            for _ in range(count):  # one after another: they would overlap
                jax.block_until_ready(compiled(keys))

        steps = num_seeds * num_updates * config.batch_size
        return Program(run, keys, steps, compile_seconds, memory_of(compiled))


class Plain(WholeTraining):
    """`experiments.plain_ppo`."""

    title = "plain PPO"

    def make_train(self, env: str, config: Config, num_updates: int) -> Callable[[Any], Any]:
        from experiments import plain_ppo

        total_steps = num_updates * config.batch_size
        settings = plain_ppo.Settings(env=env, total_steps=total_steps, **sizes(config))
        try:
            return plain_ppo.make_train(settings)
        except ValueError as error:
            raise BadInput(f"--env {env}: {error}") from None


class Checkout(NamedTuple):
    """Where a user's copy of a suite lies.

    Attributes:
      name: as the user gave it.
      path: from which its packages are imported.
    """

    name: str
    path: Path


@dataclasses.dataclass(frozen=True)
class PureJaxRL(WholeTraining):
    """PureJaxRL's `ppo.py`."""

    checkout: Checkout
    title = "PureJaxRL"

    @contextlib.contextmanager
    def runnable(self) -> Iterator[None]:
        stand_ins = {
            **_packages(),
            **_gymnax(),
            # Wrappers for other suites, which `ppo.py` imports and does not use.
            "brax": _module("brax", envs=_module("brax.envs")),
            "brax.envs": _module("brax.envs"),
            "brax.envs.wrappers": _module("brax.envs.wrappers"),
            "brax.envs.wrappers.training": _module(
                "brax.envs.wrappers.training", EpisodeWrapper=None, AutoResetWrapper=None
            ),
            "navix": _module("navix"),
        }
        with _imported_from(self.checkout, self.title, ("ppo", "wrappers"), stand_ins):
            yield

    def make_train(self, env: str, config: Config, num_updates: int) -> Callable[[Any], Any]:
        from gymnax.environments import spaces

        module, ppo = importlib.import_module("gymnax"), importlib.import_module("ppo")
        environment, params = module.make(env)
        if not isinstance(environment.action_space(params), spaces.Discrete):
            raise BadInput(f"--env {env}: PureJaxRL's ppo.py has discrete actions only")
        return ppo.make_train(
            {
                "ENV_NAME": env,
                "NUM_ENVS": config.num_envs,
                "NUM_STEPS": config.num_steps,
                "TOTAL_TIMESTEPS": num_updates * config.batch_size,
                "UPDATE_EPOCHS": config.num_epochs,
                "NUM_MINIBATCHES": config.num_minibatches,
                "LR": 2.5e-4,
                "ANNEAL_LR": True,
                "GAMMA": 0.99,
                "GAE_LAMBDA": 0.95,
                "CLIP_EPS": 0.2,
                "ENT_COEF": 0.01,
                "VF_COEF": 0.5,
                "MAX_GRAD_NORM": 0.5,
                "ACTIVATION": "tanh",
                "DEBUG": False,
            }
        )


@dataclasses.dataclass(frozen=True)
class Rejax(WholeTraining):
    """Rejax's PPO, without evaluation."""

    checkout: Checkout
    title = "Rejax"

    @contextlib.contextmanager
    def runnable(self) -> Iterator[None]:
        stand_ins = {**_packages(), **_gymnax()}
        with _imported_from(self.checkout, self.title, ("rejax",), stand_ins):
            yield

    def make_train(self, env: str, config: Config, num_updates: int) -> Callable[[Any], Any]:
        total_steps = num_updates * config.batch_size
        algorithm = importlib.import_module("rejax").PPO.create(
            env=env,
            agent_kwargs={"activation": "tanh", "hidden_layer_sizes": config.hidden_sizes},
            total_timesteps=total_steps,
            eval_freq=total_steps,
            skip_initial_evaluation=True,
            learning_rate=2.5e-4,
            gamma=0.99,
            gae_lambda=0.95,
            clip_eps=0.2,
            ent_coef=0.01,
            vf_coef=0.5,
            max_grad_norm=0.5,
            **sizes(config),
        )
        return algorithm.replace(eval_callback=lambda *_: ()).train


@dataclasses.dataclass(frozen=True)
class Brax(Peer):
    """Brax's PPO, which is no function to compile but a loop on the host, for one seed."""

    checkout: Checkout
    title = "Brax"
    environments = envs.BRAX

    def check(self, env: str, config: Config, num_seeds: int) -> None:
        super().check(env, config, num_seeds)
        if num_seeds > 1:
            raise BadInput(f"--num-seeds {num_seeds}: expected 1, since Brax's PPO trains one seed")
        if config.num_envs % config.num_minibatches:
            raise BadInput(
                f"--num-envs {config.num_envs}: expected a multiple of {config.num_minibatches}, "
                "since Brax makes minibatches of whole rollouts"
            )

    def program(
        self, env: str, config: Config, num_seeds: int, seed_devices: int, seconds: float
    ) -> Program:
        import jax

        gone = "device_put_replicated"
        source = self.checkout.path / "brax/training/agents/ppo/train.py"
        if gone in source.read_text() and not hasattr(jax, gone):
            raise BadInput(
                f"--peer {self.checkout.name}: Brax's PPO calls jax.{gone}, which jax "
                f"{jax.__version__} no longer has; expected jax below 0.10"
            )
        with _imported_from(self.checkout, self.title, ("brax",), {}):
            loop = _BraxLoop(envs.split(env)[1], config)
            # The first epoch compiles, and the second does not.
            first, second = (loop.advance(1) for _ in range(2))
        return Program(
            lambda _, count: loop.advance(count), None, loop.steps, max(0.0, first - second), 0
        )


class _Left(Exception):
    """Ends Brax's loop."""


class _BraxLoop:
    """Brax's training in a thread of its own, which stands still but when it is told to go on.

    Attributes:
      steps: of an epoch: what lies between two stops.
    """

    def __init__(self, task: str, config: Config):
        import jax

        from envs import physics

        with physics.loading():
            from brax import envs as brax_envs
            from brax.training.agents.ppo import networks, train

            environment = brax_envs.get_environment(task, backend=envs.BRAX_BACKENDS[0])
        updates = -(-_LEAST_EPOCH // config.batch_size)
        self.steps = updates * config.batch_size
        go_on: queue.Queue[bool] = queue.Queue()
        stopped: queue.Queue[Exception | None] = queue.Queue()

        def at_epoch(*_: Any) -> None:
            stopped.put(None)
            if not go_on.get():
                raise _Left

        def run() -> None:
            go_on.get()
            try:
                train.train(
                    environment,
                    num_timesteps=_MOST_EPOCHS * updates * config.batch_size,
                    num_evals=_MOST_EPOCHS + 1,
                    run_evals=False,
                    progress_fn=at_epoch,
                    max_devices_per_host=1,
                    episode_length=1000,
                    num_envs=config.num_envs,
                    unroll_length=config.num_steps,
                    batch_size=config.num_envs // config.num_minibatches,
                    num_minibatches=config.num_minibatches,
                    num_updates_per_batch=config.num_epochs,
                    max_grad_norm=config.max_grad_norm,
                    network_factory=functools.partial(
                        networks.make_ppo_networks,
                        policy_hidden_layer_sizes=config.hidden_sizes,
                        value_hidden_layer_sizes=config.hidden_sizes,
                        activation=jax.numpy.tanh,
                    ),
                )
            except _Left:
                pass
            except Exception as error:
                stopped.put(error)

        self._go_on, self._stopped = go_on, stopped
        threading.Thread(target=run, daemon=True).start()
        weakref.finalize(self, go_on.put, False)

    def advance(self, epochs: int) -> float:
        """Trains so many epochs; returns the seconds that they took."""
        started = time.perf_counter()
        for _ in range(epochs):
            self._go_on.put(True)
            error = self._stopped.get()
            if error is not None:
                raise error
        return time.perf_counter() - started


# Of a kind: the file that tells it, and where its packages are imported from, both in the folder
# that the user names: a checkout, or the package itself where it is installed.
_MARKS: tuple[tuple[str, str, Callable[[Checkout], Peer]], ...] = (
    ("purejaxrl/ppo.py", "purejaxrl", PureJaxRL),
    ("src/rejax/algos/ppo.py", "src", Rejax),
    ("rejax/algos/ppo.py", ".", Rejax),
    ("../rejax/algos/ppo.py", "..", Rejax),
    ("brax/training/agents/ppo/train.py", ".", Brax),
    ("../brax/training/agents/ppo/train.py", "..", Brax),
)


def find(name: str) -> Peer:
    """The peer that a user names: "plain", or a folder. Loads no JAX and none of its code.

    Raises:
      BadInput: it is neither.
    """
    if name == PLAIN:
        return Plain()
    folder = Path(name).expanduser().absolute()
    for mark, path, kind in _MARKS:
        # Beside the folder lies the package of its own name: it is the folder itself.
        own = not mark.startswith("..") or folder.name == mark.split("/")[1]
        if name and "\0" not in name and own and (folder / mark).is_file():
            return kind(Checkout(name, (folder / path).resolve()))
    raise BadInput(f"--peer {name}: {_EXPECTED}")


def sizes(config: Config) -> dict[str, int]:
    """What a rollout and its update are made of."""
    names = ("num_envs", "num_steps", "num_epochs", "num_minibatches")
    return {name: getattr(config, name) for name in names}


def _module(name: str, **content: Any) -> ModuleType:
    module = ModuleType(name)
    vars(module).update(content)
    return module


def _packages() -> dict[str, ModuleType]:
    """Stands in for what a PPO needs of chex and distrax, where they do not import."""
    from experiments.plain_ppo import Categorical, MultivariateNormalDiag

    names = ("Array", "ArrayTree", "Numeric", "PRNGKey", "Scalar")  # of types, in annotations
    distributions = {"Categorical": Categorical, "MultivariateNormalDiag": MultivariateNormalDiag}
    found = {}
    for name, content in (("chex", dict.fromkeys(names, Any)), ("distrax", distributions)):
        try:
            importlib.import_module(name)
        except Exception:  # missing, or made for another JAX
            found[name] = _module(name, **content)
    return found


def _gymnax() -> dict[str, ModuleType]:
    """gymnax, whose environments have one `done`."""
    import gymnax

    from experiments.plain_ppo import OneDone

    def make(name: str, **params: Any) -> tuple[OneDone, Any]:
        env, env_params = gymnax.make(name, **params)
        return OneDone(env), env_params

    return {"gymnax": _module("gymnax", **(vars(gymnax) | {"make": make}))}


@contextlib.contextmanager
def _imported_from(
    checkout: Checkout, title: str, own: tuple[str, ...], stand_ins: Mapping[str, ModuleType]
) -> Iterator[None]:
    """Within it a checkout's modules can be imported and run; afterwards none of it is left.

    Args:
      checkout: from which they come.
      title: the suite's name.
      own: its packages, which are not taken from elsewhere.
      stand_ins: modules that others have in the place of those of the same name.

    Raises:
      BadInput: anything that goes wrong within, since the code is not ours.
    """

    def concerned() -> list[str]:
        return [name for name in sys.modules if name in stand_ins or name.split(".")[0] in own]

    before = {name: sys.modules.pop(name) for name in concerned()}
    path, writes_no_bytecode = sys.path.copy(), sys.dont_write_bytecode
    sys.modules.update(stand_ins)
    sys.path.insert(0, str(checkout.path))
    sys.dont_write_bytecode = True  # in a folder of the user's
    try:
        yield
    except BadInput:
        raise
    except Exception as error:
        raise BadInput(
            f"--peer {checkout.name}: {title} does not run here: {type(error).__name__}: {error}"
        ) from error
    finally:
        sys.path[:], sys.dont_write_bytecode = path, writes_no_bytecode
        for name in concerned():
            del sys.modules[name]
        sys.modules.update(before)
