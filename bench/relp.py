"""RELP as a sender speaks it: lines in frames, a window of them without an answer.

Each connection is a session, opened before the measurement; a line is answered when its receiver is done with it.
"""

from __future__ import annotations

import selectors
import socket

WINDOW = 128
"""How many messages of a session may be unanswered: librelp's, if nobody says otherwise."""

_OPEN = b"1 open 50 relp_version=0\nrelp_software=bench\ncommands=syslog\n"
_OK = b" rsp 6 200 OK"


class Session:
    """One session over a connected socket, opened on return."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._number = 1
        """Of the frame that was sent last."""
        self._answered = 1
        self._rest = b""
        sock.sendall(_OPEN)
        # Number, "rsp", length, and the offers with an LF behind them.
        answer: list[bytes] = []
        while len(answer) < 4 or len(answer[3]) <= int(answer[2]):  # noqa: PLR2004 - see above
            self._rest += self._received()
            answer = self._rest.split(b" ", 3)
        self._rest = b""

    def _received(self) -> bytes:
        data = self.sock.recv(65_536)
        if not data:
            raise ConnectionError("the session was closed")
        return data

    @property
    def room(self) -> int:
        """How many messages may be sent before another answer."""
        return WINDOW - (self._number - self._answered)

    def framed(self, lines: list[bytes]) -> bytes:
        """Return the frames of lines without LF, which count as sent."""
        first = self._number + 1
        self._number += len(lines)
        return b"".join(b"%d syslog %d %b\n" % (number, len(line), line) for number, line in enumerate(lines, first))

    def hear(self) -> None:
        """Take the answers that are there, or wait for one; ConnectionError if one is no consent."""
        *answers, self._rest = (self._rest + self._received()).split(b"\n")
        if not all(answer.endswith(_OK) for answer in answers):
            raise ConnectionError(f"answered {answers[-1]!r}")
        self._answered += len(answers)


def burst(sessions: list[Session], payload: bytes) -> None:
    """Send the lines of `payload`, shared out among the sessions, as fast as they are answered; return when all are."""
    lines = payload.split(b"\n")[:-1]
    share = -(-len(lines) // len(sessions))
    with selectors.EpollSelector() as selector:
        for index, session in enumerate(sessions):
            left = lines[index * share : (index + 1) * share]
            left.reverse()
            selector.register(session.sock, selectors.EVENT_READ, (session, left))
            _send(session, left)
        while selector.get_map():
            for key, _ in selector.select():
                session, left = key.data
                session.hear()
                _send(session, left)
                if session.room == WINDOW:
                    selector.unregister(session.sock)


def _send(session: Session, left: list[bytes]) -> None:
    """Send as many as may be; what is left is in reverse order."""
    count = min(session.room, len(left))
    if count:
        batch = left[-count:]
        del left[-count:]
        batch.reverse()
        session.sock.sendall(session.framed(batch))
