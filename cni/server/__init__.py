"""The warm path: a server whose workers answer requests without starting an interpreter.

    client (launcher/client.c)  ──request; stderr, cwd, netns, routing socket──▶  worker
                                ◀──────── hello; exit code and output ───────────

`supervisor` preloads every plugin and keeps a number of forked workers, which accept from one
listening socket; `worker` serves one request at a time; `wire` is the form of a request. It is an
accelerator only: a client that is declined, kept waiting or alone runs the plugin by exec.
"""
