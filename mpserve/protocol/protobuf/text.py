"""protobuf's text format as dicts, without a schema: what ``config.pbtxt`` of Triton is written in.

Source: protobuf.dev, "Text Format Language Specification".
"""

import re
from collections.abc import Iterator
from typing import Any

from mpserve.errors import InvalidInput

_TOKEN = re.compile(
    r"""\s+ | \#[^\n]*
    | (?P<text>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')
    | (?P<number>-?\s*(?:[0-9]|\.[0-9])[\w.+-]*)
    | (?P<word>-?\s*[A-Za-z_]\w*)
    | (?P<mark>[{}<>\[\]:,;])""",
    re.VERBOSE,
)
_CLOSES = {"{": "}", "<": ">"}
MAX_DEPTH = 50
_END = ("end", "")

Token = tuple[str, str]
Message = dict[str, list[Any]]


def parse(text: str) -> Message:
    """The fields by name, each with the list of its values: messages, ``str``, ``int``, ``float`` and ``bool``. An enum is text.
    Raises InvalidInput if the text is no message; the message names the line.
    """
    return _Reader(text).message("")


class _Reader:
    def __init__(self, text: str) -> None:
        self.line = 1
        self._tokens = self._each(text)
        self.next: Token = _END
        self._depth = 0
        self.take()

    def _each(self, text: str) -> Iterator[Token]:
        at = 0
        while at < len(text):
            found = _TOKEN.match(text, at)
            if found is None:
                raise InvalidInput(f"line {self.line}: unexpected {text[at]!r}")
            self.line += text.count("\n", at, found.end())
            at = found.end()
            if found.lastgroup:
                yield found.lastgroup, found[0]
        yield _END

    def take(self) -> Token:
        taken, self.next = self.next, next(self._tokens, _END)
        return taken

    def message(self, closing: str) -> Message:
        """The fields up to the mark that closes them, or to the end."""
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise InvalidInput(f"line {self.line}: messages are nested more than {MAX_DEPTH} deep")
        fields: Message = {}
        while self.next != (("mark", closing) if closing else _END):
            kind, name = self.take()
            if kind != "word":
                raise InvalidInput(f"line {self.line}: expected the name of a field, got {name or 'the end'!r}")
            colon = self.next == ("mark", ":")
            if colon:
                self.take()
            fields.setdefault(name, []).extend(self._values(name, colon))
            if self.next in (("mark", ","), ("mark", ";")):
                self.take()
        self.take()
        self._depth -= 1
        return fields

    def _values(self, name: str, colon: bool) -> list[Any]:
        if self.next != ("mark", "["):
            return [self._value(name, colon)]
        self.take()
        values: list[Any] = []
        while self.next != ("mark", "]"):
            values.append(self._value(name, True))
            if self.next == ("mark", ","):
                self.take()
            elif self.next != ("mark", "]"):
                raise InvalidInput(
                    f"line {self.line}: expected ',' or ']' in {name}, got {self.next[1] or 'the end'!r}"
                )
        self.take()
        return values

    def _value(self, name: str, colon: bool) -> Any:
        kind, value = self.take()
        if kind == "mark" and value in _CLOSES:
            return self.message(_CLOSES[value])
        if not colon or kind in ("mark", "end"):
            raise InvalidInput(f"line {self.line}: expected a value of {name}, got {value or 'the end'!r}")
        if kind == "text":
            whole = _unquoted(value)
            while self.next[0] == "text":  # pieces that stand side by side are one text
                whole += _unquoted(self.take()[1])
            return whole
        if kind == "word":
            return {"true": True, "false": False}.get(value, value)
        return self._number(name, value.replace(" ", ""))

    def _number(self, name: str, value: str) -> int | float:
        try:
            return int(value, 8 if re.fullmatch("-?0[0-7]+", value) else 0)
        except ValueError:
            pass
        try:
            return float(value.rstrip("fF"))
        except ValueError:
            raise InvalidInput(f"line {self.line}: {name} is {value!r}, expected a number") from None


_ESCAPE = re.compile(r"\\([0-7]{1,3}|[xX][0-9a-fA-F]{1,2}|.)")
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "f": "\f", "v": "\v"}


def _unquoted(text: str) -> str:
    """The text without its quotes, and with its escapes replaced."""

    def replaced(found: re.Match[str]) -> str:
        escape = found[1]
        if escape[0] in "01234567":
            return chr(int(escape, 8))
        if escape[0] in "xX" and len(escape) > 1:
            return chr(int(escape[1:], 16))
        return _ESCAPED.get(escape, escape)

    return _ESCAPE.sub(replaced, text[1:-1])
