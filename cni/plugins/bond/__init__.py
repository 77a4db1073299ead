"""The bond plugin (docs/plugins/bond.md)."""
