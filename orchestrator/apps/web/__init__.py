"""The web part: the webhook that Replicate reports to, and a small API to look at batches."""
