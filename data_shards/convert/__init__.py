"""From a listing of images to a published split: plan, workers, journal, publication."""
