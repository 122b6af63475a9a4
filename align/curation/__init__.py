"""What `curate` removes and changes: duplicates, personal data, benchmark questions, bad rows."""
