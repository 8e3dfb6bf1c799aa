"""A file of inputs in, verified files and a ledger out: batches of Replicate predictions, each bought once."""
