"""The masked-attention core: slots, masks, position schemes and one `attend`."""
