"""A CycloneDX software bill of materials: which distributions, in which versions, made a model."""

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, distribution


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

    root = Component(name=model_name, type=ComponentType.MACHINE_LEARNING_MODEL, bom_ref=f"model:{model_name}")
    bom = Bom(components=[_component(name, version, Component, ComponentType, PackageURL) for name, version in sorted(versions.items())])
    bom.metadata.component = root
    bom.register_dependency(root, list(bom.components))
    return _reproducible(JsonV1Dot6(bom).output_as_string(indent=1))


def _component(name: str, version: str, component: type, kinds: type, purl: type) -> object:
    return component(
        name=name,
        version=version,
        type=kinds.LIBRARY,
        bom_ref=f"{name}=={version}",
        purl=purl("pypi", None, name.lower().replace("_", "-"), version),
        description=_license(name),
    )


def _license(name: str) -> str | None:
    # The licence goes into the description: distributions state it too freely for a licence expression.
    try:
        metadata = distribution(name).metadata
    except PackageNotFoundError:
        return None
    text = metadata.get("License-Expression") or metadata.get("License") or ""
    return f"licence: {text.strip().splitlines()[0][:80]}" if text.strip() else None


def _reproducible(text: str) -> bytes:
    import json

    document = json.loads(text)
    document.pop("serialNumber", None)
    document.get("metadata", {}).pop("timestamp", None)
    return json.dumps(document, ensure_ascii=False, indent=1, sort_keys=True).encode("utf-8")
