"""What rewards check answers with: numbers, formulas, instructions, formats, code in a sandbox."""
