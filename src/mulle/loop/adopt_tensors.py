"""From a model of pictures or tensors somebody already has to a sealed bundle; sample pictures and arrays are read here."""

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mulle.core.errors import SpecError
from mulle.core.names import require_name
from mulle.formats.envelope import read_limited
from mulle.loop.adopt import DEFAULT_OUTPUT

if TYPE_CHECKING:
    from mulle.bundle.adopt_tensors import AdoptedTensors
    from mulle.bundle.seal import SealedBundle

PICTURE_ENDINGS = frozenset({".jpg", ".jpeg", ".png", ".webp"})
MAX_PICTURES = 1_000
MAX_PICTURE_BYTES = 64 << 20
MAX_ARRAYS_BYTES = 1 << 30
MAX_CLASSES_BYTES = 1 << 20


def read_pictures(path: Path) -> dict[str, bytes]:
    """Return file name to encoded picture: of one file, or of all pictures in a folder and below, in the order of their paths.

    Raises:
        SpecError: `file-missing`, `adopt-sample-kind`: no pictures; `adopt-sample-many`: more than 1,000.
    """
    if path.is_file():
        files = [path]
    elif path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.casefold() in PICTURE_ENDINGS and file.is_file())
    else:
        raise SpecError("file-missing", f"there is no file or folder {path.name!r}", fix="check --sample", where=str(path))
    if not files or files[0].suffix.casefold() not in PICTURE_ENDINGS:
        raise SpecError(
            "adopt-sample-kind",
            f"the sample {path.name!r} holds no pictures Mulle reads",
            fix=f"give a file, or a folder of files, with {', '.join(sorted(PICTURE_ENDINGS))}",
            where=str(path),
        )
    if len(files) > MAX_PICTURES:
        raise SpecError(
            "adopt-sample-many", f"the sample has {len(files):,} pictures; {MAX_PICTURES:,} are enough", fix="give fewer", where=str(path)
        )
    return {str(file): read_limited(file, max_bytes=MAX_PICTURE_BYTES) for file in files}


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays of an `.npz` file by name; objects, which would be pickles, are refused.

    Raises:
        SpecError: `file-missing`, `adopt-sample-kind`, `file-too-large`.
    """
    read_limited(path, max_bytes=MAX_ARRAYS_BYTES)
    try:
        with zipfile.ZipFile(path) as archive:
            n_bytes = sum(entry.file_size for entry in archive.infolist())
        if n_bytes > MAX_ARRAYS_BYTES:
            raise SpecError(
                "file-too-large",
                f"the arrays unpack to {n_bytes:,} bytes",
                fix="give a few rows: they become golden requests",
                where=str(path),
            )
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (ValueError, OSError, zipfile.BadZipFile, EOFError) as error:
        text = " ".join(str(error).split())[:160]
        raise SpecError(
            "adopt-sample-kind",
            f"{path.name!r} is no file of plain arrays: {text}",
            fix="write it with numpy.savez('sample.npz', name=array); texts as arrays of str, not of objects",
            where=str(path),
        ) from error


def read_classes(text: str) -> list[str]:
    """Return class names: by commas, or one per line of the file `text` names.

    Raises:
        SpecError: `adopt-classes`: none there; the file is too large or unreadable.
    """
    path = Path(text)
    if "," not in text and (path.suffix in {".txt", ".names", ".labels"} or path.is_file()):
        try:
            lines = read_limited(path, max_bytes=MAX_CLASSES_BYTES).decode("utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise SpecError("adopt-classes", f"{path.name!r} is not UTF-8", fix="save the names in UTF-8", where=str(path)) from error
    else:
        lines = text.split(",")
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise SpecError(
            "adopt-classes", "no class is named", fix="give them in order: --classes a,b or --classes names.txt", where=text[:200]
        )
    return names


def adopt_picture_model(
    source: Path,
    sample: Path | None,
    *,
    image: str,
    classes: Sequence[str] | None = None,
    positive: str | None = None,
    logits: bool = False,
) -> "AdoptedTensors":
    """Return the ONNX file `source` as a classifier of pictures, proven on the sample's.

    Raises:
        SpecError: see `bundle/adopt_tensors.py`; `adopt-sample-needed`.
    """
    from mulle.bundle.adopt_tensors import adopt_image

    if sample is None:
        raise SpecError(
            "adopt-sample-needed",
            "a model of pictures is adopted with some pictures",
            fix="give a picture or a folder of them: --sample pictures/ (up to 16 travel in the bundle, as golden requests)",
        )
    return adopt_image(source, read_pictures(sample), image=image, classes=classes, positive=positive, logits=logits)


def adopt_tensor_model(source: Path, sample: Path | None) -> "AdoptedTensors":
    """Return the ONNX file `source` as a graph from tensors to tensors.

    Raises:
        SpecError: see `bundle/adopt_tensors.py`.
    """
    from mulle.bundle.adopt_tensors import adopt_tensors

    return adopt_tensors(source, None if sample is None else read_arrays(sample))


def seal_adopted_tensors(adopted: "AdoptedTensors", *, name: str, output: Path = DEFAULT_OUTPUT) -> "SealedBundle":
    """Return the sealed, signed bundle of an adopted model; the same model and sample give the same digest.

    Args:
        adopted: What `adopt_image` or `adopt_tensors` returned.
        name: The model's name.
        output: The folder of bundles; the bundle is `output/<digest>`.

    Raises:
        SpecError: an unusable name, golden requests that are too large, or a folder that cannot be written.
    """
    from mulle.bundle.sbom import build_sbom
    from mulle.bundle.seal import BundleContent, seal_bundle
    from mulle.formats.signing import key_path, load_or_create_key
    from mulle.train.environment import used_distributions

    require_name(name, "a model")
    content = BundleContent(
        model_name=name,
        task=adopted.task,
        graph=adopted.graph,
        graph_info=adopted.info,
        columns=(),
        baseline=_baseline(adopted),
        golden=adopted.golden.to_bytes(),
        classes=adopted.classes,
        positive=adopted.positive,
        image=adopted.image,
    )
    libraries = ["mulle", "numpy", "onnx", "onnxruntime", *(["pillow"] if adopted.image is not None else [])]
    about = {"origin": adopted.origin, "samples": adopted.n_samples, "notes": list(adopted.notes)}
    attestations = {
        "adoption.json": json.dumps(about, ensure_ascii=False, indent=1, sort_keys=True).encode("utf-8"),
        "sbom.cdx.json": build_sbom(name, used_distributions(libraries)),
    }
    return seal_bundle(output, content, attestations=attestations, private_key=load_or_create_key(key_path()))


def _baseline(adopted: "AdoptedTensors") -> bytes | None:
    """Return the profile of the answers to the sample pictures; there are no columns to profile."""
    from mulle.core.schema import ColumnType
    from mulle.formats.baseline import Baseline, PredictionProfile
    from mulle.monitor.baseline import PREDICTED_CLASS, SCORE, AnswerSpec, category_counts, profile_categories, profile_numbers, read_scores

    if adopted.scores is None or adopted.task == "tensor":
        return None
    values, labels = read_scores(adopted.scores, AnswerSpec(adopted.task, adopted.classes, adopted.positive, 0.5))
    profile = PredictionProfile(
        score=profile_numbers(values, SCORE, ColumnType.NUMBER),
        classes=None if labels is None else profile_categories(category_counts(labels), PREDICTED_CLASS, ColumnType.TEXT),
    )
    return Baseline(n_rows=len(values), columns=(), prediction=profile).to_bytes()
