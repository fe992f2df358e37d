"""Records on disk, and the comparison that fills them."""
