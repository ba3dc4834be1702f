"""The limits of what a client may send, and of how long it may take. This module only holds the numbers."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one HTTP server.

    Attributes:
        line: bytes of the request line.
        fields: number of header fields.
        field_size: bytes of one header field.
        head_seconds: seconds in which a head must be complete.
        body_pause: seconds for which nothing may come of a body that is not complete.
        idle_seconds: seconds after which an idle connection is closed.
        body: bytes of the body of a direct request. A larger request goes to the application, which refuses it.
    """

    line: int
    fields: int
    field_size: int
    head_seconds: float
    body_pause: float
    idle_seconds: float
    body: int

    @property
    def head(self) -> int:
        """Bytes of the whole head."""
        return self.line + self.fields * self.field_size
