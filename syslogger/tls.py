"""TLS for listeners: what a listener asks of its peers, and a stream that decrypts (RFC 5425, RFC 8446).

The kernel cannot show decrypted bytes without giving up the encrypted ones. So what is decrypted and not delivered is
kept here, at most one read of it, and the rest stays in the kernel; a process that is killed has lost both.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from . import config
from .counters import Counters
from .errors import ConfigError
from .streams import Poller, SocketStream, unread, why_ended

_log = logging.getLogger(__name__)

_MOST_HANDSHAKES = 500
"""Of one listener at a time. Each may hold some 50 kB for `handshake_seconds` before it has said who it is."""

_CIPHERTEXT_BYTES = 32_768
"""What is decrypted at a time: two of TLS's largest records. What OpenSSL keeps for a connection grows with it."""

_HANDSHAKE = 0x16
"""The first byte that a TLS peer sends (RFC 8446, 5.1)."""

_FAILURES = {
    "closed": "%s went away before its TLS handshake was complete (%s).",
    "timeout": "%s did not complete its TLS handshake within handshake_seconds (%s).",
    "not_tls": "%s does not speak TLS, and this listener does: it began with %s. rsyslog needs StreamDriverMode=1.",
    "refused": "%s ended its TLS handshake: %s. Does it trust the CA of certificate_file, and expect that name?",
    "no_certificate": "%s showed no certificate, and verify = required asks for one (%s).",
    "expired": "%s showed a certificate that is not valid today: %s.",
    "foreign": "%s showed a certificate that is not from a CA of ca_file: %s.",
    "not_permitted": "%s showed a certificate that permitted_peers does not have: %s.",
    "version": "%s and this listener have no TLS version or cipher in common: %s.",
    "protocol": "%s broke the rules of a TLS handshake: %s.",
}
"""By cause, what is said of a peer, with a detail."""

_CAUSES = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "no_certificate",
    "UNSUPPORTED_PROTOCOL": "version",
    "VERSION_TOO_LOW": "version",
    "NO_SHARED_CIPHER": "version",
}
"""OpenSSL's reason → the cause."""

_NOT_TODAY = frozenset({9, 10})
"""X509_V_ERR_CERT_NOT_YET_VALID, X509_V_ERR_CERT_HAS_EXPIRED (openssl/x509_vfy.h)"""

_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)

_UTC_TIME = 0x17
"""The tag of a UTCTime; the other that a certificate may have is a GeneralizedTime (RFC 5280, 4.1.2.5)."""


class Tls:
    """What a `[listeners.tls]` table asks for, with its files read.

    `setting` is the table's name in errors. Raises `ConfigError` for files that cannot be used.
    """

    def __init__(self, settings: config.Tls, setting: str) -> None:
        self.expires = _expiry(settings.certificate_file, f"{setting}.certificate_file")
        """When the certificate does, in Unix seconds."""
        self.context = _context(settings, setting)
        self.handshake_seconds = settings.handshake_seconds
        self._permitted = settings.permitted_peers
        self._handshakes = 0
        self._freed: list[Callable[[], None]] = []

    @property
    def full(self) -> bool:
        """Whether as many handshakes are under way as may be."""
        return self._handshakes >= _MOST_HANDSHAKES

    def when_freed(self, call: Callable[[], None]) -> None:
        """Call once, when the next handshake has come to its end."""
        self._freed.append(call)

    def begin(self) -> None:
        """Count one more handshake that is under way."""
        self._handshakes += 1

    def end(self) -> None:
        """Count one less."""
        self._handshakes -= 1
        freed, self._freed = self._freed, []
        for call in freed:
            call()

    def permits(self, peer: ssl.SSLObject) -> bool:
        """Whether a peer whose certificate is valid may send."""
        if not self._permitted:
            return True
        shown = peer.getpeercert(binary_form=True) or b""
        names = _names(peer)
        return any(_is_meant(permitted, shown, names) for permitted in self._permitted)


def _names(peer: ssl.SSLObject) -> list[tuple[str, str]]:
    """Return the kind and value of each subject alternative name that a peer showed."""
    certificate: dict[str, Any] = peer.getpeercert() or {}
    return list(certificate.get("subjectAltName", ()))


def _is_meant(permitted: str, certificate: bytes, names: list[tuple[str, str]]) -> bool:
    """Whether an entry of `permitted_peers` means a certificate (DER) that has these names."""
    digest, colon, fingerprint = permitted.upper().partition(":")
    if colon and digest in {"SHA1", "SHA256"}:
        return hashlib.new(digest, certificate, usedforsecurity=False).hexdigest().upper() == fingerprint.replace(
            ":", ""
        )
    return any(
        value.lower() == permitted.lower() or (kind == "DNS" and _matches(permitted.lower(), value.lower()))
        for kind, value in names
    )


def _matches(pattern: str, name: str) -> bool:
    """Whether a name fits a pattern as rsyslog reads it: part by part, `*` for the beginning or end of one, or all."""
    parts = [re.escape(part).replace(r"\*", ".*") for part in pattern.split(".")]
    found = name.split(".")
    return len(parts) == len(found) and all(map(re.fullmatch, parts, found))


