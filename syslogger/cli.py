"""The command line: what was typed becomes a command, its settings, and an exit status.

Nothing but the standard library is imported before it is needed, so that `--help` answers at once.

Exit statuses: what the command returns; 2 for a mistake in the line or in a setting, said in one
sentence on standard error; 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
from collections.abc import Mapping
from difflib import get_close_matches
from types import MappingProxyType
from typing import TYPE_CHECKING, NoReturn

from syslogger import __version__, logs
from syslogger.errors import ConfigError

if TYPE_CHECKING:  # msgspec is not needed for --help
    from syslogger.config import Config

COMMANDS = ("run", "check", "top", "tap", "demo", "parse")

_HELP = """\
Takes syslog over TCP, appends every record to a Kafka topic, and loses nothing.

commands:
  run                       do so until told to stop (also without a command)
  check                     try the settings, ZooKeeper, Kafka and Riemann
  top                       what a running one is at, anew every second
  tap                       the records that pass a running one, as they pass
  demo                      the whole way on this machine, with a Kafka inside
  parse                     the JSON of each line of standard input

example:
  syslogger --listen :1514 --bootstrap-servers kafka1:9092,kafka2:9092
"""

_EPILOG = """\
Every setting can also stand in the file ([kafka] topic = "syslog") or in the
environment (SYSLOGGER_KAFKA_TOPIC=syslog). A flag wins over the environment,
the environment over the file. README.md has the table of all settings.
"""

_GO_DEFAULTS = {
    "listeners": ":1514",
    "kafka.zookeeper": "localhost:2181",
    "kafka.topic": "syslog",
    "riemann.address": "localhost:5555",
}
"""What the Go program did where its start line said nothing."""

_SETTINGS = {
    "listen": "listeners",
    "port": "listeners",
    "bootstrap_servers": "kafka.bootstrap_servers",
    "zookeeper": "kafka.zookeeper",
    "zkstring": "kafka.zookeeper",
    "topic": "kafka.topic",
    "riemann": "riemann.address",
    "verbose": "log.level",
}
"""The setting of each flag."""

_log = logging.getLogger(__name__)


class _UsageError(Exception):
    """The line is wrong; the text is the sentence."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise _UsageError(message.removeprefix("argument "))


def main(argv: list[str] | None = None) -> int:
    """Do what the line says; return the exit status."""
    try:
        return _main(sys.argv[1:] if argv is None else argv)
    except _UsageError as mistake:
        sentence = str(mistake)
        _say(sentence if sentence.endswith("?") else f"{sentence}; see syslogger --help")
        return 2
    except ConfigError as error:
        _say(str(error))
        return 2
    except KeyboardInterrupt:
        return 130


def _main(argv: list[str]) -> int:
    parser = command_line()
    line, others = parser.parse_known_args(_in_argparse_syntax(argv))
    for other in others:
        if other.startswith("-"):
            raise _UsageError(_unknown_flag(other, parser))
    command = _command(others)
    if line.help:
        sys.stdout.write(parser.format_help())
        return 0
    if line.version:
        sys.stdout.write(f"syslogger {__version__}\n")
        return 0
    if sys.platform != "linux":
        raise ConfigError(f"It runs on Linux only, and this is {sys.platform}.")
    match command:
        case "demo":
            return _demo(line)
        case "top" | "tap":
            return _watch(command, line)
        case "parse":
            return _parse(line)
    return _run_or_check(command, line)


def _demo(line: argparse.Namespace) -> int:
    _takes_only("demo", line, "listen", "count")
    if line.listen and len(line.listen) > 1:
        raise _UsageError("demo takes one --listen only")
    from syslogger.demo import demo  # noqa: PLC0415 - brings the Kafka client

    return demo(line.listen[0] if line.listen else "127.0.0.1:1514", line.count)


def _watch(command: str, line: argparse.Namespace) -> int:
    takes = ("config", "count") if command == "top" else ("config", "count", "peer", "text")
    _takes_only(command, line, *takes)
    from syslogger.watch import tap, top  # noqa: PLC0415 - brings msgspec

    # Neither asks Kafka for anything: where it is need not be known.
    config = _config(line, {"kafka.zookeeper": "localhost:2181"} | _of_instance(line.config or ""))
    if command == "top":
        return top(config, line.count)
    return tap(config, line.peer or "", line.text or "", line.count)


