"""The state of this node, gathered for people: the one source of all commands.

    attachments.gather(Places, network) -> [Attached]      what any source knows of an attachment
    namespaces.Live                                        which namespaces exist

Nothing here changes anything, and nothing is on the request path.
"""
