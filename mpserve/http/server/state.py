"""The states of a connection and their transitions. The state is that of reading.

Unanswered requests are in a queue, since a client may send a request before the last answer (RFC 9112, 9.3.2).
"""

from enum import IntEnum, auto


class State(IntEnum):
    """What a connection is reading."""

    IDLE = auto()
    """No byte of the next request."""
    HEAD = auto()
    BODY = auto()
    REFUSED = auto()
    """A request is malformed or exceeds a limit. Nothing more is parsed. The refusal is written after the earlier answers."""
    CLOSING = auto()
    """The last answer is written. Further bytes are dropped."""
    CLOSED = auto()
    """The transport is gone."""


FOLLOWS: dict[State, frozenset[State]] = {
    # A known head is not parsed, so IDLE may become BODY.
    State.IDLE: frozenset({State.HEAD, State.BODY, State.CLOSING, State.CLOSED, State.REFUSED}),
    # A head that offers an upgrade is parsed again without the offer.
    State.HEAD: frozenset({State.HEAD, State.BODY, State.REFUSED, State.CLOSING, State.CLOSED}),
    State.BODY: frozenset({State.IDLE, State.REFUSED, State.CLOSING, State.CLOSED}),
    State.REFUSED: frozenset({State.CLOSING, State.CLOSED}),
    # The connection is closed for writing, then closed.
    State.CLOSING: frozenset({State.CLOSING, State.CLOSED}),
    State.CLOSED: frozenset(),
}
"""The states that may follow each state."""
