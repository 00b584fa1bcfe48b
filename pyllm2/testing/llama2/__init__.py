"""The table of Llama-2's ops and what it is made of: bounds, strategies, laws, gradients."""
