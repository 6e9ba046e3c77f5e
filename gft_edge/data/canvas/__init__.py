"""What scenes are drawn with: textures for the background, masks of signs, shapes and strokes."""
