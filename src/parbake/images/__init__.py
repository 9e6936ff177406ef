"""Images: from references to verified layers."""
