"""Checks of single images: integrity, duplicates, contact sheets, textures."""
