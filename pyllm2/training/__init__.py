"""What training needs whatever the model: parameters, optimizer, schedule, data, the loop."""
