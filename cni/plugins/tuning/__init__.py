"""The tuning plugin (docs/plugins/tuning.md)."""
