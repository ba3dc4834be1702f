"""Puts results where people look: the terminal, docs/benchmarks.md with its pictures, and the README."""

from __future__ import annotations

import re
from collections.abc import Collection

from benchmarks.peers import pictures, tables
from benchmarks.peers.results import TREE, Record, Results
from benchmarks.peers.sections import SECTIONS
from benchmarks.peers.workloads import BINARY, LARGE, MEDIUM, SMALL

DOCUMENT = TREE / "docs" / "benchmarks.md"
README = TREE / "README.md"
RESULTS = TREE / "docs" / "benchmarks" / "results.jsonl"
MARKER = re.compile(r"(<!-- measured: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
"""Around what is written here; the word says which part it is."""


def progress(record: Record) -> str:
    """A line on the terminal for each measurement."""
    batch = f", batches of {record.batch}" if record.batch else ""
    words = f"{record.section:9} {record.server:14} {record.workload}, {record.connections} connections{batch}"
    if record.section == "memory":
        words = f"{record.section:9} {record.server:14} {record.workers} workers"
    if record.failure:
        return f"{words}: FAILED: {record.failure}"
    if record.pss_mb:
        return f"{words}: {record.pss_mb:.0f} MB"
    speed = f"{record.cpu_ms:.3f} ms CPU, {record.rate:.0f}/s, p99 {record.p99_ms:.2f} ms"
    return f"{words}, round {record.round}: {speed}, {record.errors} errors"


def where(results: Results, sections: Collection[str] = tuple(SECTIONS)) -> str:
    """When, where and of what: a sentence for each set of sections that were measured alike."""
    told: dict[str, list[str]] = {}
    for section, heading in results.headings.items():
        if section not in sections:
            continue
        rounds = f"{heading['rounds']} round{'s' * (heading['rounds'] > 1)} of {heading['seconds']} s"
        words = (
            f"{heading['date']}, revision {heading['revision']}: {heading['machine']}; wrk {heading['wrk']}; {rounds}"
        )
        told.setdefault(words, []).append(section)
    return "\n".join(f"Measured ({', '.join(names)}) on {words}.  " for words, names in told.items())


def parts(results: Results) -> dict[str, str]:
    """What stands between the markers, by their words."""
    return {
        "where": where(results),
        "targets": tables.targets(results),
        "cpu": tables.cpu(results),
        "throughput": tables.throughput(results),
        "latency": tables.latency(results),
        "batching": tables.batching(results),
        "memory": tables.memory(results),
        "versions": tables.versions(results),
        "faults": tables.faults(results),
        "summary": tables.cpu(results, (SMALL, MEDIUM, LARGE, BINARY)) + "\n\n" + where(results, ("identity",)),
    }


def text(results: Results) -> str:
    """All tables, for the terminal."""
    return "\n\n".join(part for name, part in parts(results).items() if name != "summary")


def filled(document: str, by_name: dict[str, str]) -> str:
    """The document with what is between its markers replaced."""
    return MARKER.sub(lambda found: f"{found[1]}{by_name[found[2]]}\n{found[3]}", document)


def write(results: Results) -> None:
    """Fill both documents and draw the pictures."""
    for path in (DOCUMENT, README):
        path.write_text(filled(path.read_text(), parts(results)))
    for name, picture in pictures.draw(results).items():
        (RESULTS.parent / f"{name}.svg").write_text(picture)
        print(f"wrote {RESULTS.parent / name}.svg")
