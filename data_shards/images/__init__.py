"""Single images: is it whole, is it a duplicate, how does it look, which texture has it."""
