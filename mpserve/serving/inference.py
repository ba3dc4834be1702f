"""An inference request from the moment its body is complete to its answer, on one way, whatever the format and front end.

``begin`` is how every front end enters, and ``Reply`` is how every answer leaves. In between there is one object, which is
queued, cancelled, timed, counted, blamed and answered: ``InferenceRequest``. Who runs it when is for its scheduler to say.
"""

import asyncio
import contextvars
import math
from collections.abc import Callable
from enum import Enum
from time import perf_counter_ns
from typing import Any, NamedTuple, Protocol

from mpserve.errors import DeadlineExceeded, ModelNotReady, MPServeError, Overloaded
from mpserve.logging import Ids, request_id
from mpserve.protocol.codec import Codec, Encoded, Inputs, Outputs, Parts
from mpserve.protocol.compression import coding_for, compress, decompress
from mpserve.protocol.messages import InferResponse
from mpserve.protocol.tensors import NamedArray
from mpserve.scoreboard import IN_FLIGHT
from mpserve.serving.admission import asked_seconds
from mpserve.serving.batch import Batch
from mpserve.serving.core import ServerCore
from mpserve.serving.deadline import Deadline
from mpserve.serving.executor import as_failure
from mpserve.serving.faults import blame, refuse_promise, report
from mpserve.serving.fit import STREAMS, WHOLE, fit_inputs, fit_outputs
from mpserve.serving.requested import NOTHING, Treatments, select, take_treatments
from mpserve.serving.served import Served
from mpserve.serving.shared_memory import fetch
from mpserve.serving.spans import INFER, INPUT, NANO, OUTPUT, QUEUE
from mpserve.serving.stages import Headers, Stage
from mpserve.serving.statistics import counters_of
from mpserve.serving.stream import ModelStream, Source

TIMEOUT = "timeout"
"""The request parameter, in microseconds (Triton, ``extension_schedule_policy.md``)."""

INLINE = 65536
"""Bytes of a compressed body that are expanded on the event loop, and of an answer that are compressed there; more cost
milliseconds and go to a thread."""


class RequestHead(NamedTuple):
    """What a request says besides its body. One head may serve any number of requests, and nobody changes it.

    Attributes:
        verb: "predict" or "explain".
        headers: with lower-case names, as models expect them.
        identity: the id that the client has given the request; empty: the request gets a new one.
        content_encoding, accept_encoding: the content codings of the body, and those that the client takes.
    """

    model: str
    version: str | None
    verb: str
    codec: Codec
    headers: Headers
    identity: str = ""
    content_encoding: str | None = None
    accept_encoding: str | None = None


class Status(Enum):
    """How far a request has come. It moves down this list only, and may leave out a step."""

    QUEUED = "queued"
    RUNNING = "running"
    STREAMING = "streaming"
    DONE = "done"


class Reply(Protocol):
    """Where the answer to a request goes. One of the three is called, once, on the event loop."""

    def finish(self, request: "InferenceRequest", encoded: Encoded) -> None:
        """Take a whole answer."""

    def stream(self, request: "InferenceRequest", parts: ModelStream) -> None:
        """Take an answer in parts, whose first part is there, and read it to its end or close it."""

    def fail(self, request: "InferenceRequest", fault: MPServeError) -> None:
        """Take the reason why there is no answer. It has been logged where it must be."""


def begin(
    core: ServerCore, head: RequestHead, body: bytes, reply: Reply, within: float = math.inf
) -> "InferenceRequest":
    """Begin to answer a request, for which the client waits ``within`` so many seconds; on the event loop.

    A request that is refused at once is answered before this returns.
    """
    request = InferenceRequest(core, head, body, reply)
    try:
        instance = request.enter(within)
    except MPServeError as error:
        request.fail(error)
        return request
    if head.content_encoding is not None and len(body) > INLINE:
        core.helper.submit(request.context, request.decode, Ahead(request, instance))
    else:
        instance.schedulers[head.verb].submit(request)
    return request


