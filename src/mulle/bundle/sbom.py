# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false, reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
"""A CycloneDX software bill of materials: which distributions, in which versions, made a model."""

import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, distribution

_LICENCE_CHARS = 80


def build_sbom(model_name: str, versions: Mapping[str, str]) -> bytes:
    """Return a CycloneDX 1.6 document in JSON.

    Reproducible: the same model and versions give the same bytes (no serial number, no timestamp).

    Args:
        model_name: The component the bill is for.
        versions: Distribution name to version, as the run recorded them.

    Source: CycloneDX 1.6, https://cyclonedx.org/docs/1.6/json/
    """
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.output.json import JsonV1Dot6
    from packageurl import PackageURL

    parts = [
        Component(
            name=name,
            version=version,
            type=ComponentType.LIBRARY,
            bom_ref=f"{name}=={version}",
            purl=PackageURL("pypi", None, name.lower().replace("_", "-"), version),
            description=_licence(name),
        )
        for name, version in sorted(versions.items())
    ]
    root = Component(name=model_name, type=ComponentType.MACHINE_LEARNING_MODEL, bom_ref=f"model:{model_name}")
    bom = Bom(components=parts)
    bom.metadata.component = root
    bom.register_dependency(root, parts)
    document = json.loads(JsonV1Dot6(bom).output_as_string())
    document.pop("serialNumber", None)
    document.get("metadata", {}).pop("timestamp", None)
    return json.dumps(document, ensure_ascii=False, indent=1, sort_keys=True).encode("utf-8")


def _licence(name: str) -> str | None:
    # Distributions state their licence too freely for a licence expression: it goes into the description.
    try:
        metadata = distribution(name).metadata
    except PackageNotFoundError:
        return None
    fields = dict(metadata.items())
    text = str(fields.get("License-Expression") or fields.get("License") or "").strip()
    return f"licence: {text.splitlines()[0][:_LICENCE_CHARS]}" if text else None
