import pytest

from benchmarks.peers.wrk import Load, parse

OUTPUT = """Running 1s test @ http://127.0.0.1:21000/v2/models/bench/infer
  1 threads and 16 connections
Requests/sec:  12148.76

{"requests": 12150, "seconds": 1.0001, "p50_ms": 1.250, "p99_ms": 4.375, "errors": 2}
"""


def test_what_the_script_prints_is_read() -> None:
    assert parse(OUTPUT) == Load(requests=12150, seconds=1.0001, p50_ms=1.25, p99_ms=4.375, errors=2)


def test_without_a_result_wrks_own_words_are_told() -> None:
    with pytest.raises(ValueError, match="unable to connect"):
        parse("unable to connect to 127.0.0.1:21000 Connection refused\n")
