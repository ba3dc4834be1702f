"""ModelConfig, as tritonclient asks for it."""

from mpserve.protocol.protobuf import inference_pb2 as pb
from tests.grpc.models import Double
from tests.grpc.serving import ask


def test_the_configuration_of_a_model() -> None:
    config = ask(Double(), "ModelConfig", name="double", version="1").config
    assert (config.name, config.platform, config.backend, config.max_batch_size) == ("double", "numpy", "python", 0)
    assert list(config.input) == [pb.ModelInput(name="x", data_type="TYPE_FP32", dims=[-1])]
    assert list(config.output) == [pb.ModelOutput(name="y", data_type="TYPE_FP32", dims=[-1])]