def _of_instance(file: str) -> dict[str, str]:
    """Return where the tap of `syslogger@NAME` is, if `file` is that unit's; its configuration need not say so."""
    found = re.fullmatch(r"/etc/syslogger/(?!syslogger\.toml)([^/]+)\.toml", file)
    return {"tap.path": f"/run/syslogger-{found[1]}/tap"} if found else {}


def _takes_only(command: str, line: argparse.Namespace, *takes: str) -> None:
    for name, value in vars(line).items():
        if value is not None and name not in takes:
            *others, last = map(_flag, takes)
            raise _UsageError(f"{command} takes {', '.join(others)} and {last} only, not {_flag(name)}")


def _parse(line: argparse.Namespace) -> int:
    _takes_only("parse", line, "value", "zone")
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError  # noqa: PLC0415 - as the others

    from syslogger.parse import parse  # noqa: PLC0415 - brings msgspec

    try:
        zone = ZoneInfo(line.zone or "UTC")
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise _UsageError(f"there is no time zone {line.zone}") from None
    try:
        return parse(sys.stdin.buffer, sys.stdout.buffer, line.value or "json", zone)
    except BrokenPipeError:
        # Else the interpreter would try to write the rest again at the exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _run_or_check(command: str, line: argparse.Namespace) -> int:
    of = {"count": "demo, top and tap", "peer": "tap", "text": "tap", "value": "parse", "zone": "parse"}
    for name, others in of.items():
        if getattr(line, name) is not None:
            raise _UsageError(f"{_flag(name)} is for {others}, not for {command}")
    config = _config(line)
    logs.configure(config.log.level, config.log.period_seconds)
    if _is_go(line) and not line.publish:
        given = "without -publish" if line.publish is None else "with -publish=false"
        _log.warning(
            "The Go syslogger, started %s, would have sent nothing to Kafka; this one always sends, here to topic %s",
            given,
            config.kafka.topic,
        )
    if command == "check":
        from syslogger.check import check  # noqa: PLC0415 - brings the Kafka client

        return check(config)
    if line.rehearse is not None:
        from syslogger.forwarder import rehearse  # noqa: PLC0415 - brings everything

        rehearse(config, line.rehearse)
        return 0
    from syslogger.forwarder import run  # noqa: PLC0415 - as above

    return run(config)


def _config(line: argparse.Namespace, defaults: Mapping[str, str] = MappingProxyType({})) -> Config:
    from syslogger.config import load  # noqa: PLC0415 - brings msgspec

    flags: dict[str, tuple[str, str]] = {}
    for name, setting in _SETTINGS.items():
        value = getattr(line, name)
        if value is None or value is False:
            continue
        if setting in flags:
            raise _UsageError(f"{flags[setting][0]} and {_flag(name)} say the same; give only one of them")
        match name:
            case "listen":
                value = ",".join(value)
            case "port":
                value = f":{value}"
            case "verbose":
                value = "debug"
        flags[setting] = (_flag(name), value)
    return load(file=line.config, environ=os.environ, flags=flags, defaults=_GO_DEFAULTS if _is_go(line) else defaults)


def _is_go(line: argparse.Namespace) -> bool:
    """Whether the line was written for the Go program: only that one had these flags."""
    return line.port is not None or line.zkstring is not None or line.publish is not None


