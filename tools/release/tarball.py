"""cni-plugins-linux-<arch>-v<version>.tgz: the layout of the reference's archive, flat.

What unpacks the reference's archive into /opt/cni/bin unpacks this one. Every plugin is a small
file of its own, which needs `cni` beside it: whoever copies some of them takes that along
(docs/releasing.md). A link would lead a program that overwrites one plugin to the file of all.
"""

from __future__ import annotations

from collections.abc import Mapping

from .archive import Entry, compress, tar
from .layout import plugin


def tarball(
    executable: bytes, plugins: tuple[str, ...], documents: Mapping[str, bytes], epoch: int
) -> bytes:
    """The archive. `documents` is file name -> content, with LICENSE and README.md among them."""
    entries = [Entry("./cni", executable, 0o755)]
    entries += [plugin(f"./{name}", executable) for name in plugins]
    entries += [Entry(f"./{name}", data) for name, data in documents.items()]
    # The file comes first: a plugin is never without it while the archive is unpacked.
    return compress(tar([Entry(".", mode=0o755), *entries], epoch))
