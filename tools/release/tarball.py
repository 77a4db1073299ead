"""cni-plugins-linux-<arch>-v<version>.tgz: the layout of the reference's archive, flat.

What unpacks the reference's archive into /opt/cni/bin unpacks this one. Every plugin is a link to
`cni`; a program that copies links as files copies `cni` under that name, which works as well. One
that copies or moves a link as a link has to take `cni` along (docs/releasing.md). Hard links would
work alone, but a copy of the directory would have twenty files of 16 MB.
"""

from __future__ import annotations

from collections.abc import Mapping

from .archive import Entry, compress, tar


def tarball(
    executable: bytes, plugins: tuple[str, ...], documents: Mapping[str, bytes], epoch: int
) -> bytes:
    """The archive. `documents` is file name -> content, with LICENSE and README.md among them."""
    entries = [Entry("./cni", executable, 0o755)]
    entries += [Entry(f"./{name}", link="cni") for name in plugins]
    entries += [Entry(f"./{name}", data) for name, data in documents.items()]
    # The file comes first: a link never leads nowhere while the archive is unpacked.
    return compress(tar([Entry(".", mode=0o755), *entries], epoch))
