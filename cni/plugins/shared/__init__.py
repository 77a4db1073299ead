"""Code that several plugins share. No module here depends on a plugin."""
