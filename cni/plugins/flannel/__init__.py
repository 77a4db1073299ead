"""The flannel plugin (docs/plugins/flannel.md)."""
