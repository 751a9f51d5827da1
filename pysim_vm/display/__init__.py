"""What a notebook shows: registers, exits, page walks, tables, memory and the screen, as text and as HTML."""
