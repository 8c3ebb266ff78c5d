"""How families of models write tool calls, one file each; output_format has their table."""
