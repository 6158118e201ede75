"""TLS over real sockets: what a listener asks of its peers, and its stream; test_streams.py has what all streams do."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from syslogger import config, streams, tls
from syslogger.counters import Counters
from syslogger.errors import ConfigError
from syslogger.streams import Poller
from syslogger.tls import Tls, TlsStream
from tests.certificates import CLIENT, SERVER, Authority
from tests.waiting import Reader, until

LARGEST = 4096


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Make an authority that the listener does not trust."""
    return Authority(tmp_path_factory.mktemp("stranger"))


def opened(table: dict[str, Any]) -> Tls:
    return Tls(msgspec.convert(table, config.Tls), "listeners[0].tls")


class Encounter(Reader):
    """A peer that has just connected, and the stream it is given."""

    def __init__(self, poller: Poller, asked: Tls) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            self.raw = socket.create_connection(server.getsockname())
            accepted, _ = server.accept()
        self.counters = Counters()
        self.asked = asked
        self.stream = TlsStream(accepted, poller, asked, "peer", self.counters)
        self.peer: ssl.SSLSocket | None = None
        self.closed = False

    async def shake_hands(self, context: ssl.SSLContext, name: str = SERVER) -> None:
        """Have the peer complete its side; under TLS 1.3 that does not say that ours did."""
        self.raw.settimeout(5)
        self.peer = await asyncio.to_thread(context.wrap_socket, self.raw, server_hostname=name)

    async def failure(self, context: ssl.SSLContext | None = None, name: str = SERVER) -> str:
        """Return the cause for which the handshake failed; the stream has ended then."""
        reading = asyncio.ensure_future(self.stream.readable())
        if context:
            with contextlib.suppress(OSError):
                await self.shake_hands(context, name)
        assert not await asyncio.wait_for(reading, 5)
        assert self.stream.ended == "handshake"
        assert self.counters.tls_handshakes == 0
        ((cause, count),) = self.counters.tls_handshake_failures.items()
        assert count == 1
        return cause

    async def open(self, context: ssl.SSLContext) -> ssl.SSLSocket:
        """Have both complete the handshake."""
        reading = asyncio.ensure_future(self.stream.readable())
        await self.shake_hands(context)
        assert self.peer
        assert await asyncio.wait_for(reading, 5)
        assert self.counters.tls_handshakes == 1
        return self.peer

    def close_stream(self) -> None:
        if not self.closed:
            self.closed = True
            self.stream.close()

    def close(self) -> None:
        self.close_stream()
        (self.peer or self.raw).close()


Meet = Callable[..., Encounter]


@pytest.fixture
async def meet() -> AsyncIterator[Meet]:
    encounters = []
    with Poller(LARGEST) as poller:

        def build(table: dict[str, Any]) -> Encounter:
            encounters.append(Encounter(poller, opened(table)))
            return encounters[-1]

        yield build
        for each in encounters:
            each.close()
            assert each.asked._handshakes == 0


@pytest.mark.parametrize("version", ["1.2", "1.3"])
@pytest.mark.parametrize("verify", ["none", "optional", "required"])
async def test_records_over_each_version(meet: Meet, authority: Authority, version: str, verify: str) -> None:
    ca_file = "" if verify == "none" else authority.file
    encounter = meet(authority.listener(verify=verify, ca_file=ca_file, minimum_version=version))
    shown = authority.issue(CLIENT) if verify == "required" else None
    peer = await encounter.open(authority.client(shown, version))
    assert peer.version() == f"TLSv{version}"
    peer.sendall(b"one\n")
    assert await encounter.peek() == b"one\n"
    encounter.stream.consume(4)
    # It says goodbye, and is answered.
    unwrapping = asyncio.ensure_future(asyncio.to_thread(peer.unwrap))
    assert await encounter.peek() == b""
    assert encounter.stream.ended == "eof"
    encounter.close_stream()
    (await asyncio.wait_for(unwrapping, 5)).close()


@pytest.mark.parametrize("version", ["1.2", "1.3"])
async def test_a_half_close_is_the_first_thing_that_a_peer_sees(meet: Meet, authority: Authority, version: str) -> None:
    """Nothing stands before it, no ticket and no close_notify: rsyslog looks whether a byte or the end has come."""
    encounter = meet(authority.listener())
    peer = await encounter.open(authority.client(version=version))
    encounter.stream.half_close()
    with socket.socket(fileno=peer.detach()) as bare:
        assert await asyncio.to_thread(bare.recv, 1) == b""
    assert await encounter.peek() == b""
    assert encounter.stream.ended == "eof"


