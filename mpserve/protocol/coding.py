"""The content coding of a whole answer, where the client takes one and it saves bytes. Knows no request."""

from mpserve.protocol.codec import Encoded
from mpserve.protocol.compression import choose, compress, worthwhile


def compressed(encoded: Encoded, accept_encoding: str) -> Encoded:
    """The answer in the content coding that ``accept_encoding`` asks for; as it is, where that would save nothing."""
    body, content_type, fields = encoded
    coding = choose(accept_encoding)
    if coding is None or not worthwhile([body]):
        return encoded
    fields = {**fields, "content-encoding": coding, "vary": "accept-encoding"}
    return Encoded(compress(coding, [body]), content_type, fields)
