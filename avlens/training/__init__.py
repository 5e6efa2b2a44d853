"""How the embedded models are made and measured. Nothing here runs when avlens is used."""
