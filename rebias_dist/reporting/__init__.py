"""What a report is made of: published figures, protocols, pictures, tables, the page.

No torch is imported, unless pictures of samples are asked for.
"""
