import pytest

from mpserve.errors import InvalidInput
from mpserve.protocol.json.documents import parameters_of
from tests.cases import each


@each("value", [1, 0, "true", 1.0])
def test_a_parameter_that_is_a_switch_is_true_or_false(value):
    assert parameters_of({"parameters": {"switch": True}}, "switch") == {"switch": True}
    assert parameters_of({"parameters": {"switch": value}}) == {"switch": value}
    with pytest.raises(InvalidInput, match=r"parameter 'switch' is .*, expected true or false"):
        parameters_of({"parameters": {"switch": value}}, "switch")
