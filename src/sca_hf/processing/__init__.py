"""Images, prompts and captions in, records of regions out."""
