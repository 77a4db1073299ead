"""The macvlan plugin (docs/plugins/macvlan.md)."""
