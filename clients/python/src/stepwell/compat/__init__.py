"""Drop-in replacements for the trackers of other projects."""