def _context(settings: config.Tls, setting: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}[settings.minimum_version]
    if settings.verify != "none" and settings.minimum_version == "1.2":
        # Under 1.3 a peer may send before it can know that its certificate is refused; rsyslog takes that for sent.
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_TICKET
    # A ticket that a peer has not read hides the half-close from it: rsyslog looks for an end, and finds bytes.
    context.num_tickets = 0
    context.verify_mode = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}[
        settings.verify
    ]

    def no_passphrase() -> str:
        raise ConfigError(
            f"{setting}.key_file is {settings.key_file}, which is encrypted: nobody is there to decrypt it."
        )

    try:
        context.load_cert_chain(settings.certificate_file, settings.key_file, password=no_passphrase)
    except ssl.SSLError as error:
        if error.reason in {"KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH"}:
            text = f"{setting}.key_file is {settings.key_file}, which is not the key of {settings.certificate_file}."
        elif error.reason:
            text = f"{setting}.certificate_file is {settings.certificate_file}, which cannot be used: {error.reason}."
        else:
            text = f"{setting}.key_file is {settings.key_file}, which holds no key in PEM."
        raise ConfigError(text) from error
    except OSError as error:
        raise ConfigError(f"{setting}.key_file cannot be read: {error.strerror}.") from error
    if settings.ca_file:
        try:
            context.load_verify_locations(settings.ca_file)
        except OSError as error:  # ssl.SSLError is one
            raise ConfigError(f"{setting}.ca_file is {settings.ca_file}, which holds no certificate in PEM.") from error
    return context


def _expiry(path: str, setting: str) -> float:
    """Return when the first certificate of a PEM file expires, in Unix seconds."""
    try:
        found = _CERTIFICATE.search(Path(path).read_text(errors="replace"))
        if found:
            return _not_after(ssl.PEM_cert_to_DER_cert(found[0]))
    except OSError as error:
        raise ConfigError(f"{setting} is {path}, which cannot be read: {error.strerror}.") from error
    except (ValueError, IndexError):
        pass  # no base64, or no certificate in it
    raise ConfigError(f"{setting} is {path}, which holds no certificate in PEM.")


def _not_after(certificate: bytes) -> float:
    """Return when a certificate (DER) expires, in Unix seconds (RFC 5280, 4.1)."""
    ((_, whole),) = _elements(certificate)
    (_, to_be_signed), *_ = _elements(whole)
    explicit_version = 0xA0
    fields = [content for tag, content in _elements(to_be_signed) if tag != explicit_version]
    _, (tag, text) = _elements(fields[3])
    form = "%y%m%d%H%M%SZ" if tag == _UTC_TIME else "%Y%m%d%H%M%SZ"
    return datetime.strptime(text.decode(), form).replace(tzinfo=UTC).timestamp()


