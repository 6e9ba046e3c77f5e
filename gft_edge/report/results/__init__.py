"""Result files: found, read and checked."""
