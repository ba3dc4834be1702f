"""Stands in for the BERT that KServe's tokenizer asks on Triton: it finds the words "john" to "kennedy" in any text."""

import numpy as np

from mpserve import Tensor, TensorModel

# Their ids in BERT's uncased vocabulary, which lies beside the tokenizer.
JOHN, KENNEDY = 2198, 5817


class Bert(TensorModel):
    """Where in the text the answer ends and starts."""

    name = "bert"
    inputs = (
        Tensor("unique_ids", "INT32", (-1, 1)),
        *(Tensor(name, "INT32", (-1, 128)) for name in ("segment_ids", "input_ids", "input_mask")),
    )
    outputs = (Tensor("end_logits", "FP32", (-1, 128)), Tensor("start_logits", "FP32", (-1, 128)))

    def predict(  # type: ignore[override]
        self, unique_ids: np.ndarray, segment_ids: np.ndarray, input_ids: np.ndarray, input_mask: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        logits = [np.float32(20) * (input_ids == word) * input_mask for word in (KENNEDY, JOHN)]
        return logits[0].astype(np.float32), logits[1].astype(np.float32)
