"""An inference request, from the moment its body is complete to its answer, for every format and front end.

Every front end enters by ``begin``, and every answer leaves by the ``Reply``. In between there is one object, the
``InferenceRequest``, which is queued, cancelled, timed, counted and answered. A scheduler decides when and where it runs.
"""

import asyncio
import contextvars
import math
from collections.abc import Callable, Sequence
from time import perf_counter_ns
from typing import Any

from mpserve.errors import AcceleratorFailed, ModelNotReady, MPServeError, Overloaded
from mpserve.protocol.codec import Encoded, Inputs, Outputs, Parts, compressed
from mpserve.protocol.compression import decompress
from mpserve.protocol.messages import InferResponse
from mpserve.protocol.tensors import NamedArray
from mpserve.serving.execution.admission import TIMEOUT, Deadline, asked_seconds
from mpserve.serving.execution.executor import as_failure
from mpserve.serving.execution.model_instance import ModelInstance
from mpserve.serving.execution.schedulers import Scheduler
from mpserve.serving.execution.stream import Source
from mpserve.serving.extensions.statistics import count_ended, counters_of
from mpserve.serving.fitting.fit import STREAMS, WHOLE, fit_outputs
from mpserve.serving.inference.answer_in_parts import AnswerInParts, close_unread
from mpserve.serving.inference.request_head import Reply, RequestHead
from mpserve.serving.inference.requested_outputs import NOTHING, Treatments, completed, select, take_treatments
from mpserve.serving.models.faults import blame, refuse_promise, report, status_of
from mpserve.serving.models.spans import INFER, INPUT, NANO, OUTPUT, QUEUE, Timed
from mpserve.serving.models.stages import Headers, Stage, Stages
from mpserve.serving.repository.core import ServerCore
from mpserve.serving.shared_memory.tensors import fetch_inputs
from mpserve.state.scoreboard import IN_FLIGHT
from mpserve.telemetry.logging import Ids, request_id
from mpserve.telemetry.metrics import CANCELLED

INLINE = 65536  # bytes of a compressed body that the event loop expands; more bytes cost milliseconds


def begin(
    core: ServerCore, head: RequestHead, body: bytes, reply: Reply, within: float = math.inf
) -> "InferenceRequest":
    """Begin to answer a request, on the event loop. The client waits ``within`` seconds.
    A request that is refused at once is answered before this function returns.
    """
    observer = core.observer
    request = InferenceRequest(core, head, body, reply) if observer is None else observer(core, head, body, reply)
    try:
        scheduler = request.enter(within).schedulers[head.verb]
        if head.content_encoding is not None and len(body) > INLINE:
            core.helper.submit(request.context, request.decode, DecodedAhead(request, scheduler))
        else:
            scheduler.submit(request)
    except Exception as error:  # whatever it is, the client waits for an answer
        request.fail(error)
    return request


class DecodedAhead:
    """Takes the outcome of decoding a large compressed body in a helper's thread, and submits or fails the request."""

    def __init__(self, request: "InferenceRequest", scheduler: Scheduler) -> None:
        self._request = request
        self._scheduler = scheduler
        self.done = self.cancelled = request.done

    def set_result(self, inputs: Inputs, /) -> None:
        self._scheduler.submit(self._request)

    def set_exception(self, error: Exception, /) -> None:
        self._request.fail(error)


