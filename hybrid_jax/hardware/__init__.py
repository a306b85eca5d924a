"""What accelerators can do and how they are joined."""
