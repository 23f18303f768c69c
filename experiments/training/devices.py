"""How a run's seeds and environments are spread over devices. Importing this loads no JAX."""

import dataclasses
import importlib.metadata
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from experiments.cli.flags import BadInput
from rgpo_jax.config import Config

if TYPE_CHECKING:
    from jax.sharding import Mesh

# Below so many samples of a minibatch per device, exchanging gradients costs more than it saves.
_LEAST_SHARE = 1024
# On a CPU a backward pass over many samples is bound by memory; over so few it stays in a core's
# cache. Both numbers were measured with the networks of classic control.
_CACHED_SAMPLES = 256
_UNCACHED_SAMPLES = 4096
# Vmapping shares the overhead of small operations among seeds, and sends every operation through
# the memory of all of them. From so many multiplications of a gradient step on (samples of a
# minibatch times weights) the latter costs more: 1.3 to 1.4 times with MinAtar and Brax's ant.
_LEAST_WORK_IN_TURN = 10_000_000


@dataclasses.dataclass(frozen=True)
class Layout:
    """A grid of devices.

    Attributes:
      seed_devices: over which seeds are spread.
      env_devices: over which the environments of each seed are spread.
      in_turn: whether seeds that share a device are trained one after another; else vmapped.
    """

    seed_devices: int = 1
    env_devices: int = 1
    in_turn: bool = False

    @property
    def num_devices(self) -> int:
        return self.seed_devices * self.env_devices

    @property
    def axis_name(self) -> str | None:
        """The mapped axis over which an agent's environments are spread, if they are."""
        return "env" if self.env_devices > 1 else None

    def mesh(self) -> "Mesh":
        """As many devices of each process, as a mesh with the axes "seed" and "env"."""
        import jax

        processes = range(jax.process_count())
        share = self.num_devices // len(processes)
        devices = [d for i in processes for d in jax.local_devices(process_index=i)[:share]]
        return jax.make_mesh(
            (self.seed_devices, self.env_devices), ("seed", "env"), devices=devices
        )

    @classmethod
    def choose(
        cls, config: Config, num_seeds: int, on_host: bool = False, spread: bool = True
    ) -> "Layout":
        """The layout for the devices that JAX has; one of a process's if nothing may be `spread`.

        Raises:
          BadInput: processes were joined, among which the run cannot be shared out.
        """
        import jax

        num_devices = jax.local_device_count() if spread else 1
        return choose(config, num_seeds, num_devices, on_host, num_processes=jax.process_count())

    def describe(self) -> str:
        """The grid in words."""
        parts = [f"seeds over {self.seed_devices}", f"environments over {self.env_devices}"]
        if self.in_turn:
            parts.append("seeds of a device in turn")
        count = "1 device" if self.num_devices == 1 else f"{self.num_devices} devices"
        return f"{count}: {', '.join(parts)}"


