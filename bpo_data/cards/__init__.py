"""Parts of the dataset card: its metadata, its figures, and Markdown that no text can break."""
