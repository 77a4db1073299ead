"""What is written down of requests: docs/observability.md.

    log        a line a request, in a file or in the journal
    settings   which requests get one, and where it goes

Nothing here is loaded for a request that is not recorded, and nothing here raises: what cannot be
recorded is left out, and the request is answered as it would be without.
"""
