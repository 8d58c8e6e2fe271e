"""The cache of compiled programs: a second process loads what a first one compiled, and several share a folder."""

import json
import os
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import pytest

from ntkcollapse import compiled, enable_cache
from ntkcollapse.compiled import compilation_announced, compiled_quickly
from tests.processes import ended

PROGRAM = """
import json, sys
import jax, jax.numpy as jnp
import ntkcollapse as nc
events = []
jax.monitoring.register_event_listener(lambda name, **_: events.append(name))
folder = nc.enable_cache()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
x = jax.jit(lambda x: jnp.linalg.eigh(x @ x.T)[0])(jnp.eye(3) * 2)
hits = sum(name.endswith("cache_hits") for name in events)
json.dump({"folder": str(folder), "hits": hits, "value": x.tolist()}, sys.stdout)
"""


def start(tmp_path, **variables):
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_COMPILATION", "NTKCOLLAPSE_CACHE"))}
    environment |= {"XDG_CACHE_HOME": str(tmp_path), **variables}
    return subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, env=environment)


def results(*processes):
    with ended(*processes):
        said = [process.communicate(timeout=300)[0] for process in processes]
        assert [process.returncode for process in processes] == [0] * len(processes)
        return [json.loads(out) for out in said]


def test_later_processes_load_what_was_compiled_and_several_share_a_folder(tmp_path):
    first = results(start(tmp_path), start(tmp_path))
    (later,) = results(start(tmp_path))
    assert later["folder"] == str(tmp_path / "ntkcollapse" / "compiled")
    assert later["hits"] >= 1
    assert [run["value"] for run in first] == [later["value"]] * 2
    (off,) = results(start(tmp_path, NTKCOLLAPSE_CACHE="off"))
    assert (off["folder"], off["hits"]) == ("None", 0)


def test_a_cache_that_is_set_up_stays(tmp_path):
    present = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    assert present is not None
    assert str(enable_cache(tmp_path)) == present
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="max_bytes"):
        enable_cache(tmp_path, max_bytes=0)


def test_compiled_quickly_is_a_part_of_what_is_compiled_around_it():
    @compiled_quickly()
    def squares(x, names):
        return {name: jnp.square(x) for name in names}

    x = jnp.arange(3.0)
    assert squares(x, ("a", "b"))["b"].tolist() == [0.0, 1.0, 4.0]
    assert jax.grad(lambda x: squares(x, ("a",))["a"].sum())(x).tolist() == [0.0, 2.0, 4.0]
    # JAX refuses the options of a program within a program, also where the inner one has no argument to trace.
    assert jax.jit(lambda y: y + squares(x, ("a",))["a"])(1.0).tolist() == [1.0, 2.0, 5.0]


BEGUN, ENDED = "/jax/compilation_cache/compile_requests_use_cache", "/jax/core/compile/backend_compile_duration"


def test_a_long_compilation_is_announced_once(capsys):
    """Compilations that last as long as is wanted: the two events that JAX reports of one."""

    def compiling(seconds):
        jax.monitoring.record_event(BEGUN)
        time.sleep(seconds)
        jax.monitoring.record_event_duration_secs(ENDED, seconds)

    with compilation_announced(after=0.1):
        compiling(0.0)
        time.sleep(0.3)
        assert capsys.readouterr().err == ""
        compiling(0.5)
        compiling(0.5)
    assert capsys.readouterr().err.count("compiling ...") == 1
    compiling(0.5)
    assert capsys.readouterr().err == ""


def test_jax_reports_the_beginning_and_the_end_of_a_compilation():
    events = []

    def listener(event, *_, **__):
        events.append(event)

    jax.monitoring.register_event_listener(listener)
    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        jax.jit(lambda x: x * 3 + 7)(jnp.ones(5))
    finally:
        jax.monitoring.unregister_event_listener(listener)
        jax.monitoring.unregister_event_duration_listener(listener)
    assert events.index(BEGUN) < events.index(ENDED)


def test_options_that_a_compiler_does_not_have_are_left_out(monkeypatch):
    """As `xla_cpu_use_fusion_emitters` is unknown to JAX 0.12."""
    monkeypatch.setitem(compiled._LEAST_EFFORT, "xla_cpu_no_such_option", True)
    compiled._cpu_options.cache_clear()
    try:
        options = compiled._compiler_options("least")
        assert options is not None
        assert "xla_cpu_no_such_option" not in options
        assert options["xla_backend_optimization_level"] == 0
        assert compiled_quickly()(lambda x: x + 1)(jnp.ones(2)).tolist() == [2.0, 2.0]
    finally:
        compiled._cpu_options.cache_clear()
