"""Values in files, without pickle: file operations, files of arrays, and nested values made of both."""
