from __future__ import annotations

import json
from pathlib import Path

import pytest

from syslogger.config import Config, Kafka, Listener, load, parse_address, settings, settings_table, unix_path
from syslogger.errors import ConfigError

WORD = "123456"
OR_A_NETWORK = 'listeners[0].{} (FILE) has "{}": it may be a network as 10.0.0.0/8 or 2001:db8::/32, or an address{}'
SERVERS = {"SYSLOGGER_KAFKA_BOOTSTRAP_SERVERS": "k1:9092,k2:9092"}


def error(**arguments: object) -> str:
    """Return what `load` says of a configuration that is wrong in one respect: one line."""
    with pytest.raises(ConfigError) as caught:
        load(**arguments)  # type: ignore[arg-type]
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.fixture
def toml(tmp_path: Path):
    def write(content: str | bytes) -> str:
        path = tmp_path / "syslogger.toml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


def test_the_defaults_are_the_fields():
    assert load(environ=SERVERS) == Config(kafka=Kafka(bootstrap_servers=("k1:9092", "k2:9092")))


def test_a_file_sets_everything(toml):
    file = toml("""
        max_connections = 7
        drain_seconds = 5
        [[listeners]]
        address = ":1514"
        max_record_bytes = 1000
        receive_buffer_bytes = 2000
        [[listeners]]
        address = "[::1]:1515"
        framing = "octet_counted"
        [kafka]
        zookeeper = "zk1:2181,zk2/chroot/deep"
        topic = "a.topic"
        compression = "zstd"
        [prometheus]
        address = ""
        [riemann]
        address = "r:5555"
        interval_seconds = 2.5
    """)
    config = load(file=file)
    assert config.listeners == (
        Listener(address=":1514", max_record_bytes=1000, receive_buffer_bytes=2000),
        Listener(address="[::1]:1515", framing="octet_counted"),
    )
    assert (config.max_connections, config.drain_seconds) == (7, 5.0)
    assert config.kafka == Kafka(zookeeper="zk1:2181,zk2/chroot/deep", topic="a.topic", compression="zstd")
    assert config.prometheus.address == ""
    assert (config.riemann.address, config.riemann.interval_seconds) == ("r:5555", 2.5)


def test_file_then_environment_then_flags(toml):
    file = toml('drain_seconds = 1\n[kafka]\nbootstrap_servers = ["k:1"]\ntopic = "file"\nclient_id = "file"')
    environ = {"SYSLOGGER_KAFKA_TOPIC": "environment", "SYSLOGGER_DRAIN_SECONDS": "2.5", "PATH": "/bin"}
    config = load(file=file, environ=environ, flags={"kafka.topic": ("--topic", "flag")})
    assert (config.kafka.client_id, config.drain_seconds, config.kafka.topic) == ("file", 2.5, "flag")
    assert load(file=file, environ=environ).kafka.topic == "environment"


def test_the_environment_names_the_file_unless_a_flag_does(toml, tmp_path):
    file = toml('[kafka]\nbootstrap_servers = ["k:1"]\ntopic = "file"')
    assert load(environ={"SYSLOGGER_CONFIG": file}).kafka.topic == "file"
    assert load(file=file, environ={"SYSLOGGER_CONFIG": str(tmp_path / "none")}).kafka.topic == "file"
    assert "(SYSLOGGER_CONFIG) cannot be read" in error(environ={"SYSLOGGER_CONFIG": str(tmp_path / "none")})


