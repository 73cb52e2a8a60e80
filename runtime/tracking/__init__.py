"""Ids over frames, and what of them crosses lines and is in zones."""
