"""The firewall plugin (docs/plugins/firewall.md)."""
