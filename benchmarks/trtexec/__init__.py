"""trtexec: commands, output, engine layers."""
