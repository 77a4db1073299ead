"""A module, or a folder, for each plugin; its code has the order of its documentation."""
