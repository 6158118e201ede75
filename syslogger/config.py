"""Every setting: its name with the unit, type, default, bounds, and one sentence.

A setting is one field below. What the file and the environment may hold and the README's table are
made from these fields, so a setting is added here and nowhere else (a flag for it, in `cli.py`).
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from difflib import get_close_matches
from ipaddress import IPv6Address, ip_interface
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec
from msgspec import Meta, Struct, field, inspect, structs

from syslogger.admission import network
from syslogger.errors import ConfigError

Protocol = Literal["syslog", "relp"]
Framing = Literal["auto", "newline", "octet_counted"]
Value = Literal["raw", "json", "json-go"]
Key = Literal["none", "hostname", "appname", "peer"]
Compression = Literal["none", "gzip", "snappy", "lz4", "zstd"]
SecurityProtocol = Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"]
SaslMechanism = Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]
LogLevel = Literal["debug", "info", "warning", "error"]
TlsVersion = Literal["1.2", "1.3"]
TlsVerify = Literal["none", "optional", "required"]


class Tls(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The `[listeners.tls]` table of one `[[listeners]]`; without a `certificate_file` the listener is plain TCP."""

    certificate_file: Annotated[
        str,
        Meta(description="PEM file of the listener's certificate, and of those between it and the CA; makes it TLS."),
    ] = ""
    key_file: Annotated[str, Meta(description="PEM file of the certificate's key, not encrypted.")] = ""
    ca_file: Annotated[str, Meta(description="PEM file of the CAs that peers' certificates may be from.")] = ""
    minimum_version: Annotated[
        TlsVersion,
        Meta(
            description="The least TLS version that is spoken. With `1.2` and `verify`, it is the only one: under 1.3 "
            "rsyslog takes for sent what a listener that refuses its certificate never saw."
        ),
    ] = "1.2"
    verify: Annotated[
        TlsVerify,
        Meta(
            description="Whether a peer must show a certificate from `ca_file` (`required`), may (`optional`, but one "
            "that it shows must be valid), or is not asked (`none`)."
        ),
    ] = "none"
    permitted_peers: Annotated[
        tuple[str, ...],
        Meta(
            description="With `required`, who may send: subject alternative names, where `*` may begin or end a part "
            "(`*.example.net`), and fingerprints (`SHA1:E1:2D:…`, `SHA256:…`); if empty, all with a valid one."
        ),
    ] = ()
    handshake_seconds: Annotated[
        float, Meta(ge=0.1, le=300, description="How long a peer may take for the TLS handshake.")
    ] = 10.0


