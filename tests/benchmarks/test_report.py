from pathlib import Path

from benchmarks.peers import report
from benchmarks.peers.results import Record, Results
from benchmarks.peers.targets import TARGETS
from tests.cases import each

RESULTS = Results({}, [])


def test_only_what_is_between_the_markers_is_written() -> None:
    document = "before\n<!-- measured: cpu -->\nold\n<!-- end -->\nafter\n"
    want = "before\n<!-- measured: cpu -->\nnew\n<!-- end -->\nafter\n"
    assert report.filled(document, {"cpu": "new"}) == want


@each("document", [report.DOCUMENT, report.README])
def test_every_marker_of_the_documents_is_known(document: Path) -> None:
    found = {name for _, name, _ in report.MARKER.findall(document.read_text())}
    assert found
    assert found <= set(report.parts(RESULTS))


def measured(workload: str, server: str, cpu_s: float, connections: int = 16) -> Record:
    return Record("identity", server, workload, connections, requests=1000, seconds=1.0, cpu_s=cpu_s)


def test_a_target_says_what_was_measured_and_if_it_is_reached() -> None:
    records = [measured("v2_small", "mpserve", 0.07), measured("v2_small", "bare", 0.10)]
    records += [measured("v2_medium", "mpserve", 0.09), measured("v2_medium", "bare", 0.10)]
    rows = report.parts(Results({}, records))["targets"].splitlines()
    assert "| V2 JSON [1,4], over bare | ≤ 0.75 | 0.70 (0.70 to 0.70) | yes |" in rows
    assert "| V2 JSON [32,128], over bare | ≤ 0.80 | 0.90 (0.90 to 0.90) | **no** |" in rows
    assert len(rows) == 2 + len(TARGETS)
