"""Certificates for tests: an authority of its own, and what it issues, as files."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import trustme

SERVER = "syslogger.example.net"
CLIENT = "client.example.net"


class Authority:
    """A CA and the files of what it issues, in `directory`."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._ca = trustme.CA()
        self.file = str(directory / "ca.pem")
        self._ca.cert_pem.write_to_path(self.file)

    def issue(self, *names: str, **options: Any) -> tuple[str, str]:
        """Return the files of a certificate (with its chain) for these names, and of its key."""
        leaf = self._ca.issue_cert(*names, **options)
        number = len(list(self._directory.iterdir()))
        certificate, key = (str(self._directory / f"{number}-{kind}.pem") for kind in ("certificate", "key"))
        for blob in leaf.cert_chain_pems:
            blob.write_to_path(certificate, append=True)
        leaf.private_key_pem.write_to_path(key)
        return certificate, key

    def issue_expired(self, *names: str) -> tuple[str, str]:
        now = datetime.now(UTC)
        return self.issue(*names, not_before=now - timedelta(days=9), not_after=now - timedelta(days=2))

    def listener(self, *names: str, **settings: Any) -> dict[str, Any]:
        """Return a `[listeners.tls]` table with a certificate for these names."""
        certificate, key = self.issue(*names or (SERVER,))
        return {"certificate_file": certificate, "key_file": key} | settings

    def client(self, certificate: tuple[str, str] | None = None, version: str = "1.3") -> ssl.SSLContext:
        """Return what a peer that trusts this authority connects with."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(self.file)
        context.maximum_version = ssl.TLSVersion[f"TLSv{version.replace('.', '_')}"]
        if certificate:
            context.load_cert_chain(*certificate)
        return context
