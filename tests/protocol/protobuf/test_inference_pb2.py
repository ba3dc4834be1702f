import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool

import mpserve.protocol.protobuf
from mpserve.protocol.protobuf import inference_pb2 as pb
from tests.cases import each

FOLDER = Path(mpserve.protocol.protobuf.__file__).parent


def test_the_compiled_form_is_that_of_the_proto_file(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools")
    written = [f"--descriptor_set_out={tmp_path}/inference.binpb", f"--pyi_out={tmp_path}"]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", "-I", FOLDER, *written, "inference.proto"], check=True)
    sets = [(folder / "inference.binpb").read_bytes() for folder in (FOLDER, tmp_path)]
    checked_in, fresh = map(descriptor_pb2.FileDescriptorSet.FromString, sets)
    assert checked_in == fresh


def test_the_messages_stay_out_of_the_default_pool() -> None:
    """A model that imports tritonclient.grpc or the kserve SDK puts messages of the same names there."""
    with pytest.raises(KeyError):
        descriptor_pool.Default().FindMessageTypeByName("inference.ModelInferRequest")


# Spot checks against the public files; a field that is renumbered breaks every client.
@each("message, field, number", [
    ("ModelInferRequest", "raw_input_contents", 7), ("ModelInferResponse", "raw_output_contents", 6),
    ("ModelMetadataResponse", "properties", 6), ("InferTensorContents", "bytes_contents", 8),
    ("ModelConfig", "model_transaction_policy", 19), ("ModelStatistics", "response_stats", 9),
    ("RepositoryModelLoadRequest", "model_name", 2), ("TraceSettingRequest", "model_name", 2),
])  # fmt: skip
def test_fields_have_their_public_numbers(message: str, field: str, number: int) -> None:
    assert getattr(pb, message).DESCRIPTOR.fields_by_name[field].number == number
