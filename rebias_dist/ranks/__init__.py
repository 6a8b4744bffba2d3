"""The processes of a run: their ranks, how they join, agree and stop."""
