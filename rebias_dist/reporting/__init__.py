"""Runs side by side: their figures as a DataFrame, tables, pictures, the page.

No torch is imported unless a run's images are shown.
"""
