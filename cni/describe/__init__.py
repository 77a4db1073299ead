"""Descriptions of every key of every plugin: the one source for validation, JSON Schema,
`cni explain` and the tables in docs/plugins.

    model.py      the words of a description: Plugin, Key, Rule, and the kinds of values
    common.py     keys that several plugins have
    <plugin>.py   PLUGIN, the description of a plugin
    catalogue.py  finds a plugin or a key by name
    schema.py     a description as JSON Schema
    tables.py     a description as a table of docs/plugins
    document.py   a JSON document with the position of each value
    walk.py       compares a document with the descriptions
    addresses.py  what the addresses of a network mean: ranges, gateways, overlaps
    verb.py       the verb VALIDATE

A description is not the plugin's `Conf`, which the request path loads: it has texts, examples and
units, which a request does not need. tests/unit/test_describe.py proves that both agree.
"""
