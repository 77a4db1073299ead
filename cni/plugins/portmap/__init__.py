"""The portmap plugin (docs/plugins/portmap.md)."""
