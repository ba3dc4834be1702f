"""Who sends a request, by a key of ``--api_keys_file`` or the function of ``--authenticate``. One rule for every front end."""

import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple

from mpserve.config.settings import Settings
from mpserve.errors import Unauthenticated
from mpserve.serving.authentication.api_keys import ApiKeys, read_api_keys
from mpserve.state.watch import Watch, Words

INTERVAL = 0.25
"""Seconds between two looks at the file of keys. Two looks and a tick of the worker are less than a second."""

WORDS = Words(used="", kept="the keys of before count on")

BEARER, API_KEY = "authorization", "x-api-key"

WITH_KEYS = "key: expected one as 'Authorization: Bearer KEY' or 'x-api-key: KEY'"

Hook = Callable[[Mapping[str, str], str | None], Awaitable[str | None] | str | None]
"""The user's check: from the headers, with names in lower case, and the client's address to the caller's name, or None."""


class Caller(NamedTuple):
    """Who sends a request. ``spent`` are the headers that hold a key of the file: nobody else is to see them."""

    name: str
    spent: frozenset[str] = frozenset()


class Authenticator:
    """Finds out who sends a request. Raises ConfigurationError if the file of keys cannot be used."""

    def __init__(self, settings: Settings, hook: Hook | None) -> None:
        self._file = settings.api_keys_file
        self._hook = hook
        self._keys = ApiKeys({})
        self._expected = "proof of who sends it" if self._file is None else WITH_KEYS
        self.on_change: Callable[[], object] = lambda: None
        """Called when the keys have changed: who was let in before may be refused now."""
        self.begin()

    def begin(self) -> None:
        """Read the keys. Again in each worker, since those that the arbiter has read may be revoked.
        Raises ConfigurationError if the file cannot be used. Then nobody has a key.
        """
        self._keys = ApiKeys({})
        self._watch = Watch([] if self._file is None else [self._file], self._take_up, WORDS, INTERVAL)
        if self._file is not None:
            self._take_up()

    def look(self) -> None:
        """Read the keys again if they have changed. To be called often."""
        self._watch.look()

    def by_key(self, headers: Mapping[str, str]) -> Caller | None:
        """Who has a key that these headers show, or None. This is so until ``on_change`` is called."""
        found = {name: self._keys.name_of(key) for name, key in _shown(headers).items()}
        known = {header: name for header, name in found.items() if name is not None}
        return Caller(next(iter(known.values())), frozenset(known)) if known else None

    def _take_up(self) -> None:
        assert self._file is not None
        self._keys = read_api_keys(self._file)
        self.on_change()

    async def identify(self, headers: Mapping[str, str], address: str | None) -> Caller:
        """Who sends a request with these headers, from this address. None: the address is unknown.

        Raises:
            Unauthenticated: nobody who is known.
            Exception: of the user's function.
        """
        self.look()
        caller = self.by_key(headers)
        if caller is None and self._hook is not None:
            name = self._hook(headers, address)
            if inspect.isawaitable(name):
                name = await name
            if name is not None and not isinstance(name, str):
                raise TypeError(
                    f"--authenticate: the function returned a {type(name).__name__}, expected a name or None"
                )
            caller = Caller(name) if name else None
        if caller is None:
            shows = any(header in headers for header in (BEARER, API_KEY))
            raise Unauthenticated(f"the request has {'an unknown' if shows else 'no'} {self._expected}")
        return caller


def public_of(settings: Settings) -> list[str]:
    """What answers to everybody, of ``mpserve.config.kinds.PUBLIC``."""
    return settings.public.split(",")


def _shown(headers: Mapping[str, str]) -> dict[str, str]:
    """The keys that these headers show, by header."""
    shown = {}
    scheme, _, key = headers.get(BEARER, "").partition(" ")
    if scheme.lower() == "bearer":
        shown[BEARER] = key.strip()
    if API_KEY in headers:
        shown[API_KEY] = headers[API_KEY]
    return shown
