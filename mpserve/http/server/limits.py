"""The limits of requests. This module only has the numbers."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one HTTP server. Sizes are in bytes."""

    line: int
    fields: int
    field_size: int
    head_seconds: float
    """Seconds in which a head must be complete."""
    body_pause: float
    """Maximum pause within a body in seconds."""
    idle_seconds: float
    """Seconds after which an idle connection is closed."""
    body: int
    """Maximum body of a direct request. The application refuses a larger body."""

    @property
    def head(self) -> int:
        return self.line + self.fields * self.field_size
