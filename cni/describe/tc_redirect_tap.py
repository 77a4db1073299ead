"""Keys of tc-redirect-tap."""

from __future__ import annotations

from .model import Key, Number, Plugin, Rule, Text

_U32 = 4294967295
_NAME = "name of the TAP device"
_UID, _GID = "id of the user who may open the device", "id of the group that may open the device"

PLUGIN = Plugin(
    name="tc-redirect-tap",
    place="chained",
    about="gives a virtual machine the place of the container, by a TAP device",
    keys=(
        Key(
            "tapName",
            Text(),
            _NAME,
            absent="derived from the attachment",
            example="tap0",
        ),
        Key(
            "tap_name",
            Text(),
            "another spelling of `tapName`, which the original tc-redirect-tap uses",
            absent="`tapName`",
            example="tap0",
        ),
        Key("uid", Number(0, _U32), _UID, absent="root", example=1000),
        Key("gid", Number(0, _U32), _GID, absent="root", example=1000),
    ),
    args=(
        Key("TC_REDIRECT_TAP_NAME", Text(), _NAME, absent="`tapName`", example="tap0"),
        Key("TC_REDIRECT_TAP_UID", Text(), _UID, absent="`uid`", example="1000"),
        Key("TC_REDIRECT_TAP_GID", Text(), _GID, absent="`gid`", example="1000"),
    ),
    rules=(
        Rule(
            ("tap_name",),
            lambda get: get("tapName") and get("tap_name"),
            "tap_name has no effect beside tapName, which is the same",
            "leave one of them out",
            is_warning=True,
        ),
    ),
    example={"type": "tc-redirect-tap", "uid": 1000, "gid": 1000},
)
