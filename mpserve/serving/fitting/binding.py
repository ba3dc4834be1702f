"""How the inputs of a request become the arguments of ``predict``: chosen once, when a model is loaded.

A model that declares its inputs gets them in their order. Any other model gets them by the names of the parameters of its
``predict``. Text is ``str`` unless the model asks for bytes. Knows no request and no format.
"""

import re
from collections.abc import Callable, Sequence
from functools import partial
from inspect import Parameter, signature, unwrap
from typing import Any, get_args

from mpserve.errors import InvalidInput
from mpserve.protocol.datatypes import Array
from mpserve.protocol.declaration import TEXT, Declared, Tensor
from mpserve.protocol.tensors import NamedArray
from mpserve.serving.fitting.fit import fit_inputs
from mpserve.serving.fitting.known import NOTHING, Known
from mpserve.serving.fitting.table import LIBRARIES, Columns, as_declared, columns_in, texts_in

Bind = Callable[[list[NamedArray]], Sequence[Any]]
"""Makes the arguments of ``invoke`` from the inputs: arrays, or ``Columns``. Raises InvalidInput if the inputs do not fit."""

POSITIONAL = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
NUMBERED = re.compile(r"(.*?)([0-9]{1,9})")
ALIASES = {"pd": "pandas", "pl": "polars"}


class Parameters:
    """The parameters of a ``predict``, as inputs are bound to them. A function that hides its parameters takes any number.

    Attributes:
        positional, named_only: the names of the parameters.
        required: the names of those without a default.
        takes_rest, takes_others: whether it has ``*arrays``, and ``**columns``.
        as_bytes: the names of the parameters that are annotated with ``bytes``.
        frame: the name and the library of the parameter that is annotated as a DataFrame, if any.
    """

    def __init__(self, predict: Callable[..., Any]) -> None:
        try:
            parameters = list(signature(predict).parameters.values())
        except (TypeError, ValueError):
            parameters = [Parameter("arrays", Parameter.VAR_POSITIONAL)]
        kinds = {parameter.kind for parameter in parameters}
        one_each = [each for each in parameters if each.kind in (*POSITIONAL, Parameter.KEYWORD_ONLY)]
        names = _globals(predict)
        wanted = {each.name: _wanted(each.annotation, names) for each in parameters}
        self.positional = [each.name for each in one_each if each.kind in POSITIONAL]
        self.named_only = [each.name for each in one_each if each.kind is Parameter.KEYWORD_ONLY]
        self.takes_rest = Parameter.VAR_POSITIONAL in kinds
        self.takes_others = Parameter.VAR_KEYWORD in kinds
        self.as_bytes = {name for name, what in wanted.items() if what == "bytes"}
        frames = [(name, what) for name, what in wanted.items() if what in LIBRARIES]
        self.frame = frames[0] if frames else None
        table = self.frame[0] if self.frame else None
        self.names = [each.name for each in one_each if each.name != table]
        self.required = [each.name for each in one_each if each.default is Parameter.empty and each.name != table]
        self.has_gaps = len(self.names) - len(self.required) > 1

    @property
    def by_name(self) -> bool:
        """Whether some of the arguments can only be passed by name, or make a table."""
        return bool(self.frame or self.named_only or self.takes_others)

    @property
    def needs_call(self) -> bool:
        """Whether ``Columns`` have to carry the arguments: plain arrays can be passed by position, without gaps."""
        return self.by_name or (self.has_gaps and not self.takes_rest)

    def called(self, predict: Callable[..., Any], values: Sequence[Any]) -> Any:
        """Call predict with what ``bind`` has made."""
        named = (
            dict(zip(values[-1].names, values[-1].arrays, strict=True)) if self.frame is None or len(values) > 1 else {}
        )
        if self.frame is not None:
            name, library = self.frame
            named[name] = values[0].frame(library)
        arguments = []
        for name in self.positional:
            if name not in named:
                break
            arguments.append(named.pop(name))
        return predict(*arguments, **named)

    def refuse(self, what: str) -> InvalidInput:
        expected = [f"{name!r}{'' if name in self.required else ' (optional)'}" for name in self.names]
        more = (
            ["any others"] if self.takes_rest or self.takes_others else ["the columns of a table"] if self.frame else []
        )
        return InvalidInput(f"{what}; expected {', '.join(expected + more) or 'none'}")


def binding_of(
    predict: Callable[..., Any], declared: Declared, known: Known = NOTHING, calls_predict: bool = True
) -> Bind:
    """The binding of a model's inputs to the parameters of its predict.
    ``known``: what the model's library knows of its columns. ``calls_predict``: whether ``invoke`` is the one that knows
    ``Columns``; else every argument is an array, passed by position.
    """
    parameters = Parameters(predict)
    by_name = parameters.by_name and calls_predict
    texts = {tensor.name for tensor in declared if tensor.content_type == TEXT}
    if not declared:
        return _by_signature(parameters, known, calls_predict)
    if not by_name:
        return _fitted(declared, texts) if texts else partial(fit_inputs, declared)
    arguments = _named(parameters, known)
    plain = _fitted(declared, texts)
    in_table = parameters.frame is not None

    def bind(given: list[NamedArray]) -> Sequence[Any]:
        arrays = plain(as_declared(declared, given) if in_table else given)
        # The datatype says only whether the array is text that is still to be decoded, and it is not.
        return arguments([(tensor.name, "", array) for tensor, array in zip(declared, arrays, strict=True)])

    return bind