class InferenceRequest:
    """One request. Its thread writes ``begun`` and the spans, and the event loop all else, so there is nothing to lock."""

    __slots__ = (
        "_counters",
        "_place",
        "_requested",
        "arrived",
        "begun",
        "body",
        "context",
        "core",
        "deadline",
        "durations",
        "executions",
        "head",
        "headers",
        "identity",
        "infer_before",
        "inputs",
        "instance",
        "kind",
        "mark",
        "over",
        "parts",
        "reply",
        "response_headers",
        "rows",
        "seconds",
        "task",
        "value",
        "version",
    )

    instance: Served
    """The model, once the request is admitted."""
    version: str | None
    """The version that the answer names: the one that the client has named, or any where the model has several."""

    def __init__(self, core: ServerCore, head: RequestHead, body: bytes, reply: Reply) -> None:
        self.arrived = self.mark = perf_counter_ns()
        self.core = core
        self.head = head
        self.body = body
        self.reply = reply
        self.identity = head.identity or next(Ids.new)
        self.begun = False
        """Whether the model, or the decoder in its thread, has begun with it."""
        self.over = False
        """Whether its outcome is known, or nobody wants it any more."""
        self.parts: ModelStream | None = None
        """The answer in parts, as long as it lasts."""
        self.deadline: Deadline | None = None
        self.durations = [0, 0, 0, 0]
        """Nanoseconds by span."""
        self.executions = 1
        """Executions of the model that it stands for: one request of a batch stands for all."""
        self.rows = 1
        self.inputs: Inputs | None = None
        self.value: Any = None
        """What the first stage is given: arrays, a message, or a V1 payload."""
        self.headers: Headers | None = None
        self.response_headers: Headers | None = None
        """The headers that the model has set for the answer; None: it has not asked for them."""
        self._requested: Treatments = NOTHING
        self.task: asyncio.Task[None] | None = None
        """The task that it has to itself, if it waits on the event loop."""
        self._place = 0

    def enter(self, within: float) -> Served:
        """Find the model and be admitted to it. Held, in flight and timed from now on; gives the model.

        Raises:
            ModelNotFound: no such model or version.
            ModelNotReady: the model has taken itself out of service.
            Overloaded: too many others wait for the model, or it cannot answer in time.
        """
        core, head = self.core, self.head
        instance = core.find(head.model, head.version)
        if not instance.model.ready:
            raise ModelNotReady(instance.label)
        held, admission = instance.held, instance.admission
        seconds = math.inf
        if admission.is_limited or within != math.inf:
            seconds = admission.admit(within, held.count)
        counters = instance.counters
        self._counters = (
            counters if counters is not None and counters.wish is core.wish else counters_of(core, instance)
        )
        self.instance = instance
        self.version = instance.model.version if instance.one_of_several else head.version
        self.infer_before = instance.last_infer
        core.row.cells[IN_FLIGHT] += 1
        held.count = self._place = held.count + 1
        self.context = instance.context.copy()
        self.context.run(request_id.set, self.identity)
        self.seconds = seconds
        if seconds != math.inf:
            self.deadline = admission.deadline(self, seconds)
        return instance

    # What it tells of itself

    @property
    def status(self) -> Status:
        if self.parts is not None:
            return Status.STREAMING
        return Status.DONE if self.over else Status.RUNNING if self.begun else Status.QUEUED

    @property
    def label(self) -> str:
        """The name of the model in logs."""
        return self.instance.label

    def own_headers(self) -> tuple[Headers, Headers]:
        """The headers of the request, a copy that the model may change, and those of the answer, which it may fill."""
        if self.headers is None or self.response_headers is None:
            self.headers, self.response_headers = self.head.headers.copy(), {}
        return self.headers, self.response_headers

    def in_context(self, function: Callable[..., object], *args: object) -> None:
        """Call a function where whatever is logged names the request; a model's thread may be in its own context."""
        if self._place:
            self.context.copy().run(function, *args)
        else:
            contextvars.copy_context().run(_named, self.identity, function, *args)

    def lap(self, span: int) -> int:
        """Account the time since the last lap to a span. Gives this moment."""
        now = perf_counter_ns()
        self.durations[span] += now - self.mark
        self.mark = now
        return now

    def follow(self, batch: Batch, executions: int) -> None:
        """Account the time since the last lap as the batch has spent it, and stand for so many executions of the model."""
        durations = self.durations
        durations[QUEUE] += batch.begun - self.mark
        durations[INPUT] += batch.input_ns
        durations[INFER] += batch.infer_ns
        durations[OUTPUT] += batch.output_ns
        self.mark = batch.mark
        self.executions = executions

    # From bytes to an answer, where the scheduler says

    def prepare(self) -> None:
        """Decode the request, unless that is done, and limit its time as it asks; on the event loop.

        Raises:
            MPServeError: as ``decode``; Overloaded: it cannot be answered in the time that it asks for.
        """
        inputs = self.decode() if self.inputs is None else self.inputs
        if inputs.parameters and TIMEOUT in inputs.parameters:
            seconds = asked_seconds(inputs.parameters[TIMEOUT])
            if seconds < self.seconds:
                admission = self.instance.admission
                self.seconds = admission.admit(seconds, self.instance.held.count - 1)
                if self.deadline is not None:
                    self.deadline.close()
                self.deadline = admission.deadline(self, self.seconds)

    def decode(self) -> Inputs:
        """Read the body, and make of it what the model takes.

        Raises:
            InvalidInput: the format, or what the model declares, does not allow it.
            NotSupported: it asks for what is not offered.
        """
        instance, head, body = self.instance, self.head, self.body
        self.body = b""
        if head.content_encoding is not None:
            body = decompress(head.content_encoding, body, self.core.settings.max_body_size)
        model, takes_arrays = instance.model, instance.stages[head.verb].takes_arrays
        inputs = head.codec.read(body, instance.declared, takes_arrays)
        tensors = inputs.tensors
        if inputs.rows is not None:
            self.rows = inputs.rows
        elif tensors is not None:
            if instance.is_batched and (shape := tensors[0][2].shape):
                self.rows = shape[0]
        elif inputs.message is not None:
            self._fetch(inputs)
        self.inputs = inputs
        for wanted in inputs.requested or ():
            if wanted.parameters:
                self._requested = take_treatments(inputs.requested or [], self.core)
                break
        if takes_arrays:
            self.value = fit_inputs(instance.declared, inputs.arrays() if tensors is None else tensors)
        else:
            self.value = inputs.given_to(model.name, self.version)
        now = perf_counter_ns()
        self.durations[INPUT] += now - self.mark
        self.mark = now
        return inputs

    def _fetch(self, inputs: Inputs) -> None:
        """Make ordinary inputs of those that lie in shared memory, and count the rows."""
        assert inputs.message is not None
        self.inputs = inputs
        given = inputs.message.inputs
        if self.instance.is_batched and given and given[0].shape:
            self.rows = given[0].shape[0]
        for each in given:
            if each.parameters and each.in_shared_memory:
                fetch(each, self.core.regions)

    def run(self) -> "Encoded | Source":
        """Decode, run all stages and encode, in the model's thread."""
        now = perf_counter_ns()
        self.durations[QUEUE] += now - self.mark
        self.mark = now
        self.begun = True
        if self.inputs is None:
            self.decode()
        outcome = self.encode(self.run_stages(self.instance.stages[self.head.verb].stages, self.value))
        return outcome if self.head.accept_encoding is None else self.compress(outcome)

    def run_stages(self, stages: tuple[Stage, ...], value: Any) -> Any:
        """Run synchronous stages one after the other."""
        for call, _, note, span in stages:
            try:
                value = call(value, self)
            finally:
                now = perf_counter_ns()
                passed = now - self.mark
                self.durations[span] += passed
                self.mark = now
                if note is not None:
                    note(passed * NANO)
        return value

    async def await_stage(self, stage: Stage, value: Any) -> Any:
        """Run an asynchronous stage."""
        call, _, note, span = stage
        try:
            return await call(value, self)
        finally:
            now = perf_counter_ns()
            passed = now - self.mark
            self.durations[span] += passed
            self.mark = now
            if note is not None:
                note(passed * NANO)

    def encode(self, result: Any) -> "Encoded | Source":
        """What the codec makes of the model's answer, in memory of its own; an answer in parts as it is.

        Raises:
            InferenceError: the model has not answered as it declares, or the format cannot carry its answer.
            InvalidInput: an output was asked for that is not there.
        """
        if not isinstance(result, WHOLE) and isinstance(result, STREAMS):
            return result
        instance = self.instance
        if instance.stages[self.head.verb].gives_tensors:
            model = instance.model
            tensors = fit_outputs(instance.model_outputs, result)
            encoded = self._encode(Outputs(model.name, model.version, self.version, tensors))
        else:
            encoded = self._encode(self._outputs(result))
        now = perf_counter_ns()
        self.durations[OUTPUT] += now - self.mark
        self.mark = now
        return encoded

    def complete(self, tensors: list[NamedArray]) -> "Encoded | Source":
        """As ``encode``, of the request's part of a batch's answer; in a content coding that the client takes.

        The batch accounts for the time.
        """
        model = self.instance.model
        encoded = self._encode(Outputs(model.name, model.version, self.version, tensors))
        return encoded if self.head.accept_encoding is None else self.compress(encoded)

    def _encode(self, outputs: Outputs) -> Encoded:
        inputs = self.inputs
        assert inputs is not None
        if inputs.requested:
            outputs = select(inputs, outputs, self._requested)
        return self.head.codec.write(inputs, outputs)

    def encode_part(self, part: Any) -> bytes:
        """As ``encode``, of one part of an answer in parts."""
        inputs, instance = self.inputs, self.instance
        assert inputs is not None
        outputs = self._outputs(part)
        if instance.stages[self.head.verb].gives_tensors:
            outputs = outputs._replace(tensors=fit_outputs(instance.model_outputs, part))
        if inputs.requested:
            outputs = select(inputs, outputs, self._requested)
        return self.head.codec.write_part(inputs, outputs)

    def _outputs(self, result: Any) -> Outputs:
        """An answer of any kind. A response is completed by what only the request knows: its id and its version.

        A copy if anything is to be changed, since a model may well give the same object for every request.
        """
        model, inputs = self.instance.model, self.inputs
        if not isinstance(result, InferResponse):
            refuse_promise(result, self.head.verb)
        elif inputs is not None and inputs.payload is None:
            response_id = inputs.id if result.id is None else result.id
            version = result.model_version or self.version
            if inputs.requested or result.id != response_id or result.model_version != version:
                given, result = result, object.__new__(InferResponse)
                vars(result).update(vars(given))
                result.id, result.model_version = response_id, version
        return Outputs(model.name, model.version, self.version, None, result)

    def compress(self, outcome: "Encoded | Source") -> "Encoded | Source":
        """The answer in a content coding that the client takes, where that saves bytes and the model has chosen none."""
        accept_encoding = self.head.accept_encoding
        if accept_encoding is None or type(outcome) is not Encoded:
            return outcome
        body, content_type, fields = outcome
        coding = coding_for(accept_encoding, body)
        if coding is None or any(str(name).lower() == "content-encoding" for name in self.response_headers or ()):
            return outcome
        coded = {**fields, "content-encoding": coding, "vary": "accept-encoding"}
        return Encoded(compress(coding, [body]), content_type, coded)

    # Its end, on the event loop

    def done(self) -> bool:
        """Whether nobody waits for its outcome any more."""
        return self.over

    cancelled = done

    def finish(self, outcome: "Encoded | Source") -> None:
        """Answer. An answer in parts is answered like any other, and lasts until its end."""
        if self.over:
            return
        if not isinstance(outcome, Encoded):
            self._begin_stream(outcome)
            return
        self.over = True
        if self.deadline is not None:
            self.deadline.close()
        self._leave(is_answered=True)
        self.reply.finish(self, outcome)

    set_result = finish
    """As of a future: whoever runs the request tells it so."""

    def fail(self, error: BaseException) -> None:
        """Answer that there is no answer, and why: whose fault it is, what is logged of it, and what is counted."""
        # A request that cannot be read, or is refused before any work is done for it, is none of the model's requests.
        self._fail(error, is_counted=self.inputs is not None and not isinstance(error, Overloaded))

    set_exception = fail

    def _fail(self, error: BaseException, is_counted: bool) -> None:
        if self.over:
            return
        self.over = True
        if self.deadline is not None:
            self.deadline.close()
        fault = self.blame(error)
        if self._place:
            self._leave(is_answered=False, is_counted=is_counted)
        self.reply.fail(self, fault)

    def blame(self, error: BaseException) -> MPServeError:
        """What the client is told of a failure, which is logged in the context of the request."""
        fault = blame(as_failure(error), self.head.model, self.head.verb)
        self.in_context(report, fault)
        return fault

    def expire(self, error: MPServeError) -> None:
        """End with this error, whatever the model is at; what that comes to is dropped."""
        task = self.task
        self._fail(error, is_counted=True)
        if task is not None:
            task.cancel()

    def cancel(self) -> None:
        """Nobody is there for the answer any more: leave the queue, or end what the event loop is at.

        A call that a thread has begun goes on, and is counted; its outcome is dropped by the reply.
        """
        if self.parts is not None:
            self.parts.close()
        elif not self.over and (self.task is not None or not self.begun):
            self.over = True
            if self.deadline is not None:
                self.deadline.close()
            self._leave(is_answered=False)
            if self.task is not None:
                self.task.cancel()

    def _leave(self, is_answered: bool, is_counted: bool = True) -> None:
        """Be with the model no longer, and be counted."""
        instance, held = self.instance, self.instance.held
        self.core.row.cells[IN_FLIGHT] -= 1
        held.count -= 1
        if held.idle is not None and not held.count:
            held.idle.set()
        if is_answered:
            instance.last_infer = self.durations[INFER]
            self._counters.succeeded(self)
            if instance.admission.learns:
                instance.admission.note(self, self._place)
        elif is_counted:
            self._counters.failed(self)

    # An answer in parts

    def _begin_stream(self, source: Source) -> None:
        """Let the model answer in parts, if the format carries them. The request is held until the last of them."""
        if self.head.codec.parts is Parts.REFUSED:
            _close(source, self.context)
            self.fail(self.head.codec.refusal(self.head.model))
            return
        self.over = True
        if self.deadline is not None:
            self.deadline.close()
        instance = self.instance
        self.parts = ModelStream(self, source, instance.executor, instance.gate, self.seconds)
        instance.streams.add(self.parts)
        self.task = self.context.copy().run(asyncio.ensure_future, self._open(self.parts))

    async def _open(self, parts: ModelStream) -> None:
        """Hand out the parts once the first is there: a failure until then is answered as any other."""
        try:
            if self.head.codec.parts is Parts.ONE:
                encoded = await self._only_part(parts)
                self.reply.finish(self, encoded)
            else:
                await parts.prime()
                self.reply.stream(self, parts)
        except MPServeError as fault:
            await parts.aclose()
            self.reply.fail(self, fault)

    async def _only_part(self, parts: ModelStream) -> Encoded:
        """The one part of an answer, as a whole answer."""
        found = []
        async for part in parts:
            found.append(part)
            if len(found) > 1:
                break
        await parts.aclose()
        if len(found) != 1:
            raise self.head.codec.refusal(self.head.model)
        return Encoded(found[0], None, self.head.codec.part_fields)

    def late(self, seconds: float) -> DeadlineExceeded:
        """What the client is told where the first part was not there in time."""
        return self.instance.admission.late(seconds)

    def stream_ended(self, is_whole: bool) -> None:
        """The model is held no longer: its answer in parts has come to its end, or was cut short."""
        assert self.parts is not None
        self.instance.streams.discard(self.parts)
        self.parts = None
        self.lap(INFER)
        self._leave(is_answered=is_whole)


