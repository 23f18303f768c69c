"""Finite Markov decision processes, of which everything is known by linear solves."""

import dataclasses

import numpy as np

Array = np.ndarray


@dataclasses.dataclass(frozen=True)
class Processes:
    """n processes of S states and A actions.

    Attributes:
      transition: P(s' | s, a) [n, S, A, S].
      reward: expected reward [n, S, A].
      start: distribution of the first state [n, S].
      discount: gamma in [0, 1) [n].
    """

    transition: Array
    reward: Array
    start: Array
    discount: Array


def garnets(
    rng: np.random.Generator, n: int, states: int, actions: int, branching: int, discount: float
) -> Processes:
    """Random processes: each action leads to `branching` states, with normal rewards.

    Source: Archibald, McKinnon and Thomas, "On the generation of Markov decision processes", 1995.
    """
    order = np.argsort(rng.random((n, states, actions, states)), axis=-1)[..., :branching]
    # Lengths into which the unit interval is cut at random.
    cuts = np.sort(rng.random((n, states, actions, branching - 1)), axis=-1)
    ends = np.ones((n, states, actions, 1))
    shares = np.diff(np.concatenate([0 * ends, cuts, ends], axis=-1), axis=-1)
    transition = np.zeros((n, states, actions, states))
    np.put_along_axis(transition, order, shares, axis=-1)
    return Processes(
        transition,
        rng.standard_normal((n, states, actions)),
        rng.dirichlet(np.ones(states), n),
        np.full(n, discount),
    )


def trap(discount: float, leak: float, cost: float) -> tuple[Processes, Array, Array]:
    """A process in which a state that the old policy hardly meets decides, and its two policies.

    State 0 pays 0 and stays, or goes to state 1; there one stays for ever, and pays 0 or -cost.
    The old policy stays in 0, and does right in 1, but for a millionth. The new one leaks to 1,
    and does wrong there.

    Args:
      discount: gamma.
      leak: probability with which the new policy goes to state 1.
      cost: of a step in state 1 that is wrong.

    Returns:
      The process (n = 1), the old policy and the new one [1, 2, 2].
    """
    transition = np.zeros((1, 2, 2, 2))
    transition[0, 0, 0, 0] = transition[0, 0, 1, 1] = 1.0
    transition[0, 1, :, 1] = 1.0
    reward = np.array([[[0.0, 0.0], [0.0, -cost]]])
    process = Processes(transition, reward, np.array([[1.0, 0.0]]), np.array([discount]))
    rare = 1e-6
    old = np.array([[[1.0 - rare, rare], [1.0 - rare, rare]]])
    new = np.array([[[1.0 - leak, leak], [rare, 1.0 - rare]]])
    return process, old, new


@dataclasses.dataclass(frozen=True)
class Solution:
    """What is known of a policy.

    Attributes:
      value: expected return J from the start, sum_t gamma^t r_t [n].
      advantage: Q - V [n, S, A].
      occupancy: (1 - gamma) sum_t gamma^t P(s_t = s) [n, S].
    """

    value: Array
    advantage: Array
    occupancy: Array


def solve(processes: Processes, policy: Array) -> Solution:
    """Exact values and occupancies of policies pi(a | s) [n, S, A]."""
    discount = processes.discount[:, None, None]
    flow = np.einsum("nsa,nsat->nst", policy, processes.transition)
    system = np.eye(policy.shape[1]) - discount * flow
    reward = np.einsum("nsa,nsa->ns", policy, processes.reward)
    values = np.linalg.solve(system, reward[..., None])[..., 0]
    following = np.einsum("nsat,nt->nsa", processes.transition, values)
    quality = processes.reward + discount * following
    visits = np.linalg.solve(np.swapaxes(system, 1, 2), processes.start[..., None])[..., 0]
    return Solution(
        np.einsum("ns,ns->n", processes.start, values),
        quality - values[..., None],
        visits * (1.0 - processes.discount)[:, None],
    )