def _fitted(declared: Sequence[Tensor], texts: set[str]) -> Callable[[list[NamedArray]], list[Array]]:
    def bind(given: list[NamedArray]) -> list[Array]:
        arrays = fit_inputs(declared, given)
        return [
            texts_in(tensor.name, array) if tensor.name in texts else array
            for tensor, array in zip(declared, arrays, strict=True)
        ]

    return bind


def _by_signature(parameters: Parameters, known: Known, calls_predict: bool) -> Bind:
    bind = _named(parameters, known) if parameters.needs_call and calls_predict else _positional(parameters)
    takes_one = len(parameters.names) == 1 or (not parameters.names and parameters.takes_rest)
    if not takes_one or parameters.by_name:
        return bind

    def bind_one(given: list[NamedArray]) -> Sequence[Any]:
        """As ``bind``, where the name of a single input makes no difference."""
        if len(given) == 1:
            _, datatype, array = given[0]
            if datatype != "BYTES":
                return [array]
        return bind(given)

    return bind_one


def _positional(parameters: Parameters) -> Bind:
    def bind(given: list[NamedArray]) -> Sequence[Any]:
        taken, rest = _sorted(parameters, given)
        names = [name for name in parameters.positional if name in taken]
        for name, expected in zip(names, parameters.positional, strict=False):
            if name != expected:
                raise parameters.refuse(f"missing input {expected!r}")
        if rest and len(names) < len(parameters.positional):
            raise parameters.refuse(f"unexpected input {rest[0][0]!r}")
        values = [_value(parameters, name, taken[name]) for name in names]
        return values + [_value(parameters, each[0], each) for each in rest]

    return bind


def _named(parameters: Parameters, known: Known) -> Bind:
    def bind(given: list[NamedArray]) -> Sequence[Any]:
        taken, rest = _sorted(parameters, given)
        first = parameters.positional[: len(taken)]
        if not parameters.by_name and all(name in taken for name in first):  # without a gap
            return [_value(parameters, name, taken[name]) for name in first]
        values: list[Any] = []
        if parameters.frame is not None:
            if not rest:
                raise parameters.refuse("there are no columns")
            table = columns_in([(each[0], each[1], _value(parameters, each[0], each)) for each in rest], known)
            table.call = parameters.called
            values, rest = [table], []
        named = {name: _value(parameters, name, each) for name, each in taken.items()}
        named |= {each[0]: _value(parameters, each[0], each) for each in rest}
        if named or not values:
            values.append(Columns(list(named), list(named.values()), parameters.called))
        return values

    return bind


def _sorted(parameters: Parameters, given: list[NamedArray]) -> tuple[dict[str, NamedArray], list[NamedArray]]:
    """The inputs by the names of their parameters, and the inputs that are for ``*arrays``, ``**columns`` or a table.
    Raises InvalidInput: the names or the number of the inputs do not fit.
    """
    names = parameters.names
    if any(each[0] in names for each in given) or parameters.frame or (parameters.takes_others and not names):
        taken = {each[0]: each for each in given if each[0] in names}
        rest = [each for each in given if each[0] not in names]
        missing = [name for name in parameters.required if name not in taken]
        if missing:
            raise parameters.refuse(f"missing input {missing[0]!r}")
        if rest and not (parameters.takes_others or parameters.takes_rest or parameters.frame):
            raise parameters.refuse(f"unexpected input {rest[0][0]!r}")
        return taken, rest
    taken = dict(zip(parameters.positional, given, strict=False))
    rest = given[len(taken) :]
    fits = all(name in taken for name in parameters.required) and (parameters.takes_rest or not rest)
    if not fits or (len(taken) > 1 and not are_numbered([name for name, _, _ in given])):
        got = ", ".join(repr(name) for name, _, _ in given)
        raise parameters.refuse(f"got {len(given)} input{'s' * (len(given) != 1)}, {got}")
    return taken, rest


def are_numbered(names: Sequence[str]) -> bool:
    """Whether names tell an order, as ``input-0``, ``input-1`` do: of other names, the order may be an accident."""
    parts = [NUMBERED.fullmatch(name) for name in names]
    numbers = [int(part[2]) for part in parts if part]
    in_order = len(numbers) == len(names) and numbers == list(range(numbers[0], numbers[0] + len(names)))
    return in_order and len({part[1] for part in parts if part}) == 1


def _value(parameters: Parameters, parameter: str, given: NamedArray) -> Array:
    name, datatype, array = given
    return texts_in(name, array) if datatype == "BYTES" and parameter not in parameters.as_bytes else array


def _wanted(annotation: Any, names: dict[str, Any]) -> str:
    """``"bytes"``, the library of a DataFrame, or nothing. An annotation may be a text whose import is for type checkers only."""
    if isinstance(annotation, str):
        try:
            annotation = eval(annotation, names)  # the text is of the model's own code
        except Exception:
            module, _, name = annotation.partition(".")
            return ALIASES.get(module, module) if name == "DataFrame" else ""
    if annotation is bytes:
        return "bytes"
    if getattr(annotation, "__name__", "") == "DataFrame":
        return str(annotation.__module__).partition(".")[0]
    found = [_wanted(part, names) for part in get_args(annotation) if isinstance(part, type)]
    return next(filter(None, found), "")


def _globals(predict: Callable[..., Any]) -> dict[str, Any]:
    while isinstance(predict, partial):
        predict = predict.func
    predict = getattr(unwrap(predict), "__func__", predict)
    return dict(getattr(predict, "__globals__", {}))
