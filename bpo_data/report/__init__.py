"""What the report shows, gathered from finished artifacts: a file for each question it answers."""