class InferenceRequest(Timed):
    """One request. A thread writes ``begun`` and the spans, the event loop writes all else, so nothing needs a lock."""

    __slots__ = (
        "_counters", "_place", "begun", "body", "context", "core", "deadline", "head", "headers", "identity",
        "infer_before", "inputs", "instance", "kind", "over", "parts", "places", "reply", "requested", "response_headers",
        "seconds", "stages", "task", "value", "version",
    )  # fmt: skip

    instance: ModelInstance  # set by ``enter``
    kind: object  # set by the batcher
    places: Sequence[int]  # set by the admission, if the model or the callers have limits
    stages: Stages
    version: str | None  # the version in the answer: the one that the client named, or any of several versions

    def __init__(self, core: ServerCore, head: RequestHead, body: bytes, reply: Reply) -> None:
        self.arrived = self.mark = perf_counter_ns()
        self.core = core
        self.head = head
        self.body = body
        self.reply = reply
        self.identity = head.identity or next(Ids.new)
        self.begun = False  # whether the decoder or the model has begun with the request
        self.over = False  # whether the outcome is known, or nobody waits for the outcome
        self.parts: AnswerInParts | None = None  # while it lasts
        self.deadline: Deadline | None = None
        self.durations = [0, 0, 0, 0]
        self.executions = 1
        self.rows = 1
        self.inputs: Inputs | None = None
        self.value: Any = None  # the input of the first stage: arrays, a message, or a V1 payload
        self.headers: Headers | None = None
        self.response_headers: Headers | None = None  # set if the model takes the headers of the answer
        self.requested: Treatments = NOTHING
        self.task: asyncio.Task[None] | None = None  # the task in which the request waits alone
        self._place = 0

    def enter(self, within: float) -> ModelInstance:
        """Find the model, and admit the request to the model. The request is in flight and timed from now on.

        Raises:
            ModelNotFound: no such model or version.
            ModelNotReady: the model has taken itself out of service.
            Overloaded: too many others wait for the model, or it cannot answer in time; TooManyRequests: a limit is reached.
        """
        core, head = self.core, self.head
        self.instance = instance = core.find(head.model, head.version)
        if not instance.model.ready:
            raise ModelNotReady(instance.label)
        in_flight, admission = instance.in_flight, instance.admission
        seconds = math.inf
        if admission.is_limited or within != math.inf:
            seconds = admission.enter(self, within, in_flight.count)
        counters = instance.counters
        self._counters = (
            counters if counters is not None and counters.desired is core.desired else counters_of(core, instance)
        )
        self.version = instance.model.version if instance.one_of_several else head.version
        self.stages = instance.stages[head.verb]
        self.infer_before = instance.last_infer
        core.row.cells[IN_FLIGHT] += 1
        in_flight.count = self._place = in_flight.count + 1
        self.context = instance.context.copy()
        self.context.run(request_id.set, self.identity)
        self.seconds = seconds
        if seconds != math.inf:
            self.deadline = admission.deadline(self, seconds)
        return instance

    def own_headers(self) -> tuple[Headers, Headers]:
        """A copy of the request's headers, which the model may change, and the answer's headers, which it may fill."""
        if self.headers is None or self.response_headers is None:
            self.headers, self.response_headers = self.head.headers.copy(), {}
        return self.headers, self.response_headers

    @property
    def in_parts(self) -> bool:
        """Whether the client takes any number of parts."""
        return self.head.codec.parts is Parts.MANY

    def asked(self) -> tuple[str, ...]:
        """The names of the outputs that the client asks for."""
        return () if self.inputs is None else self.inputs.asked()

    def in_context(self, function: Callable[..., object], *args: object) -> None:
        """Call a function in a context whose log lines name the request. A thread may be using the request's own context."""
        context = self.context.copy() if self._place else contextvars.copy_context()
        context.run(request_id.set, self.identity)
        context.run(function, *args)

    # From bytes to an answer, in the thread that the scheduler chooses

    def prepare(self) -> None:
        """Decode the request, unless it is decoded, and apply its parameter ``timeout``; on the event loop.
        Raises MPServeError as ``decode``; Overloaded: it cannot be answered in the time that it asks for.
        """
        inputs = self.decode() if self.inputs is None else self.inputs
        if inputs.parameters and TIMEOUT in inputs.parameters:
            seconds = asked_seconds(inputs.parameters[TIMEOUT])
            if seconds < self.seconds:
                admission = self.instance.admission
                self.seconds = admission.admit(seconds, self.instance.in_flight.count - 1)
                if self.deadline is not None:
                    self.deadline.close()
                self.deadline = admission.deadline(self, self.seconds)

    def decode(self) -> Inputs:
        """Read the body, and make the input of the first stage from it.
        Raises InvalidInput if the format or the model's declaration forbids the input; NotSupported for an unknown feature.
        """
        instance, head, body, core = self.instance, self.head, self.body, self.core
        self.body = b""
        if head.content_encoding is not None:
            limit, ratio = core.settings.body_limit(head.codec.is_json), core.settings.max_compression_ratio
            body = decompress(head.content_encoding, body, limit, ratio)
        if len(body) > core.json_limits.unchecked:
            core.json_limits.check(head.codec.json_in(body))
        takes_arrays = self.stages.takes_arrays
        inputs = head.codec.read(body, instance.declared, takes_arrays)
        tensors, message = inputs.tensors, inputs.message
        if inputs.rows is not None:
            self.rows = inputs.rows
        elif instance.is_batched:
            shape = tensors[0][2].shape if tensors else message.inputs[0].shape if message and message.inputs else ()
            self.rows = shape[0] if shape else 1
        self.inputs = inputs
        if message is not None:
            fetch_inputs(message, core)
        for wanted in inputs.requested or ():
            if wanted.parameters:
                self.requested = take_treatments(inputs.requested or [], core)
                break
        if takes_arrays:
            self.value = instance.bind(inputs.arrays(instance.declared) if tensors is None else tensors)
        else:
            self.value = inputs.given_to(instance.model.name, self.version)
        now = perf_counter_ns()
        self.durations[INPUT] += now - self.mark
        self.mark = now
        return inputs

    def run(self) -> "Encoded | Source":
        """Decode, run all stages and encode, in the model's thread."""
        now = perf_counter_ns()
        self.durations[QUEUE] += now - self.mark
        self.mark = now
        self.begun = True
        if self.inputs is None:
            self.decode()
        outcome = self.encode(self.run_stages(self.stages.stages, self.value))
        return outcome if self.head.accept_encoding is None else self.compress(outcome)

    def run_stages(self, stages: tuple[Stage, ...], value: Any) -> Any:
        for stage in stages:
            call = stage.call
            try:
                value = call(value, self)
            finally:
                self.spend(stage.span, stage.note)
        return value

    def spend(self, span: int, note: Callable[[float], object] | None) -> None:
        """Add the time since the last lap to ``span``, and give the seconds to the histogram ``note``."""
        now = perf_counter_ns()
        passed = now - self.mark
        self.durations[span] += passed
        self.mark = now
        if note is not None:
            note(passed * NANO)

    def encode(self, result: Any, tensors: list[NamedArray] | None = None) -> "Encoded | Source":
        """Encode the model's answer, in memory of its own; an answer in parts is returned as it is.
        ``tensors``: the answer, if it is known to fit the declaration.
        Raises InferenceError if the model has not answered as it declares, or the format cannot carry its answer;
        InvalidInput if an output was asked for that is not there.
        """
        instance, inputs, is_known = self.instance, self.inputs, tensors is not None
        assert inputs is not None
        if tensors is None:
            if not isinstance(result, WHOLE) and isinstance(result, STREAMS):
                return result
            if self.stages.gives_tensors:
                tensors = fit_outputs(instance.model_outputs, result)
        if tensors is None:
            outputs = self.outputs_of(result)
        else:
            model = instance.model
            outputs = Outputs(model.name, model.version, self.version, tensors)
        if inputs.requested:
            select(inputs, outputs, self.requested)
        encoded = self.head.codec.write(inputs, outputs)
        if not is_known:  # else the batch accounts for the time
            now = perf_counter_ns()
            self.durations[OUTPUT] += now - self.mark
            self.mark = now
        return encoded

    def complete(self, tensors: list[NamedArray]) -> "Encoded | Source":
        """As ``encode`` and ``compress``, for the request's part of a batch's answer."""
        encoded = self.encode(None, tensors)
        return encoded if self.head.accept_encoding is None else self.compress(encoded)

    def outputs_of(self, result: Any) -> Outputs:
        """An answer of any kind, with the id of the request and the version."""
        model, inputs = self.instance.model, self.inputs
        if not isinstance(result, InferResponse):
            refuse_promise(result, self.head.verb)
        elif (
            inputs is not None
            and inputs.payload is None  # V1 has neither an id nor a version
            and (inputs.requested or result.id != inputs.id or result.model_version != self.version)
        ):
            result = completed(result, inputs.id, self.version)
        return Outputs(model.name, model.version, self.version, None, result)

    def compress(self, outcome: "Encoded | Source") -> "Encoded | Source":
        """The answer in a content coding that the client takes, unless the model has set one."""
        accept_encoding, set_by_model = self.head.accept_encoding, self.response_headers or ()
        if accept_encoding is None or any(str(name).lower() == "content-encoding" for name in set_by_model):
            return outcome
        return compressed(outcome, accept_encoding) if isinstance(outcome, Encoded) else outcome

    # The end of the request, on the event loop

    def done(self) -> bool:
        """Whether nobody waits for the outcome."""
        return self.over

    cancelled = done

    def finish(self, outcome: "Encoded | Source") -> None:
        if self.over:
            return
        if not isinstance(outcome, Encoded):
            self._begin_stream(outcome)
            return
        self.over = True
        if self.deadline is not None:
            self.deadline.close()
        self._leave(is_answered=True)
        if self.instance.admission.learns:
            self.instance.admission.note(self, self._place)
        self.reply.finish(self, outcome)

    set_result = finish  # as a future has

    def fail(self, error: BaseException) -> None:
        """Answer with a failure: find whose fault it is, log it, count it."""
        # A request that cannot be read, or is refused before any work, does not count as the model's.
        self._end(error, is_counted=self.inputs is not None and not isinstance(error, Overloaded))

    set_exception = fail

    def _end(self, error: BaseException, is_counted: bool) -> None:
        if self.over:
            return
        self._conclude()
        if self._place:
            self._leave(is_answered=False, is_counted=is_counted)
        fault = self.blame(error)
        count_ended(self, status_of(fault))
        self.reply.fail(self, fault)

    def blame(self, error: BaseException) -> MPServeError:
        """Log a failure in the context of the request, and return the error for the client."""
        fault = blame(as_failure(error), self.head.model, self.head.verb, self.value)
        self.in_context(report, fault)
        if isinstance(fault, AcceleratorFailed) and self._place:
            self.core.note_accelerator(self.instance, fault, self._counters.successes)
        return fault

    def expire(self, error: MPServeError) -> None:
        """End with this error, whatever the model is doing; the outcome of the model is dropped."""
        task = self.task
        self._end(error, is_counted=True)
        if task is not None:
            self.instance.end(task)

    def cancel(self) -> None:
        """The client has gone: leave the queue, or cancel the work of the event loop.
        A call that a thread has begun goes on, and its outcome is dropped.
        """
        if self.parts is not None:
            self.parts.cancel()
        elif not self.over:
            self._conclude()
            self._leave(is_answered=False)
            count_ended(self, CANCELLED)
            if self.task is not None:
                self.instance.end(self.task)

    def _conclude(self) -> None:
        self.over = True
        if self.deadline is not None:
            self.deadline.close()

    def _leave(self, is_answered: bool, is_counted: bool = True) -> None:
        instance, in_flight = self.instance, self.instance.in_flight
        self.core.row.cells[IN_FLIGHT] -= 1
        in_flight.count -= 1
        if in_flight.idle is not None and not in_flight.count:
            in_flight.idle.set()
        if is_answered:
            instance.last_infer = self.durations[INFER]
            self._counters.succeeded(self)
        elif is_counted:
            self._counters.failed(self)
        if instance.admission.learns:
            instance.admission.leave(self)

    def _begin_stream(self, source: Source) -> None:
        """Begin an answer in parts, or refuse it if the format carries none. The model is held until the last part."""
        if self.head.codec.parts is Parts.REFUSED:
            close_unread(source, self.context)
            self.fail(self.head.codec.refusal(self.head.model))
            return
        self._conclude()
        self.parts = AnswerInParts(self, source)

    def leave_stream(self, is_whole: bool) -> None:
        assert self.parts is not None
        fault, self.parts = self.parts.fault, None
        self.lap(INFER)
        self._leave(is_answered=is_whole)
        if not is_whole:
            count_ended(self, CANCELLED if fault is None else status_of(fault))