def test_every_variable_of_the_table_is_taken(tmp_path):
    pem = tmp_path / "pem"
    pem.touch()
    odd = {
        "SYSLOGGER_LISTEN": ":1",
        "SYSLOGGER_KAFKA_ZOOKEEPER": "",
        "SYSLOGGER_KAFKA_BOOTSTRAP_SERVERS": "b:1",
        "SYSLOGGER_RIEMANN_ADDRESS": "r:1",
        "SYSLOGGER_KAFKA_SASL_USERNAME": "someone",
        "SYSLOGGER_KAFKA_SASL_PASSWORD": WORD,
        **{f"SYSLOGGER_KAFKA_TLS_{name}_FILE": str(pem) for name in ("CA", "CERTIFICATE", "KEY")},
    }
    environ = {each.variable: odd.get(each.variable, each.default) for each in settings() if each.variable}
    config = load(environ=environ)
    assert config.listeners == (Listener(address=":1"),)
    assert config.kafka.bootstrap_servers == ("b:1",)
    assert config.kafka.sasl_password == WORD
    assert config.log == Config().log
    assert config.drain_seconds == Config().drain_seconds


def test_addresses_from_the_environment_replace_the_files_and_keep_their_tables(toml):
    file = toml('[[listeners]]\naddress = ":1"\nmax_record_bytes = 100\n[[listeners]]\naddress = ":2"')
    config = load(file=file, environ={"SYSLOGGER_LISTEN": ":3, :1", **SERVERS})
    assert config.listeners == (Listener(address=":3"), Listener(address=":1", max_record_bytes=100))
    config = load(file=file, environ=SERVERS, flags={"listeners": ("--listen", ":4")})
    assert config.listeners == (Listener(address=":4"),)


def test_defaults_hold_for_what_nobody_sets(toml):
    defaults = {"kafka.zookeeper": "localhost:2181", "kafka.topic": "go", "listeners": ":1514"}
    config = load(defaults=defaults)
    assert (config.kafka.zookeeper, config.kafka.topic) == ("localhost:2181", "go")
    assert config.listeners == (Listener(address=":1514"),)
    file = toml('[[listeners]]\naddress = ":2"\n[kafka]\ntopic = "file"\nbootstrap_servers = ["k:1"]')
    config = load(file=file, defaults=defaults)
    assert (config.kafka.zookeeper, config.kafka.topic) == ("", "file")
    assert config.listeners == (Listener(address=":2"),)


