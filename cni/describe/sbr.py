"""Keys of sbr."""

from __future__ import annotations

from .model import Flag, Key, Many, Number, Plugin, Rule, Text

PLUGIN = Plugin(
    name="sbr",
    place="chained",
    about="routes by source address: replies leave by the interface that they came in",
    keys=(
        Key(
            "table",
            Number(0, 4294967295),
            "only add rules, for this table, which another program fills; the "
            "other keys are then ignored",
            absent="tables from 100 on, which the plugin fills",
            example=200,
        ),
        Key(
            "gateways",
            Many(Text("address"), most=2),
            "at most one IPv4 and one IPv6 address: default gateways that "
            "replace those in the result and the interface's default routes",
            default=[],
            example=["192.168.1.1"],
        ),
        Key(
            "addSourceHints",
            Flag(),
            "leave the interface's subnets in the main table, with its address as source (`… scope "
            "link src A`), so that sockets that are not bound also use this interface to reach "
            "neighbours",
            default=False,
            example=True,
        ),
    ),
    rules=(
        Rule(
            ("gateways", "addSourceHints"),
            lambda get: get("table") is not None and (get("gateways") or get("addSourceHints")),
            "this key has no effect beside `table`",
            is_warning=True,
        ),
        Rule(
            ("gateways",),
            lambda get: _same_family(get("gateways")),
            "gateways has two addresses of one family",
            "one IPv4 and one IPv6 address are possible",
        ),
    ),
    example={"type": "sbr"},
)


def _same_family(gateways: object) -> bool:
    if not isinstance(gateways, list) or not all(isinstance(each, str) for each in gateways):
        return False
    return len({":" in each for each in gateways}) < len(set(gateways))
