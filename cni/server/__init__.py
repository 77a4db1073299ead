"""The warm path: a server whose workers answer requests without starting an interpreter.

    client (launcher/client.c)  ── request ──────────────────────▶  worker
                                ◀─ hello ─────────────────────────
                                ── go: descriptors, credentials ─▶
                                ◀─ exit code and output ──────────

    supervisor   preloads every plugin, and keeps forked workers that accept from one socket
    worker       serves one request at a time
    reception    reads requests, so that no client holds up another
    peer         whether a client has what it would borrow from the server
    wire         the form of the messages
    relief       when there are additional workers, or clients are turned away
    farewell     turning clients away
    slots        what the processes tell each other
    warmup       what a worker does before its first request
    status       asking a running server
    trace        where a request's time goes

The server only makes requests faster: a client that is declined, waits too long or finds no server
runs the plugin by exec.
"""
