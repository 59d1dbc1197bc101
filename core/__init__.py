"""Text -> score in C++: the library, its Triton backend and its Python binding."""
