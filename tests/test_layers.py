"""The house's rules that a machine can hold: imports point down, a library is one module's, a test file each."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "syslogger"

LAYERS = {
    0: {"__init__", "errors", "sink", "brokers", "counters", "config", "logs", "service", "admission", "last_stop"},
    1: {
        *("framing.__init__", "framing.newline", "framing.octet_counted", "framing.detected", "framing.relp"),
        "proxy_protocol",
        "messages",
    },
    2: {
        "kafka.__init__",
        "kafka.topic",
        "kafka.lane",
        "kafka.producer",
        "kafka.express",
        "kafka.values",
        "kafka.diagnosis",
        "zookeeper",
        "riemann",
        "prometheus",
    },
    3: {"streams", "tls", "connection", "session", "listener", "unix_sockets", "tap"},
    4: {"forwarder", "status"},
    5: {"cli", "check", "demo", "parse", "watch", "__main__"},
}
"""A module imports from lower layers; within its own only where it is not an adapter (2)."""

# A library has one room; msgspec is two: what reads TOML's values into types, and what writes JSON.
LIBRARIES = {
    "aiokafka": "kafka",
    "kazoo": "zookeeper",
    "bernhard": "riemann",
    "prometheus_client": "prometheus",
    "msgspec": "config messages",
    "uvloop": "service",
    "confluent_kafka": "demo",
}

PURE = {"asyncio", "logging", "socket", "time", "datetime", "random", "os", "threading"}
"""What layer 1 does without."""

WITHOUT_TEST = {"__init__", "__main__", "errors", "sink", "framing.__init__"}
"""Modules with no behaviour of their own. A package's parts may share its test file."""


def modules() -> dict[str, Path]:
    return {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}


def imports(name: str, path: Path) -> set[str]:
    """Name the modules of `path`'s imports, wherever they stand; ours begin with ``syslogger.``."""
    package = ["syslogger", *name.split(".")[:-1]]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = [*base, *(node.module or "").split(".")] if node.module else base
            if base == ["syslogger"]:
                found |= {f"syslogger.{alias.name}" for alias in node.names}
            else:
                found.add(".".join(base))
    return found


LAYER = {name: layer for layer, names in LAYERS.items() for name in names}


def room(name: str) -> str:
    """Return the module, or the package that it is a part of."""
    return name.partition(".")[0]


def own(imported: str) -> str | None:
    """Return our module that an import names."""
    parts = imported.split(".")
    if parts[0] != "syslogger":
        return None
    name = ".".join(parts[1:])
    if name in LAYER:
        return name
    return f"{name}.__init__" if f"{name}.__init__" in LAYER else "__init__"


def test_every_module_has_a_layer() -> None:
    assert set(modules()) == set(LAYER)


@pytest.mark.parametrize("name", sorted(LAYER))
def test_imports_point_down(name: str) -> None:
    for imported in imports(name, modules()[name]):
        target = own(imported)
        if target is None or target == name:
            continue
        same_is_fine = LAYER[name] != 2 or room(target) == room(name)
        assert LAYER[target] < LAYER[name] or (same_is_fine and LAYER[target] == LAYER[name]), (
            f"{name} imports {imported}"
        )


@pytest.mark.parametrize("name", ["service", "logs"])
def test_these_import_nothing_of_ours(name: str) -> None:
    assert not [imported for imported in imports(name, modules()[name]) if own(imported)]


def test_the_core_knows_no_adapter() -> None:
    for name in LAYERS[3]:
        assert not {own(imported) for imported in imports(name, modules()[name])} & LAYERS[2]


@pytest.mark.parametrize("library", sorted(LIBRARIES))
def test_one_library_one_module(library: str) -> None:
    users = {room(name) for name, path in modules().items() for each in imports(name, path) if room(each) == library}
    assert users == set(LIBRARIES[library].split())


def test_layer_1_is_pure() -> None:
    for name in LAYERS[1]:
        # It reckons with dates, but reads no clock.
        allowed = {"datetime"} if name == "messages" else set()
        assert not {imported.split(".")[0] for imported in imports(name, modules()[name])} & PURE - allowed
        called = {
            node.attr for node in ast.walk(ast.parse(modules()[name].read_text())) if isinstance(node, ast.Attribute)
        }
        assert not called & {"now", "today", "utcnow"}


def test_every_module_has_a_test_file() -> None:
    have = {path.stem.removeprefix("test_") for path in (ROOT / "tests").glob("test_*.py")}
    assert [name for name in set(LAYER) - WITHOUT_TEST if not {name.rpartition(".")[2], room(name)} & have] == []


def test_a_connection_fits_on_one_page() -> None:
    assert len((PACKAGE / "connection.py").read_text().splitlines()) <= 73
