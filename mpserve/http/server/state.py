"""The states of a connection, and the table of the transitions between them.

The state says what the connection reads. The requests that are still to be answered are a queue of their own, since a client
may send the next request before the answer to the last one (RFC 9112, 9.3.2).
"""

from enum import IntEnum, auto


class State(IntEnum):
    """What a connection reads."""

    IDLE = auto()
    """Nothing of the next request has come."""
    HEAD = auto()
    """The head of a request has begun and is not complete."""
    BODY = auto()
    """The head is complete and the body is not."""
    REFUSED = auto()
    """A request was malformed or broke a limit. Nothing more is parsed. The refusal is written after the earlier answers."""
    CLOSING = auto()
    """The last answer is written. What still comes is dropped."""
    CLOSED = auto()
    """The transport is gone."""


FOLLOWS: dict[State, frozenset[State]] = {
    # A known head comes at once with its body, so that IDLE may become BODY.
    State.IDLE: frozenset({State.HEAD, State.BODY, State.CLOSING, State.CLOSED, State.REFUSED}),
    # A head that offers an upgrade is parsed once more without the offer.
    State.HEAD: frozenset({State.HEAD, State.BODY, State.REFUSED, State.CLOSING, State.CLOSED}),
    State.BODY: frozenset({State.IDLE, State.REFUSED, State.CLOSING, State.CLOSED}),
    State.REFUSED: frozenset({State.CLOSING, State.CLOSED}),
    # The connection is first half closed, then closed.
    State.CLOSING: frozenset({State.CLOSING, State.CLOSED}),
    State.CLOSED: frozenset(),
}
"""The states that may follow each state."""
