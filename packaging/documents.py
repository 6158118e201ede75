"""Writes what a package holds beside the program: its configuration file, manual page and shell completion.

All of it is made from the program.

    python packaging/documents.py DIRECTORY
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import shtab
from argparse_manpage.manpage import Manpage

from syslogger import __version__, cli
from syslogger.config import Config, Setting, settings

BASH, ZSH, FISH = "completion/syslogger", "completion/_syslogger", "completion/syslogger.fish"
CONFIGURATION, MANUAL = "syslogger.toml", "syslogger.1"

_TOP = """\
# Settings of syslogger. What stands here behind a # is the default; a line without the # changes it.
# At least say where Kafka is (kafka.bootstrap_servers or kafka.zookeeper), then:
#
#     syslogger check --config /etc/syslogger/syslogger.toml
#     systemctl enable --now syslogger.socket syslogger       (the first time)
#     systemctl reload syslogger                              (after a change; no connection is closed)
"""

_LISTENERS = """\
# While there is no such table, syslogger.socket says where to listen. With one it still opens the address; to have the
# settings below for it, name it here too: address = ":1514". For more addresses, have more tables.
"""

_SECTIONS = {
    "exit status": """\
.TP
.B 0
Everything that was received was delivered.
.TP
.B 1
Something was not; the log says what, by peer.
.TP
.B 2
The line or the configuration is wrong, or an address is taken. Nothing was started.
""",
    "signals": """\
.TP
.B SIGTERM, SIGINT
Tell every peer to end, deliver what is on its way, and end within
.B drain_seconds.
A second one ends it at once.
.TP
.B SIGHUP
Try a start with the configuration and the code as they are now; if that is good, go on with them, as the same process
and with the same connections. If not, say why and run on as before.
""",
    "files": """\
.TP
.I /etc/syslogger/syslogger.toml
Every setting, with what it is, what it may be, and its default.
.TP
.I /etc/syslogger/NAME.toml
The same for
.BR syslogger@NAME.service ,
one more instance.
.TP
.I /usr/share/doc/syslogger/rsyslog.d/
What the sending side needs.
""",
    "see also": r"""\
.BR rsyslogd (8),
.BR systemctl (1),
.I /usr/share/doc/syslogger/README.md
""",
}
"""Of the manual, what the parser does not know."""


def configuration() -> str:
    """Return the configuration file: every setting with its sentence, what it may be, and its default behind a #."""
    defaults = msgspec.to_builtins(Config())
    tables: dict[str, list[Setting]] = {"": []}  # in TOML, what is in no table comes first
    for each in settings():
        tables.setdefault(each.name.rpartition(".")[0], []).append(each)
    parts = [_TOP]
    for table, members in tables.items():
        if table == "listeners[]":
            parts.append(f"{_LISTENERS}\n#[[listeners]]\n")
        elif table:
            parts.append(f"{'#' if '[]' in table else ''}[{table.replace('[]', '')}]\n")
        parts += [_entry(each, defaults) for each in members]
    return "\n".join(parts)


def _entry(setting: Setting, defaults: Any) -> str:
    *tables, key = setting.name.replace("[]", ".0").split(".")
    for table in tables:
        defaults = defaults[int(table) if table.isdecimal() else table]
    may_be = setting.type.removeprefix("a ") + (f", {setting.bounds}" if setting.bounds else "")
    text = setting.sentence.replace("`", "") + ("" if may_be == "text" else f" It may be: {may_be}.")
    comment = textwrap.fill(text, 118, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)
    return f"{comment}\n#{key} = {json.dumps(defaults[key])}\n"  # such JSON is TOML


def _parser() -> argparse.ArgumentParser:
    """Return the program's parser with what it reads by other means than argparse's."""
    parser = cli.command_line()
    for action in parser._actions:  # noqa: SLF001 - there is no other way to them
        if action.metavar == "":
            action.nargs = 0  # a value only after =, which nobody types
        if action.dest == "config":
            action.complete = shtab.FILE  # type: ignore[attr-defined] # is how shtab is told
    return parser


def manual() -> str:
    """Return the manual page, in groff's man macros."""
    parser = _parser()
    # No wider than a page of a manual is.
    parser.description = re.sub(r"(?m)^( +\w+) {2,}", r"\1  ", parser.description or "")
    parser.epilog = (parser.epilog or "").replace("README.md", "/etc/syslogger/syslogger.toml")
    page = Manpage(parser)
    page.description = "takes syslog from rsyslog over TCP and appends it to Kafka"
    page.manual, page.source = "syslogger", f"syslogger {__version__}"
    for heading, content in _SECTIONS.items():
        page.add_section(heading, "=", content.strip())
    return str(page)


def completions() -> Iterator[tuple[str, str]]:
    """Yield the completion for each shell: where it goes, and its text."""
    parser = _parser()
    parser.add_argument("command", nargs="?", choices=cli.COMMANDS)
    for name, shell in ((BASH, "bash"), (ZSH, "zsh"), (FISH, "fish")):
        yield name, shtab.complete(parser, shell=shell).rstrip() + "\n"


def main(directory: Path) -> None:
    """Write them all below a directory."""
    for name, text in ((CONFIGURATION, configuration()), (MANUAL, manual()), *completions()):
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
