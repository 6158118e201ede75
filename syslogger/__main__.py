"""`python -m syslogger` is `syslogger`."""

from __future__ import annotations

import sys

from syslogger.cli import main

if __name__ == "__main__":
    sys.exit(main())
