"""Zero-shot retrieval: which picture of a gallery was seen, by a contrastive run."""
