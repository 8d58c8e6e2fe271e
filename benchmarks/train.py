"""How fast does a training run step against a bare flax loop, and what does each measurement cost?

    python benchmarks/train.py [--network resnet20] [--dataset digits] [--steps 20] [--probe 4]

Images a second of `Stepper` (what `train` drives) and of a loop written as flax's guides write it, with the same
network, batches, loss and optimiser: alternating blocks of steps in one process, the minimum time of each, compile
time apart. Then the time of each measurement at its second call, and as a share of an epoch of the training set.
Parameters after the first block are compared, so that both loops are known to do the same work.
"""

import argparse
import platform
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.training import train_state

from ntkcollapse.commands import Table
from ntkcollapse.data import Batches, load
from ntkcollapse.networks import network, num_params
from ntkcollapse.training import MEASUREMENTS, Moment, Stepper, optimizer

WEIGHT_DECAY, RATE = 5e-4, 0.05


class State(train_state.TrainState):
    batch_stats: dict


@jax.jit
def bare_step(state: State, x, y):
    """The step of a plain flax script: loss, penalty, gradient, batch statistics, update."""

    def loss_fn(params):
        variables = {"params": params, "batch_stats": state.batch_stats}
        outputs, moved = state.apply_fn(variables, x, train=True, mutable=["batch_stats"])
        loss = optax.l2_loss(outputs, jax.nn.one_hot(y, outputs.shape[1])).mean()
        squares = sum(jnp.sum(p**2) for p in jax.tree.leaves(params) if p.ndim > 1)
        return loss + WEIGHT_DECAY / 2 * squares, moved.get("batch_stats", {})

    (loss, moved), gradient = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    return state.apply_gradients(grads=gradient, batch_stats=moved), loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet20")
    parser.add_argument("--dataset", default="mnist", help="digits needs no files")
    parser.add_argument("--batch", type=int, default=120)
    parser.add_argument("--steps", type=int, default=20, help="steps a block")
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--probe", type=int, default=12, help="probe samples a class")
    flags = parser.parse_args()

    splits = load(flags.dataset, size=32 if flags.network.startswith("vgg") else None)
    train = splits.train
    net = network(flags.network, train.classes.num_classes)
    variables = net.init(jax.random.key(0), train.inputs)
    rows = Batches(train.classes, flags.batch, seed=0).epoch(0)
    rows = rows[np.arange(flags.steps) % len(rows)]
    inputs, labels = jnp.asarray(train.inputs), jnp.asarray(train.labels)

    stepper = Stepper(net, optimizer("sgd"), "squared", WEIGHT_DECAY)
    ours = stepper.start(variables)
    theirs = State.create(
        apply_fn=net.module.apply,
        params=variables.params,
        tx=optax.sgd(RATE, momentum=0.9, nesterov=True),
        batch_stats=variables.batch_stats,
    )

    def our_block():
        nonlocal ours
        for batch in rows:
            ours, _ = stepper(ours, inputs, labels, batch, RATE)
        jax.block_until_ready(ours)

    def their_block():
        nonlocal theirs
        for batch in rows:
            theirs, _ = bare_step(theirs, train.inputs[batch], train.labels[batch])
        jax.block_until_ready(theirs)

    first = {"ntkcollapse": timed(our_block), "bare flax": timed(their_block)}
    apart = optax.tree.norm(optax.tree.sub(ours.variables.params, theirs.params)) / optax.tree.norm(theirs.params)
    best = dict.fromkeys(first, np.inf)
    for _ in range(flags.blocks):
        best["ntkcollapse"] = min(best["ntkcollapse"], timed(our_block))
        best["bare flax"] = min(best["bare flax"], timed(their_block))
    images = flags.steps * flags.batch
    print(f"{flags.network} ({num_params(variables.params):,} parameters) on {flags.dataset}, batches of {flags.batch}")
    print(f"{platform.processor() or platform.machine()}, jax {jax.__version__}, {jax.devices()}")
    print(f"parameters of both loops after {flags.steps} steps are {float(apart):.1e} apart (relative)\n")
    lines = [[name, f"{images / best[name]:.1f}", f"{first[name] - best[name]:.1f}"] for name in best]
    print(Table(["", "images/s", "compile s"], lines))
    print(f"ratio {best['bare flax'] / best['ntkcollapse']:.3f} (asked for: at least 0.95)\n")

    epoch = best["ntkcollapse"] / images * train.classes.num_samples
    lines = []
    for attempt in ("compile", "run"):
        moment = Moment(
            stepper.network, ours.variables, train.balanced(flags.probe), splits, loss="squared", step=1, record=None
        )
        for i, (name, measurement) in enumerate(MEASUREMENTS.items()):
            seconds = timed(lambda m=measurement, at=moment: jax.block_until_ready(m(at)))
            if attempt == "compile":
                lines.append([name, seconds])
            else:
                lines[i] = [name, f"{seconds:.3f}", f"{seconds / epoch:.3f}", f"{lines[i][1] - seconds:.1f}"]
    header = [f"measurement, {flags.probe} a class", "s", f"of an epoch ({epoch:.1f} s)", "compile s"]
    print(Table(header, lines))


def timed(call) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