def test_no_kafka_says_what_to_set():
    text = error()
    for words in ("kafka.bootstrap_servers (--bootstrap-servers)", "kafka.zookeeper (--zookeeper)", "`syslogger demo`"):
        assert words in text


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('topic = "x"', "topic (FILE) is no setting; did you mean kafka.topic?"),
        ('[kafka]\ntopci = "x"', "kafka.topci (FILE) is no setting; did you mean kafka.topic?"),
        ("[kafak]\n", "kafak (FILE) is no setting; did you mean kafka?"),
        ("[Kafka]\n", "Kafka (FILE) is no setting; did you mean kafka?"),
        ("zzzz = 1", "zzzz (FILE) is no setting."),
        (
            '[[listeners]]\n[[listeners]]\nadress = ":1"',
            "listeners[1].adress (FILE) is no setting; did you mean listeners[1].address?",
        ),
        ('"a\\nb" = 1', '"a\\nb" (FILE) is no setting.'),
        (
            "[[listeners]]\nmax_record_bytes = 10",
            "listeners[0].max_record_bytes (FILE) is 10: it may be a whole number, 64 to 1,000,000.",
        ),
        (
            '[[listeners]]\nprotocol = "relp"\nframing = "newline"',
            'listeners[0].framing (FILE) is "newline": RELP has a framing of its own; leave it out',
        ),
        (
            '[[listeners]]\nframing = "octet-counted"',
            'listeners[0].framing (FILE) is "octet-counted": it may be auto, newline or octet_counted; did you mean ',
        ),
        (
            '[[listeners]]\nallow = ["10.0.0.0/8", "10.0.0.1/8"]',
            OR_A_NETWORK.format("allow", "10.0.0.1/8", "; did you mean 10.0.0.0/8?"),
        ),
        (
            '[[listeners]]\nproxy_protocol_from = ["lb.example.org"]',
            OR_A_NETWORK.format("proxy_protocol_from", "lb.example.org", "."),
        ),
        (
            '[[listeners]]\naddress = "unix:/run/s"\nallow = ["10.0.0.0/8"]',
            "listeners[0].allow (FILE) is for peers with an address; on a unix: socket, unix_mode says who may.",
        ),
        (
            '[[listeners]]\nunix_mode = "660"',
            'listeners[0].unix_mode (FILE) is "660": it may be a text, matching ^0[0-7]{3}$.',
        ),
        (
            '[[listeners]]\naddress = "unix:run/s"',
            'listeners[0].address (FILE) is "unix:run/s": it may be unix: and an absolute path of at most 107 bytes',
        ),
        (
            '[[listeners]]\naddress = "unix:/s"\n[[listeners]]\naddress = "unix:/s"',
            'listeners[1].address (FILE) is "unix:/s", which listeners[0] has too.',
        ),
        (
            "max_connections_per_address = -1",
            "max_connections_per_address (FILE) is -1: it may be a whole number, at least 0.",
        ),
        ('[kafka]\ntopic = "a b"', 'kafka.topic (FILE) is "a b": it may be a text, 1 to 249 characters matching '),
        ('[kafka]\ntopic = ".."', 'kafka.topic (FILE) may be any such text but "." and "..".'),
        ("[kafka]\ntopic = 5", "kafka.topic (FILE) is 5: it may be a text, "),
        (
            '[kafka]\nzone = "Mars/Olympus"',
            'kafka.zone (FILE) is "Mars/Olympus": it may be a time zone that this machine knows, like Europe/Berlin.',
        ),
        ('[kafka]\nzone = "../etc"', 'kafka.zone (FILE) is "../etc": it may be a time zone '),
        ('[kafka]\nvalue = "jsn"', 'kafka.value (FILE) is "jsn": it may be raw, json or json-go; did you mean json?'),
        (
            '[kafka]\ncompression = "gz"',
            'kafka.compression (FILE) is "gz": it may be none, gzip, snappy, lz4 or zstd; did you mean gzip?',
        ),
        ('drain_seconds = "5"', 'drain_seconds (FILE) is "5": it may be a number, 0 to 3,600.'),
        ("drain_seconds = nan", "drain_seconds (FILE) is NaN: it may be a number, "),
        ("drain_seconds = inf", "drain_seconds (FILE) is Infinity: "),
        ("max_connections = true", "max_connections (FILE) is true: it may be a whole number, at least 1."),
        ("max_connections = 1.5", "max_connections (FILE) is 1.5: "),
        ('[kafka]\nclient_id = ""', 'kafka.client_id (FILE) is "": it may be a text, at least 1 character.'),
        ("max_connections = 2024-05-01", 'max_connections (FILE) is "2024-05-01": '),
        (
            '[kafka]\nbootstrap_servers = "k:1"',
            'kafka.bootstrap_servers (FILE) is "k:1": it may be a list of texts, as ["k:1"].',
        ),
        ("[kafka]\nbootstrap_servers = [1]", "kafka.bootstrap_servers (FILE) is [1]: it may be a list of texts."),
        ("[kafka]\nbootstrap_servers = [[1]]", "kafka.bootstrap_servers (FILE) is a list of lists: "),
        ("kafka = 1", "kafka (FILE) is 1: it may be a table, written [kafka]."),
        ("[listeners]", "listeners (FILE) is a table: it may be tables, each written [[listeners]]."),
        ("listeners = []", "listeners (FILE) is empty: give an address (--listen, or [[listeners]])."),
        (
            "[[listeners]]\nmax_record_bytes = 1000\nreceive_buffer_bytes = 1999",
            "listeners[0].receive_buffer_bytes (FILE) is 1,999: it may be 0 or at least 2,000, twice max_record_bytes.",
        ),
        (
            '[[listeners]]\naddress = "[::1]:1"\n[[listeners]]\naddress = "[0::1]:1"',
            'listeners[1].address (FILE) is "[0::1]:1", which listeners[0] has too.',
        ),
        ("[[listeners]]\n[[listeners]]", "listeners[1].address is"),
        ('[prometheus]\naddress = "9514"', 'prometheus.address (FILE) is "9514": it may be host:port, '),
        ('[riemann]\naddress = "r"', 'riemann.address (FILE) is "r": it may be host:port, '),
        ('[riemann]\naddress = ":5555"', 'riemann.address (FILE) is ":5555": it may be host:port, with a port from 1 '),
        ('[kafka]\nbootstrap_servers = ["k:1", "k:0"]', 'kafka.bootstrap_servers[1] (FILE) is "k:0": '),
        (
            '[kafka]\nzookeeper = "z:1"\nbootstrap_servers = ["k:1"]',
            "kafka.bootstrap_servers (FILE) and kafka.zookeeper (FILE) are both set: ",
        ),
        ('[kafka]\nzookeeper = "z:1/a,z:2/a"', 'kafka.zookeeper (FILE) is "z:1/a,z:2/a": the path stands once, '),
        ('[kafka]\nzookeeper = "z:1,,z:2"', 'kafka.zookeeper (FILE) is "": it may be host:port, '),
        ("[kafka\n", "The configuration file FILE (--config) is not TOML: "),
    ],
)
def test_what_is_wrong_in_a_file_is_named(toml, content, says):
    file = toml(content)
    environ = {} if "zookeeper" in content or "bootstrap_servers" in content else SERVERS
    assert error(file=file, environ=environ).startswith(says.replace("FILE", file))


