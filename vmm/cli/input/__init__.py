"""Files that the user names, read and checked."""
