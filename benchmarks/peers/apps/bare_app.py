"""The yardstick: the least that an ASGI application can do for V2 and V1, checking nothing, with one model."""

import models
import numpy as np
import orjson
import v2json

MODEL, WEIGHTS = models.make(), models.weights()


def answer_binary(body, length):
    """Of a request whose tensor follows ``length`` bytes of JSON: the JSON's length, and JSON and tensor."""
    x = np.frombuffer(memoryview(body)[length:], np.float32).reshape(orjson.loads(body[:length])["inputs"][0]["shape"])
    y = MODEL(x)
    output = {"name": "y", "datatype": "FP32", "shape": y.shape, "parameters": {"binary_data_size": y.nbytes}}
    head = orjson.dumps({"model_name": "bench", "outputs": [output]})
    return len(head), head + y.tobytes()


def answer_v1(body):
    y = MODEL(np.array(orjson.loads(body)["instances"], np.float32))
    return orjson.dumps({"predictions": y}, option=orjson.OPT_SERIALIZE_NUMPY)


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    message = await receive()
    parts = [message["body"]]
    while message["more_body"]:
        message = await receive()
        parts.append(message["body"])
    body = b"".join(parts) if len(parts) > 1 else parts[0]
    headers = [(b"content-type", b"application/json")]
    length = next((int(value) for name, value in scope["headers"] if name == b"inference-header-content-length"), 0)
    if length:
        length, answer = answer_binary(body, length)
        headers = [(b"content-type", b"application/octet-stream"), (b"inference-header-content-length", b"%d" % length)]
    elif scope["path"].startswith("/v1"):
        answer = answer_v1(body)
    else:
        answer = v2json.encode(MODEL(v2json.decode(body)))
    headers.append((b"content-length", b"%d" % len(answer)))
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})
