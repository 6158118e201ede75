"""Every exception of syslogger's own, and what becomes of each.

::

    SysloggerError
    ├── ConfigError        a setting is wrong, a file unreadable, an address taken:
                           one sentence on standard error, exit status 2, nothing was started
    └── ProxyHeaderError   what a proxy says first is no PROXY header: it is let go, counted, logged once a period

Kafka's own errors never leave `kafka.py`: it tries again for as long as it takes. An error of a peer's
socket ends its `Stream`, which says so in `ended`. What a drain could not deliver is no exception: it is
logged at ERROR, and the exit status is 1.
"""

from __future__ import annotations


class SysloggerError(Exception):
    """The root of the tree; its text is a whole sentence that a person can act on."""


class ConfigError(SysloggerError):
    """A setting that cannot be used. The text names the setting and says what it may be."""


class ProxyHeaderError(SysloggerError):
    """A proxy that does not say whose connection it passes on. The text says what it did instead."""
