from pathlib import Path

import pytest

from benchmarks.peers.results import Record, Results


def row(server: str, number: int, cpu_s: float, **more: object) -> Record:
    return Record("identity", server, "v2_small", 16, round=number, requests=1000, seconds=1.0, cpu_s=cpu_s)._replace(
        **more
    )


DRIFTING = [row("ours", 0, 0.1), row("bare", 0, 0.2), row("ours", 1, 0.5), row("bare", 1, 1.0)]


def test_a_ratio_is_taken_within_each_round() -> None:
    results = Results({}, [*DRIFTING, row("ours", 2, 0.9), row("bare", 2, 1.0)])
    assert results.ratio("identity", {"server": "ours"}, {"server": "bare"}) == pytest.approx(0.5)


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    headings = {"identity": {"section": "identity", "machine": "a machine"}}
    Results(headings, DRIFTING).write(tmp_path / "results.jsonl")
    read = Results.read(tmp_path / "results.jsonl")
    assert (read.headings, read.records) == (headings, DRIFTING)


def test_a_section_that_is_measured_again_leaves_the_others() -> None:
    memory = Record("memory", "ours", "v2_small", pss_mb=60.0)
    results = Results({"identity": {}, "memory": {}}, [*DRIFTING, memory]).without("identity")
    assert (list(results.headings), results.records) == (["memory"], [memory])
