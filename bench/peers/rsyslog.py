"""rsyslog 8, `imptcp` or `imrelp` → `omkafka`."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from bench.peers import Peer, printed

_PROGRAM = shutil.which("rsyslogd", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin") or ""

_MODULES = Path("/usr/lib")

_INPUTS = {"syslog": ("imptcp", 'socketBacklog="1024"'), "relp": ("imrelp", 'maxDataSize="128k"')}

_CONFIG = """\
global(workDirectory="{directory}" maxMessageSize="128k")
module(load="{input}")
module(load="omkafka")
template(name="raw" type="string" string="%rawmsg%")
input(type="{input}" address="127.0.0.1" port="{port}" ruleset="forward" {more})
ruleset(name="forward" queue.type="FixedArray" queue.size="200000" queue.dequeueBatchSize="4096") {{
  action(type="omkafka" broker=["{brokers}"] topic="{topic}" template="raw" partitions.auto="{several}"
         resubmitOnFailure="on" keepFailedMessages="on" action.resumeRetryCount="-1"
         confParam=["acks=all", "queue.buffering.max.ms=5", "queue.buffering.max.messages=500000",
                    "compression.codec={compression}"])
}}
"""


class Forwarder(Peer):
    """One queue in memory, between its input and the Kafka client. `imrelp` answers for what is in the queue."""

    protocols = ("syslog", "relp")

    @classmethod
    def missing(cls) -> str:
        if not _PROGRAM:
            return "rsyslogd (Debian package rsyslog)"
        modules = {"omkafka": "rsyslog-kafka", "imrelp": "rsyslog-relp"}
        lacking = [package for module, package in modules.items() if not list(_MODULES.glob(f"**/rsyslog/{module}.so"))]
        return f"Debian package {' and '.join(lacking)}" if lacking else ""

    @classmethod
    def version(cls) -> str:
        return printed(_PROGRAM, "-v").split()[1]

    def argv(self) -> list[str]:
        route = self.route
        path = self.directory / "rsyslog.conf"
        kind, more = _INPUTS[route.protocol]
        path.write_text(
            _CONFIG.format(
                input=kind,
                more=more,
                directory=self.directory,
                port=route.port,
                brokers='","'.join(route.bootstrap.split(",")),
                topic=route.topic,
                several="on" if route.partitions > 1 else "off",
                compression=route.compression,
            )
        )
        return [_PROGRAM, "-n", "-f", str(path), "-i", str(self.directory / "pid")]
