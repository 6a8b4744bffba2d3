"""Checks of images before conversion and of shards after it."""
