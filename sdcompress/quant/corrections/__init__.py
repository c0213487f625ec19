"""What makes up for part of the error of few bits, each correction in a file of its own."""
