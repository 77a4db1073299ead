"""The software bill of materials: a CycloneDX document of every released file and what is in it."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from urllib.parse import quote

from cyclonedx.model import (
    ExternalReference,
    ExternalReferenceType,
    HashAlgorithm,
    HashType,
    XsUri,
)
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component as Part
from cyclonedx.model.component import ComponentType
from cyclonedx.model.license import DisjunctiveLicense, LicenseExpression
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

from . import components
from .components import Component
from .source import Source

# A namespace of our own, so that the document's number follows from version and content.
_NAMESPACE = uuid.UUID("6b0f7a5e-7f2c-4a39-9a53-0d4b4b0ef3a1")


def sbom(
    source: Source, files: Mapping[str, bytes], inside: Mapping[str, Sequence[Component]]
) -> str:
    """The document, as JSON. `inside` says what each of `files` contains beside our own code."""
    document = Bom()
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    content = f"{source.commit} {sorted(digests.items())}"
    document.serial_number = uuid.uuid5(_NAMESPACE, content)
    document.metadata.timestamp = datetime.fromtimestamp(source.epoch, UTC)
    own = _part(components.own(source), ComponentType.APPLICATION)
    document.metadata.component = own
    parts: dict[Component, Part] = {}
    released = []
    for name in sorted(files):
        part = Part(
            name=name,
            version=source.version,
            type=ComponentType.FILE,
            bom_ref=f"file:{name}",
            hashes=[_sha256(digests[name])],
        )
        needed = [parts.setdefault(each, _part(each)) for each in inside.get(name, ())]
        document.components.add(part)
        document.register_dependency(part, needed)
        released.append(part)
    for part in parts.values():
        document.components.add(part)
    document.register_dependency(own, released)
    text: str = JsonV1Dot6(document).output_as_string(indent=2)
    return text + "\n"


def _part(component: Component, kind: ComponentType = ComponentType.LIBRARY) -> Part:
    simple = " " not in component.licence
    licence = (
        DisjunctiveLicense(id=component.licence) if simple else LicenseExpression(component.licence)
    )
    return Part(
        name=component.name,
        version=component.version,
        type=kind,
        bom_ref=_reference(component),
        purl=PackageURL.from_string(component.purl),
        licenses=[licence],
        external_references=[
            ExternalReference(
                type=ExternalReferenceType.DISTRIBUTION,
                url=XsUri(quote(name)),
                hashes=[_sha256(digest)],
            )
            for name, digest in component.sources
        ],
    )


def _reference(component: Component) -> str:
    """A name that no other component has: one version may come as a wheel and as sources.

    The library gives a random one to the second of a name.
    """
    content = hashlib.sha256(repr(component.sources).encode()).hexdigest()
    return f"{component.purl}#{content[:12]}"


def _sha256(digest: str) -> HashType:
    return HashType(alg=HashAlgorithm.SHA_256, content=digest)
