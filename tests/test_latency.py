"""What a first `simulate` waits for: programs compiled and packages imported, which is most of its time."""

import json
import subprocess
import sys

PROGRAM = """
import json, sys
import jax, numpy as np
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_disable_most_optimizations", True)
import ntkcollapse as nc
rng = np.random.default_rng(0)
start = nc.LastLayer(H=rng.normal(size=(5, 12)), W=rng.normal(size=(3, 5)), b=np.zeros(3))
counts = [0]
def compiled(event, duration, **_):
    counts[-1] += event == "/jax/core/compile/backend_compile_duration"
jax.monitoring.register_event_duration_secs_listener(compiled)
for count in (11, 7, 11):
    run = nc.simulate(start, nc.BlockKernel(3.0, 2.0, 0.6), nc.Classes.balanced(3, 4), np.linspace(0.0, 1.0, count))
    assert run["loss"].shape == (count,)
    counts.append(0)
json.dump([counts[:-1], sorted(sys.modules)], sys.stdout)
"""


def test_simulate_compiles_little_and_imports_less():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (first, other_times, again), modules = json.loads(done.stdout)
    # Two programs observe, one knows the kernel; the rest are conversions. It was 80.
    assert first <= 12
    # A slice.
    assert other_times <= 1
    assert again == 0
    # All of it takes half a second, for the coefficients of one method.
    assert "scipy.integrate" not in modules
    packages = {name.partition(".")[0] for name in modules}
    assert not {"diffrax", "optimistix", "flax", "optax", "pandas", "xarray", "sklearn", "matplotlib"} & packages
