"""A request on the fast lane and its answer, which comes in one of three ways: run to completion, in a task, in a batch.

Each is counted and logged as in the ordinary way. Which of them a request goes, if any, is for ``lane`` to say.
"""

import asyncio
import contextvars
from collections import defaultdict
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from mpserve.http.accounts import Accounts
from mpserve.http.inference import Call, Inference, binary_answer, coding_for, compressed, in_coding, respond
from mpserve.http.requests import INLINE
from mpserve.http.responses import JSON_ONLY, Answer, error_answer
from mpserve.http.streaming import StreamedAnswer
from mpserve.logging import begin_request, identity_for, request_id
from mpserve.protocol.wire import Encoded
from mpserve.serving import express
from mpserve.serving.batching import Batcher
from mpserve.serving.completion import Completion, Resumed, Ticket
from mpserve.serving.dataplane import Dataplane, InParts, Plane
from mpserve.serving.executor import as_failure
from mpserve.serving.express import Given, Reader, Written
from mpserve.serving.joining import Joining
from mpserve.serving.served import Served
from mpserve.serving.tasks import Tasks

Told = bytes | Answer | StreamedAnswer
"""What answers a request. Bytes are the JSON of a usual answer, which has status 200 and no headers of its own."""

Outcome = Told | Encoded
"""What has come of a request, of which an answer is yet to be made where tensors stand behind the JSON."""

Tell = Callable[[Told, bytes], object]
"""Takes an answer and the id of its request."""

NANO = 1e-9
_NO_CONTEXT = contextvars.Context()


@dataclass(frozen=True, slots=True)
class Target:
    """What an address stands for. ``answered``: the count of the answers to its template, by status."""

    path: str
    template: str
    verb: str
    inference: Inference
    model: str
    version: str | None
    answered: defaultdict[int, int]


@dataclass(frozen=True, slots=True)
class Asked:
    """A request but for its body, which has ``length`` bytes, of which the first ``json`` are to be decoded.

    ``read`` reads a body that is plain; None: the head is of none. ``identity`` is the id that the client has given it, if
    any; ``accept_encoding`` the content codings that it takes.
    """

    target: Target
    call: Call
    length: int
    json: int
    read: Reader | None
    identity: str
    accept_encoding: str | None


class Asking(Ticket[Outcome]):
    """What the three ways have in common."""

    _identity = ""
    context = _NO_CONTEXT
    """What its line in the access log is logged in."""

    def __init__(
        self,
        dataplane: Dataplane,
        served: Served,
        accounts: Accounts,
        asked: Asked,
        body: bytes,
        client: object,
        tell: Tell,
    ) -> None:
        self._accounts = accounts
        self._asked = asked
        self._body = body
        self._client = client
        self._tell = tell
        # It is the next one whichever way this is, and super() would look for it at every request.
        Ticket.__init__(self, dataplane, served)

    def _leave(self) -> None:
        """Where the model has run: the line in the access log names what that was at."""
        if self._accounts.access_log:
            self.context = contextvars.copy_context()

    async def road(self, plane: Plane) -> Told:
        """The ordinary way."""
        request_id.set(self._identity)
        answer = await respond(plane, self._asked.target.inference, self._asked.call, self._body)
        self._leave()
        return answer

    def told(self, outcome: Outcome) -> None:
        target = self._asked.target
        if isinstance(outcome, Encoded):
            outcome = binary_answer(outcome)
        status = 200 if isinstance(outcome, bytes) else outcome.status
        if self._accounts.access_log:
            start = self.begun * NANO
            note = self._accounts.note
            self.context.run(note, target.template, status, start, self._client, "POST", target.path)
        else:
            target.answered[status] += 1
        self._tell(outcome, self._identity.encode())

    def failed(self, error: BaseException) -> Answer:
        return error_answer(as_failure(error))