async def test_what_comes_right_behind_the_handshake(
    meet: Meet, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is taken with the handshake's last bytes, maybe before epoll was asked: it never tells of it then."""
    encounter = meet(authority.listener())
    stream, receive = encounter.stream, encounter.stream._receive

    def before_epoll_was_asked() -> bool:
        received = receive()
        stream._more = False
        return received

    monkeypatch.setattr(stream, "_receive", before_epoll_was_asked)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    peer = authority.client().wrap_bio(incoming, outgoing, server_hostname=SERVER)
    with pytest.raises(ssl.SSLWantReadError):
        peer.do_handshake()
    encounter.raw.sendall(outgoing.read())
    peeking = asyncio.ensure_future(encounter.peek())
    incoming.write(await asyncio.to_thread(encounter.raw.recv, 65_536))
    peer.do_handshake()
    peer.write(b"at once\n")
    encounter.raw.sendall(outgoing.read())
    assert await peeking == b"at once\n"


async def test_what_is_not_consumed_is_kept_and_bounded(meet: Meet, authority: Authority) -> None:
    encounter = meet(authority.listener())
    stream = encounter.stream
    peer = await encounter.open(authority.client())
    sent = bytes(range(256)) * 400
    peer.sendall(sent)
    await until(lambda: stream.unconsumed() >= len(sent))
    for _ in range(20):
        assert stream.peek() == sent[:LARGEST]
    assert stream._incoming.pending < tls._CIPHERTEXT_BYTES, "the rest is in the kernel"
    stream.consume(0)
    got = b""
    while len(got) < len(sent):
        data = await encounter.peek()
        stream.consume(len(data) - len(data) // 3, more=True)
        got += data[: len(data) - len(data) // 3]
    assert got == sent
    assert stream.unconsumed() == 0


async def test_garbage_behind_a_good_handshake(meet: Meet, authority: Authority) -> None:
    encounter = meet(authority.listener())
    peer = await encounter.open(authority.client())
    peer.sendall(b"good\nhalf")
    with socket.socket(fileno=peer.detach()) as bare:
        bare.sendall(b"\x17\x03\x03\x00\x40" + b"x" * 64)
        await until(lambda: encounter.stream.unconsumed() > 90)
        assert await encounter.peek() == b"good\nhalf"
    assert encounter.stream.final == "error"
    encounter.stream.consume(9)
    assert not await encounter.stream.readable()
    assert encounter.stream.ended == "error"


# Handshakes that fail.


async def test_plain_text_on_the_tls_port(meet: Meet, authority: Authority, caplog: pytest.LogCaptureFixture) -> None:
    encounter = meet(authority.listener())
    encounter.raw.sendall(b"<13>Nov 21 07:47:01 host app: plain\n")
    assert await encounter.failure() == "not_tls"
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith("peer does not speak TLS, and this listener does: it began with b'<13>Nov 21")


@pytest.mark.parametrize("garbage", [b"\x16" * 100, b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00", b"\x16\x02\x00" * 9])
async def test_garbage_that_begins_like_tls(meet: Meet, authority: Authority, garbage: bytes) -> None:
    encounter = meet(authority.listener())
    encounter.raw.sendall(garbage)
    assert await encounter.failure() in {"protocol", "version"}


@pytest.mark.parametrize(("said", "detail"), [(b"", "it said nothing"), (b"\x16\x03\x01", "it stopped in the middle")])
async def test_no_handshake(
    meet: Meet, authority: Authority, caplog: pytest.LogCaptureFixture, said: bytes, detail: str
) -> None:
    encounter = meet(authority.listener(handshake_seconds=0.1))
    encounter.raw.sendall(said)
    assert await encounter.failure() == "timeout"
    assert detail in caplog.text


@pytest.mark.parametrize(("said", "level"), [(b"", logging.INFO), (b"\x16\x03\x01", logging.WARNING)])
async def test_who_only_looks_whether_the_port_is_open(
    meet: Meet, authority: Authority, caplog: pytest.LogCaptureFixture, said: bytes, level: int
) -> None:
    caplog.set_level(logging.INFO)
    encounter = meet(authority.listener())
    encounter.raw.sendall(said)
    encounter.raw.close()
    assert await encounter.failure() == "closed"
    assert [record.levelno for record in caplog.records] == [level]


class Looks:
    """Counts how often a stream looks what the kernel has, with long pauses between."""

    def __init__(self, stream: TlsStream, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self._receive = stream._receive
        monkeypatch.setattr(streams, "_UNFINISHED_PEEK_SECONDS", 0.05)
        monkeypatch.setattr(stream, "_receive", self)

    def __call__(self) -> bool:
        self.count += 1
        return self._receive()


async def drip(peer: socket.socket, data: bytes) -> None:
    for byte in data:
        peer.send(bytes([byte]))
        await asyncio.sleep(0.001)
    peer.close()


async def test_a_handshake_that_drips_costs_few_looks(
    meet: Meet, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    encounter = meet(authority.listener(handshake_seconds=5))
    looks = Looks(encounter.stream, monkeypatch)
    dripping = asyncio.ensure_future(drip(encounter.raw, b"\x16\x03\x01\x01\x00" + b"\x01" * 200))
    assert await encounter.failure() == "closed"
    await dripping
    assert looks.count < 40


async def test_a_tls_record_that_drips_costs_few_looks(
    meet: Meet, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    encounter = meet(authority.listener())
    encounter.raw = socket.socket(fileno=(await encounter.open(authority.client())).detach())
    encounter.peer = None
    looks = Looks(encounter.stream, monkeypatch)
    dripping = asyncio.ensure_future(drip(encounter.raw, b"\x17\x03\x03\x10\x00" + b"x" * 200))
    while await encounter.stream.readable():
        assert encounter.stream.peek() == b""
        encounter.stream.consume(0)
    await dripping
    assert encounter.stream.ended == "eof"
    assert looks.count < 40


async def test_a_peer_that_does_not_trust_the_listener(meet: Meet, authority: Authority, stranger: Authority) -> None:
    assert await meet(authority.listener()).failure(stranger.client()) == "refused"


async def test_an_old_version(meet: Meet, authority: Authority) -> None:
    assert await meet(authority.listener(minimum_version="1.3")).failure(authority.client(version="1.2")) == "version"


@pytest.mark.parametrize("version", ["1.2", "1.3"])
async def test_certificates_that_are_not_good_enough(
    meet: Meet, authority: Authority, stranger: Authority, version: str, caplog: pytest.LogCaptureFixture
) -> None:
    asks = authority.listener(
        verify="required", ca_file=authority.file, permitted_peers=["*.example.com"], minimum_version=version
    )
    later = datetime.now(UTC) + timedelta(days=1)
    for cause, certificate in {
        "no_certificate": None,
        "expired": authority.issue_expired("a.example.com"),
        "foreign": stranger.issue("a.example.com"),
        "not_permitted": authority.issue(CLIENT),
    }.items():
        caplog.clear()
        assert await meet(asks).failure(authority.client(certificate, version)) == cause
        assert len(caplog.records) == 1
    assert CLIENT in caplog.text
    early = authority.issue("a.example.com", not_before=later, not_after=later + timedelta(days=1))
    assert await meet(asks).failure(authority.client(early, version)) == "expired"


async def test_an_optional_certificate_must_be_valid(meet: Meet, authority: Authority, stranger: Authority) -> None:
    asks = authority.listener(verify="optional", ca_file=authority.file)
    assert await meet(asks).failure(authority.client(stranger.issue(CLIENT))) == "foreign"


async def test_who_is_refused_knows_before_it_sends(meet: Meet, authority: Authority, stranger: Authority) -> None:
    encounter = meet(authority.listener(verify="required", ca_file=authority.file))
    reading = asyncio.ensure_future(encounter.stream.readable())
    with pytest.raises(ssl.SSLError, match="UNKNOWN_CA"):
        await encounter.shake_hands(authority.client(stranger.issue(CLIENT)))
    assert not await reading


# Draining.


async def test_a_half_close_in_the_middle_of_a_handshake_lets_it_end(meet: Meet, authority: Authority) -> None:
    encounter = meet(authority.listener())
    encounter.stream.half_close()
    reading = asyncio.ensure_future(encounter.stream.readable())
    await encounter.shake_hands(authority.client())
    assert encounter.peer
    encounter.peer.sendall(b"first and last\n")
    assert encounter.peer.recv(1) == b""
    assert await reading
    assert await encounter.peek() == b"first and last\n"


async def test_a_drain_does_not_wait_for_who_never_began(
    meet: Meet, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "_QUIET_SECONDS", 0.05)
    encounter = meet(authority.listener())
    reading = asyncio.ensure_future(encounter.stream.readable())
    await asyncio.sleep(0.01)
    encounter.stream.half_close()
    assert not await asyncio.wait_for(reading, 5)
    assert encounter.stream.ended == "quiet"
    assert not encounter.counters.tls_handshake_failures


# Who is permitted.


@pytest.mark.parametrize(
    ("permitted", "name", "is_permitted"),
    [
        ("client.example.net", "client.example.net", True),
        ("Client.Example.NET", "client.example.net", True),
        ("client.example.net", "other.example.net", False),
        ("*.example.net", "client.example.net", True),
        ("*.example.net", "example.net", False),
        ("*.example.net", "a.client.example.net", False),
        ("*.example.net", "client.example.com", False),
        ("cl*.example.net", "client.example.net", True),
        ("*ent.example.net", "client.example.net", True),
        ("*ant.example.net", "client.example.net", False),
        ("client.*.net", "client.example.net", True),
        ("c.ient.example.net", "client.example.net", False),
        ("client.example.net", "clientxexample.net", False),
        ("10.1.2.3", "10.1.2.3", True),
        ("10.1.2.*", "10.1.2.3", False),
    ],
)
async def test_names(meet: Meet, authority: Authority, permitted: str, name: str, is_permitted: bool) -> None:
    asks = authority.listener(verify="required", ca_file=authority.file, permitted_peers=["other", permitted])
    encounter = meet(asks)
    context = authority.client(authority.issue(name))
    if not is_permitted:
        assert await encounter.failure(context) == "not_permitted"
        return
    await encounter.open(context)


@pytest.mark.parametrize("digest", ["SHA1", "SHA256"])
async def test_fingerprints(meet: Meet, authority: Authority, digest: str) -> None:
    good, other = authority.issue(CLIENT), authority.issue(CLIENT)
    der = ssl.PEM_cert_to_DER_cert(await asyncio.to_thread(Path(good[0]).read_text))
    pairs = hashlib.new(digest, der).hexdigest().upper()
    fingerprint = f"{digest}:" + ":".join(pairs[at : at + 2] for at in range(0, len(pairs), 2))
    asks = authority.listener(verify="required", ca_file=authority.file, permitted_peers=[fingerprint])
    assert await meet(asks).failure(authority.client(other)) == "not_permitted"
    await meet(asks).open(authority.client(good))


# Files.


def test_when_a_certificate_expires(authority: Authority) -> None:
    for year in (2031, 2051):
        until_then = datetime(year, 2, 3, 4, 5, 6, tzinfo=UTC)
        certificate, key = authority.issue(SERVER, not_before=datetime(2020, 1, 1, tzinfo=UTC), not_after=until_then)
        assert opened({"certificate_file": certificate, "key_file": key}).expires == until_then.timestamp()


def test_files_that_cannot_be_used(authority: Authority, tmp_path: Path) -> None:
    good, other = authority.listener(), authority.listener()
    empty, garbage, missing = tmp_path / "empty", tmp_path / "garbage", str(tmp_path / "missing")
    empty.touch()
    garbage.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")

    def error(**changed: str) -> str:
        with pytest.raises(ConfigError) as raised:
            opened(good | changed)
        return str(raised.value)

    files = f"{other['key_file']}, which is not the key of {good['certificate_file']}."
    assert error(key_file=other["key_file"]) == f"listeners[0].tls.key_file is {files}"
    assert error(key_file=str(empty)) == f"listeners[0].tls.key_file is {empty}, which holds no key in PEM."
    assert error(key_file=missing) == "listeners[0].tls.key_file cannot be read: No such file or directory."
    assert error(certificate_file=str(empty)).endswith(
        f"certificate_file is {empty}, which holds no certificate in PEM."
    )
    assert error(certificate_file=missing).endswith("which cannot be read: No such file or directory.")
    assert error(certificate_file=str(garbage)).startswith(f"listeners[0].tls.certificate_file is {garbage}, which ")
    for path in (str(empty), good["key_file"], missing):
        assert error(verify="required", ca_file=path).startswith(f"listeners[0].tls.ca_file is {path}, which ")


def test_an_encrypted_key(authority: Authority, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization

    table = authority.listener()
    key = serialization.load_pem_private_key(Path(table["key_file"]).read_bytes(), None)
    encrypted = tmp_path / "encrypted.pem"
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"x"))
    encrypted.write_bytes(key.private_bytes(*form))
    with pytest.raises(ConfigError, match=r"key_file is .*, which is encrypted: nobody is there to decrypt it"):
        opened(table | {"key_file": str(encrypted)})
