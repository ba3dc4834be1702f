"""The routes that manage the server, asked by those who may not."""

import asyncio
import re
from typing import Any

import httpx

from mpserve.http.app import build_app
from mpserve.http.management.operations import OPERATIONS, RUNNING
from mpserve.serving.extensions.names import EXTENSIONS
from tests.asgi import ask, core_of
from tests.models import faulty

MANAGING = {
    line for line in OPERATIONS
    if re.search(r"/(load|unload|logging|trace/setting)$|sharedmemory", line)
}  # fmt: skip


def denied(address: str, **options: Any) -> set[str]:
    """The routes that answer 403 to a client of this address, inference apart."""

    async def main() -> set[str]:
        app = build_app(core_of(faulty.Echo(), allow_client_shm=True, enable_docs_url=True, **options))
        client = httpx.AsyncClient(transport=httpx.ASGITransport(app, client=(address, 1)), base_url="http://localhost")
        async with app.router.lifespan_context(app), client:
            lines = [line for line, row in OPERATIONS.items() if row.faults != RUNNING]
            answers = {line: await client.request(*re.sub(r"{\w+}", "echo", line).split()) for line in lines}
        return {line for line, answer in answers.items() if answer.status_code == 403}

    return asyncio.run(main())


def test_management_answers_to_the_same_host_only() -> None:
    assert denied("10.1.2.4") == MANAGING
    assert denied("10.1.2.4", management="anywhere") == set()
    assert denied("127.0.0.1") == set()


def test_management_can_be_turned_off() -> None:
    assert denied("127.0.0.1", management="off") == MANAGING
    options = {"management": "off", "allow_client_shm": True}
    extensions = ask(faulty.Echo(), "GET", "/v2", options=options).json()["extensions"]
    assert extensions == [name for name in EXTENSIONS if not name.startswith(("logging", "model_repository"))]


def test_the_description_tells_which_routes_may_deny_access() -> None:
    assert {line for line, row in OPERATIONS.items() if 403 in row.faults and row.faults != RUNNING} == MANAGING
