"""syslogger, as shipped."""

from __future__ import annotations

import sys
import urllib.error
import urllib.request

from bench.peers import Peer, printed
from tests.system.parts import free_port, toml


class Forwarder(Peer):
    """Ready when it says so: it listens only once Kafka has answered for the topic."""

    protocols = ("syslog", "relp")

    @classmethod
    def missing(cls) -> str:
        return ""

    @classmethod
    def version(cls) -> str:
        return printed(sys.executable, "-m", "syslogger", "--version").split()[1]

    def argv(self) -> list[str]:
        route = self.route
        self.answers_at = f"127.0.0.1:{free_port()}"
        kafka = {
            "bootstrap_servers": route.bootstrap.split(","),
            "topic": route.topic,
            "compression": route.compression,
            "commit_interval_seconds": 0.005,
        }
        path = self.directory / "syslogger.toml"
        path.write_text(
            toml(
                {
                    "listeners": [{"address": f"127.0.0.1:{route.port}", "protocol": route.protocol}],
                    "kafka": kafka,
                    "prometheus": {"address": self.answers_at},
                }
            )
        )
        return [sys.executable, "-m", "syslogger", "run", "--config", str(path)]

    def ready(self) -> bool:
        try:
            urllib.request.urlopen(f"http://{self.answers_at}/readyz", timeout=5).close()
        except urllib.error.HTTPError as not_yet:
            not_yet.close()
            return False
        except OSError:
            return False
        return True
