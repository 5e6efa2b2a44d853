"""Numbers that sum up many runs or captions: one file, one metric."""
