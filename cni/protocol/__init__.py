"""The CNI specification and nothing else: no kernel, no I/O beyond stdin and stdout."""