def test_bad_toml_shows_the_line(toml):
    text = error(file=toml("drain_seconds = 1\nmax_connections = many\n"))
    assert "line 2" in text
    assert '"max_connections = many"' in text


def test_a_file_that_cannot_be_read(tmp_path, toml):
    assert error(file=str(tmp_path / "none")).endswith("(--config) cannot be read: No such file or directory.")
    assert error(file=str(tmp_path)).endswith("cannot be read: Is a directory.")
    assert "cannot be read: " in error(file="a\0b")
    assert error(file="/dev/zero").endswith("is longer than 1,048,576 bytes.")
    assert error(file=toml(b"drain_seconds = 1\n# \xff")).endswith("is not UTF-8 in line 2.")
    assert "nested too deeply" in error(file=toml("a = " + "[" * 100_000))


@pytest.mark.parametrize(
    ("variable", "text", "says"),
    [
        ("SYSLOGGER_KAFKA_TOPCI", "x", "SYSLOGGER_KAFKA_TOPCI is no setting; did you mean SYSLOGGER_KAFKA_TOPIC?"),
        ("SYSLOGGER_CONFG", "x", "SYSLOGGER_CONFG is no setting; did you mean SYSLOGGER_CONFIG?"),
        ("SYSLOGGER_DRAIN_SECONDS", "x", 'drain_seconds (SYSLOGGER_DRAIN_SECONDS) is "x": it may be a number, 0 to '),
        ("SYSLOGGER_DRAIN_SECONDS", "", 'drain_seconds (SYSLOGGER_DRAIN_SECONDS) is "": '),
        ("SYSLOGGER_DRAIN_SECONDS", "-1", 'drain_seconds (SYSLOGGER_DRAIN_SECONDS) is "-1": '),
        ("SYSLOGGER_MAX_CONNECTIONS", "0", 'max_connections (SYSLOGGER_MAX_CONNECTIONS) is "0": '),
        (
            "SYSLOGGER_LOG_LEVEL",
            "warn",
            'log.level (SYSLOGGER_LOG_LEVEL) is "warn": it may be debug, info, warning or ',
        ),
        ("SYSLOGGER_LISTEN", "", "listeners (SYSLOGGER_LISTEN) is empty: "),
        (
            "SYSLOGGER_LISTEN",
            "1514",
            (
                'listeners[0].address (SYSLOGGER_LISTEN) is "1514": it may be host:port, [v6]:port or :port, with a '
                "port from 0 to 65535, or unix:/path."
            ),
        ),
        ("SYSLOGGER_LISTEN", ":1,::1:2", 'listeners[1].address (SYSLOGGER_LISTEN) is "::1:2": it may be host:port, '),
        ("SYSLOGGER_LISTEN", ":1,:1", 'listeners[1].address (SYSLOGGER_LISTEN) is ":1", which listeners[0] has too.'),
        ("SYSLOGGER_KAFKA_CLIENT_ID", "\udcff", "kafka.client_id (SYSLOGGER_KAFKA_CLIENT_ID) is not UTF-8."),
    ],
)
def test_what_is_wrong_in_the_environment_is_named(variable, text, says):
    assert error(environ={**SERVERS, variable: text}).startswith(says)


