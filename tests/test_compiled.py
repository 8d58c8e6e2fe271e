"""The cache of compiled programs: a second process loads what a first one compiled, and several share a folder."""

import json
import os
import subprocess
import sys

import jax
import pytest

from ntkcollapse import enable_cache

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


def result(process):
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    return json.loads(out)


def test_later_processes_load_what_was_compiled_and_several_share_a_folder(tmp_path):
    first = [result(process) for process in [start(tmp_path), start(tmp_path)]]
    later = result(start(tmp_path))
    assert later["folder"] == str(tmp_path / "ntkcollapse" / "compiled")
    assert later["hits"] >= 1
    assert [run["value"] for run in first] == [later["value"]] * 2
    off = result(start(tmp_path, NTKCOLLAPSE_CACHE="off"))
    assert (off["folder"], off["hits"]) == ("None", 0)


def test_a_cache_that_is_set_up_stays(tmp_path):
    present = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    assert present is not None
    assert str(enable_cache(tmp_path)) == present
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="max_bytes"):
        enable_cache(tmp_path, max_bytes=0)
