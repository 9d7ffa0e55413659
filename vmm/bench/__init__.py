"""What memslot operations cost on this kernel, through the library and in C, side by side."""