def test_what_is_wrong_in_a_flag_is_named():
    text = error(environ=SERVERS, flags={"kafka.topic": ("-topic", "a b")})
    assert text.startswith('kafka.topic (-topic) is "a b": ')
    text = error(environ=SERVERS, flags={"kafka.zookeeper": ("-zkstring", "z:1")})
    assert "kafka.bootstrap_servers (SYSLOGGER_KAFKA_BOOTSTRAP_SERVERS) and kafka.zookeeper (-zkstring) " in text


def test_what_kubernetes_sets_for_a_service_called_syslogger_is_not_ours():
    load(
        environ={
            **SERVERS,
            "SYSLOGGER_SERVICE_HOST": "10.0.0.1",
            "SYSLOGGER_SERVICE_PORT_TCP_IN": "1514",
            "SYSLOGGER_PORT": "tcp://10.0.0.1:1514",
            "SYSLOGGER_PORT_1514_TCP_ADDR": "10.0.0.1",
        }
    )
    assert "SYSLOGGER_PORTS is no setting" in error(environ={**SERVERS, "SYSLOGGER_PORTS": "1514"})


def test_sasl_needs_a_user_and_a_password():
    sasl = {**SERVERS, "SYSLOGGER_KAFKA_SECURITY_PROTOCOL": "SASL_SSL"}
    assert "set kafka.sasl_username (SYSLOGGER_KAFKA_SASL_USERNAME) too" in error(environ=sasl)
    sasl["SYSLOGGER_KAFKA_SASL_USERNAME"] = "someone"
    text = error(environ=sasl)
    assert text.startswith("kafka.security_protocol (SYSLOGGER_KAFKA_SECURITY_PROTOCOL) is ")
    assert "set kafka.sasl_password (SYSLOGGER_KAFKA_SASL_PASSWORD) too" in text
    sasl["SYSLOGGER_KAFKA_SASL_PASSWORD"] = WORD
    assert load(environ=sasl).kafka.sasl_password == WORD


def test_tls_files(tmp_path, toml):
    def kafka(**files: object) -> str:
        lines = [f'tls_{name}_file = "{path}"' for name, path in files.items()]
        return toml("\n".join(["[kafka]", 'bootstrap_servers = ["k:1"]', *lines]))

    good, missing = tmp_path / "good.pem", tmp_path / "missing.pem"
    good.touch()
    load(file=kafka(ca=good, certificate=good, key=good))
    assert "set kafka.tls_key_file " in error(file=kafka(certificate=good))
    assert "set kafka.tls_certificate_file " in error(file=kafka(key=good))
    for name in ("ca", "certificate", "key"):
        text = error(file=kafka(**{"certificate": good, "key": good, name: missing}))
        assert text.startswith(f"kafka.tls_{name}_file (")
        assert text.endswith("which cannot be read: No such file or directory.")


