"""NVIDIA Triton as `nvidia-pytriton` brings it (Python backend + ONNX Runtime): `python triton_app.py HTTP_PORT GRPC_PORT METRICS_PORT`."""

import sys

import numpy as np
import work
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

session = work.make_session()


@batch
def answer(**inputs):
    return {"probabilities": work.infer(session, inputs[work.INPUT])}


if __name__ == "__main__":
    ports = [int(one) for one in sys.argv[1:4]]
    config = TritonConfig(
        http_port=ports[0], grpc_port=ports[1], metrics_port=ports[2], http_address="127.0.0.1", grpc_address="127.0.0.1", log_verbose=0
    )
    with Triton(config=config) as triton:
        triton.bind(
            model_name=work.MODEL,
            infer_func=answer,
            inputs=[Tensor(name=work.INPUT, dtype=np.float32, shape=work.SHAPE)],
            outputs=[Tensor(name="probabilities", dtype=np.float32, shape=(work.CLASSES,))],
            config=ModelConfig(max_batch_size=work.MAX_BATCH, batcher=DynamicBatcher(max_queue_delay_microseconds=100)),
            strict=False,
        )
        triton.serve()
