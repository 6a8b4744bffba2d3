"""Images from a list of addresses: asked for politely, checked, kept in class folders."""
