"""What is on this node, gathered for people: the one place that all commands draw from.

    attachments.gather(Places, network) -> [Attached]      what any source knows of an attachment
    namespaces.Live                                        which namespaces exist

Nothing here changes anything, and nothing is on the request path.
"""
