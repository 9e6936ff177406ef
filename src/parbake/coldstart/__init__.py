"""What a start reads of its disk, and how nodes get that early."""
