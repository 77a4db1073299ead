"""A value of the wrong type: which one it is, and how it is written right."""

from __future__ import annotations

import msgspec
import pytest

from cni.protocol.config import Folded, convert
from cni.protocol.errors import CNIError


class Inner(Folded):
    port: int = 0
    on: bool = False


class Conf(Folded):
    mtu: int = 0
    name: str = ""
    values: dict[str, str] = {}
    numbers: dict[str, int] = {}
    inner: Inner = msgspec.field(default_factory=Inner)
    many: list[Inner] = []


@pytest.mark.parametrize(
    ("value", "said", "advice"),
    [
        ({"mtu": "1500"}, "string into field mtu of type int", "write 1500 without quotes"),
        ({"mtu": "big"}, "string into field mtu of type int", "write a number, without quotes"),
        ({"inner": {"on": "TRUE"}}, "field inner.on of type bool", "write true without quotes"),
        ({"inner": {"on": "yes"}}, "field inner.on", "write true or false, without quotes"),
        ({"Name": 5}, "number into field Name of type string", 'write it with quotes: "5"'),
        ({"name": True}, "bool into field name of type string", 'write it with quotes: "true"'),
        (
            {"values": {"net.a": "1", "net.core.somaxconn": 5}},
            "number into field values.net.core.somaxconn of type string",
            'write it with quotes: "5"',
        ),
        ({"numbers": {"a": 1, "b": "2"}}, "field numbers.b of type int", "write 2 without quotes"),
        ({"many": [{}, {"port": "80"}]}, "field many[1].port", "write 80 without quotes"),
        ({"many": {}}, "object into field many of type array", "write a list, in [ and ]"),
        ({"inner": []}, "array into field inner of type object", "write an object, in { and }"),
        ({"inner": "x"}, "string into field inner of type object", "write an object, in { and }"),
        ([], "array into field (top) of type object", "write an object, in { and }"),
    ],
)
def test_what_is_said(value: object, said: str, advice: str) -> None:
    with pytest.raises(CNIError) as caught:
        convert(value, Conf, "conf: ")
    assert caught.value.msg.startswith("conf: json: cannot unmarshal ")
    assert said in caught.value.msg
    assert caught.value.details == advice
