"""The host-local plugin: addresses from ranges, kept as files (docs/plugins/host-local.md)."""
