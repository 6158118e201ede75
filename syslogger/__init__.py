"""syslogger: takes syslog from rsyslog over TCP, appends it to Kafka, and loses nothing."""

from importlib.metadata import version

__version__ = version("syslogger")
