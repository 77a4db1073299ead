"""The bridge plugin (docs/plugins/bridge.md)."""
