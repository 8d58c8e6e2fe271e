"""Random command lines and TOML files: status 2 with one line, or settings that the command begins with."""

import dataclasses
import io
import typing
from contextlib import redirect_stderr, redirect_stdout

import pytest
import tomli_w
from hypothesis import strategies as st

from ntkcollapse import _config, cli
from ntkcollapse._options import check_options, parse_options
from ntkcollapse.choices import NETWORKS
from ntkcollapse.commands import COMMANDS, Command
from tests.fuzz.properties import _in_time, answer, made, refused, run, sizes

pytestmark = pytest.mark.filterwarnings("ignore")

NUMBERS = ["0", "1", "-1", "2.5", "1e400", "-0.0", "nan", "inf", "9" * 40, "9" * 5000, "1_000", "0x10", "٣", "1e-320"]
TEXTS = ["", " ", "\0", "\udcff", "a=1", "=", "a=" + "(" * 300, "a=" + "9" * 5000, "x" * 5000, "--", "-x", "@file", "π"]
OPTIONS = ["widths=(3,)", "widths=3", "classes=2", "depth=1e400", "param_dtype=int8", "momentum=none", "a=b=c", "a=[1"]
texts = st.one_of(st.sampled_from(NUMBERS + TEXTS + OPTIONS), st.text(max_size=8), st.integers().map(str))


def _flags(data, kind: type) -> list[str]:
    arguments = []
    fields = dataclasses.fields(kind)
    for field in data.draw(st.lists(st.sampled_from(fields), max_size=4), label="settings"):
        flag = field.metadata["flag"] or "--" + field.name.replace("_", "-")
        choices = st.sampled_from([*(field.metadata["choices"] or ["1"])])
        values = data.draw(st.lists(st.one_of(texts, choices), max_size=3), label="values")
        if data.draw(st.booleans(), label="joined") and values:
            arguments += [f"{flag}={values[0]}", *values[1:]]
        else:
            arguments += [flag, *values]
    return arguments + data.draw(st.lists(texts, max_size=1), label="more")


@sizes(30, 1200)
def test_command_lines(cases, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    begun = []
    monkeypatch.setattr(Command, "function", property(lambda _: begun.append))

    def case(data):
        name = data.draw(st.sampled_from([*COMMANDS]), label="command")
        arguments = [name, *_flags(data, COMMANDS[name].settings)]
        made["command line"] += 1
        begun.clear()
        # As the interpreter opens them: what no encoding holds is escaped.
        out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace") for _ in range(2))
        with _in_time(), redirect_stdout(out), redirect_stderr(err):
            try:
                status = cli.main(arguments)
            except SystemExit as end:
                status = end.code
        err.seek(0)
        if not begun and status != 0:
            said = err.read()
            assert status == 2, said
            assert "error: " in said or f"ntkcollapse {name}: " in said
            refused["command line"] += 1

    run(cases, case)


values = st.recursive(
    st.one_of(
        st.none().map(lambda _: ""),
        st.booleans(),
        st.integers(-(2**70), 2**70),
        st.floats(),
        st.sampled_from(NUMBERS + TEXTS + OPTIONS).map(lambda text: text.replace("\udcff", "?")),
        st.dates(),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from("ab"), inner, max_size=2)),
    max_leaves=6,
)


@sizes(30, 1500)
def test_settings_in_toml(cases, tmp_path):
    file = tmp_path / "config.toml"

    def case(data):
        command = COMMANDS[data.draw(st.sampled_from([*COMMANDS]), label="command")]
        names = st.sampled_from([*(field.name for field in dataclasses.fields(command.settings)), "unknown", "config"])
        text = tomli_w.dumps(data.draw(st.dictionaries(names, values, max_size=4), label="settings"))
        extra = data.draw(
            st.sampled_from([b"", b"\xef\xbb\xbf", b"\xff\xfe", b"[", b"a = 1\na = 2\n", b"\0"]), label="x"
        )
        file.write_bytes(extra + text.encode())
        given = {"config": str(file)}
        is_taken, found = answer("TOML", lambda: _config.resolve(command.settings, given))
        if is_taken:
            # What was taken can be written and is read as the same.
            file.write_text(tomli_w.dumps(_config.as_mapping(found)))
            assert _config.resolve(command.settings, given) == found

    run(cases, case)


@sizes(20, 1000)
def test_options(cases):
    def case(data):
        name = data.draw(st.sampled_from([*NETWORKS]), label="network")
        entries = data.draw(st.lists(texts, max_size=3), label="options")
        function = NETWORKS[name]

        def checked():
            given = tuple(entry for entry in entries if isinstance(entry, str))
            return check_options(name, function, dict(parse_options("network_options", given)), taken=("num_classes",))

        answer("options", checked)

    run(cases, case)


def test_every_setting_has_a_type_that_files_can_hold():
    for command in COMMANDS.values():
        hints = typing.get_type_hints(command.settings)
        for field in dataclasses.fields(command.settings):
            of = _config._element(hints[field.name])[0]
            assert {*(typing.get_args(of) or [of])} <= {int, float, str, bool}, field.name
