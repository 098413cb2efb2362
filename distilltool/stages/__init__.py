"""The four stages, named as the commands; they meet on disk and never import each other."""
