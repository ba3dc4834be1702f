"""The model in Triton's Python backend, which finds it by this class's name."""

import models
import triton_python_backend_utils as triton


class TritonPythonModel:
    def initialize(self, args):
        self.model, self.weights = models.make(), models.weights()

    def execute(self, requests):
        inputs = [triton.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        answers = models.joined(self.model, inputs) if models.BATCH else map(self.model, inputs)
        return [triton.InferenceResponse([triton.Tensor("y", y)]) for y in answers]
