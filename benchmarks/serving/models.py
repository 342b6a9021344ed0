"""The three models every contestant serves, and the requests they are asked: made from seeds, so that any machine makes the same.

    T   gradient boosting, 200 trees of depth 4, 30 numbers, two classes
    S   a small convolution network on 3 × 224 × 224, about a quarter of a millisecond
    I   a network with the shape of ResNet-18 on 3 × 224 × 224; its weights are random, only its speed is looked at

Photographs are those scikit-learn carries, cut and toned in several ways and compressed to about 60 KB each.
"""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIZE = 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLASSES = 10
N_FEATURES = 30
N_BODIES = 32
PHOTO_BYTES = 60_000
PHOTO_SIZE = (800, 534)
_OPSET = 17


@dataclass(frozen=True, slots=True)
class Workload:
    """A folder with the graphs, the photographs and the rows.

    Attributes:
        folder: Where everything lies; `peers/work.py` reads the same files.
        rows: The rows of model T, shape (n, 30), float32, written with six digits.
        photos: JPEG files.
    """

    folder: Path
    rows: NDArray[np.float32]
    photos: tuple[bytes, ...]

    def graph(self, model: str) -> Path:
        """Return the ONNX file of a model."""
        return self.folder / f"{model}.onnx"


def make_workload(folder: Path) -> Workload:
    """Return the workload in `folder`, made when it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, build in {"T": _trees, "S": _small_network, "I": _resnet_shape}.items():
        path = folder / f"{name}.onnx"
        if not path.exists():
            draft = path.with_suffix(".draft")
            draft.write_bytes(build())
            draft.replace(path)
    photos = _photographs(folder / "photos")
    values = np.random.default_rng(7).normal(size=(N_BODIES * 32, N_FEATURES)).round(6).astype(np.float32)
    sample = folder / "sample.csv"
    if not sample.exists():
        lines = [",".join(f"f{i}" for i in range(N_FEATURES)), *(",".join(f"{v:.6f}" for v in row) for row in values[:512].tolist())]
        sample.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return Workload(folder, values, photos)


def json_rows(rows: NDArray[np.float32]) -> list[list[float]]:
    """Return rows as a client would write them: at most six digits after the point."""
    return [[round(v, 6) for v in row] for row in rows.astype(np.float64).tolist()]


def features_body(rows: NDArray[np.float32], key: str = "features") -> bytes:
    """Return `{"features": [[…], …]}`."""
    return json.dumps({key: json_rows(rows)}).encode("ascii")


def oip_body(rows: NDArray[np.float32]) -> bytes:
    """Return the rows as one FP32 tensor of an Open Inference request in plain JSON."""
    flat = [v for row in json_rows(rows) for v in row]
    tensor = {"name": "features", "shape": list(rows.shape), "datatype": "FP32", "data": flat}
    return json.dumps({"inputs": [tensor]}).encode("ascii")


def oip_binary(name: str, tensor: NDArray[np.float32]) -> tuple[bytes, int]:
    """Return an Open Inference request with the binary tensor extension, and the length of its JSON head."""
    raw = np.ascontiguousarray(tensor).tobytes()
    described = {"name": name, "shape": list(tensor.shape), "datatype": "FP32", "parameters": {"binary_data_size": len(raw)}}
    head = json.dumps({"inputs": [described], "parameters": {"binary_data_output": True}}).encode("ascii")
    return head + raw, len(head)


def oip_proto(model: str, name: str, tensor: NDArray[np.float32]) -> bytes:
    """Return a ModelInferRequest on the wire: the model's name, one FP32 tensor, its bytes in `raw_input_contents`."""
    shape = b"".join(_varint(n) for n in tensor.shape)
    described = _field(1, name.encode()) + _field(2, b"FP32") + _field(3, shape)
    return _field(1, model.encode()) + _field(5, described) + _field(7, np.ascontiguousarray(tensor).tobytes())


def multipart(photo: bytes, field: str = "file") -> tuple[bytes, str]:
    """Return a form with one uploaded picture, and its content type."""
    boundary = "mulle-bench-7d1f3c5a9b"
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="{field}"; filename="photo.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'
    return head.encode("ascii") + photo + f"\r\n--{boundary}--\r\n".encode("ascii"), f"multipart/form-data; boundary={boundary}"


