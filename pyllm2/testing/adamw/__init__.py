"""The table of the optimizer's ops and what it is made of: bounds, strategies, laws."""
