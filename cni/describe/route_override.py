"""Keys of route-override."""

from __future__ import annotations

from .common import ROUTE, args
from .model import Flag, Key, Many, Plugin, Record, Rule, Text

_FLUSH = Key(
    "flushroutes",
    Flag(),
    "remove all routes of the interface except those to its own "
    "subnets; `delroutes` is then ignored",
    default=False,
    example=True,
)
_FLUSH_GATEWAY = Key(
    "flushgateway",
    Flag(),
    "remove the default routes of the interface, and the gateways in the result",
    default=False,
    example=True,
)
_DELETED = Record(
    (
        Key("dst", Text("prefix"), "destination", required=True, example="10.1.0.0/16"),
        Key("gw", Text("address"), "only the route by this gateway", absent="any"),
        *(key for key in ROUTE.keys if key.name not in ("dst", "gw")),
    )
)
_DELETE = Key(
    "delroutes",
    Many(_DELETED),
    "routes to remove, by their destination",
    default=[],
    example=[{"dst": "10.1.0.0/16"}],
)
_ADDED = Record(
    (
        ROUTE.keys[0],
        Key("gw", Text("address"), "next hop", absent="the link itself", example="10.1.2.1"),
        *(key for key in ROUTE.keys if key.name not in ("dst", "gw")),
    )
)
_ADD = Key(
    "addroutes",
    Many(_ADDED),
    "routes to add; several gateways of one destination make one multipath route",
    default=[],
    example=[{"dst": "10.1.0.0/16", "gw": "10.1.2.1"}],
)
_ECMP = Record(
    (
        Key("dst", Text("prefix"), "destination", required=True, example="10.1.0.0/16"),
        Key(
            "gws",
            Many(Text("address")),
            "its gateways; ignored when a route is removed",
            absent="none",
            example=["10.1.2.1", "10.1.2.2"],
        ),
    )
)
_DELETE_ECMP = Key(
    "delecmproutes",
    Many(_ECMP),
    "as `delroutes`",
    default=[],
    example=[{"dst": "10.1.0.0/16"}],
)
_ADD_ECMP = Key(
    "addecmproutes",
    Many(_ECMP),
    "routes to add, each with its gateways",
    default=[],
    example=[{"dst": "10.1.0.0/16", "gws": ["10.1.2.1", "10.1.2.2"]}],
)
_SKIP_CHECK = Key("skipcheck", Flag(), "CHECK compares nothing", default=False, example=True)

_KEYS = (_FLUSH, _FLUSH_GATEWAY, _DELETE, _ADD, _DELETE_ECMP, _ADD_ECMP, _SKIP_CHECK)


def _as_argument(key: Key) -> Key:
    from .model import replace

    return replace(key, default=None, absent="what the configuration says")


PLUGIN = Plugin(
    name="route-override",
    place="chained",
    about="changes the routes of the interface that the plugins before it made",
    keys=(*_KEYS, args(*map(_as_argument, _KEYS))),
    rules=(
        Rule(
            ("delroutes",),
            lambda get: get("flushroutes") and get("delroutes"),
            "delroutes has no effect beside flushroutes",
            "leave one of them out",
            is_warning=True,
        ),
    ),
    example={
        "type": "route-override",
        "flushgateway": True,
        "addroutes": [{"dst": "10.20.0.0/16", "gw": "192.168.1.1"}],
    },
)
