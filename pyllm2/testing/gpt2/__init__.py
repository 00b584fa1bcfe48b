"""The table of GPT-2's ops and what it is made of: bounds, strategies, laws, gradients."""