def test_a_listeners_tls(tmp_path, toml):
    good, missing = tmp_path / "good.pem", tmp_path / "missing.pem"
    good.touch()
    pair = {"certificate_file": str(good), "key_file": str(good)}
    ca = {"ca_file": str(good)}

    def listener(table: dict[str, object]) -> str:
        lines = [f"{name} = {json.dumps(value)}" for name, value in table.items()]
        return toml("\n".join(["[[listeners]]", 'address = ":1"', "[listeners.tls]", *lines]))

    found = load(file=listener(pair), environ=SERVERS).listeners[0]
    assert found.tls.certificate_file == str(good)
    assert found.tls.verify == "none"
    # An address that is named elsewhere keeps its table, wherever in the list it comes.
    found = load(file=listener(pair), environ=SERVERS | {"SYSLOGGER_LISTEN": ":2,:1"}).listeners
    assert [each.tls.certificate_file for each in found] == ["", str(good)]

    peers = ["*.example.net", "a*.*b.*", "10.1.2.3", "spiffe://x/y", "SHA1:" + ":".join(["aB"] * 20)]
    table = pair | ca | {"verify": "required", "permitted_peers": peers}
    assert load(file=listener(table), environ=SERVERS).listeners[0].tls.permitted_peers == tuple(peers)

    for wrong, says in (
        ({}, "certificate_file (FILE) is empty: TLS needs a certificate and its key."),
        ({"verify": "required"} | ca, "certificate_file (FILE) is empty"),
        ({"certificate_file": str(good)}, "key_file (FILE) is empty: TLS needs a certificate and its key."),
        (pair | {"key_file": str(missing)}, "key_file (FILE) is "),
        (pair | {"verify": "optional"}, 'ca_file (FILE) is empty: verify = "optional" needs the CAs to trust.'),
        (pair | ca, 'verify (FILE) is "none", so nobody is asked for a certificate'),
        (
            pair | ca | {"verify": "optional", "permitted_peers": ["a"]},
            'permitted_peers (FILE) needs verify = "required"',
        ),
        (table | {"permitted_peers": ["a.b*d.c"]}, 'permitted_peers (FILE) has "a.b*d.c": it may be a name, '),
        (table | {"permitted_peers": ["SHA1:AB:CD"]}, 'permitted_peers (FILE) has "SHA1:AB:CD": it may be '),
        (table | {"permitted_peers": ["MD5:AB", ""]}, 'permitted_peers (FILE) has "": it may be '),
        (pair | {"minimum_version": "1.1"}, 'minimum_version (FILE) is "1.1": it may be 1.2 or 1.3'),
        (pair | {"verfy": "none"}, "verfy (FILE) is no setting; did you mean listeners[0].tls.verify?"),
    ):
        file = listener(wrong)
        assert error(file=file, environ=SERVERS).startswith(f"listeners[0].tls.{says.replace('FILE', file)}")
    lines = ["[[listeners]]", 'address = "unix:/s"', "[listeners.tls]", f'certificate_file = "{good}"']
    assert "listeners[0].tls (" in error(file=toml("\n".join(lines)), environ=SERVERS)
    text = error(file=toml("[[listeners]]\ntls = true"), environ=SERVERS)
    assert text.endswith("is true: it may be a table, written [listeners.tls].")


@pytest.mark.parametrize(
    "content",
    [
        "[kafka]\nsasl_password = 123456",
        "[kafka]\nsasl_password = s123456",
        '[kafka]\nsasl_pasword = "123456"',
        '[[kafka]]\nsasl_password = "123456"',
        '[kafka.topic]\nsasl_password = "123456"',
        '[kafka]\nbootstrap_servers = [{sasl_password = "123456"}]',
    ],
)
def test_a_password_is_in_no_error(toml, content):
    assert WORD not in error(file=toml(content), environ=SERVERS)