async def answered(
    core: ServerCore, head: RequestHead, body: bytes, within: float = math.inf
) -> tuple[InferenceRequest, Encoded | ModelStream]:
    """As ``begin``, for a task that waits for the answer. A task that is cancelled takes its request with it.

    Raises:
        MPServeError: there is no answer. The failure has been logged where it must be.
    """
    reply = Awaited()
    request = begin(core, head, body, reply, within)
    try:
        return request, await reply.future
    except asyncio.CancelledError:
        request.cancel()
        raise


class Awaited:
    """A reply that is waited for, on the running event loop."""

    def __init__(self) -> None:
        self.future: asyncio.Future[Encoded | ModelStream] = asyncio.get_running_loop().create_future()

    def finish(self, request: InferenceRequest, encoded: Encoded) -> None:
        if not self.future.done():
            self.future.set_result(encoded)

    def stream(self, request: InferenceRequest, parts: ModelStream) -> None:
        if self.future.done():
            parts.close()
        else:
            self.future.set_result(parts)

    def fail(self, request: InferenceRequest, fault: MPServeError) -> None:
        if not self.future.done():
            self.future.set_exception(fault)


class Ahead:
    """Where the outcome goes of decoding a request outside its model's thread: to its scheduler, or to the client."""

    def __init__(self, request: InferenceRequest, instance: Served) -> None:
        self._request = request
        self._instance = instance

    def done(self) -> bool:
        return self._request.over

    cancelled = done

    def set_result(self, inputs: Inputs, /) -> None:
        self._instance.schedulers[self._request.head.verb].submit(self._request)

    def set_exception(self, error: Exception, /) -> None:
        self._request.fail(error)


def _named(identity: str, function: Callable[..., object], *args: object) -> None:
    request_id.set(identity)
    function(*args)


def _close(source: Source, context: contextvars.Context) -> None:
    """Close an iterator that nobody has begun to read; an asynchronous one ends by itself."""
    close = getattr(source, "close", None)
    if close is not None:
        context.copy().run(close)
