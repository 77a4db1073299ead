"""The bandwidth plugin (docs/plugins/bandwidth.md)."""
