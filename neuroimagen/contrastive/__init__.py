"""EEG into the space of image features, by contrast with all other pictures of the global batch."""
