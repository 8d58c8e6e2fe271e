"""A training run as its own process: killed by the tests, resumed, and compared."""

from pathlib import Path

import jax

from tests.training.settings import small


def run(out: Path) -> None:
    jax.config.update("jax_enable_x64", True)
    from ntkcollapse.training import train

    progress = out.parent / f"{out.name}.progress"

    def say(step: int) -> None:
        progress.write_text(str(step))

    # A checkpoint after every step: most moments of such a run are in the middle of writing one.
    train(small(checkpoint_seconds=0.0), out, resume=True, on_step=say)
