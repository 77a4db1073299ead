"""Instead of the standard library's module, whose core and library (libmpdec) have 200 KB.

msgspec wants the type when it starts, to recognize its instances. Nothing here makes any.
"""


class Decimal:
    """Has no instances."""

    def __new__(cls, *_: object) -> "Decimal":
        raise NotImplementedError("decimal numbers are not in this file")
