"""Generated from proto/ by scripts/generate.py; nothing in here is written by hand."""
