"""What several plugins share. Nothing here knows a plugin."""
