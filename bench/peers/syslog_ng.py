"""syslog-ng, `network` → `kafka-c`."""

from __future__ import annotations

import os
from pathlib import Path

from bench.peers import Peer, printed

_ROOT = Path(__file__).resolve().parents[2] / ".cache" / "syslog-ng"  # bench/install puts it there

_PROGRAM = _ROOT / "usr" / "sbin" / "syslog-ng"

_CONFIG = """\
@version: 3.35
options {{ stats-freq(0); keep-hostname(yes); use-dns(no); log-msg-size(131072); }};
source in {{
  network(ip("127.0.0.1") port({port}) transport("tcp") flags(no-parse)
          max-connections({connections}) log-iw-size({window}) log-fetch-limit(1000));
}};
destination out {{
  kafka-c(bootstrap-servers("{brokers}") topic("{topic}") message("$MSG") log-fifo-size({fifo}) time-reopen(1)
          config("acks" => "all", "queue.buffering.max.ms" => "5", "queue.buffering.max.messages" => "500000",
                 "compression.codec" => "{compression}"));
}};
log {{ source(in); destination(out); flags(flow-control); }};
"""


def _modules() -> str:
    """Return the folder of its modules: that of its version, or the one above."""
    folder = _ROOT / "usr" / "lib" / "syslog-ng"
    return str(next(folder.glob("**/libkafka.so"), folder / "none").parent)


def _environment() -> dict[str, str]:
    libraries = {str(path.parent) for path in _ROOT.glob("**/*.so.*")}
    return dict(os.environ) | {"LD_LIBRARY_PATH": ":".join(sorted(libraries))}


class Forwarder(Peer):
    """Its window for each connection, at least 100 messages, and a queue that holds them all."""

    @classmethod
    def missing(cls) -> str:
        return "" if _PROGRAM.exists() else f"{_PROGRAM} (bench/install fetches it)"

    @classmethod
    def version(cls) -> str:
        text = printed(str(_PROGRAM), "--module-path", _modules(), "--version", environment=_environment())
        return text.partition("(")[2].partition(")")[0]

    def environment(self) -> dict[str, str]:
        return _environment()

    def argv(self) -> list[str]:
        route = self.route
        connections = route.connections + 10  # the look whether it is ready is one too
        window = max(100_000, 100 * connections)
        path = self.directory / "syslog-ng.conf"
        path.write_text(
            _CONFIG.format(
                port=route.port,
                brokers=route.bootstrap,
                topic=route.topic,
                compression=route.compression,
                connections=connections,
                window=window,
                fifo=2 * window,
            )
        )
        files = [f"--{name}={self.directory / name}" for name in ("persist-file", "pidfile", "control")]
        return [
            str(_PROGRAM),
            "--foreground",
            "--no-caps",
            f"--module-path={_modules()}",
            f"--cfgfile={path}",
            *files,
        ]
