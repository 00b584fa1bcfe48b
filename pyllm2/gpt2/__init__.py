"""The GPT-2 half: `ops` is the specification, `model` puts it together, both directions."""
