"""A predictor of token ids that answers with two tensors; its class is the target."""

from kserve import InferOutput, InferRequest, InferResponse, Model


class Scoring(Model):
    def predict(self, payload: InferRequest, headers=None) -> InferResponse:
        ids, mask = (payload.get_input_by_name(name).as_numpy() for name in ("input_ids", "input_mask"))
        return InferResponse(
            response_id=payload.id,
            model_name=self.name,
            infer_outputs=[
                InferOutput(name="best", shape=[1], datatype="INT32", data=[int((ids * mask).max())]),
                InferOutput(name="score", shape=[1], datatype="FP32", data=[0.5]),
            ],
        )