def num_cores() -> int:
    """Cores that this process may use: a scheduler, or `taskset`, may have left it a few of all."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def seeds_alone(num_seeds: int, num_devices: int) -> Layout:
    """Spreads seeds, and nothing else, over as many devices as share them evenly."""
    return Layout(seed_devices=_largest_divisor(num_seeds, num_devices))


def _largest_divisor(number: int, limit: int) -> int:
    return max(n for n in range(1, limit + 1) if number % n == 0)


def choose(
    config: Config,
    num_seeds: int,
    num_devices: int,
    on_host: bool = False,
    num_processes: int = 1,
) -> Layout:
    """Spreads seeds first, which need not talk to one another, and then environments.

    Environments that live on the host are not on a device, and are not spread. The results do not
    depend on the choice, but for the order of float sums.

    Args:
      config: of the agent.
      num_seeds: that are trained.
      num_devices: that each process has.
      on_host: whether environments live on the host.
      num_processes: that share the run; each gets as many devices of the layout.

    Raises:
      BadInput: seeds and environments cannot be shared out among so many processes.
    """
    minibatch_size = config.batch_size // config.num_minibatches
    # What a minibatch is shuffled from, and shared out by: steps, or whole sequences.
    parts = minibatch_size if config.network != "gru" else config.num_envs // config.num_minibatches
    total = num_devices * num_processes
    microbatch_size = config.microbatch_size or minibatch_size

    def divides(environments: int) -> bool:
        """Whether each of so many devices gets equal shares, down to whole microbatches."""
        share = minibatch_size // environments
        return (
            config.num_envs % environments == 0
            and parts % environments == 0
            and (share <= microbatch_size or share % microbatch_size == 0)
        )

    layouts = [
        Layout(seeds, environments)
        for seeds in range(1, min(num_seeds, total) + 1)
        for environments in range(1, (1 if on_host else total // seeds) + 1)
        if num_seeds % seeds == 0
        and divides(environments)
        and seeds * environments % num_processes == 0
    ]
    if not layouts:
        raise BadInput(
            f"--num-processes {num_processes}: {num_seeds} seeds, {config.num_envs} environments "
            f"and minibatches of {minibatch_size} samples cannot be shared out equally among them"
        )

    def preference(layout: Layout) -> tuple[bool, int, int]:
        alone = layout.env_devices == 1
        pays = alone or minibatch_size // layout.env_devices >= _LEAST_SHARE
        # It must pay, unless the processes leave no such choice: then as little as can be.
        return pays, layout.seed_devices, layout.env_devices if pays else -layout.env_devices

    return max(layouts, key=preference)


def fit_to_caches(
    config: Config,
    num_weights: int,
    num_seeds: int,
    layout: Layout,
    in_turn: bool | None = None,
) -> tuple[Config, Layout]:
    """Fits work to the caches of CPU cores: seeds in turn, and microbatches unless the user chose.

    Args:
      config: of the agent.
      num_weights: of its network (`Network.num_weights`).
      num_seeds: that are trained side by side.
      layout: of devices, over which they are spread.
      in_turn: whether seeds that share a device are trained one after another; None: where that is
        faster.
    """
    import jax

    if jax.default_backend() != "cpu":
        return config, layout
    share = config.batch_size // config.num_minibatches // layout.env_devices
    seeds = num_seeds // layout.seed_devices
    if in_turn is None:
        few_threads = num_cores() <= 2 * layout.num_devices  # many share a large operation
        in_turn = few_threads and share * num_weights >= _LEAST_WORK_IN_TURN
    if in_turn and seeds > 1:
        layout, seeds = dataclasses.replace(layout, in_turn=True), 1
    if layout.num_devices == 1:  # its threads share the work of a large operation
        return config, layout
    if config.microbatch_size is not None or share * seeds < _UNCACHED_SAMPLES:
        return config, layout
    if config.network == "gru":  # sequences are not cut
        return config, layout
    size = _largest_divisor(share, max(1, _CACHED_SAMPLES // seeds))
    return dataclasses.replace(config, microbatch_size=size) if size > 16 else config, layout


def can_spread(on_mjx: bool) -> bool:
    """Whether programs may be spread over devices; those of environments on MJX may not always.

    XLA as of jax 0.11 crashes when it partitions MJX: Shardy on constants without elements, of
    which MJX is full, and its predecessor on sorts.
    """
    if not on_mjx:
        return True
    version = tuple(map(int, importlib.metadata.version("jax").split(".")[:2]))
    return version < (0, 10)


def use_all_cores(
    config: Config,
    num_seeds: int,
    on_host: bool = False,
    num_processes: int = 1,
    spread: bool = True,
) -> None:
    """Makes every CPU core a device, since what is spread over them trains faster.

    Tells XLA so, before JAX is loaded. GPUs and TPUs are not concerned.

    Raises:
      BadInput: seeds and environments cannot be shared out among so many processes.
    """
    layout = choose(config, num_seeds, num_cores() if spread else 1, on_host, num_processes)
    make_devices(layout.num_devices // num_processes)


def make_devices(count: int) -> None:
    """Makes so many devices of the CPU's cores; before JAX is loaded."""
    chosen = {
        "xla_force_host_platform_device_count": str(count),
        # Small operations gain nothing from threads, and some versions of XLA deadlock with them.
        "xla_cpu_enable_concurrency_optimized_scheduler": "false",
    }
    flags = os.environ.get("XLA_FLAGS", "")
    for name, value in chosen.items():
        if name not in flags:
            flags += f" --{name}={value}"
    os.environ["XLA_FLAGS"] = flags.strip()


def spread_over_seeds(mesh: "Mesh", values: Any) -> Any:
    """Puts arrays [number of seeds, ...], the same in every process, on the mesh."""
    import jax
    from jax.sharding import NamedSharding, PartitionSpec

    on_mesh = NamedSharding(mesh, PartitionSpec("seed"))
    return jax.jit(lambda x: x, out_shardings=on_mesh)(values)


def seed_keys(mesh: "Mesh", seeds: Sequence[int]) -> Any:
    """Typed keys of the seeds, spread over the mesh."""
    import jax
    import numpy as np

    numbers = spread_over_seeds(mesh, np.array(seeds, np.uint32))
    return jax.jit(jax.vmap(jax.random.key))(numbers)


def over_seeds(function: Callable, layout: Layout, in_specs: tuple, out_specs: Any) -> Callable:
    """Maps a function over seeds, which are spread over the devices of a layout.

    Specs tell how arguments and results lie on the mesh (`PartitionSpec`, or a tree of them);
    an argument without one, `PartitionSpec()`, is shared by all seeds.
    """
    import jax
    from jax.sharding import PartitionSpec

    shared = [spec == PartitionSpec() for spec in in_specs]

    def on_one_device(*args: Any) -> Any:
        def of_one_seed(batched: list) -> Any:
            rest = iter(batched)
            return function(
                *(arg if same else next(rest) for arg, same in zip(args, shared, strict=True))
            )

        batched = [arg for arg, same in zip(args, shared, strict=True) if not same]
        if jax.tree.leaves(batched)[0].shape[0] > 1:
            if layout.in_turn:
                return jax.lax.map(of_one_seed, batched)
            return jax.vmap(of_one_seed)(batched)
        # A batch of one seed would turn every matrix product into a batched one, which is slower.
        result = of_one_seed(jax.tree.map(lambda x: x[0], batched))
        return jax.tree.map(lambda x: x[None], result)

    return jax.shard_map(
        on_one_device,
        mesh=layout.mesh(),
        in_specs=in_specs,
        out_specs=out_specs,
        check_vma=False,
    )
