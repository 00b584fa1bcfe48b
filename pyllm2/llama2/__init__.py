"""The Llama-2 half: `ops` is the specification, `model` reads like the diagram."""
