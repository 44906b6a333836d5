"""Helpers that all other packages use and that import none of them: errors, files, configurations, signals."""
