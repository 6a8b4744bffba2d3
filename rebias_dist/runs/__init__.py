"""The files in runs/<name>/: checkpoints, attempts, results, and how a run resumes from them."""
