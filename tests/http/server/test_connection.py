"""What a connection reads, in which order it is answered, and how it ends. Direct requests and ASGI requests alike."""

import asyncio
import dataclasses
import gc
import json
import weakref
from typing import Any

import pytest

from mpserve.http.server.pace import LINGER, MAX_LINGER
from mpserve.http.server.state import State
from tests.connections import LIMITS, Client, House, chunked, get, post

DIRECT, APP = b"/direct", b"/app"


def usual(body: bytes, path: bytes = DIRECT, closes: bool = False) -> bytes:
    """The answer to a POST of this body."""
    close = b"connection: close\r\n" if closes else b""
    if path == APP:
        return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n%b\r\napp %b" % (len(body) + 4, close, body)
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\nx-request-id: id\r\n%b\r\n"
    return head % (len(body) + 7, close) + b"direct " + body


UPGRADE = (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA")
EXPECT = b"expect: 100-continue"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def requests(path: bytes) -> dict[str, tuple[bytes, bytes]]:
    """What is sent to this path, and what comes back."""
    body = b"body"
    kept, closed = usual(body, path), usual(body, path, closes=True)
    return {
        "length": (post(path=path), kept),
        "empty": (post(b"", path=path), usual(b"", path)),
        "chunked": (chunked(b"bo", b"dy", path=path), kept),
        "trailer": (chunked(b"body", path=path)[:-2] + b"x-trailer: 1\r\n\r\n", kept),
        "close": (post(body, b"connection: close", path=path), closed),
        "1.0": (post(path=path, version=b"1.0"), closed),
        "1.0 without host": (post(path=path, version=b"1.0", host=b""), closed),
        "1.0 expects": (post(body, EXPECT, path=path, version=b"1.0"), closed),
        "upgrade": (post(body, *UPGRADE, path=path), kept),
        "upgrade and close": (post(body, b"Connection: close", *UPGRADE, path=path), closed),
        "upgrade in 1.0": (post(body, *UPGRADE, path=path, version=b"1.0"), closed),
        "expects": (post(body, EXPECT, path=path), CONTINUE + kept),
        "line ends before": (b"\r\n\r\n" + post(path=path), kept),
    }


@pytest.mark.parametrize("path", [DIRECT, APP])
async def test_a_request_may_be_cut_anywhere(path: bytes) -> None:
    for name, (sent, expected) in requests(path).items():
        house = House()
        for cut in range(len(sent)):
            client = house.client()
            pieces = [sent[:cut], sent[cut:]] if cut else [bytes([byte]) for byte in sent]
            for piece in filter(None, pieces):
                client.send(piece)
                if cut and piece is pieces[0]:
                    await asyncio.sleep(0)
            assert await client.told() == expected, (name, cut)
            assert client.is_kept == (b"connection: close" not in expected), (name, cut)
            client.leave()
        assert house.row.connections == 0
        assert house.server.total_requests == len(sent)
        assert house.server.is_idle


async def test_a_known_head_is_not_matched_again_wherever_its_body_is_cut() -> None:
    house = House()
    first = house.client()
    assert await first.ask(post()) == usual(b"body")
    for client in (first, house.client()):
        for cut in range(len(post()) - 4, len(post()) + 1):
            client.send(post(b"BODY")[:cut])
            assert await client.ask(post(b"BODY")[cut:]) == usual(b"BODY")
        client.send(post(b"one!")[:-2])
        client.send(b"!!" + post(b"two!") + post(b"3")[:-1])
        client.send(b"3" + get(APP))
        expected = usual(b"on!!") + usual(b"two!") + usual(b"3") + usual(b"", APP)
        assert await client.told() == expected
    # Those behind another request are parsed.
    assert house.routes.matched == 1 + 2 * 2


async def test_known_heads_and_others_mean_the_same() -> None:
    """Whatever comes behind a known head. Three times, since a worker remembers."""
    pieces = [post(), post(b"1"), chunked(b"x"), get(APP), post(b"a", path=APP), post(b"c", b"x: y"), post(b"")]
    for first in pieces:
        house = House()
        for _ in range(3):
            for second in pieces:
                client = house.client()
                assert (await client.ask(first + second)).count(b"HTTP/1.1 200") == 2
                client.send(second[:10])
                assert (await client.ask(second[10:] + first)).count(b"HTTP/1.1 200") == 2


async def test_answers_keep_the_order_of_the_requests_and_reading_waits() -> None:
    house = House()
    house.routes.at_once = False
    client = house.client()
    client.send(post(b"1") + post(b"2", path=APP) + post(b"3") + post(b"4", path=APP) + post(b"5")[:-1])
    assert await client.told() == b""
    assert not client.pipe.is_reading_now
    assert [begun.body for begun in house.routes.begun] == [b"1"]
    assert client.connection.unanswered == 5
    house.routes.begun[0].answer()
    assert await client.told() == usual(b"1") + usual(b"2", APP)
    assert [begun.body for begun in house.routes.begun] == [b"1", b"3"]
    house.routes.begun[1].answer()
    assert await client.told() == usual(b"3") + usual(b"4", APP)
    assert client.pipe.is_reading_now  # for the rest of the body that is to be answered next
    client.send(b"5")
    house.routes.begun[2].answer()
    assert await client.told() == usual(b"5")
    assert house.server.unanswered == 0
    assert house.server.total_requests == 5


async def test_a_thousand_requests_in_one_piece_that_are_answered_at_once() -> None:
    """The reply comes before ``begin`` returns, for each of them."""
    client = House().client()
    client.send(post() * 1000)
    for _ in range(1100):
        await asyncio.sleep(0)
    assert await client.told() == usual(b"body") * 1000
    assert client.pipe.is_reading_now


HOSTS = [
    b"a b",
    b"a/b",
    b"a@b",
    b"http://a",
    b"a?b",
    b"a#b",
    b"a:b",
    b"a:80:80",
    b"[::1",
    b"::1",
    b"[::1]8",
    b"a%zz",
    b"\xff",
    b"<a>",
]
GOOD_HOSTS = [
    b"",
    b"a",
    b"a_b.c-d",
    b"a:80",
    b"a:",
    b"127.0.0.1:8080",
    b"[::1]",
    b"[fe80::1%25eth0]:80",
    b"a%20b",
    b"a,b",
]

REFUSED: list[tuple[bytes, int, str]] = [
    *[(post(host=b"host: " + host), 400, "a host and perhaps a port in the Host field, got") for host in HOSTS],
    (b"GET /\r\n\r\n", 400, "HTTP/1.1 or 1.0, got HTTP/0.9"), (b"GET /app\r\nhost: x\r\n\r\n", 400, "got HTTP/0.9"),
    (get(APP, version=b"0.9"), 400, "got HTTP/0.9"), (get(APP, version=b"2.0"), 505, "got HTTP/2.0"),
    (get(APP, version=b"1.2"), 400, "no HTTP request"),
    (b"hello\r\n\r\n", 400, "no HTTP request"), (b"\x16\x03\x01\x02\x00" + bytes(50), 400, "no HTTP request"),
    (b"GET /" + b"x" * 300 + b" HTTP/1.1\r\n", 414, "longer than 200 bytes"),
    (get(APP, b"x: " + b"y" * 100), 431, "a header field is larger than 100 bytes"),
    (get(APP, *[b"x: y"] * 10), 431, "more than 10 header fields"), (get(b"x:80", method=b"CONNECT"), 405, "no proxy"),
    (b"GET / HTTP/1.1\r\n\r\n", 400, "expected one Host field in the head of the request, got 0"),
    (post(host=b""), 400, "got 0"), (post(b"", b"Host: y"), 400, "got 2"), (get(APP, b"HOST: x"), 400, "got 2"),
    (get(APP, b"HOST: x", version=b"1.0"), 400, "got 2"), (post(b"", b"Host: y", *UPGRADE), 400, "got 2"),
    (b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n", 400, "no HTTP request"),
    (chunked(b"x")[:-5] + b"zzz", 400, "no HTTP request"),
    (chunked(b"x", path=APP)[:-5] + b"zzz", 400, "no HTTP request"),
    (chunked(b"x")[:-2] + b"t: " + b"y" * 100 + b"\r\n\r\n", 431, "a header field is larger"),
]  # fmt: skip


def refusal(answer: bytes) -> tuple[int, str]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: application/json" in head
    assert b"connection: close" in head
    assert b"content-length: %d" % len(body) in head
    return int(head.split()[1]), json.loads(body)["error"]


async def test_a_request_that_breaks_a_rule_is_refused_in_words_after_the_answers_before_it() -> None:
    for sent, status, words in REFUSED:
        for before in (b"", post(b"0"), post(b"0", path=APP), post(b"0") + get(APP)):
            house = House()
            client = house.client()
            answers = await client.ask(before)
            client.leave()
            for size in (len(sent), 50, 7, 1):
                client = house.client()
                client.send(before + sent[:size])
                for start in range(size, len(sent), size):
                    client.send(sent[start : start + size])
                told = await client.told()
                assert told.startswith(answers), (sent, before, size)
                assert told != answers, (sent, before, size)
                got, reason = refusal(told.removeprefix(answers))
                assert got == status, sent
                assert words in reason
                assert client.pipe.has_ended
                assert client.connection.state is State.CLOSING
                client.send(b"more" * 100)
                client.later(LINGER + 0.1)
                assert client.pipe.is_closing()
                assert await client.told() == b""
                client.leave()
            assert house.server.is_idle


async def test_a_host_may_be_a_name_or_an_address_with_a_port() -> None:
    for host in GOOD_HOSTS:
        for path in (DIRECT, APP):
            assert await House().client().ask(post(path=path, host=b"host: " + host)) == usual(b"body", path), host


async def test_space_around_a_value_is_no_part_of_it() -> None:
    for space in (b"", b" ", b"\t", b"  \t "):
        for path in (DIRECT, APP):
            house, host = House(), b"x:%ba b%b\r\nhost:%bh:80%b" % (space, space, space, space)
            sent = post(path=path, host=host).replace(b"length: 4", b"length:%b4%b" % (space, space))
            for _ in range(2):
                assert await house.client().ask(sent) == usual(b"body", path), sent
            assert {(b"x", b"a b"), (b"host", b"h:80"), (b"content-length", b"4")} <= set(house.routes.headers), sent


async def test_a_field_that_has_no_end_is_refused_before_the_parser_gives_it_out() -> None:
    for begun, where in (
        (b"GET / HTTP/1.1\r\nhost: x\r\nx: ", "head is"),
        (post(b"0") + b"GET / HTTP/1.1\r\nhost: x\r\nx: ", "head is"),
        (chunked(b"x" * 500)[:-2] + b"x: ", "trailers are"),
    ):
        client = House().client()
        client.send(begun)
        for _ in range(14):
            client.send(b"y" * 100)
        told = await client.told()
        reason = f"the request {where} larger than 1200 bytes"
        assert refusal(told[told.index(b"HTTP/1.1 431") :]) == (431, reason)


async def test_what_a_refusal_ends_is_not_begun_and_the_application_is_told() -> None:
    told: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        told.append(await receive())
        told.append(await receive())

    house = House(app)
    client = house.client()
    client.send(chunked(b"x", path=APP)[:-5])
    await asyncio.sleep(0)
    assert refusal(await client.ask(b"zzz"))[0] == 400
    assert [message["type"] for message in told] == ["http.request", "http.disconnect"]
    client = house.client()
    assert refusal(await client.ask(chunked(b"x")[:-5] + b"zzz"))[0] == 400
    assert house.routes.begun == []
    assert not house.server.cycles


@pytest.mark.parametrize("knows_half_close", [True, False])
@pytest.mark.parametrize("pauses", [True, False])
async def test_an_upload_is_read_on_behind_the_last_answer_so_that_the_answer_arrives(
    knows_half_close: bool, pauses: bool
) -> None:
    client = House().client()
    client.pipe.knows_half_close = knows_half_close
    upload = post(b"x" * 2000, b"connection: close", path=APP)
    assert b"413" in await client.ask(upload[:200])
    for _ in range(int(MAX_LINGER / LINGER)):
        assert not closing(client)
        assert client.pipe.has_ended == knows_half_close
        client.wait(LINGER * 0.9)
        client.send(upload[200:300])
    client.wait(LINGER + 0.1 if pauses else MAX_LINGER * 0.11)
    assert closing(client)


async def test_a_client_that_goes_away_has_its_request_cancelled_once_and_a_late_reply_is_ignored() -> None:
    house = House()
    house.routes.at_once = False
    for behind in (b"", post(b"2"), get(APP)):
        client = house.client()
        client.send(post(b"1") + behind)
        begun = house.routes.begun[-1]
        client.leave()
        begun.answer()
        assert await client.told() == b""
        assert begun.cancelled == 1
    client = house.client()
    client.send(post(b"1"))
    begun = house.routes.begun[-1]
    begun.answer()
    client.leave()
    assert begun.cancelled == 0
    client = house.client()
    client.send(post(b"12")[:-1])
    client.leave()
    assert len(house.routes.begun) == 4
    assert house.server.is_idle
    assert house.row.connections == 0


def closing(client: Client) -> bool:
    return client.pipe.is_closing()


async def test_what_is_late_is_closed_or_refused() -> None:
    late_head = (408, "the request head was not complete after 5 s")
    late_body = (408, "nothing more of the request body came for 7 s")
    cases: list[tuple[bytes, float, tuple[int, str] | None]] = [
        (b"", 5, None),
        (b"GET / HT", 5, late_head),
        (post()[:-1], 7, late_body),
        (post(path=APP)[:-1], 7, late_body),
        (chunked(b"x")[:-1], 7, late_body),
        (post(), 9, None),
        (get(APP), 9, None),
        (post(b"x" * 2000, path=APP)[:-1], 9, None),  # it has been answered already
    ]
    for sent, seconds, expected in cases:
        house = House()
        for before in (b"", post()) if sent else (b"",):
            client = house.client()
            await client.ask(before)
            told = await client.ask(sent)
            client.later(seconds - 0.5)
            assert client.is_kept, sent
            client.later(seconds + 0.5)
            if expected is None:
                assert closing(client), sent
            else:
                assert refusal(await client.told() or told) == expected
                assert client.pipe.has_ended


async def test_a_body_that_comes_too_slowly_is_refused_however_steadily_it_comes() -> None:
    """Of 1000 bytes, by a known head, and by heads that the parser reads."""
    body = b"x" * 1000
    for begun in (post(body)[:-1000], post(body, path=APP)[:-1000], chunked(body)[:-1007], post() + post(body)[:-1000]):
        for rate, minimum, is_kept in ((10, 100, False), (101, 100, True), (1, 0, True)):
            house = House(limits=dataclasses.replace(LIMITS, body_rate=minimum))
            await house.client().ask(post(body))
            client = house.client()
            await client.ask(begun)
            for second in range(10):
                client.send(body[rate * second : rate * (second + 1)])
                client.wait(1)
            told = await client.told()
            assert client.is_kept is is_kept, (begun, rate)
            if not is_kept:
                assert refusal(told) == (408, "the request body came at less than 100 bytes per second")


async def test_nothing_is_late_while_an_answer_is_due() -> None:
    for behind in (b"", b"GET / HT", post()[:-1], post() + post()[:-1], get(APP)):
        house = House()
        house.routes.at_once = False
        client = house.client()
        client.send(post() + behind)
        client.later(100)
        assert client.is_kept
        house.routes.begun[0].answer()
        await asyncio.sleep(0)
        client.later(4)
        assert client.is_kept
    # An answer that is not read holds up the two behind it, the second of which comes meanwhile.
    house = House()
    client = house.client()
    client.pipe.holds = True
    client.send(post(b"1") + post(b"2") + post(b"3")[:-1])
    client.send(b"3")
    client.pipe.holds = house.routes.at_once = False
    client.connection.resume_writing()
    client.later(100)
    assert client.is_kept
    assert [begun.body for begun in house.routes.begun] == [b"1", b"2"]


async def test_a_body_behind_another_request_is_late_once_its_turn_has_come() -> None:
    house = House()
    house.routes.at_once = False
    client = house.client()
    client.send(post() + post()[:-1])
    client.later(100)
    house.routes.begun[0].answer()
    assert await client.told() == usual(b"body")
    client.later(6)
    assert client.is_kept
    client.later(8)
    assert refusal(await client.told())[0] == 408


async def test_room_is_made_by_the_connection_that_was_idle_for_longest() -> None:
    house = House()
    house.routes.at_once = False
    clients = {name: house.client() for name in ("answered", "busy", "begun", "silent", "unread", "new")}
    clients["busy"].send(post())
    clients["begun"].send(b"GET / HT")
    for name in ("answered", "unread"):
        clients[name].send(post())
        house.routes.begun[-1].answer()
    clients["unread"].pipe.unsent = 1
    now = clients["new"].clock.time()
    for name in ("answered", "unread"):
        clients[name].connection.expire(now + 1)
    clients["silent"].connection._deadline = now + 5 + 2  # connected two seconds after ...
    clients["new"].connection._deadline = now + 5 + 3
    dropped = []
    for _ in range(4):
        house.server.make_room()
        dropped += [name for name, client in clients.items() if client.pipe.was_aborted and name not in dropped]
    assert dropped == ["answered", "silent", "new"]


async def test_a_connection_that_retires_answers_once_more() -> None:
    for path in (DIRECT, APP):
        house = House()
        client = house.client()
        house.server.retire(at_once=False)
        assert client.is_kept
        assert await client.ask(post(path=path)) == usual(b"body", path, closes=True)
        assert closing(client)
    house = House()
    house.routes.at_once = False
    client = house.client()
    client.send(post(b"1") + post(b"2"))
    house.server.retire(at_once=True)
    house.routes.begun[0].answer()
    assert await client.told() == usual(b"1")
    house.routes.begun[1].answer()
    assert await client.told() == usual(b"2", closes=True)
    for sent, is_kept in ((b"", False), (b"GET", True), (post(b"x" * 2000, path=APP)[:-1], False)):
        client = House().client()
        await client.ask(sent)
        client.connection.retire(at_once=True)
        assert client.is_kept == is_kept
        if not is_kept:
            client.connection.retire(at_once=True)
            assert not client.pipe.was_aborted
            client.connection._deadline -= 2 * LINGER
            client.connection.retire(at_once=True)
            assert client.pipe.was_aborted


async def test_the_rebalancer_ends_connections() -> None:
    house = House()
    client, other = house.client(), house.client()
    for path in (DIRECT, APP):
        client = house.client()
        house.shedding.due = 1
        assert await client.ask(post(path=path)) == usual(b"body", path, closes=True)
        assert house.shedding.due == 0
    assert await other.ask(post()) == usual(b"body")


async def test_what_comes_behind_the_last_request_is_dropped() -> None:
    for path in (DIRECT, APP):
        for behind in (post(), b"GET / HT", get(APP), b"rubbish\r\n\r\n"):
            house = House()
            client = house.client()
            client.send(post(b"1", b"connection: close", path=path) + behind)
            assert await client.told() == usual(b"1", path, closes=True)
            assert not client.is_kept


async def test_the_next_request_waits_for_a_client_that_does_not_read() -> None:
    for path in (DIRECT, APP):
        house = House()
        client = house.client()
        client.pipe.holds = True
        assert await client.ask(post(b"1", path=path) + post(b"2") + post(b"3", path=path)) == usual(b"1", path)
        assert not client.pipe.is_reading_now
        client.connection.resume_writing()
        assert await client.told() == usual(b"2")
        client.pipe.holds = False
        client.connection.resume_writing()
        assert await client.told() == usual(b"3", path)
        assert client.pipe.is_reading_now


async def test_a_client_that_takes_nothing_of_its_answer_is_dropped() -> None:
    for path in (DIRECT, APP):
        house = House()
        client = house.client()
        await client.ask(post(path=path))
        for unsent in (50, 40, 39):  # it takes some
            client.pipe.unsent = unsent
            client.wait(7)
        for unsent in (39, 60):  # it takes nothing, and further answers come
            client.pipe.unsent = unsent
            assert not client.pipe.was_aborted
            client.wait(4.1)
        assert client.pipe.was_aborted
        # A buffer that was emptied in between is progress, however full it is again.
        client = house.client()
        await client.ask(post(path=path))
        for _ in range(3):
            client.pipe.unsent = 50
            client.wait(7)
            client.connection.resume_writing()
        assert client.is_kept


async def test_a_body_of_unknown_length_that_grows_too_large_goes_to_the_application() -> None:
    for before in (b"", post(b"0")):
        house = House()
        house.routes.at_once = not before
        client = house.client()
        client.send(before + chunked(b"x" * 600, b"x" * 600)[:-5])
        if before:
            house.routes.begun[0].answer()
            assert await client.told() == usual(b"0")
        assert (await client.ask(b"0\r\n\r\n")).startswith(b"HTTP/1.1 413 ")
        assert client.is_kept
        client.send(chunked(b"x" * 500, b"x" * 500) + post(b"x" * 1001))
        if before:
            house.routes.begun[-1].answer()
        told = await client.told()
        assert told.startswith(usual(b"x" * 1000))
        assert b"HTTP/1.1 413 " in told


async def test_a_connection_that_is_lost_leaves_nothing_to_the_garbage_collector() -> None:
    for sent in (b"", post(), post(path=APP), post()[:-1], b"GET / HT", post() + post()[:-1], b"rubbish\r\n\r\n"):
        house = House()
        client = house.client()
        await client.ask(sent)
        client.leave()
        await client.told()
        house.routes.begun.clear()  # which have the replies
        gone = weakref.ref(client.connection)
        gc.disable()
        try:
            del client
            assert gone() is None, sent
        finally:
            gc.enable()
