"""The site: its pages, and the code that `make docs` builds and checks them with."""