def command_line() -> _Parser:
    """Return the parser of what argparse reads: all but the command itself."""
    parser = _Parser(
        prog="syslogger",
        usage="syslogger [run | check | top | tap | demo | parse] [flags]",
        description=_HELP,
        epilog=_EPILOG,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=28),
        allow_abbrev=False,
        add_help=False,
    )
    of_run = parser.add_argument_group("flags of run and check, and --listen of demo")
    of_run.add_argument("--config", metavar="FILE", help="a TOML file with settings")
    of_run.add_argument(
        "--listen",
        metavar="ADDRESS",
        action="append",
        help="where to listen (127.0.0.1:1514); repeatable",
    )
    of_run.add_argument("--bootstrap-servers", metavar="LIST", help="Kafka's brokers: host:port,host:port")
    of_run.add_argument("--zookeeper", metavar="LIST", help="or where to find them: host:port,host:port/path")
    of_run.add_argument("--topic", metavar="NAME", help="the topic (syslog)")
    of_run.add_argument("--riemann", metavar="ADDRESS", help="the Riemann to push metrics to: host:port")
    of_run.add_argument("--verbose", type=_boolean, metavar="", help="log at level debug")
    of_watch = parser.add_argument_group("flags of top and tap, and --count of demo; both take --config")
    # For a reload: try a start beside a process that holds these ports, and end before anything is served.
    parser.add_argument("--rehearse", metavar="PORTS", help=argparse.SUPPRESS)
    of_watch.add_argument("--count", metavar="N", type=_count, help="end when N records, or screens, were printed")
    of_watch.add_argument("--peer", metavar="TEXT", help="tap: only of peers with this in their name")
    of_watch.add_argument("--text", metavar="TEXT", help="tap: only records with this in them")
    of_parse = parser.add_argument_group("flags of parse")
    of_parse.add_argument("--value", choices=("json", "json-go"), help="the JSON to print (json)")
    of_parse.add_argument("--zone", metavar="NAME", help="the zone of dates that name none (UTC)")
    of_go = parser.add_argument_group("flags of the Go syslogger, whose start lines still work (-port 1514)")
    of_go.add_argument("--port", metavar="N", type=_port, help="as --listen :N")
    of_go.add_argument("--zkstring", metavar="LIST", help="as --zookeeper LIST")
    of_go.add_argument("--publish", type=_boolean, metavar="", help="ignored: records are always sent")
    others = parser.add_argument_group("others")
    others.add_argument("-h", "--help", action="store_const", const=True, help="show this")
    others.add_argument("--version", action="store_const", const=True, help="show the version")
    return parser


def _in_argparse_syntax(argv: list[str]) -> list[str]:
    """Go's flag syntax in argparse's: `-port` is `--port`, and a boolean takes a value only after `=`."""
    words = [f"-{word}" if re.match(r"-[a-z]{2}", word) else word for word in argv]
    return [f"{word}=true" if word in ("--publish", "--verbose") else word for word in words]


def _command(words: list[str]) -> str:
    if not words:
        return "run"
    if words[0] not in COMMANDS:
        close = get_close_matches(words[0], COMMANDS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(COMMANDS[:-1])} and {COMMANDS[-1]}"
        raise _UsageError(f"there is no command {words[0]!r}: {hint}")
    if len(words) > 1:
        raise _UsageError(f"{words[1]!r} is one word too many after the command {words[0]}")
    return words[0]


def _unknown_flag(word: str, parser: _Parser) -> str:
    flag = word.partition("=")[0]
    known = [f"--{name.replace('_', '-')}" for name in vars(parser.parse_args([]))]
    close = get_close_matches(flag, known, n=1)
    return f"there is no flag {flag}" + (f": did you mean {close[0]}?" if close else "")


def _flag(name: str) -> str:
    """Return a flag as its users know it."""
    return f"-{name}" if name in ("port", "zkstring", "publish") else f"--{name.replace('_', '-')}"


def _boolean(text: str) -> bool:
    """Read a boolean as Go's strconv.ParseBool does."""
    if text in ("1", "t", "T", "TRUE", "true", "True"):
        return True
    if text in ("0", "f", "F", "FALSE", "false", "False"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")


def _port(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text) or int(text) > 65_535:  # noqa: PLR2004 - TCP's
        raise argparse.ArgumentTypeError(f"{text!r} is no port: it may be 0 to 65535")
    return int(text)


def _count(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", text) or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of records: it may be 1 or more")
    return int(text)


def _say(sentence: str) -> None:
    sys.stderr.write(f"{'<3>' if logs.is_journal(sys.stderr) else ''}syslogger: {sentence}\n")
