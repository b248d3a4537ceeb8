"""Raw click logs to the training format. Imports no torch, so that the command starts at once."""
