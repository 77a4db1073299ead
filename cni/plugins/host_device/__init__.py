"""The host-device plugin (docs/plugins/host-device.md)."""
