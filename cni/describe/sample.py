"""Keys of sample."""

from __future__ import annotations

from .common import IPAM, runtime
from .model import Flag, Key, Plugin, Record, Text, replace

PLUGIN = Plugin(
    name="sample",
    place="chained",
    about="changes nothing: the example of docs/writing-a-plugin.md",
    keys=(
        Key(
            "anotherAwesomeArg",
            Text(),
            "must not be empty",
            required=True,
            example="yes",
        ),
        Key("myAwesomeFlag", Flag(), "unused", default=False, example=True),
        replace(IPAM, text="the IPAM plugin whose STATUS counts", absent="none"),
        runtime(
            Key(
                "sample",
                Record((Key("note", Text(), "unused", absent="none", example="hello"),)),
                "unused; of the capability `sample`",
                absent="none",
                example={"note": "hello"},
                capability="sample",
            )
        ),
    ),
    example={"type": "sample", "anotherAwesomeArg": "yes"},
)