class Listener(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """One `[[listeners]]` table."""

    address: Annotated[
        str,
        Meta(
            description="Where to listen: `host:port`, `[v6]:port`, `:port` for every address, or `unix:/path` for a "
            "stream socket of this host."
        ),
    ] = "127.0.0.1:1514"
    protocol: Annotated[
        Protocol,
        Meta(
            description="What peers speak: `syslog` over TCP, or `relp`, where each message is answered "
            "when Kafka has acknowledged it."
        ),
    ] = "syslog"
    framing: Annotated[
        Framing,
        Meta(
            description="How records are told apart: `newline` (a line each), `octet_counted` (`LEN SP` before each), "
            "or `auto`, which takes one that begins `LEN SP <` as counted and any other as a line."
        ),
    ] = "auto"
    max_record_bytes: Annotated[
        int,
        Meta(ge=64, le=1_000_000, description="A longer record is cut into pieces of this size; nothing is dropped."),
    ] = 65_536
    receive_buffer_bytes: Annotated[
        int,
        Meta(
            ge=0,
            le=64 * 1024 * 1024,
            description="The kernel's receive buffer of each connection, at least twice `max_record_bytes`; "
            "0 chooses 262,144 or four times `max_record_bytes`, whichever is more. No more than 0.7 of "
            "`net.core.rmem_max`: the rest is for when an unfinished record fills it.",
        ),
    ] = 0
    allow: Annotated[
        tuple[str, ...],
        Meta(
            description="Networks whose peers may send, as `10.0.0.0/8` or `2001:db8::/32`; others are closed before "
            "anything is read. Empty lets everybody send."
        ),
    ] = ()
    proxy_protocol_from: Annotated[
        tuple[str, ...],
        Meta(
            description="Networks of proxies that say first, by the PROXY protocol (version 1 or 2), whose connection "
            "they pass on, and must; nobody else is asked."
        ),
    ] = ()
    max_connection_age_seconds: Annotated[
        float,
        Meta(
            ge=0,
            le=31_536_000,
            description="A peer is told to end its connection, and may open another, after so long, give or take a "
            "tenth; 0 sets no bound.",
        ),
    ] = 0.0
    unix_mode: Annotated[
        str, Meta(pattern=r"^0[0-7]{3}$", description="The permissions of a `unix:` socket; to connect takes writing.")
    ] = "0660"
    tls: Tls = field(default_factory=Tls)


class Kafka(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The `[kafka]` table."""

    bootstrap_servers: Annotated[
        tuple[str, ...], Meta(description="Brokers to ask first, `host:port` each; or set `zookeeper`.")
    ] = ()
    zookeeper: Annotated[
        str,
        Meta(description="ZooKeeper to read the brokers' addresses from: `host:port,host:port/chroot`."),
    ] = ""
    topic: Annotated[
        str, Meta(min_length=1, max_length=249, pattern=r"^[a-zA-Z0-9._-]+$", description="The topic.")
    ] = "syslog"
    dead_letter_topic: Annotated[
        str,
        Meta(
            max_length=249,
            pattern=r"^[a-zA-Z0-9._-]*$",
            description="Where a record goes that Kafka refuses for itself; `<topic>.dead-letter` if empty.",
        ),
    ] = ""
    value: Annotated[
        Value,
        Meta(description="What is stored: the record as it came, or its JSON (see records.md)."),
    ] = "raw"
    key: Annotated[
        Key,
        Meta(
            description="The record's key: its hostname, its program, or its peer's address; Kafka's own partitioner "
            "then says which partition it goes to. With `none` a connection keeps to one."
        ),
    ] = "none"
    zone: Annotated[
        str, Meta(min_length=1, description="For JSON, the time zone of dates that name none, like `Europe/Berlin`.")
    ] = "UTC"
    compression: Annotated[Compression, Meta(description="How batches are compressed.")] = "none"
    client_id: Annotated[str, Meta(min_length=1, description="The name brokers log and set quotas for.")] = "syslogger"
    request_timeout_seconds: Annotated[
        float, Meta(ge=1, le=300, description="How long a broker may take to connect or to answer one request.")
    ] = 15.0
    commit_interval_seconds: Annotated[
        float,
        Meta(
            ge=0,
            le=1,
            description="A partition's small batches leave at least this far apart, twice that while few peers send; "
            "an idle one's at once.",
        ),
    ] = 0.005
    max_batch_records: Annotated[
        int,
        Meta(
            ge=0,
            description="The most records a connection delivers at a time; "
            "1 waits for Kafka after each, 0 sets no bound.",
        ),
    ] = 0
    security_protocol: Annotated[SecurityProtocol, Meta(description="How to speak to the brokers.")] = "PLAINTEXT"
    sasl_mechanism: Annotated[SaslMechanism, Meta(description="How to log in, with a `SASL_…` protocol.")] = "PLAIN"
    sasl_username: Annotated[str, Meta(description="The user to log in as.")] = ""
    sasl_password: Annotated[
        str, Meta(description="The user's password; best given by the environment.", extra={"secret": True})
    ] = ""
    tls_ca_file: Annotated[
        str, Meta(description="PEM file of the CAs that brokers' certificates may be from; the system's if empty.")
    ] = ""
    tls_certificate_file: Annotated[
        str, Meta(description="PEM file of the client certificate, if brokers ask for one.")
    ] = ""
    tls_key_file: Annotated[str, Meta(description="PEM file of the client certificate's key.")] = ""

    def __repr__(self) -> str:
        """As any struct's, without the password."""
        shown = {name: getattr(self, name) for name in self.__struct_fields__}
        shown["sasl_password"] = "***" if self.sasl_password else ""
        return f"Kafka({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    @property
    def dead_letters(self) -> str:
        """The topic of the records that Kafka refuses for themselves."""
        return self.dead_letter_topic or f"{self.topic}.dead-letter"


class Prometheus(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The `[prometheus]` table."""

    address: Annotated[
        str,
        Meta(
            description="Where the status page `/`, `/metrics`, `/healthz` and `/readyz` are served, `host:port`; "
            "empty for nowhere."
        ),
    ] = "127.0.0.1:9514"


class Riemann(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The `[riemann]` table."""

    address: Annotated[str, Meta(description="The Riemann to push to, `host:port`; empty for none.")] = ""
    interval_seconds: Annotated[
        float, Meta(ge=1, le=3600, description="How often; events expire after three intervals.")
    ] = 10.0
    host: Annotated[str, Meta(description="The events' host; this machine's name if empty.")] = ""


class Tap(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The `[tap]` table."""

    path: Annotated[
        str,
        Meta(
            description="Unix socket for `syslogger tap`, which only root and its own user may open; "
            "if empty, `tap` in the directory that systemd gives it (`RuntimeDirectory=`), else none."
        ),
    ] = ""


class Log(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The `[log]` table."""

    level: Annotated[LogLevel, Meta(description="The least level that is logged, on standard error.")] = "info"
    period_seconds: Annotated[
        float, Meta(ge=1, le=3600, description="A message that repeats is logged once, then summed up this often.")
    ] = 30.0


class Config(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The whole configuration."""

    listeners: tuple[Listener, ...] = (Listener(),)
    max_connections: Annotated[
        int,
        Meta(ge=1, description="At this many connections it stops accepting until one ends; nobody is turned away."),
    ] = 10_000
    max_connections_per_address: Annotated[
        int,
        Meta(ge=0, description="Whoever has this many open has further ones closed, unread; 0 sets no bound."),
    ] = 0
    drain_seconds: Annotated[
        float, Meta(ge=0, le=3600, description="How long a stop may take to deliver what connections still hold.")
    ] = 30.0
    kafka: Kafka = field(default_factory=Kafka)
    prometheus: Prometheus = field(default_factory=Prometheus)
    riemann: Riemann = field(default_factory=Riemann)
    tap: Tap = field(default_factory=Tap)
    log: Log = field(default_factory=Log)


class Setting(NamedTuple):
    """One setting in words."""

    name: str
    """Dotted; ``listeners[].address`` stands for that key of every `[[listeners]]` table."""
    type: str
    bounds: str
    """Empty where every value of the type will do."""
    default: str
    """As it is written in the file, without quotes; empty for an empty text or list."""
    variable: str
    """The environment variable; empty where there is none."""
    sentence: str


_NONE: Mapping[str, Any] = MappingProxyType({})
_MAX_FILE_BYTES = 1 << 20  # so that `--config /dev/zero` ends
_MAX_UNIX_PATH_BYTES = 107  # unix(7): sun_path has 108, and a NUL ends it
_LISTEN = "SYSLOGGER_LISTEN"
_FILE = "SYSLOGGER_CONFIG"

_OF_KUBERNETES = re.compile(r"SYSLOGGER_(SERVICE_HOST|SERVICE_PORT(_.*)?|PORT(_\d+_(TCP|UDP)(_(PROTO|PORT|ADDR))?)?)")
"""Kubernetes sets these for every container beside a Service that is called `syslogger`."""

_PERMITTED_PEER = re.compile(
    r"SHA1:[0-9A-F]{2}(:[0-9A-F]{2}){19}|SHA256:[0-9A-F]{2}(:[0-9A-F]{2}){31}"
    r"|(?!SHA\d+:)(\*|\*?[^\s*.]+\*?)(\.(\*|\*?[^\s*.]+\*?))*",
    re.IGNORECASE,
)
"""A fingerprint or a name, as rsyslog's PermittedPeer has them: a `*` within a part of a name is none."""


def _is_table(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, Struct)


def _fields(struct: type[Struct], prefix: str = "") -> Iterator[tuple[str, structs.FieldInfo]]:
    for each in structs.fields(struct):
        name = prefix + each.name
        if name == "listeners":
            yield from _fields(Listener, "listeners[].")
        elif _is_table(each.type):
            yield from _fields(each.type, name + ".")
        else:
            yield name, each


_SETTINGS = dict(_fields(Config))
_VARIABLES = {f"SYSLOGGER_{name.replace('.', '_').upper()}": name for name in _SETTINGS if "[]" not in name}
_VARIABLES[_LISTEN] = "listeners"


def _described(kind: object) -> tuple[inspect.Type, str, bool]:
    """Return what a field's type is, its sentence, and whether its value is a secret."""
    info = inspect.type_info(kind)
    if not isinstance(info, inspect.Metadata):
        return info, "", False
    return info.type, (info.extra_json_schema or {}).get("description", ""), (info.extra or {}).get("secret", False)


def _choices(kind: object) -> tuple[str, ...]:
    """Return the texts that the type allows, in the order of the source; nothing for any other type."""
    (plain, *_) = get_args(kind) or (kind,)
    return get_args(plain) if get_origin(plain) is Literal else ()


def _may_be(kind: object) -> tuple[str, str]:
    """Return the type and the bounds in words."""
    if choices := _choices(kind):
        return f"{', '.join(choices[:-1])} or {choices[-1]}", ""
    match _described(kind)[0]:
        case inspect.IntType(ge=least, le=most):
            return "a whole number", _range(least, most)
        case inspect.FloatType(ge=least, le=most):
            return "a number", _range(least, most)
        case inspect.StrType(min_length=least, max_length=most, pattern=pattern):
            words = [_range(least, most, " characters"), f"matching {pattern}" if pattern else ""]
            return "a text", " ".join(word for word in words if word)
        case inspect.VarTupleType():
            return "a list of texts", ""
        case other:
            raise TypeError(f"no words for {other}")  # for whoever adds a field


def _range(least: float | None, most: float | None, unit: str = "") -> str:
    if most is None:
        return "" if least is None else f"at least {least:,}{unit.removesuffix('s') if least == 1 else unit}"
    return f"at most {most:,}{unit}" if least is None else f"{least:,} to {most:,}{unit}"


def settings() -> Iterator[Setting]:
    """Yield every setting, in the order of the fields."""
    variables = {name: variable for variable, name in _VARIABLES.items()}
    for name, each in _SETTINGS.items():
        sentence = _described(each.type)[1]
        default = ", ".join(each.default) if isinstance(each.default, tuple) else str(each.default)
        variable = _LISTEN if name == "listeners[].address" else variables.get(name, "")
        yield Setting(name, *_may_be(each.type), default, variable, sentence)


def settings_table() -> str:
    """Return every setting as a Markdown table, for the README; it ends with a newline."""
    rows = ["| Setting | What it is | It may be | Default | Environment |", "|---|---|---|---|---|"]
    for each in settings():
        may_be = each.type.removeprefix("a ") + (f", {each.bounds}" if each.bounds else "")
        may_be = re.sub(r"matching (\S+)", r"matching `\1`", may_be)
        cells = (
            f"`{each.name}`",
            each.sentence,
            may_be,
            f"`{each.default}`" if each.default else "empty",
            f"`{each.variable}`" if each.variable else "",
        )
        rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(rows) + "\n"


def parse_address(text: str, setting: str, where: str = "") -> tuple[str, int]:
    """Return the host and port of `host:port`, `[v6]:port` or `:port`, whose host is ``""``: every address.

    Raises ConfigError naming `setting` and `where` it came from (a file, a variable, a flag).
    """
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if (
        not colon
        or not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 65_535)  # noqa: PLR2004 - TCP's
        or not (_is_v6(host[1:-1]) if bracketed else _is_host(host))
    ):
        hint = f"; did you mean [{host}]:{port}?" if _is_v6(host) and port else "."
        may_be = "host:port, [v6]:port or :port, with a port from 0 to 65535"
        if setting.startswith("listeners"):
            may_be += ", or unix:/path"
        raise _wrong(setting, where, f"is {_shown(text)}: it may be {may_be}{hint}")
    return host[1:-1] if bracketed else host, int(port)


def unix_path(address: str, setting: str, where: str = "") -> str:
    """Return the path of `unix:/path`; ``""`` of any other address. Raises ConfigError, as `parse_address`."""
    if not address.startswith("unix:"):
        return ""
    path = address.removeprefix("unix:")
    if not path.startswith("/") or "," in path or "\0" in path or len(path.encode()) > _MAX_UNIX_PATH_BYTES:
        may_be = f"unix: and an absolute path of at most {_MAX_UNIX_PATH_BYTES} bytes, without a comma"
        raise _wrong(setting, where, f"is {_shown(address)}: it may be {may_be}.")
    return path


def _is_v6(host: str) -> bool:
    try:
        IPv6Address(host)
    except ValueError:
        return False
    return True


def _is_host(host: str) -> bool:
    return host.isprintable() and not re.search(r"[\s:/,@\[\]]", host)


def load(
    *,
    file: str | None = None,
    environ: Mapping[str, str] = _NONE,
    flags: Mapping[str, tuple[str, str]] = _NONE,
    defaults: Mapping[str, str] = _NONE,
) -> Config:
    """Return the configuration: the file, overridden by the environment, overridden by the flags.

    `file` is a path, else the variable SYSLOGGER_CONFIG names it, else there is none. `flags` maps a
    setting's dotted name to the flag as its user knows it and the text given: ``{"kafka.topic":
    ("--topic", "syslog")}``. The name ``listeners`` takes comma-separated addresses; an address that the
    file has too keeps the rest of its table. `defaults` replace the fields' own for what nobody sets; one
    for ``kafka.zookeeper`` gives way to ``kafka.bootstrap_servers`` as well.

    Everything was checked that can be without a network. Raises ConfigError: one sentence naming the
    setting, where it came from, and what it may be. A password is never part of it.
    """
    values: dict[str, Any] = {}
    where: dict[str, str] = {}
    named_by = "--config"
    if file is None:
        file, named_by = environ.get(_FILE) or None, _FILE
    if file is not None:
        values = _read_table(_read_file(file, named_by), Config, "", file, where)

    tables = {table.get("address", Listener().address): table for table in values.get("listeners", ())}

    def put(name: str, text: str, origin: str) -> None:
        where[name] = origin
        try:
            text.encode()
        except UnicodeEncodeError:
            raise _wrong(name, origin, "is not UTF-8.") from None
        if name == "listeners":
            addresses = _split(text)
            values[name] = [tables.get(address, {"address": address}) for address in addresses]
            where.update({f"listeners[{index}].address": origin for index in range(len(addresses))})
            return
        section, _, key = name.rpartition(".")
        listed = isinstance(_described(_SETTINGS[name].type)[0], inspect.VarTupleType)
        value = _convert(name, _split(text) if listed else text, origin, strict=False)
        (values.setdefault(section, {}) if section else values)[key] = value

    for variable, text in environ.items():
        if variable in _VARIABLES:
            put(_VARIABLES[variable], text, variable)
        elif variable.startswith("SYSLOGGER_") and variable != _FILE and not _OF_KUBERNETES.fullmatch(variable):
            raise _wrong(variable, "", f"is no setting{_did_you_mean(variable, (*_VARIABLES, _FILE))}")
    for name, (flag, text) in flags.items():
        put(name, text, flag)
    for name, text in defaults.items():
        otherwise = values.get("kafka", _NONE).get("bootstrap_servers") if name == "kafka.zookeeper" else None
        if name not in where and not otherwise:
            put(name, text, "default")

    config = msgspec.convert(values, Config)
    _check_listeners(config, where)
    for index, table in enumerate(values.get("listeners", ())):
        if "tls" in table:
            _check_tls(config.listeners[index], f"listeners[{index}].tls", file or "")
    _check_kafka(config.kafka, where)
    _check_security(config.kafka, where)
    if config.prometheus.address:
        parse_address(config.prometheus.address, "prometheus.address", where.get("prometheus.address", ""))
    if config.riemann.address:
        _check_remote(config.riemann.address, "riemann.address", where.get("riemann.address", ""))
    return config


def _read_file(file: str, named_by: str) -> dict[str, Any]:
    """Return what the file holds as TOML."""
    named = f"The configuration file {_quoted(file)}"
    try:
        with Path(file).open("rb") as opened:
            content = opened.read(_MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        raise _wrong(named, named_by, f"cannot be read: {_reason(error)}.") from None
    if len(content) > _MAX_FILE_BYTES:
        raise _wrong(named, named_by, f"is longer than {_MAX_FILE_BYTES:,} bytes.")
    try:
        text = content.decode()
        return tomllib.loads(text)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise _wrong(named, named_by, f"is not UTF-8 in line {line}.") from None
    except RecursionError:
        raise _wrong(named, named_by, "is nested too deeply.") from None
    except tomllib.TOMLDecodeError as error:
        raise _wrong(named, named_by, f"is not TOML: {_toml_reason(str(error), text)}.") from None


def _toml_reason(reason: str, text: str) -> str:
    """Return the parser's reason with the line it is about, if that holds no password."""
    found = re.search(r"at line (\d+)", reason)
    if found is None:
        return reason
    line = text.split("\n")[int(found[1]) - 1].strip()
    return reason if "password" in line.lower() else f"{reason}, which is {_shown(line)}"


def _read_table(
    table: dict[str, Any], struct: type[Struct], prefix: str, origin: str, where: dict[str, str]
) -> dict[str, Any]:
    """Return the table with every value checked; enter in `where` the names of the settings it has."""
    known = {each.name: each.type for each in structs.fields(struct)}
    values: dict[str, Any] = {}
    for key, value in table.items():
        name = prefix + key
        if key not in known:
            raise _wrong(_quoted(name), origin, f"is no setting{_closest_setting(key, prefix, known)}")
        where[name] = origin
        if name == "listeners":
            if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
                raise _wrong(name, origin, f"is {_shown(value)}: it may be tables, each written [[listeners]].")
            values[key] = [
                _read_table(item, Listener, f"listeners[{index}].", origin, where) for index, item in enumerate(value)
            ]
        elif _is_table(known[key]):
            if not isinstance(value, dict):
                written = re.sub(r"\[\d+\]", "", name)
                raise _wrong(name, origin, f"is {_shown(value)}: it may be a table, written [{written}].")
            values[key] = _read_table(value, known[key], name + ".", origin, where)
        else:
            values[key] = _convert(name, value, origin, strict=True)
    return values


def _convert(name: str, value: object, origin: str, *, strict: bool) -> object:
    """Return the value as the setting's type, within its bounds."""
    kind = _SETTINGS[re.sub(r"\[\d+\]", "[]", name)].type
    try:
        return msgspec.convert(value, kind, strict=strict)
    except msgspec.ValidationError:
        may_be = ", ".join(words for words in _may_be(kind) if words)
        if isinstance(value, str) and may_be.startswith("a list"):
            may_be += f", as [{_shown(value)}]"
        hint = _did_you_mean(value, _choices(kind)) if isinstance(value, str) else "."
        shown = "of the wrong type" if _described(kind)[2] else _shown(value)
        raise _wrong(name, origin, f"is {shown}: it may be {may_be}{hint}") from None


def _check_listeners(config: Config, where: Mapping[str, str]) -> None:
    if not config.listeners:
        raise _wrong("listeners", where["listeners"], "is empty: give an address (--listen, or [[listeners]]).")
    seen: dict[tuple[str, int], int] = {}
    for index, listener in enumerate(config.listeners):
        setting = f"listeners[{index}].address"
        origin = where.get(setting, "")
        if path := unix_path(listener.address, setting, origin):
            key = (path, -1)
        else:
            host, port = parse_address(listener.address, setting, origin)
            key = (str(IPv6Address(host)) if _is_v6(host) else host.lower(), port)
        if key[1] and key in seen:  # port 0 is another port each time
            raise _wrong(setting, origin, f"is {_shown(listener.address)}, which listeners[{seen[key]}] has too.")
        seen[key] = index
        if listener.protocol == "relp" and listener.framing != "auto":
            setting = f"listeners[{index}].framing"
            rest = f'is {_shown(listener.framing)}: RELP has a framing of its own; leave it out, or protocol = "relp".'
            raise _wrong(setting, where.get(setting, ""), rest)
        size, least = listener.receive_buffer_bytes, 2 * listener.max_record_bytes
        if 0 < size < least:
            setting = f"listeners[{index}].receive_buffer_bytes"
            may_be = f"0 or at least {least:,}, twice max_record_bytes"
            raise _wrong(setting, where.get(setting, ""), f"is {size:,}: it may be {may_be}.")
        _check_networks(listener, index, where)


def _check_networks(listener: Listener, index: int, where: Mapping[str, str]) -> None:
    for key in ("allow", "proxy_protocol_from"):
        setting, networks = f"listeners[{index}].{key}", getattr(listener, key)
        origin = where.get(setting, "")
        if networks and listener.address.startswith("unix:"):
            raise _wrong(setting, origin, "is for peers with an address; on a unix: socket, unix_mode says who may.")
        for each in networks:
            try:
                network(each)
            except ValueError:
                hint = "."
                with suppress(ValueError):
                    hint = f"; did you mean {ip_interface(each).network}?"
                may_be = "a network as 10.0.0.0/8 or 2001:db8::/32, or an address"
                raise _wrong(setting, origin, f"has {_shown(each)}: it may be {may_be}{hint}") from None


def _check_tls(listener: Listener, table: str, origin: str) -> None:
    tls = listener.tls
    if listener.address.startswith("unix:"):
        raise _wrong(table, origin, "is for TCP; what goes through a unix: socket does not leave the host.")
    for key in ("certificate_file", "key_file"):
        if not getattr(tls, key):
            raise _wrong(f"{table}.{key}", origin, "is empty: TLS needs a certificate and its key.")
    if tls.verify != "none" and not tls.ca_file:
        raise _wrong(f"{table}.ca_file", origin, f'is empty: verify = "{tls.verify}" needs the CAs to trust.')
    if tls.verify == "none" and tls.ca_file:
        rest = 'is "none", so nobody is asked for a certificate from ca_file: it may be optional or required.'
        raise _wrong(f"{table}.verify", origin, rest)
    if tls.verify != "required" and tls.permitted_peers:
        raise _wrong(f"{table}.permitted_peers", origin, 'needs verify = "required".')
    for peer in tls.permitted_peers:
        if not _PERMITTED_PEER.fullmatch(peer):
            may_be = (
                "a name, each part of which may begin or end with *, or a fingerprint such as SHA1:E1:2D:… of 20 bytes "
                "or SHA256:… of 32"
            )
            raise _wrong(f"{table}.permitted_peers", origin, f"has {_shown(peer)}: it may be {may_be}.")
    for key in ("certificate_file", "key_file", "ca_file"):
        _check_readable(f"{table}.{key}", getattr(tls, key), origin)


def _check_kafka(kafka: Kafka, where: Mapping[str, str]) -> None:
    servers, zookeeper = "kafka.bootstrap_servers", "kafka.zookeeper"
    if not kafka.bootstrap_servers and not kafka.zookeeper:
        raise ConfigError(
            "Where is Kafka? Set kafka.bootstrap_servers (--bootstrap-servers) or kafka.zookeeper (--zookeeper), "
            "or try `syslogger demo`."
        )
    if kafka.bootstrap_servers and kafka.zookeeper:
        rest = f"and {_name(zookeeper, where.get(zookeeper, ''))} are both set: set only one of them."
        raise _wrong(servers, where.get(servers, ""), rest)
    for index, address in enumerate(kafka.bootstrap_servers):
        _check_remote(address, f"{servers}[{index}]", where.get(servers, ""))
    if kafka.zookeeper:
        _check_zookeeper(kafka.zookeeper, zookeeper, where.get(zookeeper, ""))
    try:
        ZoneInfo(kafka.zone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        rest = f"is {_shown(kafka.zone)}: it may be a time zone that this machine knows, like Europe/Berlin."
        raise _wrong("kafka.zone", where.get("kafka.zone", ""), rest) from None
    if kafka.topic in (".", ".."):
        raise _wrong("kafka.topic", where["kafka.topic"], 'may be any such text but "." and "..".')


def _check_security(kafka: Kafka, where: Mapping[str, str]) -> None:
    needs = [("tls_certificate_file", "tls_key_file"), ("tls_key_file", "tls_certificate_file")]
    if kafka.security_protocol.startswith("SASL_"):
        needs += [("security_protocol", "sasl_username"), ("security_protocol", "sasl_password")]
    for key, needed in needs:
        if getattr(kafka, key) and not getattr(kafka, needed):
            name = f"kafka.{key}"
            rest = f"is {_shown(getattr(kafka, key))}: set kafka.{needed} (SYSLOGGER_KAFKA_{needed.upper()}) too."
            raise _wrong(name, where[name], rest)
    for key in ("tls_ca_file", "tls_certificate_file", "tls_key_file"):
        name = f"kafka.{key}"
        _check_readable(name, getattr(kafka, key), where.get(name, ""))


def _check_readable(name: str, path: str, origin: str) -> None:
    """See that a file can be read, if one is named."""
    try:
        if path:
            Path(path).open("rb").close()
    except (OSError, ValueError) as error:
        raise _wrong(name, origin, f"is {_shown(path)}, which cannot be read: {_reason(error)}.") from None


def _check_remote(address: str, setting: str, origin: str) -> None:
    host, port = parse_address(address, setting, origin)
    if not host or not port:
        raise _wrong(setting, origin, f"is {_shown(address)}: it may be host:port, with a port from 1 to 65535.")


def _check_zookeeper(text: str, setting: str, origin: str) -> None:
    hosts, _, chroot = text.partition("/")
    if "," in chroot:
        raise _wrong(setting, origin, f"is {_shown(text)}: the path stands once, as in host:port,host:port/path.")
    for host in hosts.split(","):
        # ZooKeeper's own clients add its port where none is given, and so did the Go program's.
        _check_remote(f"{host}:2181" if host and _is_host(host) else host, setting, origin)


def _wrong(setting: str, origin: str, rest: str) -> ConfigError:
    return ConfigError(f"{_name(setting, origin)} {rest}")


def _reason(error: OSError | ValueError) -> str:
    """Return why a file cannot be read; a ValueError is about a NUL in its path."""
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _name(setting: str, origin: str) -> str:
    """`kafka.topic (--topic)`, or the setting alone."""
    return f"{setting} ({origin})" if origin else setting


def _shown(value: object) -> str:
    """Return a value for a sentence: on one line, not too long, and never a table, where a password could be."""
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        return "a list of tables" if isinstance(value[0], dict) else "a list of lists"
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else f"{text[:77]}…"  # noqa: PLR2004 - what a line has room for


def _quoted(text: str) -> str:
    """Return a name from outside, which may hold anything, for a sentence."""
    return text if text.isprintable() else _shown(text)


def _did_you_mean(word: str, names: Iterable[str]) -> str:
    """Return the end of a sentence about a wrong name."""
    close = get_close_matches(word, names, n=1)
    return f"; did you mean {close[0]}?" if close else "."


def _closest_setting(key: str, prefix: str, known: Iterable[str]) -> str:
    """Return the same for a key of a table: one of its own keys is meant, else that key of another table."""
    if close := get_close_matches(key.lower(), known, n=1):
        return f"; did you mean {prefix}{close[0]}?"
    elsewhere: dict[str, str] = {}
    for name in _SETTINGS:
        elsewhere.setdefault(name.rpartition(".")[2], name)
    close = get_close_matches(key.lower(), elsewhere, n=1)
    return f"; did you mean {elsewhere[close[0]]}?" if close else "."
