"""The messages of ``inference.proto`` as Python classes, made at import from its compiled form ``inference.binpb``.

They live in a descriptor pool of their own. tritonclient and the kserve SDK have messages of the same names; in
protobuf's default pool the second to be imported would fail, and a model may well import either. What protoc writes
as Python would also tie the versions of protoc and of the protobuf library together. The types are in
``inference_pb2.pyi``, which protoc does write; ``inference.proto`` says how.
"""

from importlib.resources import files
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory


def _load(compiled: bytes) -> dict[str, Any]:
    (file,) = descriptor_pb2.FileDescriptorSet.FromString(compiled).file
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    descriptor = pool.FindFileByName(file.name)
    messages = descriptor.message_types_by_name.items()
    classes = {name: message_factory.GetMessageClass(message) for name, message in messages}
    return {"DESCRIPTOR": descriptor, **classes}


globals().update(_load(files(__package__).joinpath("inference.binpb").read_bytes()))
