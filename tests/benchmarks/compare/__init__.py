"""The comparison with other libraries: processes that take turns (`arena`), who they are (`contestants`), what they
are asked (`contest`), and what is told of it (`table`, `chart`)."""