def to_tensor(photo: bytes) -> NDArray[np.float32]:
    """Return a photograph as every contestant sees it, shape (1, 3, 224, 224): RGB, bilinear to 224 × 224, /255, normalised."""
    from PIL import Image

    with Image.open(io.BytesIO(photo)) as image:
        small = image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    values = np.asarray(small, dtype=np.float32) / np.float32(255.0)
    values = (values - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    return np.ascontiguousarray(values.transpose(2, 0, 1)[None])


def session(graph: Path, threads: int = 1) -> Any:
    """Return a bare ONNX Runtime session without spinning threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])


def answers(graph: Path, tensor: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the probabilities a bare session gives."""
    found = session(graph)
    return found.run(["probabilities"], {found.get_inputs()[0].name: tensor})[0]


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def _field(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _trees() -> bytes:
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType
    from sklearn.ensemble import GradientBoostingClassifier

    rng = np.random.default_rng(3)
    rows = rng.normal(size=(4000, N_FEATURES))
    truth = (np.sin(rows[:, 0]) + rows[:, 1] * rows[:, 2] + 0.5 * rows[:, 3:N_FEATURES:3].sum(axis=1) + rng.normal(size=4000)) > 0
    model = GradientBoostingClassifier(n_estimators=200, max_depth=4, subsample=0.5, random_state=0).fit(
        rows.astype(np.float32), truth.astype(int)
    )
    graph = to_onnx(
        model,
        initial_types=[("features", FloatTensorType([None, N_FEATURES]))],
        options={id(model): {"zipmap": False}},
        target_opset={"": _OPSET, "ai.onnx.ml": 3},
    )
    return graph.SerializeToString()


class _Network:
    """Layers one after the other into an ONNX graph, with random weights that keep the values' size."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[Any] = []
        self.weights: dict[str, NDArray[np.float32]] = {}

    def add(self, kind: str, inputs: Sequence[str], **attributes: Any) -> str:
        from onnx import helper

        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def weight(self, *shape: int) -> str:
        name = f"w{len(self.weights)}"
        fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else 1
        scale = np.sqrt(2.0 / fan_in) if len(shape) > 1 else 0.01
        self.weights[name] = (self.rng.normal(size=shape) * scale).astype(np.float32)
        return name

    def convolve(self, value: str, channels: tuple[int, int], kernel: int, stride: int = 1, *, relu: bool = True, gain: float = 1.0) -> str:
        pad = kernel // 2
        inputs = [value, self.weight(channels[1], channels[0], kernel, kernel), self.weight(channels[1])]
        self.weights[inputs[1]] *= np.float32(gain)
        value = self.add("Conv", inputs, strides=[stride] * 2, pads=[pad] * 4, kernel_shape=[kernel] * 2)
        return self.add("Relu", [value]) if relu else value

    def finish(self, value: str, channels: int) -> bytes:
        from onnx import TensorProto, checker, helper, numpy_helper

        value = self.add("Flatten", [self.add("GlobalAveragePool", [value])])
        value = self.add("Gemm", [value, self.weight(CLASSES, channels), self.weight(CLASSES)], transB=1)
        self.nodes.append(helper.make_node("Softmax", [value], ["probabilities"], axis=1))
        graph = helper.make_graph(
            self.nodes,
            "network",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, SIZE, SIZE])],
            [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", CLASSES])],
            [numpy_helper.from_array(value, name) for name, value in self.weights.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=9)
        checker.check_model(model)
        return model.SerializeToString()


def _small_network() -> bytes:
    net = _Network(5)
    value = net.convolve("image", (3, 16), 5, 4)
    value = net.convolve(value, (16, 32), 3, 1)
    value = net.convolve(value, (32, 32), 3, 2)
    return net.finish(net.convolve(value, (32, 64), 3, 2), 64)


def _resnet_shape() -> bytes:
    net = _Network(11)
    value = net.convolve("image", (3, 64), 7, 2)
    value = net.add("MaxPool", [value], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    before = 64
    for channels, stride in ((64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1)):
        inner = net.convolve(value, (before, channels), 3, stride)
        inner = net.convolve(inner, (channels, channels), 3, relu=False, gain=0.3)
        beside = value if (before, stride) == (channels, 1) else net.convolve(value, (before, channels), 1, stride, relu=False)
        value = net.add("Relu", [net.add("Add", [inner, beside])])
        before = channels
    return net.finish(value, before)


def _photographs(folder: Path) -> tuple[bytes, ...]:
    if not folder.exists():
        from PIL import Image, ImageEnhance
        from sklearn.datasets import load_sample_image

        draft = folder.with_name("photos.draft")
        draft.mkdir(exist_ok=True)
        for name in ("china", "flower"):
            whole = Image.fromarray(load_sample_image(f"{name}.jpg")).resize(PHOTO_SIZE, Image.Resampling.LANCZOS)
            for number, (flip, light, turn) in enumerate(((0, 1.0, 0.0), (1, 1.1, 2.0), (0, 0.85, -3.0), (1, 0.95, 4.0))):
                image = whole.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else whole
                image = ImageEnhance.Brightness(image.rotate(turn, Image.Resampling.BICUBIC)).enhance(light)
                (draft / f"{name}-{number}.jpg").write_bytes(_compress(image))
        draft.replace(folder)
    return tuple(path.read_bytes() for path in sorted(folder.glob("*.jpg")))


def _compress(image: Any) -> bytes:
    """Return the picture at the quality whose file comes nearest to `PHOTO_BYTES` from below."""
    found = b""
    for quality in range(20, 96):
        out = io.BytesIO()
        image.save(out, "JPEG", quality=quality)
        if out.tell() > PHOTO_BYTES and found:
            break
        found = out.getvalue()
    return found
