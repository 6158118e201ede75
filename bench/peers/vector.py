"""Vector, `socket` → `kafka`; runs when VECTOR names the program: VECTOR=/path/to/vector make bench."""

from __future__ import annotations

import os
import shutil

from bench.peers import Peer, printed

_PROGRAM = os.environ.get("VECTOR", "")

_CONFIG = """\
data_dir = "{directory}"

[sources.in]
type = "socket"
mode = "tcp"
address = "127.0.0.1:{port}"
max_length = 131072
framing.method = "newline_delimited"
decoding.codec = "bytes"

[sinks.out]
type = "kafka"
inputs = ["in"]
bootstrap_servers = "{brokers}"
topic = "{topic}"
compression = "{compression}"
encoding.codec = "text"

[sinks.out.librdkafka_options]
"acks" = "all"
"queue.buffering.max.ms" = "5"
"queue.buffering.max.messages" = "500000"
"""


class Forwarder(Peer):
    """Its defaults but for the topic, the batches and the acknowledgement."""

    @classmethod
    def missing(cls) -> str:
        if not _PROGRAM:
            return "VECTOR=/path/to/vector"
        return "" if shutil.which(_PROGRAM) else f"a program at VECTOR={_PROGRAM}"

    @classmethod
    def version(cls) -> str:
        return printed(_PROGRAM, "--version").split()[1]

    def argv(self) -> list[str]:
        route = self.route
        path = self.directory / "vector.toml"
        path.write_text(
            _CONFIG.format(
                directory=self.directory,
                port=route.port,
                brokers=route.bootstrap,
                topic=route.topic,
                compression=route.compression,
            )
        )
        return [_PROGRAM, "--quiet", "--config", str(path)]
