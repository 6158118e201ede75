"""rsyslog 8, `imptcp` → `omkafka`."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from bench.peers import Peer, printed

_PROGRAM = shutil.which("rsyslogd", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin") or ""

_CONFIG = """\
global(workDirectory="{directory}" maxMessageSize="128k")
module(load="imptcp")
module(load="omkafka")
template(name="raw" type="string" string="%rawmsg%")
input(type="imptcp" address="127.0.0.1" port="{port}" ruleset="forward" socketBacklog="1024")
ruleset(name="forward" queue.type="FixedArray" queue.size="200000" queue.dequeueBatchSize="4096") {{
  action(type="omkafka" broker=["{brokers}"] topic="{topic}" template="raw" partitions.auto="{several}"
         resubmitOnFailure="on" keepFailedMessages="on" action.resumeRetryCount="-1"
         confParam=["acks=all", "queue.buffering.max.ms=5", "queue.buffering.max.messages=500000",
                    "compression.codec={compression}"])
}}
"""


class Forwarder(Peer):
    """One queue in memory, between its input and the Kafka client."""

    @classmethod
    def missing(cls) -> str:
        if not _PROGRAM:
            return "rsyslogd (Debian package rsyslog)"
        return "" if list(Path("/usr/lib").glob("**/rsyslog/omkafka.so")) else "Debian package rsyslog-kafka"

    @classmethod
    def version(cls) -> str:
        return printed(_PROGRAM, "-v").split()[1]

    def argv(self) -> list[str]:
        route = self.route
        path = self.directory / "rsyslog.conf"
        path.write_text(
            _CONFIG.format(
                directory=self.directory,
                port=route.port,
                brokers='","'.join(route.bootstrap.split(",")),
                topic=route.topic,
                several="on" if route.partitions > 1 else "off",
                compression=route.compression,
            )
        )
        return [_PROGRAM, "-n", "-f", str(path), "-i", str(self.directory / "pid")]