def _elements(der: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the tag and content of each element (X.690, 8.1)."""
    at = 0
    while at < len(der):
        tag, size = der[at], der[at + 1]
        at += 2
        if size & 0x80:
            digits = size & 0x7F
            size = int.from_bytes(der[at : at + digits], "big")
            at += digits
        yield tag, der[at : at + size]
        at += size


class _FailedError(Exception):
    """A handshake that failed; its arguments are the cause and a detail."""


class TlsStream(SocketStream):
    """A `Stream` over TLS. Its handshake is part of the first `readable`; one that fails ends it.

    Half-closed, it sends a FIN and no close_notify before it: rsyslog looks for the FIN.
    """

    transferable = False

    def __init__(self, sock: socket.socket, poller: Poller, tls: Tls, peer: str, counters: Counters) -> None:
        super().__init__(sock, poller)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._ssl = tls.context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._tls = tls
        self._peer = peer
        self._counters = counters
        self._shaking = True
        """Whether the handshake is not over yet."""
        self._begun = False
        """Whether the peer has sent anything at all."""
        self._decrypted = b""
        """What is decrypted and not consumed."""
        tls.begin()

    async def readable(self) -> bool:
        """See `Stream`."""
        if self._shaking:
            await self._shake_hands()
        return await super().readable()

    def _has_gone(self, why: str) -> None:
        # A handshake says itself how it failed.
        if self._shaking:
            self._gone = why
        else:
            super()._has_gone(why)

    async def _shake_hands(self) -> None:
        """Return when the handshake is complete, or has failed, been counted and logged, and the stream has ended."""
        try:
            async with asyncio.timeout(self._tls.handshake_seconds):
                await self._handshake()
        except _FailedError as failure:
            self._fail(*failure.args)
        except ssl.SSLCertVerificationError as error:
            self._fail("expired" if error.verify_code in _NOT_TODAY else "foreign", error.verify_message)
        except ssl.SSLError as error:
            reason = error.reason or str(error)
            self._fail("refused" if "ALERT" in reason else _CAUSES.get(reason, "protocol"), reason)
        except TimeoutError:
            self._fail("timeout", "it stopped in the middle" if self._begun else "it said nothing")
        except OSError as error:
            self._fail("closed", error.strerror or str(error))
        self._end_handshake()
        if self._quiet:
            self.half_close()
        if self._gone and not self.ended:
            self._has_gone(self._gone)

    async def _handshake(self) -> None:
        """Return when the handshake is complete, or the stream has ended because it stayed quiet in a drain."""
        while True:
            try:
                self._ssl.do_handshake()
                break
            except ssl.SSLWantReadError:
                pass
            if answer := self._outgoing.read():
                await self._loop.sock_sendall(self.sock, answer)
            elif self._begun:
                # As for an unfinished record: a peer that drips costs at most 200 looks a second.
                self._look_again_later()
                await asyncio.sleep(self._not_before - self._loop.time())
            while not self._receive():
                if self._last == "quiet":
                    self.ended = self._last
                    return
                if self._last:
                    raise _FailedError("closed", "in the middle" if self._begun else "it said nothing")
                await self._wait()
        await self._loop.sock_sendall(self.sock, self._outgoing.read())
        if not self._tls.permits(self._ssl):
            names = ", ".join(value for _, value in _names(self._ssl))
            raise _FailedError("not_permitted", names or "it has no subject alternative name")
        self._counters.tls_handshakes += 1
        # What came right behind the handshake may be here already, and then causes no edge.
        self._more = True

    def _fail(self, cause: str, detail: str) -> None:
        self._counters.tls_handshake_failures[cause] += 1
        # Whoever only looks whether the port is open (a load balancer does) is no failure of anybody's.
        level = logging.WARNING if self._begun or cause != "closed" else logging.INFO
        _log.log(level, _FAILURES[cause], self._peer, detail)
        self._answer()
        self.ended = "handshake"

    def _end_handshake(self) -> None:
        if self._shaking:
            self._shaking = False
            self._tls.end()

    def _receive(self) -> bool:
        """Give TLS some of what the kernel has; False if there is nothing, for now or (`_last`) for ever.

        Raises `_FailedError` if it cannot be TLS.
        """
        try:
            data = self.sock.recv(_CIPHERTEXT_BYTES)
        except BlockingIOError:
            self._more = False
            return False
        except OSError as error:
            self._last = why_ended(error)
            return False
        if not data:
            self._last = "eof"
            return False
        if not self._begun and data[0] != _HANDSHAKE:
            raise _FailedError("not_tls", repr(data[:16]))
        self._begun = True
        self._last = ""
        self._incoming.write(data)
        return True

    def peek(self) -> bytes:
        """See `Stream`. It is here that the kernel's bytes are taken and decrypted, until one read is full."""
        scratch, size = self._scratch, len(self._decrypted)
        scratch[:size] = self._decrypted
        received = False
        while size < len(scratch):
            try:
                count = cast("int", self._ssl.read(len(scratch) - size, scratch[size:]))
            except ssl.SSLWantReadError:
                if self._last not in {"", "quiet"} or not self._receive():
                    break
                received = True
            except ssl.SSLError:
                self._last = "error"
                break
            else:
                if not count:  # close_notify
                    self._last = "eof"
                    self._has_gone(self._last)
                    break
                size += count
        if self._outgoing.pending:
            self._answer()
        if size > len(self._decrypted):
            self._decrypted = bytes(scratch[:size])
        elif received:
            # Nothing but the beginning of a TLS record: see `_handshake`.
            self._look_again_later()
        whole = size < len(scratch)
        self._more = self._more or not whole
        self.final = self._last if whole else ""
        if not size:
            self.ended = self.final
        self._left = size
        return self._decrypted

    def _take(self, size: int) -> None:
        self._decrypted = self._decrypted[size:]

    async def write(self, data: bytes) -> bool:
        """See `Stream`. A handshake that is under way is completed first."""
        if self._shaking:
            await self._shake_hands()
        if self.ended:
            return False
        try:
            self._ssl.write(data)
            return await super().write(self._outgoing.read())
        except ssl.SSLError:
            self.ended = "error"
            return False
        except asyncio.CancelledError:
            # What was encrypted and not written would be missing.
            self.ended = "unread"
            raise

    def _answer(self) -> None:
        """Send what TLS itself has to say (a new key, an alert), if the peer takes it at once."""
        with suppress(OSError):
            self.sock.send(self._outgoing.read())

    def half_close(self) -> None:
        """See `Stream`. A handshake that is under way is completed first: what follows it may be on its way already."""
        if self._shaking:
            self._quiet = True
            self._wake()
        else:
            super().half_close()

    def unconsumed(self) -> int:
        """See `Stream`. What is not decrypted yet counts as it is."""
        if self._shaking:
            return 0
        return len(self._decrypted) + self._ssl.pending() + self._incoming.pending + unread(self.sock)

    def close(self) -> None:
        """See `Stream`."""
        if not self._quiet and not self._shaking:
            with suppress(ssl.SSLError):
                self._ssl.unwrap()
            self._answer()
        super().close()

    def release(self) -> socket.socket:
        """See `Stream`."""
        self._end_handshake()
        return super().release()
