"""The processes of a run: which rank each is, how they meet, agree and stop."""