def test_a_password_is_in_no_repr():
    config = load(environ={**SERVERS, "SYSLOGGER_KAFKA_SASL_PASSWORD": WORD})
    assert config.kafka.sasl_password == WORD
    assert WORD not in repr(config)
    assert "topic='syslog'" in repr(config)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("h:1", ("h", 1)),
        (":1514", ("", 1514)),
        ("127.0.0.1:0", ("127.0.0.1", 0)),
        ("[::1]:65535", ("::1", 65535)),
        ("[fe80::1%eth0]:1", ("fe80::1%eth0", 1)),
        ("log-1.example.org:1514", ("log-1.example.org", 1514)),
    ],
)
def test_addresses(text, address):
    assert parse_address(text, "x.address") == address


@pytest.mark.parametrize(
    "text",
    ["", ":", "h", "1514", "h:", "h:x", "h:65536", "h:-1", "h:+1", "h: 1", "h:1 ", "h:٣", "h:000001", "::1", "::1:2",
     "[]:1", "[h]:1", "[::1]", "[::1]1", "tcp://h:1", "a,b:1", "a b:1", "a\n:1", "user@h:1"],
)  # fmt: skip
def test_what_is_no_address(text):
    with pytest.raises(ConfigError, match=r"^x\.address \(--x\) is \".*: it may be host:port, \[v6\]:port or :port"):
        parse_address(text, "x.address", "--x")


@pytest.mark.parametrize(
    ("text", "path"),
    [("unix:/run/s", "/run/s"), ("unix:/" + "x" * 106, "/" + "x" * 106), (":1514", ""), ("[::1]:1", "")],
)
def test_paths(text, path):
    assert unix_path(text, "x.address") == path


@pytest.mark.parametrize("text", ["unix:", "unix:s", "unix:@s", "unix:/" + "x" * 107, "unix:/a,b", "unix:/a\0b"])
def test_what_is_no_path(text):
    with pytest.raises(ConfigError, match=r"^x\.address \(--x\) is \"unix:.*: it may be unix: and an absolute path"):
        unix_path(text, "x.address", "--x")


def test_who_may_send(toml):
    config = load(
        file=toml(
            '[[listeners]]\nallow = ["10.0.0.0/8", "2001:db8::/32", "192.0.2.1"]\nproxy_protocol_from = ["::1"]\n'
            'max_connection_age_seconds = 60\n[[listeners]]\naddress = "unix:/run/s"\nunix_mode = "0666"\n'
        ),
        environ=SERVERS,
    )
    assert config.listeners[0].allow == ("10.0.0.0/8", "2001:db8::/32", "192.0.2.1")
    assert config.listeners[0].proxy_protocol_from == ("::1",)
    assert config.listeners[0].max_connection_age_seconds == 60
    assert config.listeners[1].unix_mode == "0666"


def test_an_address_of_ip_version_6_wants_brackets():
    with pytest.raises(ConfigError, match=r"did you mean \[::1\]:1514\?"):
        parse_address("::1:1514", "x.address")


def test_every_setting_is_described():
    described = list(settings())
    assert len({each.name for each in described}) == len(described) > 20
    for each in described:
        assert each.sentence.endswith("."), each.name
        assert each.type, each.name
    variables = {each.name: each.variable for each in described}
    assert variables["kafka.topic"] == "SYSLOGGER_KAFKA_TOPIC"
    assert variables["listeners[].address"] == "SYSLOGGER_LISTEN"
    assert variables["listeners[].max_record_bytes"] == ""
    assert "" not in {each.variable for each in described if "[]" not in each.name}


def test_the_table_has_a_row_for_every_setting():
    lines = settings_table().splitlines()
    assert len(lines) == 2 + len(list(settings()))
    assert {line.count(" | ") for line in lines if not line.startswith("|-")} == {4}
    (topic,) = (line for line in lines if line.startswith("| `kafka.topic` |"))
    assert topic.endswith("| `syslog` | `SYSLOGGER_KAFKA_TOPIC` |")
    assert "matching `^[a-zA-Z0-9._-]+$`" in topic
