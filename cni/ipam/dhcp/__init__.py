"""dhcp: addresses from a DHCP server, leased by a daemon (docs/spec/dhcp.md).

    plugin ── rpc ──▶ daemon ── attachment ──▶ binding4, binding6 ── interface ──▶ netns

The plugin's side is `plugin`, `conf` and `rpc`; everything else runs only in the daemon, which is
one process with one event loop, whatever the number of leases.
"""