class InOneGo(Asking, Completion[Outcome]):
    """One that is run to completion."""

    def begin(self) -> Asking:
        """Go to the model's thread."""
        self.submit()
        return self

    def at_once(self) -> Told | None:
        asked = self._asked
        self._identity = begin_request(asked.identity)
        model = self.served.express
        given = None if asked.read is None or model is None else asked.read(model, self._body)
        if given is None:
            return None
        answer: Told
        try:
            written = express.answer(self, given, self._dataplane.core.settings.nonfinite)
            if isinstance(written, Encoded):
                answer = binary_answer(written)  # here, since the model may use its arrays again in the next predict
            else:
                answer = written if asked.accept_encoding is None else _in_coding(written, asked.accept_encoding)
        except Exception as error:
            answer = error_answer(error)
        self._leave()
        return answer


def _in_coding(json: bytes, accept_encoding: str) -> Told:
    answer = Answer(200, JSON_ONLY, json)
    coding = coding_for(answer, accept_encoding)
    return in_coding(answer, coding) if coding else json


class InTask(Asking):
    """A plain one to a model whose predict is ``async def``, on the event loop."""

    task: asyncio.Task[None] | None = None
    _given: Given[Written]

    def begin(self, tasks: Tasks, given: Given[Written]) -> Asking:
        """Answer it in one of these tasks."""
        self._given = given
        self.context = self.served.context.copy()
        tasks.start(self)
        return self

    def run(self) -> Coroutine[Any, Any, Written]:
        """What answers it."""
        self._identity = begin_request(self._asked.identity)
        return express.answer_async(self, self._given, self._dataplane.core.settings.nonfinite)

    def cancel(self) -> bool:
        """Cancel its predict."""
        if self.is_over:
            return False
        self._over()
        if self.task is None:  # nor will it begin
            self.end(is_counted=False)
            return True
        return self.task.cancel()

    def set_result(self, written: Written) -> None:
        """It has been answered."""
        accept_encoding = self._asked.accept_encoding
        if self.is_over:
            self.end()
        elif accept_encoding is None or isinstance(written, Encoded):
            self.is_over = True  # it has no deadline that would have to be closed
            self._answer(written)
        elif len(written) <= INLINE:
            self.is_over = True
            self._answer(_in_coding(written, accept_encoding))
        else:
            self._resume(self._compress(written, accept_encoding))

    def set_exception(self, error: BaseException) -> None:
        """It could not be answered, or turned out to be one in parts, which the visit lasts as long as."""
        if self.is_over:
            self.end()
        elif isinstance(error, InParts):
            self._resume(self._hand_out(Resumed(self._dataplane, self, error)))
        else:
            super().set_exception(error)

    def failed(self, error: BaseException) -> Answer:
        return self.context.run(super().failed, error)

    def _resume(self, rest: Coroutine[Any, Any, None]) -> None:
        self.task = self.context.run(asyncio.get_running_loop().create_task, rest)
        self.task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():  # perhaps before its first step
            self.end()

    async def _compress(self, json: bytes, accept_encoding: str) -> None:
        answer: Told = await compressed(self._dataplane, Answer(200, JSON_ONLY, json), accept_encoding)
        self._over()
        self._answer(answer)

    async def _hand_out(self, resumed: Resumed) -> None:
        try:
            answer: Told = await self.road(resumed)
        except BaseException as error:  # the model had cancelled the task that it runs in, or the client has gone
            if self.is_over and isinstance(error, asyncio.CancelledError):
                return
            answer = self.failed(error)
        self.told(answer)


class InBatch(Asking, Joining[Outcome]):
    """A plain one that joins a batch."""

    def begin(self, batcher: Batcher, given: Given[Written]) -> Asking:
        """Join the queue."""
        self._identity = identity_for(self._asked.identity)
        self.join(batcher, given)
        return self

    def own_context(self) -> contextvars.Context:
        if self.context is _NO_CONTEXT:
            self.context = self.served.context.copy()
            self.context.run(request_id.set, self._identity)
        return self.context

    def told(self, outcome: Outcome) -> None:
        if self._accounts.access_log:
            self.own_context()
        super().told(outcome)

    def failed(self, error: BaseException) -> Answer:
        # A batch is settled in the context of whoever caused it to be formed, and what is logged is to name this request.
        return self.own_context().run(super().failed, error)
