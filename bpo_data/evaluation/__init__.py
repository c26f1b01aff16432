"""What an evaluation measures, one file for each idea."""
