"""One module a plugin; each reads from top to bottom like its documentation."""
